"""Estimate: what the batch says. Returns, advantages, importance weights, the critic."""
