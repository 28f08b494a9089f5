"""Trajectory optimisation through known dynamics. Nothing here learns."""
