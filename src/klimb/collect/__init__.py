"""Collect: where experience comes from. Every collector returns a `Rollout` and the episodes that ended in it."""
