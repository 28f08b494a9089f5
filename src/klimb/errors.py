"""Errors whose message is meant for the person at the keyboard."""


class KlimbError(Exception):
    """Something the caller can mend. The message says cause, numbers and remedy in one line."""


class PolicyFileError(KlimbError):
    """A policy file that is missing, damaged or of another format."""


class RunError(KlimbError):
    """A run directory that can't be used as asked: exists already, is none, or holds no usable checkpoint."""


class ConfigError(KlimbError):
    """A configuration that does not say a valid run: unknown names, wrong types, values out of range."""
