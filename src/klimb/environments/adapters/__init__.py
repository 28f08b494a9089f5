"""Environments of other packages: one ecosystem a file."""
