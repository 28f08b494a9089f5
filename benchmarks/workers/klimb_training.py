"""Any klimb training. Answers every line on standard input with steps per second of some warm iterations."""

import json
import sys
import time

import jax

from klimb import RunConfig, TrainOptions, make
from klimb.rules import RULES
from klimb.training import devices
from klimb.training.program import Program

task = json.loads(sys.argv[1])
devices.use_all_cores()

ITERATIONS = task["iterations"]
rule = RULES[task["rule"]](**task.get("rule_options", {}))
config = RunConfig(task["env"], rule, TrainOptions(env_steps=2**32 - 1, **task.get("options", {})))
program = Program(config, make(config.env))


def train(state, iterations):
    done = 0
    while done < iterations:
        count = min(program.max_iterations_per_call, iterations - done)
        state, _ = program.advance(state, count)
        done += count
    return jax.block_until_ready(state)


state = program.initial_state()
program.start(iteration=0)
state = train(state, min(ITERATIONS, 5))
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    state = train(state, ITERATIONS)
    print(ITERATIONS * config.options.batch_size * config.options.num_seeds / (time.perf_counter() - start), flush=True)
program.close()
