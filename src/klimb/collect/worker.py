"""A process that steps environments of its own and decides for them: `python -m klimb.collect.worker`.

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

from klimb.collect.host_policy import HostPolicy, HostPolicySpec
from klimb.collect.stepping import Columns, Stepper, bytes_of
from klimb.environments.gymnasium_adapter import GymnasiumVector, from_recipe
from klimb.policies.actions import Discrete


class SharedRollout:
    """One block of memory: the rollout's columns, the noise of all its steps, and every seed's policy.

    Both sides make it from the same sizes. noise: `[T, K, N, *act]`. numbers: `[K, spec.size]`.
    """

    def __init__(self, memory: Any, spec: HostPolicySpec, shape: tuple[int, int, int], layout: Columns) -> None:
        view = memoryview(memory)
        start = bytes_of(layout)
        self.columns = Columns.within(layout, view)
        noise_shape = layout.action[0]
        count = int(np.prod(noise_shape))
        self.noise = np.frombuffer(view, np.float32, count, start).reshape(noise_shape)
        start += 4 * count
        self.numbers = np.frombuffer(view, np.float32, shape[1] * spec.size, start).reshape(shape[1], spec.size)

    @staticmethod
    def size(spec: HostPolicySpec, shape: tuple[int, int, int], layout: Columns) -> int:
        """Bytes in all."""
        return bytes_of(layout) + 4 * (int(np.prod(layout.action[0])) + shape[1] * spec.size)


def serve() -> None:
    """Answer until the input ends."""
    # Ctrl-C reaches the whole process group; when to stop is the other side's decision.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
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
        return from_recipe(task["recipe"])

    vector = GymnasiumVector(make, seeds * (part.stop - part.start), restart=task["restart"])
    stepper = Stepper(vector, part, seeds)
    answer(done="make")
    for line in sys.stdin:
        order = json.loads(line)
        match order["do"]:
            case "reset":
                stepper.start_from(vector.reset_each(order["seeds"]))
                answer(done="reset")
            case "roll":
                policy = HostPolicy(spec, shared.numbers)
                noise = shared.noise[:, :, part]
                stepper.roll(lambda t, obs: policy(obs, noise[t]), shared.columns)  # noqa: B023
                answer(done="roll", faults=vector.take_faults())
            case "capture":
                answer(done="capture", captured=stepper.capture())
            case "restore":
                stepper.restore(order["captured"])
                answer(done="restore")


if __name__ == "__main__":
    serve()
