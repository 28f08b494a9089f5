"""CartPole-v1, PPO, compiled: rejax at the same settings. Same protocol as klimb_training.py.

Arguments: iterations a turn and, unless 4 and 128, the number of environments and the steps of each an iteration.
"""

import sys
import time

import jax
from rejax import PPO

ITERATIONS, NUM_ENVS, NUM_STEPS = map(int, (sys.argv[1:] + ["4", "128"][len(sys.argv) - 2 :]))
STEPS = ITERATIONS * NUM_ENVS * NUM_STEPS

algorithm = PPO.create(
    env="CartPole-v1",
    num_envs=NUM_ENVS,
    num_steps=NUM_STEPS,
    num_epochs=4,
    num_minibatches=4,
    learning_rate=3e-4,
    ent_coef=0.01,
    total_timesteps=STEPS,
    eval_freq=STEPS,
    skip_initial_evaluation=True,
    agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
)
# Only training is measured: the evaluation rejax runs at the end is replaced by nothing.
algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: ())
train = jax.jit(algorithm.train)

jax.block_until_ready(train(jax.random.key(0)))
print("ready", flush=True)
for i, _ in enumerate(sys.stdin):
    start = time.perf_counter()
    jax.block_until_ready(train(jax.random.key(i + 1)))
    print(STEPS / (time.perf_counter() - start), flush=True)
