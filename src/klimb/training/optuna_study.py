"""What a search asks of Optuna: which values to try next, which fields matter, and a journal for Optuna's own tools.

A study is made anew in memory from the trials of the search each time. So what it proposes is a function of these
trials and of a seed alone: a search that goes on after a stop proposes what it would have proposed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np

from klimb.errors import MissingExtra
from klimb.runs.search_space import Choice, Domain
from klimb.runs.sweep_file import value_in_a_name
from klimb.runs.tune_file import Trial

RANDOM_TRIALS = 8
"""Trials that are drawn at random, before there is something to learn from."""
MAX_REPEATS = 50
"""Proposals that were all made before, after which there is nothing new to try."""
MIN_TRIALS = 8
"""Complete trials without which the importance of a field is not known."""


def load_optuna() -> Any:
    """The package `optuna`. MissingExtra when it is not installed."""
    try:
        import optuna
    except ImportError:
        raise MissingExtra("klimb tune needs Optuna: pip install 'klimb[tune]'") from None
    return optuna


def propose(space: Mapping[str, Domain], trials: Sequence[Trial], count: int, seed: int) -> list[dict[str, Any]]:
    """Values to try next, by field, which have not been tried; fewer than asked for when there are no others.

    The first trials are drawn at random, and then by the tree-structured Parzen estimator (Bergstra et al. 2011), which
    takes a trial of the same batch, whose score is not known yet, for a bad one (constant liar).

    space: the values that each field may have. trials: those that were made. count: how many to propose, at least 1.
    seed: of the search.
    """
    optuna = load_optuna()
    # A stream of its own for each number of trials: a sampler's state is not kept.
    state = int(np.random.SeedSequence([seed, len(trials)]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(seed=state, n_startup_trials=RANDOM_TRIALS, constant_liar=True)
    proposed: list[dict[str, Any]] = []
    with _quiet(optuna):
        study = _study(optuna, space, trials, sampler=sampler)
        tried = {_key(trial.values) for trial in trials}
        for _ in range(MAX_REPEATS * count):
            asked = study.ask(_distributions(optuna, space))
            values = {name: _value(domain, asked.params[name]) for name, domain in space.items()}
            if _key(values) in tried:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
                continue
            tried.add(_key(values))
            proposed.append(values)
            if len(proposed) == count:
                break
    return proposed


def importances(space: Mapping[str, Domain], trials: Sequence[Trial]) -> dict[str, float]:
    """How much each field decides whether a trial is among the best tenth (PED-ANOVA, Watanabe et al. 2023).

    space: the values that each field may have. trials: of the search; only complete ones count.
    Returns parts of 1 by field, the largest first; nothing with fewer than `MIN_TRIALS` complete trials.
    """
    optuna = load_optuna()
    complete = [trial for trial in trials if trial.state == "complete"]
    if len(complete) < MIN_TRIALS:
        return {}
    with _quiet(optuna):
        found = optuna.importance.get_param_importances(_study(optuna, space, complete))
    return dict(sorted(((name, float(part)) for name, part in found.items()), key=lambda pair: (-pair[1], pair[0])))


def journal(name: str, space: Mapping[str, Domain], trials: Sequence[Trial]) -> str:
    """The search as the lines of a journal, which Optuna's JournalFileBackend and its dashboard read.

    name: of the study. space, trials: of the search.
    """
    optuna = load_optuna()
    logs: list[dict[str, Any]] = []

    backend: Any = optuna.storages.journal.BaseJournalBackend

    class InMemory(backend):
        """Keeps the log; klimb writes it."""

        def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
            return logs[log_number_from:]

        def append_logs(self, new: list[dict[str, Any]]) -> None:
            logs.extend(new)

    with _quiet(optuna):
        _study(optuna, space, trials, storage=optuna.storages.JournalStorage(InMemory()), study_name=name)
    return "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs)


def _study(optuna: Any, space: Mapping[str, Domain], trials: Sequence[Trial], **options: Any) -> Any:
    """A study that has made some trials."""
    study = optuna.create_study(direction="maximize", **options)
    distributions = _distributions(optuna, space)
    for trial in trials:
        study.add_trial(_frozen(optuna, distributions, trial, space))
    return study


def _frozen(optuna: Any, distributions: dict[str, Any], trial: Trial, space: Mapping[str, Domain]) -> Any:
    """A trial as Optuna keeps it. The value of a pruned one is that of its last evaluation, as Optuna itself has it."""
    states = {"running": "RUNNING", "complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
    value = trial.score
    if trial.state == "pruned":
        value = trial.rungs[-1][1] if trial.rungs else None
    return optuna.trial.FrozenTrial(
        number=trial.number,
        trial_id=trial.number,
        state=optuna.trial.TrialState[states[trial.state]],
        value=value if trial.state in ("complete", "pruned") else None,
        datetime_start=_local(trial.started) or datetime.now(),
        datetime_complete=None if trial.state == "running" else _local(trial.ended) or datetime.now(),
        params={name: _internal(domain, trial.values[name]) for name, domain in space.items()},
        distributions=distributions,
        user_attrs={"directory": trial.name},
        system_attrs={},
        intermediate_values=dict(trial.rungs),
    )


def _distributions(optuna: Any, space: Mapping[str, Domain]) -> dict[str, Any]:
    return {name: _distribution(optuna.distributions, domain) for name, domain in space.items()}


def _distribution(kinds: Any, domain: Domain) -> Any:
    if isinstance(domain, Choice):
        return kinds.CategoricalDistribution(domain.labels)
    if domain.whole:
        return kinds.IntDistribution(int(domain.low), int(domain.high), log=domain.log)
    return kinds.FloatDistribution(domain.low, domain.high, log=domain.log)


def _value(domain: Domain, proposed: Any) -> Any:
    """A proposed value as a configuration has it, in plain numbers and lists."""
    if isinstance(domain, Choice):
        value = domain.values[domain.labels.index(proposed)]
        return list(value) if isinstance(value, tuple) else value
    return domain.rounded(proposed)


def _internal(domain: Domain, value: Any) -> Any:
    """The inverse of `_value`."""
    if isinstance(domain, Choice):
        return value_in_a_name(value)
    return int(value) if domain.whole else float(value)


def _key(values: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(value_in_a_name(value) for value in values.values())


def _local(date: str | None) -> datetime | None:
    """A time in UTC as Optuna has it: local, without a zone."""
    if date is None:
        return None
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return datetime.fromisoformat(date).astimezone().replace(tzinfo=None)
    return None


@contextlib.contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    """Without Optuna's own lines about studies and trials."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
