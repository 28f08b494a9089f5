"""Stepping and nothing else: EnvPool or Gymnasium, with random actions sampled beforehand. As klimb_training.py.

Arguments: envpool | gymnasium | sync | async, the environment's id, the number of environments, steps a turn.
"""

import sys
import time
from collections.abc import Callable

import gymnasium
import numpy as np

POOL = 1024  # different action batches, sampled once


def envpool_stepper(env_id: str, num_envs: int) -> Callable[[int], object]:
    import envpool

    env = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs)
    space = env.action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        actions = np.random.default_rng(0).integers(0, space.n, (POOL, num_envs))
    else:
        actions = np.random.default_rng(0).uniform(space.low, space.high, (POOL, num_envs, *space.shape))
    actions = actions.astype(space.dtype)
    env.reset()

    def step(i: int) -> object:
        return env.step(actions[i % POOL])

    return step


def gymnasium_stepper(env_id: str) -> Callable[[int], object]:
    env = gymnasium.make(env_id)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(POOL)]
    env.reset(seed=0)

    def step(i: int) -> object:
        result = env.step(actions[i % POOL])
        if result[2] or result[3]:
            env.reset()
        return result

    return step


def vector_stepper(kind: str, env_id: str, num_envs: int) -> Callable[[int], object]:
    env = gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode=kind)
    env.action_space.seed(0)
    actions = [env.action_space.sample() for _ in range(POOL)]
    env.reset(seed=0)

    def step(i: int) -> object:
        return env.step(actions[i % POOL])

    return step


def main() -> None:
    kind, env_id = sys.argv[1:3]
    num_envs = 1 if kind == "gymnasium" else int(sys.argv[3])
    iterations = max(1, int(sys.argv[4]) // num_envs)
    if kind == "envpool":
        step = envpool_stepper(env_id, num_envs)
    elif kind == "gymnasium":
        step = gymnasium_stepper(env_id)
    else:
        step = vector_stepper(kind, env_id, num_envs)

    def run() -> float:
        start = time.perf_counter()
        for i in range(iterations):
            step(i)
        return iterations * num_envs / (time.perf_counter() - start)

    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        print(run(), flush=True)


if __name__ == "__main__":
    main()
