"""Trajectory optimisation through known dynamics, without learning."""
