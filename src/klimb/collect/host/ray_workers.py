"""Environments stepped by actors of a Ray cluster, on this machine and on others: the twin of `Workers`.

One message per rollout and actor: parameters and noise there, the rollout and the states of the simulators back. An
actor that is lost is replaced by one that starts from the states captured last and repeats the rollout with the same
parameters and noise, so that nothing is lost and no number changes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import Integer, PyTree

from klimb.collect.host import decisions
from klimb.collect.host.decisions import PolicySpec
from klimb.collect.host.ray_actor import (
    Answer,
    EnvironmentActor,
    Place,
    Rolled,
    Start,
    cpu_model,
    deciding_versions,
)
from klimb.collect.host.ray_cluster import RayCluster, quiet
from klimb.collect.host.shares import MAX_LOSSES, REMEDY, Shares
from klimb.collect.host.stepping import Columns, ColumnsLayout, NoiseLayout, Stepped, bytes_of, parts
from klimb.environments.faults import RemoteTraceback
from klimb.environments.host import Fault
from klimb.errors import EnvironmentFault, one_line
from klimb.policies.action_spec import ActionSpec
from klimb.policies.observations import ObservationSpec

MAX_REPEATS = 2
"""How often an actor is replaced in a rollout, or when it is made, before its environments count as the cause."""
MAX_PIECE = 96 * 1024
"""Bytes of a value that Ray sends as part of a message: a larger one takes a way through the stores of the nodes."""
MAX_IN_PIECES = 2**20
"""Bytes of an actor's part of a rollout up to which it is sent in pieces of that size."""
SECONDS_UNTIL_TOLD = 10.0
"""After which it is said that actors wait for a place in the cluster."""

logger = logging.getLogger("klimb")


