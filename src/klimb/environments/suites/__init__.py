"""Environments of other libraries that are written in JAX, one file a library; each is imported when one is made."""
