"""Guided policy search: planned or fitted controllers whose behaviour a policy learns."""
