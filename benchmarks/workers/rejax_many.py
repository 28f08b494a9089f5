"""CartPole-v1, PPO: rejax, many seeds in one compiled program; steps per second of all seeds together.

Arguments: the number of seeds, iterations a turn, the number of environments, steps of each an iteration.
Seeds are initialised one by one, before the clock starts; training is one program. It goes on from turn to turn.
"""

import sys
import time

import jax
import jax.numpy as jnp
from rejax import PPO

NUM_SEEDS, ITERATIONS, NUM_ENVS, NUM_STEPS = map(int, sys.argv[1:])
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
