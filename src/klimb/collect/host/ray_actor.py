"""What runs in an actor of Ray: it steps environments and decides for them, as `worker.py` does in a process here.

It imports JAX only for a policy in a user's own class.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np

from klimb._version import __version__
from klimb.collect.host import decisions
from klimb.collect.host.stepping import Columns, NoiseLayout, Stepper, bytes_of
from klimb.environments.adapters.gymnasium import GymnasiumVector, make_from_spec
from klimb.environments.host import Fault
from klimb.errors import EnvironmentFault, KlimbError, one_line
from klimb.files import TooLarge, read_limited
from klimb.modules import versions
from klimb.policies.actions import actions_from_json
from klimb.policies.observations import observations_from_json

Buffer = bytes | np.ndarray
"""Numbers on their way: bytes where Ray puts them into a message, a read-only array where it has stored them."""
MAX_CPUINFO = 2**22


class Answer(NamedTuple):
    """What an actor answers. fatal: the fault that ends the training, and its traceback; None where there is none."""

    value: Any = None
    fatal: tuple[str, str | None] | None = None


class Rolled(NamedTuple):
    """What an actor says of a rollout, whose rows follow.

    made: number of its steps that were made. faults: that were survived. captured: where the environments stand now.
    """

    made: int
    faults: list[Fault]
    captured: dict[str, list] | None


class Start(NamedTuple):
    """Where environments begin.

    seeds: that they were started with. captured: their states, by seed and environment; None for new episodes.
    """

    seeds: list[int]
    captured: dict[str, list] | None = None


class Place(NamedTuple):
    """Where an actor runs.

    versions: of what decides about its numbers, by package. cpu: model of the processor. process: its number there.
    """

    versions: dict[str, str]
    cpu: str
    process: int


class EnvironmentActor:
    """Environments of every seed, and what decides for them.

    task: what to make, as plain data.
    """

    def __init__(self, task: dict[str, Any]) -> None:
        self._task = task
        self._spec = decisions.from_dict(task["policy"])
        steps, seeds, width = task["shape"]
        observations, actions = observations_from_json(task["observations"]), actions_from_json(task["actions"])
        layout = Columns.layout((steps, seeds, width), observations, actions, task["derivatives"], task["remembered"])
        # One block of memory for all rollouts: of a new one every page would be written for the first time.
        self._layout, self._memory = layout, bytearray(bytes_of(layout))
        self._columns = Columns.within(layout, memoryview(self._memory))
        self._seeds, self._pieces = seeds, task["pieces"]
        self._noise = NoiseLayout(*task["noise"])
        self._noise_shape = (self._noise.rows, seeds, width, *self._noise.shape)
        self._stepper: Stepper | None = None

    def place(self) -> Place:
        """Where it runs."""
        return Place(deciding_versions(self._task["packages"]), cpu_model(), os.getpid())

    def make(self) -> Answer:
        """Make the environments."""
        _, seeds, width = self._task["shape"]

        def environment() -> gymnasium.Env:
            return make_from_spec(self._task["env_spec"])

        try:
            vector = GymnasiumVector(environment, seeds * width, restart=self._task["restart"])
        except EnvironmentFault as fault:
            return Answer(fatal=(str(fault), fault.environment_traceback))
        whole, remembered = self._task["whole_episodes"], self._task["remembered"]
        self._stepper = Stepper(vector, slice(None), seeds, whole_episodes=whole, remembered=remembered)
        return Answer()

    def restore(self, start: Start) -> Answer:
        """Put the environments where they were captured; fatal when that is impossible."""
        assert self._stepper is not None, "make comes before restore"
        try:
            self._stand(start)
        except (KlimbError, ValueError, LookupError, TypeError, OverflowError) as error:
            return Answer(fatal=(one_line(error) or type(error).__name__, None))
        return Answer()

    def roll(
        self, parameters: Buffer, noise: Buffer, start: Start | None = None
    ) -> tuple[Answer, *tuple[bytes | np.ndarray, ...]]:
        """One rollout: a `Rolled`, and then the pieces of its columns, as the task says.

        parameters: of the policies, `[K, size]`. noise: `[rows, K, n, …]`. start: where it begins; None to go on.
        """
        stepper = self._stepper
        assert stepper is not None, "make comes before roll"
        try:
            if start is not None:
                self._stand(start)
            # What Ray delivers is read-only, which a policy need not be ready for.
            own = np.array(np.frombuffer(parameters, np.float32).reshape(self._seeds, -1))
            policy, draws = self._spec.decider(own), np.frombuffer(noise, np.float32).reshape(self._noise_shape)
            made = stepper.roll(
                lambda t, obs, carry: policy(obs, draws[t // self._noise.steps], carry),
                self._columns,
                self._task["seconds"],
            )
            answer = Answer(Rolled(made, stepper.vector.take_faults(), stepper.capture()))
            return answer, *self._columns_in_pieces()
        except EnvironmentFault as fault:
            return Answer(fatal=(str(fault), fault.environment_traceback)), *(b"" for _ in self._pieces)

    def _columns_in_pieces(self) -> list[bytes | np.ndarray]:
        """Several pieces as bytes, which are quickest in messages; one, which is stored, as an array: copied once.

        The last ones are empty, or shorter than the task says, by the room for successors that is not used.
        """
        used = self._columns.bytes_in_use(self._layout)
        if len(self._pieces) > 1:
            return [bytes(self._memory[begin : min(end, used)]) for begin, end in self._pieces]
        return [np.frombuffer(self._memory, np.uint8, used)]

    def _stand(self, start: Start) -> None:
        """New episodes from seeds; then the environments are put where they were captured."""
        assert self._stepper is not None
        self._stepper.start_from(self._stepper.vector.reset(np.array(start.seeds)))
        if start.captured is not None:
            self._stepper.restore(start.captured)


def deciding_versions(packages: list[str]) -> dict[str, str]:
    """The versions of what decides about the numbers of a rollout, by package, without those that are not installed.

    packages: of the environment.
    """
    return {"klimb": __version__, "python": platform.python_version(), **versions(["numpy", "gymnasium", *packages])}


def cpu_model() -> str:
    """The model of this machine's processor, as the system calls it: other models sum in another order."""
    try:
        lines = read_limited(Path("/proc/cpuinfo"), MAX_CPUINFO).decode("utf-8", "replace").splitlines()
    except (OSError, TooLarge):
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
