"""`tune` and `resume_tune`: a search for good values of options and of a rule's fields, in batches of trials."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import shlex
import shutil
import signal
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from klimb.collect.evaluation import Evaluator
from klimb.collect.host.ray_cluster import RayCluster
from klimb.environments.registry import Environment, make, recorded_name, require_trust
from klimb.errors import ConfigError, EnvironmentFault, KlimbError, NameTaken, RunError, TrainingFailed, one_line
from klimb.files import (
    as_path,
    is_file,
    kind_of_link,
    make_directory,
    read_limited,
    remove_if_possible,
    write_atomically,
    write_text,
)
from klimb.improve.rule import Rule
from klimb.runs.config import RunConfig
from klimb.runs.directory import NewName, RunDirectory
from klimb.runs.ending import Ending
from klimb.runs.lock import RunLock
from klimb.runs.own_files import BEST, JOURNAL, TRIALS, TUNE
from klimb.runs.search_space import search_space
from klimb.runs.tune_file import (
    RUNGS,
    Trial,
    TrialBatch,
    Tuning,
    best_of,
    read_trials,
    read_tuning,
    write_trials,
)
from klimb.runs.typed_options import SweepOptionsDict
from klimb.tracking.registry import sinks_of
from klimb.tracking.trackers import Trackers
from klimb.training import peers
from klimb.training.driver import Notify
from klimb.training.final_evaluation import FIRST_SEED, evaluate_run, evaluate_seeds
from klimb.training.given import options_of, require_rule
from klimb.training.loop import Interrupted
from klimb.training.networks import load_policies
from klimb.training.optuna_study import journal, load_optuna, propose
from klimb.training.progress.choice import view_of
from klimb.training.progress.view import SILENT, View
from klimb.training.sweep_on_ray import RaySweep, require_possible
from klimb.training.sweep_trainer import NewView, SweepTrainer

TRIALS_BY_DEFAULT, AT_ONCE = 64, 8
COPIED = ("config.toml", "policy*.json", "policy*.safetensors", "metrics.jsonl")
"""Files of the best trial that are copied first, and without which its copy is no run."""
COPIED_TOO = ("evaluation.json", "provenance.json", "ended.json")
MAX_COPIED = 2**31

logger = logging.getLogger("klimb")


@dataclasses.dataclass(frozen=True)
class TuneResult:
    """What a search has found.

    directory: of the search, with a run directory for each trial. trials: all of them, in order.
    """

    directory: Path
    trials: list[Trial]

    @property
    def best(self) -> Trial:
        """The trial with the highest score. RunError when none is complete."""
        best = best_of(self.trials)
        if best is None:
            raise RunError(f"no trial of {one_line(self.directory)} is complete")
        return best

    @property
    def best_values(self) -> dict[str, Any]:
        """The values of the best trial, by field."""
        return self.best.values

    @property
    def best_run(self) -> Path:
        """The run directory of the best trial."""
        return self.directory / self.best.name


def tune(
    env: str | Any,
    rule: Rule,
    over: Mapping[str, str | Sequence[Any]],
    *,
    run_dir: str | Path,
    trials: int = TRIALS_BY_DEFAULT,
    trials_at_once: int = AT_ONCE,
    prune: bool = False,
    progress: bool | View = False,
    ray: str | None = None,
    **options: Unpack[SweepOptionsDict],
) -> TuneResult:
    """Search for values of training options and of the rule's fields with which a training results in high returns.

    Optuna's tree-structured Parzen estimator proposes the values of each batch of trials from the scores of those
    before it. The score of a trial is the mean return of its final evaluation with deterministic actions, over
    `eval_episodes` episodes and all seeds. The same call makes the same trials.

    env: a name (see `klimb.make`) or an environment object. rule: with the values of what is not searched.
    over: for each field its range, `LOW:HIGH`, or `log:LOW:HIGH` for numbers spread over the logarithm, `int:LOW:HIGH`
        or `log-int:LOW:HIGH` for whole numbers (a field of type int has them anyway); or a list of values.
    run_dir: a directory to make, with a run directory for each trial in it.
    trials: how many to make, 1 to 4096. trials_at_once: how many to propose and train together, 1 to 256.
    prune: evaluate trials after 25 % and 50 % of their training, and end those whose score is below the median of all
        that have been evaluated there.
    progress, options: as for `train`; `num_seeds` seeds of each trial. ray: as for `sweep`.

    Returns all trials with their scores, and the best of them.
    Raises ConfigError for a field that is unknown or can't be searched, and for a range or a value that it does not
    have; MissingExtra without Optuna; RunError when `run_dir` exists; TrainingFailed when no trial could be trained.
    Ctrl-C saves checkpoints and raises `Interrupted`; `resume_tune` goes on.
    """
    require_rule(rule, env, "klimb.tune")
    environment = make(env)
    config = RunConfig(recorded_name(env), rule, options_of(rule, {**options}, "klimb.tune"))
    tuning = Tuning(config, search_space(config, over), trials, trials_at_once, prune)
    search = Search.start(tuning, environment, as_path(run_dir), new_view=partial(view_of, progress), ray=ray)
    for _ in search.run():
        pass
    return search.result


def resume_tune(
    run_dir: str | Path,
    *,
    env: Any | None = None,
    rule: Rule | None = None,
    trials: int | None = None,
    progress: bool | View = False,
    trust_environment: bool = False,
    notify: Notify = logger.info,
    ray: str | None = None,
) -> TuneResult:
    """Go on with a search that was stopped, or make more trials.

    Trials that are finished are kept, and those that are not go on from their checkpoints. The result is that of a
    search never stopped, byte for byte, as far as `resume` says so of a run.

    run_dir: the directory of the search. env, rule: needed only for a search that was started from Python with objects
        that a file can't name; the rule with the values of what is not searched.
    trials: how many to make altogether; None for the number that the search has.
    progress, ray: as for `tune`. trust_environment, notify: as for `resume`.

    Returns the trials, as `tune` does. Raises as `resume` and `tune`.
    """
    tuning = read_tuning(run_dir, rule=rule, trust=trust_environment)
    if env is None and not trust_environment:
        require_trust(tuning.config.env, Path(run_dir) / TUNE)
    environment = make(tuning.config.env if env is None else env)
    view = partial(view_of, progress)
    search = Search(tuning, environment, Path(run_dir), view, notify, ray, trust_environment)
    if trials is not None:
        search.change_trials(trials)
    for _ in search.run():
        pass
    return search.result


class Search:
    """A search: proposes trials, trains and evaluates them, and writes down what has come of it.

    tuning: the search. environment: the one that it names. directory: of the search, which has its file. new_view:
    makes the view of each program. notify: called with lines for people. ray: a cluster, or None. trust: whether
    modules that the files of the search name may be imported.
    """

    def __init__(
        self,
        tuning: Tuning,
        environment: Environment,
        directory: Path,
        new_view: NewView = lambda: SILENT,
        notify: Notify = logger.info,
        ray: str | None = None,
        trust: bool = False,
    ) -> None:
        load_optuna()
        sinks_of(tuning.config.options.log)
        peers.require_alone("a search")
        if ray is not None:
            require_possible(TrialBatch(tuning, ()), environment, ())
        self._tuning, self._environment, self.directory = tuning, environment, directory
        self._new_view, self._notify, self._ray, self._trust = new_view, notify, ray, trust
        self.trials = read_trials(directory, tuning)
        self._new = False
        """Whether its directory was made for it, and is removed when nothing can be trained at all."""
        self._trackers = Trackers()
        """A trial's are open from its first part to its evaluation."""
        self._evaluators: dict[int, Evaluator] = {}
        """By their numbers of episodes; their programs are compiled once for all trials."""

    @classmethod
    def start(cls, tuning: Tuning, environment: Environment, place: Path | NewName, **options: Any) -> Search:
        """A new search, whose directory is made. tuning, environment, options: as for the class. place: where."""
        tuning.config.check_demonstrations()
        sinks_of(tuning.config.options.log)
        load_optuna()
        while True:
            directory = place.unused() if isinstance(place, NewName) else place
            try:
                tuning.write(directory)
            except NameTaken:
                if not isinstance(place, NewName):
                    raise
                continue  # another search has taken the name at this moment
            try:
                # The modules that the search's own file names are those that the caller has named.
                search = cls(tuning, environment, directory, trust=True, **options)
                search._new = True
                return search
            except BaseException:
                _remove_empty(directory)
                raise

    @property
    def result(self) -> TuneResult:
        """What has been found so far."""
        return TuneResult(self.directory, self.trials)

    @property
    def names_modules(self) -> bool:
        """Whether the configuration names a module of the user's own."""
        return self._tuning.config.names_modules

    def change_trials(self, trials: int) -> None:
        """Make another number of trials altogether. ConfigError for fewer than there are. trials: how many."""
        if trials < len(self.trials):
            raise ConfigError(f"trials = {trials}, and the search has made {len(self.trials)} already: give more")
        self._tuning = self._tuning.change_trials(self.directory, trials)

    def run(self) -> Iterator[Trial]:
        """Go on to the last trial: each one when it is finished.

        Raises TrainingFailed when no trial could be trained; Interrupted after a signal.
        """
        lock = RunLock(self.directory)
        try:
            # Another process may have gone on with it until now.
            self.trials[:] = read_trials(self.directory, self._tuning)
            with self._cluster(), self._trackers:
                while self._running or self._propose():
                    yield from self._train()
                    self._write_best()
                    self._write_journal()
        except Interrupted:
            raise
        except KeyboardInterrupt as interrupt:  # between two programs
            raise Interrupted(f"stopped; {self._how_to_go_on}", signal.SIGINT, []) from interrupt
        except KlimbError:
            begun = any(is_file(self.directory / trial.name / "config.toml") for trial in self.trials)
            if self._new and not begun:
                _remove_empty(self.directory)
            raise
        finally:
            lock.release()
        if best_of(self.trials) is None:
            notes = [trial.note for trial in self.trials if trial.note]
            raise TrainingFailed(f"no trial could be trained: {notes[0] if notes else 'none is complete'}")

    @property
    def _running(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "running"]

    def _propose(self) -> bool:
        """Add a batch of trials; whether there is one."""
        count = min(self._tuning.at_once, self._tuning.trials - len(self.trials))
        if count <= 0:
            return False
        values = propose(self._tuning.over, self.trials, count, self._tuning.config.options.seed)
        if len(values) < count:
            self._notify(f"search       {len(values)} of {count} trials are new: no other combination is left")
        first = len(self.trials)
        self.trials += [Trial(first + i, one, started=_now()) for i, one in enumerate(values)]
        self._write()
        self._write_journal()
        return bool(values)

    def _train(self) -> Iterator[Trial]:
        """Train the trials that are running, with pruning between the parts of their training: each that is done."""
        for percent in (*(RUNGS if self._tuning.prune else ()), None):
            yield from self._advance(percent)
            for trial in self._running:
                if percent is None:
                    yield self._finish(trial)
                    # By then whoever has asked for the trial has written its report.
                    self._trackers.complete(self.directory / trial.name)
                elif trial.score_at(percent) is None:
                    evaluated = self._evaluate_at(trial, percent)
                    if evaluated.state == "failed":
                        yield evaluated
            if percent is not None:
                yield from self._prune(percent)

    def _advance(self, percent: int | None) -> Iterator[Trial]:
        """Train what is running up to a part of its training, None for its end: the trials that can't be."""
        possible = []
        for trial in self._running:
            try:
                self._tuning.config_of(trial)
                possible.append(trial)
            except ConfigError as error:
                yield self._fail(trial, str(error))
        plan, failure = TrialBatch(self._tuning, possible), None
        members = plan.members()
        trainer = SweepTrainer(
            plan,
            self._environment,
            self.directory,
            (),
            self._new_view,
            self._notify,
            self._trust,
            percent,
            self._trackers,
        )
        for group in trainer.groups(members):
            self._remove_half_begun([self.directory / member.name for member in group])
        going_on: Iterator[Any]
        if self._ray is None:
            going_on = trainer.go_on(members)
        else:
            going_on = RaySweep(
                plan, self._environment, self.directory, self._notify, self._trust, self._ray, percent
            ).go_on(members)
        try:
            for _ in going_on:
                pass
        except TrainingFailed as error:
            failure = str(error)
        failed = {member.name for member in trainer.unfinished(members)}
        for trial in possible:
            if trial.name in failed:
                yield self._fail(trial, self._why(trial) or failure or "its training did not end")

    def _remove_half_begun(self, paths: list[Path]) -> None:
        """Remove the runs of a program that was stopped while their directories were made: all begin again, together.

        paths: of all runs of the program. With some of them in another program the last digits would be others.
        """
        begun = [path for path in paths if is_file(path / "config.toml")]
        if len(begun) < len(paths) and all(RunDirectory.open(path).saved_iterations() == [0] for path in begun):
            for path in begun:
                shutil.rmtree(path, ignore_errors=True)

    def _why(self, trial: Trial) -> str | None:
        """What ended the training of a trial that has failed, by its files."""
        with contextlib.suppress(KlimbError):
            ending = RunDirectory.open(self.directory / trial.name).ending()
            return None if ending is None else ending.message
        return None

    def _finish(self, trial: Trial) -> Trial:
        """Evaluate a trial that has been trained to its end."""
        path, config = self.directory / trial.name, self._tuning.config_of(trial)
        episodes = config.options.eval_episodes
        return self._evaluated(
            trial,
            lambda: evaluate_run(
                path,
                self._policies(trial),
                config,
                self._environment,
                episodes,
                self._new_view(),
                self._evaluator(episodes),
            ),
            lambda score: dataclasses.replace(trial, state="complete", score=score, ended=_now()),
        )

    def _evaluate_at(self, trial: Trial, percent: int) -> Trial:
        """Evaluate a trial in the middle of its training."""
        config, view = self._tuning.config_of(trial), self._new_view()

        def evaluate() -> dict[str, Any]:
            seed, episodes = config.options.seed + FIRST_SEED, config.options.eval_episodes
            with view:
                return evaluate_seeds(
                    self._policies(trial),
                    config,
                    self._environment,
                    episodes,
                    seed,
                    True,
                    view.episodes,
                    self._evaluator(episodes),
                )

        return self._evaluated(
            trial, evaluate, lambda score: dataclasses.replace(trial, rungs=(*trial.rungs, (percent, score)))
        )

    def _evaluated(
        self, trial: Trial, evaluate: Callable[[], dict[str, Any] | None], with_score: Callable[[float], Trial]
    ) -> Trial:
        """A trial after an evaluation; failed when the environment does, or when the mean return is not finite."""
        try:
            result = evaluate()
        except EnvironmentFault as fault:
            return self._fail(trial, str(fault))
        score = float("nan") if result is None else float(result["mean"])
        if not math.isfinite(score):
            return self._fail(trial, f"its evaluation has the mean return {score}")
        return self._update(with_score(score))

    def _evaluator(self, episodes: int) -> Evaluator:
        """That of deterministic actions. episodes: of each policy."""
        if episodes not in self._evaluators:
            self._evaluators[episodes] = Evaluator(self._environment, episodes=episodes, deterministic=True)
        return self._evaluators[episodes]

    def _policies(self, trial: Trial) -> list[Any]:
        return load_policies(self.directory / trial.name, self._tuning.config_of(trial), self._environment)

    def _prune(self, percent: int) -> Iterator[Trial]:
        """End the running trials that are worse than others after a part of their training."""
        for trial, score, median in below_median(self.trials, percent):
            if self._has_ended(trial):
                continue
            message = (
                f"the search has pruned it after {percent} %: its score {score:.6g} is below the median {median:.6g}"
            )
            directory = RunDirectory.open(self.directory / trial.name)
            iteration = next(iter(directory.saved_iterations()), 0)
            directory.write_ending(Ending("pruned", iteration, directory.env_steps_at(iteration) or 0, message))
            yield self._update(dataclasses.replace(trial, state="pruned", ended=_now()))
            self._trackers.complete(directory.path)

    def _has_ended(self, trial: Trial) -> bool:
        """Whether a trial has been trained to its end already, because it has reached what ends it."""
        ending = RunDirectory.open(self.directory / trial.name).ending()
        return ending is not None and ending.final

    def _fail(self, trial: Trial, note: str) -> Trial:
        self._notify(f"failed       {trial.name}: {one_line(note, 1000)}")
        return self._update(dataclasses.replace(trial, state="failed", note=one_line(note, 1000), ended=_now()))

    def _update(self, trial: Trial) -> Trial:
        """Take a trial in its new state, and write it down."""
        self.trials[trial.number] = trial
        self._write()
        return trial

    def _write(self) -> None:
        write_trials(self.directory, self.trials)

    def _write_journal(self) -> None:
        """The trials for Optuna's own tools. Where that can't be written a warning is logged."""
        text = journal(self.directory.resolve().name, self._tuning.over, self.trials)
        try:
            write_text(self.directory / JOURNAL, text)
        except OSError as error:
            logger.warning("cannot write %s (%s); the search goes on", self.directory / JOURNAL, error.strerror)

    def _write_best(self) -> None:
        """Copy the run of the best trial, without its checkpoints, into `best/`."""
        best = best_of(self.trials)
        if best is None:
            return
        source, folder = self.directory / best.name, self.directory / BEST
        if kind_of_link(folder) is not None:
            raise RunError(
                f"{one_line(folder)} is a link; klimb writes into the directory of the search alone: remove it"
            )
        try:
            make_directory(folder)
            for pattern in (*COPIED, *COPIED_TOO):
                for path in sorted(source.glob(pattern)):
                    write_atomically(folder / path.name, read_limited(path, MAX_COPIED))
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise RunError(f"cannot write the best trial into {one_line(folder)}: {reason}") from None

    @contextlib.contextmanager
    def _cluster(self) -> Iterator[None]:
        """Held open from the first batch to the last."""
        cluster = None if self._ray is None else RayCluster(self._ray)
        try:
            yield
        finally:
            if cluster is not None:
                cluster.close()

    @property
    def _how_to_go_on(self) -> str:
        flags = " --trust-environment" if self._tuning.config.resumed_with_trust else ""
        ray = "" if self._ray is None else f" --ray {self._ray}"
        return f"go on with: klimb resume {shlex.quote(str(self.directory))}{flags}{ray}"


def below_median(trials: Sequence[Trial], percent: int) -> list[tuple[Trial, float, float]]:
    """The running trials whose score after a part of their training is below the median of all that have one there.

    trials: of a search, with those of earlier batches. percent: of the training.
    Returns each trial with its score and the median.
    """
    scores = [score for trial in trials if (score := trial.score_at(percent)) is not None]
    median = statistics.median(scores) if scores else math.nan
    running = [(trial, trial.score_at(percent)) for trial in trials if trial.state == "running"]
    return [(trial, score, median) for trial, score in running if score is not None and score < median]


def _remove_empty(directory: Path) -> None:
    """Remove the directory of a search in which nothing was trained."""
    for name in (TUNE, TRIALS, JOURNAL, ".lock"):
        remove_if_possible(directory / name)
    with contextlib.suppress(OSError):
        directory.rmdir()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
