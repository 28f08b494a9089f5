"""`tune.toml` and `trials.json`: a search for good values of options, and the trials that it has made.

A run directory stands beside them for every trial. `trials.json` is what a search goes on from. Optuna's journal is
written from it and never read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from klimb.errors import ConfigError, NameTaken, RunError, one_line, shown
from klimb.fields import MAX_NAME, STRICT, explain
from klimb.files import exists, is_file, make_new_directory, read_limited, write_text
from klimb.improve.rule import Rule, is_offline
from klimb.runs.changes import with_changes
from klimb.runs.config import RunConfig
from klimb.runs.own_files import TRIALS, TUNE
from klimb.runs.search_space import Domain, search_space
from klimb.runs.sweep_file import Member
from klimb.runs.toml import read_toml, toml_value

MAX_TRIALS = 4096
MAX_AT_ONCE = 256
MAX_FILE = 2**26
RUNGS = (25, 50)
"""Percent of a training after which trials are compared, when trials are pruned."""

Number = Annotated[int, Field(ge=0, lt=2**53)]
Text = Annotated[str, Field(max_length=4096)]
State = Literal["running", "complete", "pruned", "failed"]


@checked_dataclass(frozen=True, config=STRICT)
class Trial:
    """One combination of values that a search has tried.

    number: from 0. values: by the names of the searched fields. state: `running` until it is trained and evaluated;
    `pruned` when its training was ended early because others were better; `failed` when it could not be trained.
    score: mean return of the final evaluation, over episodes and seeds; None if it has none. rungs: (percent, score)
    for each evaluation by which trials are pruned: the percent of the training that it came after. note: why it
    failed. started, ended: in UTC.
    """

    number: Number
    values: dict[str, Any]
    state: State = "running"
    score: float | None = None
    rungs: tuple[tuple[Number, float], ...] = ()
    note: Text | None = None
    started: Text | None = None
    ended: Text | None = None

    @property
    def name(self) -> str:
        """Of its run directory."""
        return f"trial-{self.number:04}"

    def score_at(self, percent: int) -> float | None:
        """The score after a part of the training; None if it was not evaluated there. percent: of the training."""
        return dict(self.rungs).get(percent)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """A search. config: of every trial but for what is searched. over: the values that each searched field may have.

    trials: how many are made. at_once: how many of them are proposed and trained together. prune: whether trials that
    are worse than others are ended early. preset: that the configuration was made with, for the runs' provenance.
    """

    config: RunConfig
    over: Mapping[str, Domain]
    trials: int
    at_once: int
    prune: bool
    preset: str | None = None

    def __post_init__(self) -> None:
        for name, value, most in (("trials", self.trials, MAX_TRIALS), ("trials_at_once", self.at_once, MAX_AT_ONCE)):
            if type(value) is not int or not 1 <= value <= most:
                raise ConfigError(f"{name} = {shown(value)}; a search has 1 to {most}")
        if type(self.prune) is not bool:
            raise ConfigError(f"prune = {shown(self.prune)}; it is true or false")
        options = self.config.options
        if options.eval_episodes == 0:
            raise ConfigError(
                "eval_episodes = 0, but the score of a trial is the mean return of its final evaluation: give "
                "--eval-episodes 1 or more"
            )
        if self.prune and (is_offline(self.config.rule) or options.batch == "episodes"):
            what = "passes over demonstrations" if is_offline(self.config.rule) else "batch = episodes"
            raise ConfigError(
                f"trials are pruned after some iterations of equal size, not with {what}: leave --prune off"
            )

    def config_of(self, trial: Trial) -> RunConfig:
        """The configuration of a trial. ConfigError when its values can't be combined."""
        return with_changes(self.config, trial.values)

    def to_toml(self) -> str:
        """What `read` reads."""
        head = [] if self.preset is None else [f"preset = {toml_value(self.preset)}"]
        settings = {"trials": self.trials, "trials_at_once": self.at_once, "prune": self.prune}
        lines = [f"{name} = {toml_value(value)}" for name, value in settings.items()]
        over = [f"{name} = {toml_value(domain.written)}" for name, domain in self.over.items()]
        return "\n".join([*head, self.config.to_toml(), "[tune]", *lines, "", "[over]", *over]) + "\n"

    def change_trials(self, directory: Path, trials: int) -> Tuning:
        """The same search with another number of trials, which is written. RunError when it can't be.

        directory: of the search. trials: how many it makes altogether.
        """
        changed = dataclasses.replace(self, trials=trials)
        try:
            write_text(directory / TUNE, changed.to_toml())
        except OSError as error:
            raise RunError(f"cannot write {one_line(directory / TUNE)}: {error.strerror}") from None
        return changed

    def write(self, directory: Path) -> None:
        """Make the directory of the search, with its description. NameTaken when it exists, RunError if it can't be.

        directory: to make.
        """
        require_unused_by_searches(directory)
        text = self.to_toml()
        try:
            make_new_directory(directory)
            write_text(directory / TUNE, text)
        except FileExistsError:
            require_unused_by_searches(directory)
        except OSError as error:
            raise RunError(f"cannot write the search into {one_line(directory)}: {error.strerror}") from None

    @classmethod
    def read(cls, directory: Path) -> Tuning:
        """The search in a directory. RunError when there is none, ConfigError when its file is damaged."""
        path = directory / TUNE
        if not is_file(path):
            raise RunError(f"{one_line(directory)} is not a search: it has no {TUNE}")
        tree = read_toml(path)
        over, settings, preset = tree.pop("over", None), tree.pop("tune", None), tree.pop("preset", None)
        if not isinstance(over, dict):
            raise ConfigError(f"{one_line(path)}: [over] has a range for each field; here it is {shown(over)}")
        kinds = {"trials": int, "trials_at_once": int, "prune": bool}
        if not isinstance(settings, dict) or {name: type(value) for name, value in settings.items()} != kinds:
            raise ConfigError(
                f"{one_line(path)}: [tune] has trials, trials_at_once and prune; here it is {shown(settings)}"
            )
        if not (preset is None or (isinstance(preset, str) and len(preset) <= MAX_NAME)):
            raise ConfigError(f"{one_line(path)}: preset is the name of one, and not {shown(preset)}")
        try:
            config = RunConfig.from_dict(tree)
            numbers = settings["trials"], settings["trials_at_once"], settings["prune"]
            return cls(config, search_space(config, over), *numbers, preset)
        except ConfigError as error:
            raise ConfigError(f"{one_line(path)}: {error}") from None


