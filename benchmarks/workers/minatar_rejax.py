"""rejax's PPO on a game of MinAtar: the returns of its trained policy, sampled as in training.

Arguments: the game, environment steps, seeds; prints one JSON list of mean returns of 100 episodes, one a seed.
"""

import json
import sys

import jax
import numpy as np
from rejax import PPO
from rejax.evaluate import evaluate

GAME, STEPS, SEEDS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])

algorithm = PPO.create(
    env=f"{GAME}-MinAtar",
    num_envs=64,
    num_steps=128,
    num_epochs=4,
    num_minibatches=8,
    learning_rate=2.5e-4,
    ent_coef=0.01,
    max_grad_norm=0.5,
    total_timesteps=STEPS,
    eval_freq=STEPS,
    skip_initial_evaluation=True,
)


def mean_return(algorithm: PPO, state: object, key: jax.Array) -> jax.Array:
    act = algorithm.make_act(state)
    _, returns = evaluate(act, key, algorithm.env, algorithm.env_params, 100, 5000)
    return returns.mean()


train = jax.jit(algorithm.replace(eval_callback=mean_return).train)
print(json.dumps([float(np.asarray(train(jax.random.key(seed))[1])[-1]) for seed in range(SEEDS)]), flush=True)
