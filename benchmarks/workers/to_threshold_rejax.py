"""CartPole-v1 solved: rejax's PPO with its own configs/gymnax/cartpole.yaml, the time to a mean return of 475.

Prints "ready"; then every line on standard input is a seed, answered by one line of JSON: the steps after which 20
deterministic episodes first averaged 475, and the seconds of training that takes: those steps at the rate of the same
training without evaluations, timed for this seed. Both are null if 100,000 steps were not enough.
"""

import json
import sys
import time

import jax
import numpy as np
from rejax import PPO
from rejax.evaluate import evaluate

TOTAL, EVERY, EPISODES, THRESHOLD = 100_000, 2000, 20, 475

algorithm = PPO.create(
    env="CartPole-v1",
    agent_kwargs={"activation": "tanh"},
    num_envs=5,
    num_steps=100,
    num_epochs=5,
    num_minibatches=5,
    learning_rate=0.00075,
    max_grad_norm=0.5,
    total_timesteps=TOTAL,
    eval_freq=EVERY,
    gamma=0.99,
    gae_lambda=0.95,
    clip_eps=0.2,
    ent_coef=0.01,
    vf_coef=0.5,
    skip_initial_evaluation=True,
)


def mean_return(algorithm: PPO, state: object, key: jax.Array) -> jax.Array:
    """Of the likeliest actions; rejax's own evaluation samples them."""

    def act(obs: jax.Array, key: jax.Array) -> jax.Array:
        return algorithm.actor.apply(state.actor_ts.params, obs[None], method="_action_dist").mode()[0]

    params = algorithm.env_params
    _, returns = evaluate(act, key, algorithm.env, params, EPISODES, params.max_steps_in_episode)
    return returns.mean()


evaluated = jax.jit(algorithm.replace(eval_callback=mean_return).train)
unevaluated = jax.jit(algorithm.replace(eval_callback=lambda algorithm, state, key: ()).train)

jax.block_until_ready((evaluated(jax.random.key(0)), unevaluated(jax.random.key(0))))
print("ready", flush=True)
for line in sys.stdin:
    seed = int(line)
    key = jax.random.key(seed)
    start = time.perf_counter()
    jax.block_until_ready(unevaluated(key))
    rate = TOTAL / (time.perf_counter() - start)
    solved = np.flatnonzero(np.asarray(evaluated(key)[1]) >= THRESHOLD)
    steps = (int(solved[0]) + 1) * EVERY if solved.size else None
    print(json.dumps({"seed": seed, "steps": steps, "seconds": steps and steps / rate}), flush=True)
