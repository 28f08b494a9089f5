"""A task solved by klimb; protocol and clock are those of until_solved.py.

The argument also has `command`, the words of `klimb train`: presets apply. Programs are compiled by a training with
another seed, which comes first.
"""

import shlex

import jax
from until_solved import Clock, serve, task_and_goal

from klimb import make
from klimb.cli import compilation_cache, train
from klimb.cli.commands import load
from klimb.collect.evaluation import Evaluator
from klimb.training import devices
from klimb.training.program import Program

task, goal = task_and_goal()
devices.use_all_cores()
compilation_cache.enable()
config, _ = train.configuration(load("train").parse(shlex.split(task["command"])[2:]))
assert not config.options.overlap, "a rollout would be collected while the clock stands still"
environment = make(config.env)
program = Program(config, environment)
evaluator = Evaluator(environment, episodes=goal.episodes, deterministic=True)
# As many iterations at once as reach the next evaluation.
ITERATIONS = min(program.max_iterations_per_call, max(1, -(-goal.every // config.options.batch_size)))


def begin(seed):
    """A fresh training: the program is the same for every seed."""
    program.seeds[:] = [seed]
    program.start(iteration=0)
    return jax.block_until_ready(program.initial_state())


def advance(state):
    """The state after some iterations, and its environment steps."""
    state, metrics = program.advance(state, ITERATIONS)
    return jax.block_until_ready(state), int(metrics["env_steps"][-1, 0])


def mean_return(state, seed):
    return evaluator(program.policies(state)[0], 10_000 + seed).mean


def solve(seed):
    state = begin(seed)
    clock = Clock(goal, lambda: mean_return(state, seed))
    steps = 0
    while not clock.over(steps):
        state, steps = advance(state)
    return clock


state = begin(10**6)
for _ in range(2):
    state, _ = advance(state)
mean_return(state, 10**6)
serve(solve)
program.close()
