"""CartPole-v1, PPO, compiled: klimb. Answers every line on standard input with steps per second of one warm run."""

import sys
import time

import jax

from klimb import PPO, RunConfig, TrainOptions, make
from klimb.runs.program import Program

ITERATIONS = int(sys.argv[1])

config = RunConfig(
    "jax:CartPole-v1",
    PPO(learning_rate=3e-4, epochs=4, num_minibatches=4, ent_coef=0.01, max_grad_norm=None),
    TrainOptions(
        env_steps=ITERATIONS * 512,
        num_envs=4,
        num_steps=128,
        normalize_observations=False,
        critic_learning_rate=3e-4,
        critic_epochs=4,
        critic_num_minibatches=4,
    ),
)
program = Program(config, make(config.env))


def train() -> None:
    state, done = program.initial_state(), 0
    while done < ITERATIONS:
        count = min(program.max_iterations_a_call, ITERATIONS - done)
        state, _ = program.advance(state, count)
        done += count
    jax.block_until_ready(state)


train()
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    train()
    print(ITERATIONS * 512 / (time.perf_counter() - start), flush=True)
