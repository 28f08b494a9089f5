"""CartPole-v1, PPO, compiled: rejax at the same settings. Same protocol as klimb_training.py.

Arguments: iterations a turn and, unless 4 and 128, the number of environments and the steps of each an iteration.
"""

import sys
import time

import jax
from rejax_settings import cartpole

ITERATIONS, NUM_ENVS, NUM_STEPS = map(int, (sys.argv[1:] + ["4", "128"][len(sys.argv) - 2 :]))
STEPS = ITERATIONS * NUM_ENVS * NUM_STEPS

algorithm = cartpole(NUM_ENVS, NUM_STEPS, STEPS)
train = jax.jit(algorithm.train)

jax.block_until_ready(train(jax.random.key(0)))
print("ready", flush=True)
for i, _ in enumerate(sys.stdin):
    start = time.perf_counter()
    jax.block_until_ready(train(jax.random.key(i + 1)))
    print(STEPS / (time.perf_counter() - start), flush=True)
