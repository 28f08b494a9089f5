"""Collecting from environments that run in Python: decisions in NumPy, steps here or in worker processes."""
