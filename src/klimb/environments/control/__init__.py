"""Classic control, compiled and differentiable, one file per environment."""
