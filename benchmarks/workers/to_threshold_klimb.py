"""CartPole-v1 solved: klimb, the time to a mean return of 475. The same protocol as to_threshold_sb3.py.

Argument: JSON with rule, rule_options, options and the number of iterations between evaluations.
"""

import json
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp

from klimb import RunConfig, TrainOptions, make
from klimb.rules import RULES
from klimb.training import devices
from klimb.training.program import Program

task = json.loads(sys.argv[1])
devices.use_all_cores()

TOTAL, EPISODES, THRESHOLD = 100_000, 20, 475
environment = make("jax:CartPole-v1")


@eqx.filter_jit
def mean_return(policy, key):
    """Of EPISODES episodes by the most probable actions."""
    state, obs = jax.vmap(environment.reset)(jax.random.split(key, EPISODES))

    def step(carry, _):
        state, obs, alive, total = carry
        after = jax.vmap(environment.step)(jax.random.split(key, EPISODES), state, jax.vmap(policy)(obs).mode())
        total = total + jnp.where(alive, after.reward, 0)
        return (after.state, after.obs, alive & ~(after.terminated | after.truncated), total), None

    start = (state, obs, jnp.ones(EPISODES, bool), jnp.zeros(EPISODES))
    return jnp.mean(jax.lax.scan(step, start, None, length=500)[0][3])


rule = RULES[task["rule"]](**task["rule_options"])
config = RunConfig("jax:CartPole-v1", rule, TrainOptions(env_steps=TOTAL, **task["options"]))
program, every = Program(config, environment), task["every"]


def solve(seed):
    program._copies.seeds[:] = [seed]  # the program is the same for every seed
    state = jax.block_until_ready(program.initial_state())
    steps, seconds = 0, 0.0
    while steps < TOTAL:
        start = time.perf_counter()
        state, metrics = program.advance(state, every)
        jax.block_until_ready(state)
        seconds += time.perf_counter() - start
        steps = int(metrics["env_steps"][-1, 0])
        if mean_return(program.policies(state)[0], jax.random.key(10_000 + seed)) >= THRESHOLD:
            return {"seed": seed, "steps": steps, "seconds": seconds}
    return {"seed": seed, "steps": None, "seconds": None}


solve(10**6)
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(solve(int(line))), flush=True)
