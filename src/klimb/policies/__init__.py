"""Policies: pytrees that are called with one observation and return a distribution over actions."""