class RayWorkers:
    """Actors of a Ray cluster, each with a share of the N environments of every seed.

    cluster: where they run; it is closed with them. packages: of the environment, whose versions have to be the same
    everywhere. All other arguments, and the errors, are those of `Workers`.
    timeout: seconds for a rollout, and for an actor to get a place in the cluster.
    """

    def __init__(
        self,
        env_spec: dict[str, Any],
        spec: PolicySpec,
        shape: tuple[int, int, int],
        observations: ObservationSpec,
        actions: ActionSpec,
        count: int,
        pack: Callable[[PyTree], np.ndarray],
        *,
        cluster: RayCluster,
        packages: tuple[str, ...] = (),
        whole_episodes: bool = False,
        noise: NoiseLayout | None = None,
        derivatives: int = 0,
        remembered: int = 0,
        restart: bool = False,
        timeout: float = 300.0,
        straggler_timeout: float | None = None,
    ) -> None:
        self._straggler_timeout = straggler_timeout
        self._cluster, self._ray, self._pack = cluster, cluster.ray, pack
        self._shares = Shares(shape[1], shape[2], count)
        self._restart, self._timeout, self._packages = restart, timeout, list(packages)
        self._layout: ColumnsLayout = Columns.layout(shape, observations, actions, derivatives, remembered)
        self._task = {
            "policy": decisions.to_dict(spec),
            "observations": observations.to_json(),
            "actions": actions.to_json(),
            "noise": NoiseLayout.of(shape[0], 1, actions.shape) if noise is None else noise,
            "env_spec": env_spec,
            "whole_episodes": whole_episodes,
            "derivatives": derivatives,
            "remembered": remembered,
            "restart": restart,
            "packages": self._packages,
            "seconds": straggler_timeout,
        }
        self._shape, self._told_cpu = shape, False
        self._layouts = [
            Columns.layout((*shape[:2], part.stop - part.start), observations, actions, derivatives, remembered)
            for part in self._shares.parts
        ]
        self._pieces = [pieces_of(layout) for layout in self._layouts]
        self._losses = [0] * len(self._shares)
        # Where every actor stands: to be started from seeds or from states, or None where that is not known.
        self._stands: list[dict[str, list] | str | None] = ["seeds"] * len(self._shares)
        # Actors that have not begun yet get what they start from with their first rollout.
        self._is_new = [True] * len(self._shares)
        self._actors: list[Any] = []
        # The references to an answer and its pieces, and whose they are, by the last of them.
        self._rolling: dict[Any, tuple[int, list[Any]]] = {}
        self._sent: tuple[Any, np.ndarray] | None = None
        try:
            self._actors = [self._start(number) for number in range(len(self._shares))]
            self._make(range(len(self._shares)))
        except BaseException:
            self.close()
            raise

    def reset(self, seeds: Integer[np.ndarray, "K N"]) -> None:
        """Begin new episodes in all environments, with the next rollout. seeds: one per environment."""
        self._shares.reset(seeds)
        self._stands, self._is_new = ["seeds"] * len(self._shares), [True] * len(self._shares)

    def begin(self, policy: PyTree, noise: np.ndarray, *, at_once: bool = False) -> None:
        """Begin a rollout in every actor. policy, noise, at_once: as for `Workers.begin`."""
        parameters = np.ascontiguousarray(self._pack(policy), np.float32)
        # What is small is part of the message to each actor, and what is large one object for all of them.
        small = parameters.nbytes <= MAX_PIECE
        self._sent = parameters.tobytes() if small else self._ray.put(parameters), np.asarray(noise, np.float32)
        self._rolling = {}
        for number in range(len(self._shares)):
            self._roll(number)

    def finish(self) -> Stepped:
        """Wait for the rollout that was begun: new arrays, as those of `Workers.finish`."""
        columns, faults = Columns.empty(self._layout), []
        made: list[int | None] = [None] * len(self._shares)
        repeats = [0] * len(self._shares)
        end = time.monotonic() + self._timeout
        while self._rolling:
            # Each result is fetched as soon as it is there: until then it is lost with its node.
            done, _ = self._ray.wait(list(self._rolling), num_returns=1, timeout=max(0.0, end - time.monotonic()))
            for reference in done or list(self._rolling):
                number, answer_and_pieces = self._rolling.pop(reference)
                try:
                    rolled, own = self._fetch(number, answer_and_pieces, in_time=bool(done))
                except _Lost as lost:
                    repeats[number] += 1
                    if self._stands[number] is not None and repeats[number] <= MAX_REPEATS:
                        self._repeat(number, lost)
                        end = time.monotonic() + self._timeout
                    else:
                        faults += self._blank(number, lost, columns)
                else:
                    self._losses[number], made[number] = 0, rolled.made
                    faults += self._take_in(number, rolled, own, columns)
        return Stepped(columns, faults, None if self._straggler_timeout is None else self._shares.made(made, columns))

    def capture(self) -> dict[str, list] | None:
        """The states of all environments after the last rollout, by seed and environment; None where not known."""
        states = [stands if isinstance(stands, dict) else None for stands in self._stands]
        return self._shares.joined(states)

    def restore(self, captured: dict[str, list]) -> None:
        """Restore what `capture` returned. EnvironmentFault when an actor can't."""
        shares = self._shares.split(captured)
        references = [
            actor.restore.remote(Start(self._shares.seeds(number), share))
            for number, (actor, share) in enumerate(zip(self._actors, shares, strict=True))
        ]
        for number, reference in enumerate(references):
            try:
                answer: Answer = self._ray.get(reference, timeout=self._timeout)
            except self._losses_of_ray as error:
                raise EnvironmentFault(f"{self._shares.name(number)} is lost: {_reason(error)}") from None
            if answer.fatal is not None:
                raise EnvironmentFault(f"the environments can't be restored from the checkpoint: {answer.fatal[0]}")
        self._stands, self._is_new = list(shares), [False] * len(shares)

    def places(self) -> list[Place]:
        """Where every actor runs."""
        return self._ray.get([actor.place.remote() for actor in self._actors], timeout=self._timeout)

    def close(self) -> None:
        """End the actors, and the connection."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        self._cluster.close()

    def _start(self, number: int) -> Any:
        """A new actor for a share. number: of it."""
        part, (steps, seeds, _) = self._shares.parts[number], self._shape
        # Ray restarts and repeats nothing: a new actor would not know where the simulators stood.
        options = {"num_cpus": 1, "max_restarts": 0, "max_task_retries": 0, "scheduling_strategy": "SPREAD"}
        with quiet():
            actor = self._ray.remote(**options)(EnvironmentActor)
            shape = steps, seeds, part.stop - part.start
            return actor.remote({**self._task, "shape": shape, "pieces": self._pieces[number]})

    def _make(self, numbers: Iterable[int]) -> None:
        """Have new actors make their environments, when they have a place and the same versions as this process."""
        numbers = list(numbers)
        places = {self._actors[number].place.remote(): number for number in numbers}
        end, told, attempts = time.monotonic() + self._timeout, False, dict.fromkeys(numbers, 0)
        while places:
            done, _ = self._ray.wait(list(places), num_returns=1, timeout=SECONDS_UNTIL_TOLD)
            if not done and not told:
                told = True
                logger.warning(
                    "waiting for a place in the Ray cluster: %d workers need a CPU each, and it has %d",
                    len(self._shares),
                    self._cluster.cpus,
                )
            if not done and time.monotonic() > end:
                raise EnvironmentFault(
                    f"the Ray cluster has had no place for {len(places)} of {len(self._shares)} workers for "
                    f"{self._timeout:g} s, and has {self._cluster.cpus} CPUs: add nodes, or use fewer --workers"
                )
            for reference in done:
                number = places.pop(reference)
                try:
                    self._require_equal(self._ray.get(reference))
                    answer: Answer = self._ray.get(self._actors[number].make.remote(), timeout=self._timeout)
                except self._losses_of_ray as error:
                    # Its node may be dying too; an environment that ends its process when it is made always does.
                    attempts[number] += 1
                    if attempts[number] > MAX_REPEATS:
                        raise EnvironmentFault(f"{self._shares.name(number)} is lost: {_reason(error)}") from None
                    self._actors[number] = self._start(number)
                    places[self._actors[number].place.remote()] = number
                else:
                    self._require_no_fault(number, answer)

    def _require_equal(self, place: Place) -> None:
        """EnvironmentFault when an actor would compute with other versions; a line for another kind of processor."""
        own = deciding_versions(self._packages)
        for package in sorted(own.keys() | place.versions.keys()):
            here, there = own.get(package, "nothing"), place.versions.get(package, "nothing")
            if here != there:
                raise EnvironmentFault(
                    f"a node of the Ray cluster has {package} {there}, and this process {here}: install the same there"
                )
        if place.cpu != cpu_model() and not self._told_cpu:
            self._told_cpu = True
            logger.warning(
                "a node of the Ray cluster has another processor (%s) than this machine (%s): results can differ in "
                "the last digits between runs",
                one_line(place.cpu),
                cpu_model(),
            )

    def _roll(self, number: int) -> None:
        """Begin the rollout of an actor."""
        assert self._sent is not None
        parameters, noise = self._sent
        part = self._shares.parts[number]
        roll = self._actors[number].roll.options(num_returns=1 + len(self._pieces[number]))
        arguments: list[Any] = [parameters, noise[:, :, part].tobytes()]
        if self._is_new[number]:
            stands = self._stands[number]
            arguments.append(Start(self._shares.seeds(number), stands if isinstance(stands, dict) else None))
        self._is_new[number] = False
        references = roll.remote(*arguments)
        self._rolling[references[-1]] = number, references

    def _fetch(self, number: int, references: list[Any], *, in_time: bool) -> tuple[Rolled, Columns]:
        """The rollout of an actor. _Lost when it or its result is lost, EnvironmentFault when the training ends."""
        if not in_time:
            raise _Lost(f"has not answered within {self._timeout:g} s")
        try:
            answer, *pieces = self._ray.get(references, timeout=self._timeout)
        except self._losses_of_ray as error:
            raise _Lost(f"is lost ({_reason(error)})") from None
        self._require_no_fault(number, answer)
        memory = b"".join(pieces) if len(pieces) > 1 else pieces[0]
        return answer.value, Columns.within(self._layouts[number], memoryview(memory))

    @property
    def _losses_of_ray(self) -> tuple[type[Exception], ...]:
        """What Ray raises when an actor, its node or its result is gone, and not when the code in it raises."""
        errors = self._ray.exceptions
        return errors.RayActorError, errors.ObjectLostError, errors.GetTimeoutError, errors.OutOfMemoryError

    def _require_no_fault(self, number: int, answer: Answer) -> None:
        if answer.fatal is not None:
            fault, trace = answer.fatal
            message = f"{self._shares.name(number)}: {fault}; {REMEDY}"
            raise EnvironmentFault(message, trace) from (None if trace is None else RemoteTraceback(trace))

    def _take_in(self, number: int, rolled: Rolled, own: Columns, columns: Columns) -> list[Fault]:
        """Put an actor's own part of a rollout in its place, and note where the actor stands."""
        for column, values in zip(columns.part(self._shares.parts[number]), own, strict=True):
            column[: len(values)] = values
        self._stands[number] = rolled.captured
        return self._shares.survived(number, rolled.faults)

    def _repeat(self, number: int, lost: _Lost) -> None:
        """Repeat the rollout of a lost actor in a new one, from where it stood."""
        name = self._shares.name(number)
        logger.warning("%s %s: its rollout is repeated by another, with the same numbers", name, lost)
        self._replace(number)
        self._is_new[number] = True
        self._roll(number)

    def _blank(self, number: int, lost: _Lost, columns: Columns) -> list[Fault]:
        """Leave out the rows of a lost actor, where they can't be repeated, and start its environments again."""
        self._losses[number] += 1
        cause = f"{self._shares.name(number)} {lost}"
        if not self._restart or self._losses[number] >= MAX_LOSSES:
            times = f" ({self._losses[number]} rollouts in a row)" if self._losses[number] > 1 else ""
            raise EnvironmentFault(f"{cause}{times}; {REMEDY}")
        columns.part(self._shares.parts[number]).blank()
        faults = self._shares.lost(number, cause, None)
        self._replace(number)
        self._stands[number], self._is_new[number] = "seeds", True
        return faults

    def _replace(self, number: int) -> None:
        self._ray.kill(self._actors[number])
        self._actors[number] = self._start(number)
        self._make([number])


def pieces_of(layout: ColumnsLayout) -> list[tuple[int, int]]:
    """The pieces in which an actor sends its columns: consecutive parts of their memory, begin and end.

    layout: of the columns.
    """
    size = bytes_of(layout)
    count = -(-size // MAX_PIECE) if size <= MAX_IN_PIECES else 1
    return [(piece.start, piece.stop) for piece in parts(size, count)]


class _Lost(Exception):
    """An actor, or its result, is gone; the message says how."""


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {one_line(str(error).strip().splitlines()[0], 160)}"
