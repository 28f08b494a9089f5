"""CartPole-v1, PPO: rejax, many seeds in one compiled program; steps per second of all seeds together.

Arguments: the number of seeds, iterations a turn, the number of environments, steps of each an iteration.
Seeds are initialised one by one, before the clock starts; training is one program. It goes on from turn to turn.
"""

import sys
import time

import jax
import jax.numpy as jnp
from rejax_settings import cartpole

NUM_SEEDS, ITERATIONS, NUM_ENVS, NUM_STEPS = map(int, sys.argv[1:])
STEPS = ITERATIONS * NUM_ENVS * NUM_STEPS

algorithm = cartpole(NUM_ENVS, NUM_STEPS, STEPS)
initialize = jax.jit(algorithm.init_state)
train = jax.jit(jax.vmap(lambda state: algorithm.train(train_state=state)[0]))

states = [initialize(jax.random.key(seed)) for seed in range(NUM_SEEDS)]
state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
state = jax.block_until_ready(train(state))
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    state = jax.block_until_ready(train(state))
    print(NUM_SEEDS * STEPS / (time.perf_counter() - start), flush=True)
