"""Errors whose message is meant for the person at the keyboard: cause, numbers and remedy in one line."""


class KlimbError(Exception):
    """Something the caller can mend. The command line prints it in one line and exits with 2."""


class ConfigError(KlimbError, ValueError):
    """A configuration that does not say a valid run: unknown names, wrong types, values out of range."""


class EnvironmentNotFound(KlimbError, ValueError):
    """No environment has this name."""


class UnsupportedSpace(KlimbError, ValueError):
    """An observation or action space that klimb has no network or distribution for."""


class MissingExtra(KlimbError, ImportError):
    """An optional package is needed and not installed."""


class PolicyFileError(KlimbError):
    """A policy file that is missing, damaged, of another format, or trained on another environment."""


class RunError(KlimbError):
    """A run directory that can't be used as asked: exists already, is none, or holds no usable checkpoint."""
