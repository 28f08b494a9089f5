"""`sweep.toml`: what a sweep trains, so that it can be gone on with as a whole. A run directory stands beside it for
every combination of values.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from klimb.errors import ConfigError, NameTaken, RunError, one_line, shown
from klimb.fields import MAX_NAME
from klimb.files import exists, is_file, make_new_directory, write_text
from klimb.improve.rule import Rule
from klimb.runs.changes import value_of, with_changes
from klimb.runs.config import RunConfig
from klimb.runs.own_files import SWEEP
from klimb.runs.toml import read_toml, toml_value

MAX_COMBINATIONS = 4096


class Member(NamedTuple):
    """One combination of the values: the name of its run directory, FIELD=VALUE,…, and its configuration."""

    name: str
    config: RunConfig


@dataclasses.dataclass(frozen=True)
class Sweep:
    """A sweep. config: of every run but for what is varied. over: the values of each varied option or rule's field.

    preset: that the configuration was made with, for the provenance of the runs.
    """

    config: RunConfig
    over: Mapping[str, Sequence[Any]]
    preset: str | None = None
    noun: ClassVar[str] = "combinations"
    varies_options: ClassVar[bool] = False

    def members(self) -> list[Member]:
        """Every combination, in the order of `itertools.product`.

        Raises ConfigError for fields that can't be varied, and for values that are out of range or given twice.
        """
        for name, values in self.over.items():
            if name == "num_seeds":
                raise ConfigError(
                    "num_seeds can't be swept over: every combination is trained with as many seeds; set their number "
                    "(--num-seeds K), or sweep over seed"
                )
            if not values:
                raise ConfigError(f"there are no values of {name} to sweep over")
        count = math.prod(map(len, self.over.values()))
        if count > MAX_COMBINATIONS:
            raise ConfigError(f"{count} combinations of values; a sweep has at most {MAX_COMBINATIONS}")
        if not self.over:
            raise ConfigError("a sweep needs a field and its values, such as max_kl = 0.003, 0.01, 0.03")
        members: dict[str, Member] = {}
        for values in itertools.product(*self.over.values()):
            config = with_changes(self.config, dict(zip(self.over, values, strict=True)))
            name = ",".join(f"{field}={value_in_a_name(value_of(config, field))}" for field in self.over)
            if name in members:
                words = {field: [value_in_a_name(value) for value in values] for field, values in self.over.items()}
                repeated = next((field for field, names in words.items() if len(set(names)) < len(names)), name)
                raise ConfigError(f"the values of {repeated} to sweep over are not all different")
            members[name] = Member(name, config)
        self._require_different_seeds()
        return list(members.values())

    def _require_different_seeds(self) -> None:
        """ConfigError when two values of `seed` have seeds in common."""
        each = self.config.options.num_seeds
        for one, other in itertools.pairwise(sorted(self.over.get("seed", []))):
            if other - one < each:
                raise ConfigError(
                    f"seed = {one} and seed = {other} with num_seeds = {each} both train seed {other}: choose values "
                    f"that are at least {each} apart, or num_seeds = 1"
                )

    def write(self, directory: Path) -> None:
        """Make the directory of the sweep, with its description. NameTaken when it exists, RunError if it can't be.

        directory: to make.
        """
        require_unused_by_sweeps(directory)
        head = [] if self.preset is None else [f"preset = {toml_value(self.preset)}"]
        lines = [f"{name} = {toml_value(list(values))}" for name, values in self.over.items()]
        try:
            make_new_directory(directory)
            write_text(directory / SWEEP, "\n".join([*head, self.config.to_toml(), "[over]", *lines]) + "\n")
        except FileExistsError:
            require_unused_by_sweeps(directory)
        except OSError as error:
            raise RunError(f"cannot write the sweep into {one_line(directory)}: {error.strerror}") from None

    @classmethod
    def read(cls, directory: Path) -> Sweep:
        """The sweep in a directory. RunError when there is none, ConfigError when its file is damaged."""
        path = directory / SWEEP
        if not is_file(path):
            raise RunError(f"{one_line(directory)} is not a sweep: it has no {SWEEP}")
        tree = read_toml(path)
        over = tree.pop("over", None)
        if not isinstance(over, dict) or not all(isinstance(values, list) for values in over.values()):
            raise ConfigError(f"{one_line(path)}: [over] has a list of values for each field; here it is {shown(over)}")
        preset = tree.pop("preset", None)
        if not (preset is None or (isinstance(preset, str) and len(preset) <= MAX_NAME)):
            raise ConfigError(f"{one_line(path)}: preset is the name of one, and not {shown(preset)}")
        try:
            return cls(RunConfig.from_dict(tree), over, preset)
        except ConfigError as error:
            raise ConfigError(f"{one_line(path)}: {error}") from None


def read_sweep(directory: str | Path, *, rule: Rule | None = None, trust: bool) -> Sweep:
    """The plan of a sweep, ready to be trained with.

    directory: of the sweep. rule: the sweep's, where the file can't name it. trust: whether modules that the file
    names may be imported. Raises RunError and ConfigError when it can't be read, UntrustedEnvironment when a module
    may not be imported.
    """
    plan = Sweep.read(Path(directory))
    config = plan.config if rule is None else with_changes(plan.config, {}, rule)
    return dataclasses.replace(plan, config=config.require_modules(Path(directory) / SWEEP, trust=trust))


def is_sweep(directory: Path) -> bool:
    """Whether a directory is that of a sweep."""
    try:
        return is_file(directory / SWEEP)
    except RunError:
        return False


def require_unused_by_sweeps(directory: Path) -> None:
    """NameTaken when there is something of this name. directory: of a new sweep."""
    if exists(directory):
        raise NameTaken(f"{one_line(directory)} exists already; choose another directory for the sweep")


def value_in_a_name(value: Any) -> str:
    """A value as part of the name of a directory: 0.003, true, none, 64x64. value: as a configuration has it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case list() | tuple():
            return "x".join(map(value_in_a_name, value)) or "none"
        case float():
            return repr(float(value))
    return re.sub(r"[^-+.@\w]", "-", str(value), flags=re.ASCII)
