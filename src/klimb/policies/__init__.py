"""Policies: a pytree that is called with one observation and answers with a distribution over actions."""
