"""A worker process, which steps environments and decides for them.

The first line of its standard input is a task in JSON: what to make, and the block of memory that it shares with the
process that started it. Every further line is an order, and is answered by a line: `reset` with a seed per copy, `roll`
for a whole rollout with the policy and the noise that are in the memory, `capture` and `restore` for the states of its
environments. It ends when its input ends, or with the process that started it. It imports JAX only for a policy in a
user's own class.
"""

from __future__ import annotations

import faulthandler
import json
import math
import mmap
import os
import signal
import sys
from typing import Any

import gymnasium
import numpy as np

from klimb import processes
from klimb.collect.host import decisions
from klimb.collect.host.decisions import PolicySpec
from klimb.collect.host.stepping import Columns, ColumnsLayout, NoiseLayout, Stepper, bytes_of
from klimb.environments.adapters.gymnasium import GymnasiumVector, make_from_spec
from klimb.errors import EnvironmentFault
from klimb.policies.actions import actions_from_json
from klimb.policies.observations import observations_from_json


class SharedRollout:
    """One block of memory: the rollout's columns, the noise of all its steps, and every seed's policy.

    Both sides make it from the same sizes. noise: as `NoiseLayout` says. parameters: `[K, spec.size]`.
    """

    def __init__(
        self, memory: Any, spec: PolicySpec, shape: tuple[int, int, int], layout: ColumnsLayout, noise: NoiseLayout
    ) -> None:
        view = memoryview(memory)
        start = bytes_of(layout)
        self.columns = Columns.within(layout, view)
        noise_shape = (noise.rows, *shape[1:], *noise.shape)
        count = int(np.prod(noise_shape))
        self.noise = np.frombuffer(view, np.float32, count, start).reshape(noise_shape)
        start += 4 * count
        self.parameters = np.frombuffer(view, np.float32, shape[1] * spec.size, start).reshape(shape[1], spec.size)

    @staticmethod
    def size(spec: PolicySpec, shape: tuple[int, int, int], layout: ColumnsLayout, noise: NoiseLayout) -> int:
        """Bytes in all. spec: of the policy. shape: (T, K, N). layout: of a rollout's columns. noise: of its noise."""
        _, seeds, copies = shape
        return bytes_of(layout) + 4 * (noise.rows * seeds * copies * math.prod(noise.shape) + seeds * spec.size)


def serve(parent: int) -> None:
    """Answer until the input ends. parent: the number of the process that started this one."""
    processes.end_with(parent)
    # These signals reach the whole process group; when to stop is the starting process's decision.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):  # Windows has no SIGHUP
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # A crash in native code, and SIGUSR1 from the starting process when this one hangs, write where it was.
    faulthandler.enable()
    if hasattr(signal, "SIGUSR1"):  # not on Windows
        faulthandler.register(signal.SIGUSR1, all_threads=False)
    task = json.loads(sys.stdin.readline())
    shape: tuple[int, int, int] = tuple(task["shape"])
    spec = decisions.from_dict(task["policy"])
    layout = Columns.layout(
        shape,
        observations_from_json(task["observations"]),
        actions_from_json(task["actions"]),
        task["derivatives"],
        task["remembered"],
    )
    rows, steps, one = task["noise"]
    noise = NoiseLayout(rows, steps, tuple(one))
    memory = mmap.mmap(task["memory"], SharedRollout.size(spec, shape, layout, noise))
    _serve(task, SharedRollout(memory, spec, shape, layout, noise), spec, noise.steps)


def _serve(task: dict[str, Any], shared: SharedRollout, spec: PolicySpec, noise_steps: int) -> None:
    part = slice(*task["part"])
    seeds = shared.columns.reward.shape[1]
    # Environment code may print: keep a private copy of stdout for the protocol.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**words: Any) -> None:
        print(json.dumps(words), file=answers, flush=True)

    def make() -> gymnasium.Env:
        return make_from_spec(task["env_spec"])

    order = {"do": "make"}
    try:
        vector = GymnasiumVector(make, seeds * (part.stop - part.start), restart=task["restart"])
        stepper = Stepper(vector, part, seeds, whole_episodes=task["whole_episodes"], remembered=task["remembered"])
        answer(done="make")
        for line in sys.stdin:
            order = json.loads(line)
            answer(done=order["do"], **_obey(order, vector, stepper, shared, spec, part, noise_steps))
    except EnvironmentFault as fault:
        answer(done=order["do"], fatal=str(fault), traceback=fault.environment_traceback)


def _obey(
    order: dict[str, Any],
    vector: GymnasiumVector,
    stepper: Stepper,
    shared: SharedRollout,
    spec: PolicySpec,
    part: slice,
    noise_steps: int,
) -> dict[str, Any]:
    """Carry out an order; returns what the answer says besides."""
    match order["do"]:
        case "reset":
            stepper.start_from(vector.reset(np.array(order["seeds"])))
        case "roll":
            policy, noise = spec.decider(shared.parameters), shared.noise[:, :, part]
            made = stepper.roll(
                lambda t, obs, carry: policy(obs, noise[t // noise_steps], carry), shared.columns, order["seconds"]
            )
            return {"faults": vector.take_faults(), "made": made}
        case "capture":
            return {"captured": stepper.capture()}
        case "restore":
            stepper.restore(order["captured"])
    return {}
