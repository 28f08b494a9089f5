"""Guided: planning with a model of the dynamics, and the controllers around its plans that can teach a policy."""
