"""Experiment trackers: W&B, MLflow and classes of the user's own, which are given the records of runs."""
