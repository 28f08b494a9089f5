"""Classic control, compiled and differentiable: one environment a file."""
