"""A process that steps environments of its own and decides for them: `python -m klimb.collect.host.worker`.

It is told once what to make (one line of JSON on standard input), shares one block of memory with the process that
started it, and from then on answers a line for a line: `reset` with one seed a copy, `roll` for a whole rollout with
the policy and the noise that lie in the memory, `capture` and `restore` for where its environments stand. It ends when
its input does. Imports no JAX.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import sys
from typing import Any

import gymnasium
import numpy as np

from klimb.collect.host.numpy_policy import HostPolicy, HostPolicySpec
from klimb.collect.host.stepping import Columns, ColumnsLayout, Stepper, bytes_of
from klimb.environments.adapters.gymnasium import GymnasiumVector, make_from_spec
from klimb.errors import EnvironmentFault
from klimb.policies.actions import Discrete


class SharedRollout:
    """One block of memory: the rollout's columns, the noise of all its steps, and every seed's policy.

    Both sides make it from the same sizes. noise: `[T, K, N, *act]`. numbers: `[K, spec.size]`.
    """

    def __init__(self, memory: Any, spec: HostPolicySpec, shape: tuple[int, int, int], layout: ColumnsLayout) -> None:
        view = memoryview(memory)
        start = bytes_of(layout)
        self.columns = Columns.within(layout, view)
        noise_shape = layout.action[0]
        count = int(np.prod(noise_shape))
        self.noise = np.frombuffer(view, np.float32, count, start).reshape(noise_shape)
        start += 4 * count
        self.numbers = np.frombuffer(view, np.float32, shape[1] * spec.size, start).reshape(shape[1], spec.size)

    @staticmethod
    def size(spec: HostPolicySpec, shape: tuple[int, int, int], layout: ColumnsLayout) -> int:
        """Bytes in all."""
        return bytes_of(layout) + 4 * (int(np.prod(layout.action[0])) + shape[1] * spec.size)


def serve() -> None:
    """Answer until the input ends."""
    # Both reach the whole process group; when to stop is the other side's decision.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    task = json.loads(sys.stdin.readline())
    shape: tuple[int, int, int] = tuple(task["shape"])
    spec = HostPolicySpec.from_dict(task["policy"])
    layout = Columns.layout(
        shape, tuple(task["observation"]), tuple(task["action"]), isinstance(spec.actions, Discrete)
    )
    memory = mmap.mmap(task["memory"], SharedRollout.size(spec, shape, layout))
    _serve(task, SharedRollout(memory, spec, shape, layout), spec)


def _serve(task: dict[str, Any], shared: SharedRollout, spec: HostPolicySpec) -> None:
    part = slice(*task["part"])
    seeds = shared.columns.reward.shape[1]
    # Environments may print, and what they are made of too: the answers go out by another way.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(**words: Any) -> None:
        print(json.dumps(words), file=answers, flush=True)

    def make() -> gymnasium.Env:
        return make_from_spec(task["env_spec"])

    order = {"do": "make"}
    try:
        vector = GymnasiumVector(make, seeds * (part.stop - part.start), restart=task["restart"])
        stepper = Stepper(vector, part, seeds)
        answer(done="make")
        for line in sys.stdin:
            order = json.loads(line)
            answer(done=order["do"], **_obey(order, vector, stepper, shared, spec, part))
    except EnvironmentFault as fault:
        answer(done=order["do"], fatal=str(fault))


def _obey(
    order: dict[str, Any],
    vector: GymnasiumVector,
    stepper: Stepper,
    shared: SharedRollout,
    spec: HostPolicySpec,
    part: slice,
) -> dict[str, Any]:
    """What there is to say of an order that has been carried out."""
    match order["do"]:
        case "reset":
            stepper.start_from(vector.reset_each(order["seeds"]))
        case "roll":
            policy, noise = HostPolicy(spec, shared.numbers), shared.noise[:, :, part]
            stepper.roll(lambda t, obs: policy(obs, noise[t]), shared.columns)
            return {"faults": vector.take_faults()}
        case "capture":
            return {"captured": stepper.capture()}
        case "restore":
            stepper.restore(order["captured"])
    return {}


if __name__ == "__main__":
    serve()
