"""Runs: the directory a training leaves behind, and everything that reads it."""