@dataclasses.dataclass(frozen=True)
class TrialBatch:
    """Trials that are trained together, as a plan for `SweepTrainer`. tuning: the search. trials: of it."""

    tuning: Tuning
    trials: Sequence[Trial]
    noun: ClassVar[str] = "trials"
    varies_options: ClassVar[bool] = True

    @property
    def config(self) -> RunConfig:
        return self.tuning.config

    @property
    def over(self) -> Mapping[str, Domain]:
        return self.tuning.over

    @property
    def preset(self) -> str | None:
        return self.tuning.preset

    def members(self) -> list[Member]:
        """Every trial, with the name of its run directory."""
        return [Member(trial.name, self.tuning.config_of(trial)) for trial in self.trials]

    def write(self, directory: Path) -> None:
        """As `Tuning.write`. directory: to make."""
        self.tuning.write(directory)


def read_tuning(directory: str | Path, *, rule: Rule | None = None, trust: bool) -> Tuning:
    """A search, ready to be gone on with.

    directory: of the search. rule: the search's, where the file can't name it. trust: whether modules that the file
    names may be imported. Raises RunError and ConfigError when it can't be read, UntrustedEnvironment when a module
    may not be imported.
    """
    tuning = Tuning.read(Path(directory))
    config = tuning.config if rule is None else with_changes(tuning.config, {}, rule)
    return dataclasses.replace(tuning, config=config.require_modules(Path(directory) / TUNE, trust=trust))


def write_trials(directory: Path, trials: Sequence[Trial]) -> None:
    """Write the trials of a search, atomically. RunError when they can't be written.

    directory: of the search. trials: all of them, in order.
    """
    rows = [json.dumps(dataclasses.asdict(trial), allow_nan=False) for trial in trials]
    try:
        write_text(directory / TRIALS, "[\n" + ",\n".join(rows) + "\n]\n")
    except OSError as error:
        raise RunError(f"cannot write {one_line(directory / TRIALS)}: {error.strerror}") from None


def read_trials(directory: Path, tuning: Tuning) -> list[Trial]:
    """The trials of a search so far; none before the first. RunError when the file is damaged.

    directory: of the search. tuning: the search that they belong to.
    """
    path = directory / TRIALS
    if not exists(path):
        return []
    try:
        trials = TypeAdapter(list[Trial]).validate_json(read_limited(path, MAX_FILE))
        reason = next(filter(None, (_misfit(trial, i, tuning) for i, trial in enumerate(trials))), None)
        if len(trials) > MAX_TRIALS:
            reason = f"it has {len(trials)} trials, and a search at most {MAX_TRIALS}"
        if reason is None:
            return trials
    except ValidationError as error:
        reason = explain(error)
    except (OSError, ValueError, RecursionError) as error:
        reason = str(error)
    raise RunError(
        f"{one_line(path)} does not hold the trials of {TUNE} beside it ({one_line(reason, 200)}): restore it from a "
        "copy, or start another search"
    )


def _misfit(trial: Trial, place: int, tuning: Tuning) -> str | None:
    """What is wrong with a trial of a file; None if nothing is. place: in the file. tuning: the search."""
    if trial.number != place:
        return f"trial {place} has the number {trial.number}"
    if set(trial.values) != set(tuning.over):
        return f"trial {place} has values of {shown(sorted(trial.values))}"
    for name, domain in tuning.over.items():
        if not domain.contains(trial.values[name]):
            return f"trial {place} has {name} = {shown(trial.values[name])}, which is not searched"
    if trial.state == "complete" and trial.score is None:
        return f"trial {place} is complete and has no score"
    return None


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """The complete trial with the highest score, the first of several; None without one. trials: of a search."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.score is not None]
    return max(complete, key=lambda trial: trial.score or 0.0, default=None)


def is_search(directory: Path) -> bool:
    """Whether a directory is that of a search."""
    try:
        return is_file(directory / TUNE)
    except RunError:
        return False


def require_unused_by_searches(directory: Path) -> None:
    """NameTaken when there is something of this name. directory: of a new search."""
    if exists(directory):
        raise NameTaken(f"{one_line(directory)} exists already; choose another directory for the search")
