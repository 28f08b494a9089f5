"""Some steps of a host environment with given actions, recorded; here, or in a process of its own.

`serve` reads a task in JSON from its standard input, steps the Gymnasium environment that it names, and writes the
digests of its steps, or what went wrong, into the file that it names. It imports no JAX.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium.spaces
import numpy as np
from jaxtyping import Bool, Float, Num

from klimb import processes
from klimb.environments.adapters.gymnasium import GymnasiumVector, make_from_spec
from klimb.environments.host import HostVector
from klimb.errors import EnvironmentFault, one_line, printable
from klimb.policies.action_spec import ActionSpec, GaussianStyle
from klimb.policies.observations import ObservationSpec


class Trial(NamedTuple):
    """T steps of one copy. obs, next_obs, reward: as training gets them. actions: as arrays hold them."""

    obs: Num[np.ndarray, " T *obs"]
    actions: np.ndarray
    next_obs: Num[np.ndarray, " T *obs"]
    reward: Float[np.ndarray, " T"]
    terminated: Bool[np.ndarray, " T"]
    truncated: Bool[np.ndarray, " T"]

    @property
    def digests(self) -> list[str]:
        """One per step, of everything that the environment returned in it."""
        columns = (self.obs, self.next_obs, self.reward, self.terminated, self.truncated)
        return [
            hashlib.sha256(b"".join(np.ascontiguousarray(column[t]).tobytes() for column in columns)).hexdigest()[:16]
            for t in range(len(self.reward))
        ]


def random_actions(space: gymnasium.Space, actions: ActionSpec, count: int, seed: int) -> np.ndarray:
    """Actions of a space at random, `[count, *act]`, in the dtype in which a policy's come.

    space: of the environment. actions: what it means to klimb. count: how many. seed: of the draws.
    """
    space.seed(seed)
    return actions.clip(np.stack([actions.flatten(space.sample()) for _ in range(count)]))


class AllowedActions:
    """Random actions among those that the action masks of a vector's observations allow; the same ones every time.

    observations, actions: what the spaces mean to klimb. seed: of the draws.
    """

    def __init__(self, observations: ObservationSpec, actions: ActionSpec, seed: int) -> None:
        self._observations, self._shape = observations, actions.shape
        self._outputs = np.zeros((1, 1, actions.num_outputs(GaussianStyle())), np.float32)
        self._sample = actions.numpy_sampler(np.zeros(actions.num_log_std, np.float32), GaussianStyle())
        self._random = np.random.default_rng(seed)

    def __call__(self, obs: np.ndarray, action: np.ndarray | np.generic) -> Any:
        """The action, where observations have no mask; else another one. obs: `[1, *obs]`. action: `[*act]`."""
        mask = self._observations.mask(obs)
        if mask is None:
            return action
        noise = self._random.random((1, 1, *self._shape), np.float32)
        return self._sample(self._outputs, noise, mask[None])[1][0, 0]


def run(vector: HostVector, actions: np.ndarray, seed: int, allowed: AllowedActions | None = None) -> Trial:
    """Step one copy.

    vector: of one copy. actions: `[T, *act]`. seed: of the first reset. allowed: what is done instead where there are
    action masks. Raises what the environment raises.
    """
    obs, rows = vector.reset(np.array([seed])), []
    for given in actions:
        action = given if allowed is None else allowed(obs, given)
        step = vector.step(action[None])
        # Copied: the environment may write its next observations into the same memory.
        row = (obs, action[None], step.next_obs, step.reward, step.terminated, step.truncated)
        if step.valid[0]:
            rows.append([np.array(column[0]) for column in row])
        obs = step.obs
    return Trial(*(np.stack(column) for column in zip(*rows, strict=True)))


def digests_elsewhere(env_spec: dict[str, Any], actions: np.ndarray, seed: int, *, timeout: float) -> list[str]:
    """The digests of the same steps in a new process, which makes the environment itself.

    env_spec: of the environment. actions, seed: as for `run`. timeout: seconds.
    Raises EnvironmentFault when the environment fails there, or the process does.
    """
    with tempfile.TemporaryDirectory(prefix="klimb-") as folder:
        answer_file = Path(folder) / "answer.json"
        task = {"env_spec": env_spec, "actions": actions.tolist(), "dtype": str(actions.dtype), "seed": seed}
        try:
            done = subprocess.run(
                processes.command("klimb.environments.trial", "serve"),
                input=json.dumps({**task, "answer": str(answer_file)}),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise EnvironmentFault(
                f"a worker process did not finish {len(actions)} steps within {timeout:g} s"
            ) from None
        if not answer_file.exists():
            lines = done.stderr.strip().splitlines() or ["it wrote nothing"]
            raise EnvironmentFault(
                f"a worker process ends with status {done.returncode}: {one_line(lines[-1], 200)}",
                printable(done.stderr),
            )
        answer = json.loads(answer_file.read_text(encoding="utf-8"))
    if "fatal" in answer:
        raise EnvironmentFault(answer["fatal"], answer["traceback"])
    return answer["digests"]


def serve(parent: int) -> None:
    """Carry out the task. parent: the number of the process that started this one."""
    processes.end_with(parent)
    task = json.loads(sys.stdin.read())
    try:
        vector = GymnasiumVector(lambda: make_from_spec(task["env_spec"]), 1)
        answer: dict[str, Any] = {
            "digests": run(vector, np.array(task["actions"], task["dtype"]), task["seed"]).digests
        }
        vector.close()
    except EnvironmentFault as fault:
        answer = {"fatal": str(fault), "traceback": fault.environment_traceback}
    Path(task["answer"]).write_text(json.dumps(answer), encoding="utf-8")
