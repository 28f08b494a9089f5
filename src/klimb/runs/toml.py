"""TOML as klimb reads and writes it: `none` for what has no value, and limits to what a stranger's file may ask for."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from klimb.errors import ConfigError, one_line, shown
from klimb.files import TooLarge, read_limited

MAX_FILE = 2**20
MAX_DOTS = 2000


def read_toml(path: Path) -> dict[str, Any]:
    """The tree of a configuration file. ConfigError, with the file's name, when it can't be read or is not TOML."""
    try:
        return parse_toml(read_limited(path, MAX_FILE).decode("utf-8"))
    except TooLarge:
        raise ConfigError(f"{one_line(path)}: it is larger than any run configuration ({MAX_FILE} bytes)") from None
    except OSError as error:
        raise ConfigError(f"cannot read {one_line(path)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{one_line(path)} is not a text file") from None
    except ConfigError as error:
        raise ConfigError(f"{one_line(path)}: {error}") from None
    except ValueError:  # a NUL in the path
        raise ConfigError(f"cannot read {one_line(path)}: it is not the name of a file") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tree of a configuration. ConfigError when the text is not TOML."""
    # tomllib takes time and memory in the square of the number of dots in a key.
    if text.count(".") > MAX_DOTS:
        raise ConfigError(f"it has {text.count('.')} dots, and no run configuration has more than {MAX_DOTS}")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply for TOML of a run") from None
    except ValueError as error:  # also an integer of thousands of digits, which is no TOMLDecodeError
        raise ConfigError(f"the configuration is not valid TOML: {one_line(error)}") from None


def toml_value(value: Any) -> str:
    """A TOML value. TOML has no null: `none` stands for it, as on the command line."""
    match value:
        case None:
            return '"none"'
        case bool():
            return "true" if value else "false"
        case int():
            return repr(value)
        case float():  # also NumPy's, whose repr is no TOML
            return repr(float(value))
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple() | list():
            return "[" + ", ".join(toml_value(item) for item in value) + "]"
    raise ConfigError(
        f"{shown(value)} can't be written to config.toml, which holds numbers, text, true, false, none and lists of "
        "them: give the rule other fields, or leave out run_dir"
    )
