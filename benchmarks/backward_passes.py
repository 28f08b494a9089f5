"""One backward pass of the weighted surrogate against a gradient of log π per row: `make bench-backward`.

A Gaussian policy with two hidden layers of 64, 17 observations and 6 action dimensions; batches of N·T rows. Four ways
to the same vector, (1/NT) Σ ∇log π(a|s) Â:

one backward pass       the gradient of mean log π(a|s) Â
row by row              one compiled gradient per row, called from Python, and a running sum
row by row, compiled    the same loop inside one program
all rows, vmap          every row's gradient at once, kept as a matrix [NT, P], then its weighted mean

Everything is compiled and warm; the four take turns, and the results are ratios of the same turn. Memory is what the
compiled program says that it needs for intermediate results.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from klimb import Batch, NetworkPolicy
from klimb.improve.objectives import log_likelihood
from klimb.policies.actions import Box
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from results_file import write_results

OBSERVATIONS, DIMENSIONS, HIDDEN = 17, 6, (64, 64)
ROWS, TURNS = (256, 1024, 4096), 31
ONE_PASS = "one backward pass"


def contenders(rows: int) -> tuple[dict[str, Callable[[], jax.Array]], dict[str, int], int]:
    """name ↦ a function of no arguments that returns the gradient; name ↦ bytes of intermediates; P."""
    policy = NetworkPolicy(
        OBSERVATIONS, Box((-1.0,) * DIMENSIONS, (1.0,) * DIMENSIONS), hidden=HIDDEN, key=jax.random.key(0)
    )
    theta, rebuild = flatten(policy)
    obs = jax.random.normal(jax.random.key(1), (rows, OBSERVATIONS))
    distribution = action_distribution(policy, obs)
    action = distribution.sample(jax.random.key(2))
    advantage = jax.random.normal(jax.random.key(3), (rows,))
    batch = Batch(obs, action, distribution.log_prob(action), advantage, jnp.zeros(rows), jnp.ones(rows))

    def surrogate(theta, batch):
        return jax.grad(lambda vector: log_likelihood(rebuild(vector), batch))(theta)

    def score(theta, obs, action):
        return jax.grad(lambda vector: action_distribution(rebuild(vector), obs[None]).log_prob(action[None])[0])(theta)

    def add_row(total, theta, obs, action, advantage):
        return total + advantage * score(theta, obs, action)

    def compiled_loop(theta, batch):
        def add(total, row):
            return add_row(total, theta, *row), None

        rows_of = (batch.obs, batch.action, batch.advantage)
        return jax.lax.scan(add, jnp.zeros_like(theta), rows_of)[0] / rows

    def all_rows(theta, batch):
        scores = jax.vmap(score, in_axes=(None, 0, 0))(theta, batch.obs, batch.action)
        return batch.advantage @ scores / rows

    one_row = jax.jit(add_row)
    each = list(zip(np.asarray(obs), np.asarray(action), np.asarray(advantage), strict=True))

    def python_loop():
        total = jnp.zeros_like(theta)
        for row in each:
            total = one_row(total, theta, *row)
        return total / rows

    compiled = {
        ONE_PASS: jax.jit(surrogate).lower(theta, batch).compile(),
        "row by row, compiled": jax.jit(compiled_loop).lower(theta, batch).compile(),
        "all rows, vmap": jax.jit(all_rows).lower(theta, batch).compile(),
    }
    runs: dict[str, Callable[[], jax.Array]] = {
        name: functools.partial(program, theta, batch) for name, program in compiled.items()
    }
    runs["row by row"] = python_loop
    memory = {name: program.memory_analysis().temp_size_in_bytes for name, program in compiled.items()}
    return runs, memory, theta.size


def seconds(run: Callable[[], jax.Array]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(rows: int, turns: int = TURNS) -> dict:
    """Medians and ranges of the ratios to one backward pass, milliseconds for orientation, bytes of intermediates."""
    runs, memory, parameters = contenders(rows)
    gradients = {name: np.asarray(run()) for name, run in runs.items()}
    largest = np.abs(gradients[ONE_PASS]).max()
    times = [{name: seconds(run) for name, run in runs.items()} for _ in range(turns)]
    ratios = {name: [turn[name] / turn[ONE_PASS] for turn in times] for name in runs if name != ONE_PASS}
    return {
        "rows": rows,
        "parameters": parameters,
        "milliseconds": {name: 1e3 * statistics.median(turn[name] for turn in times) for name in runs},
        "ratios": {
            name: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for name, values in ratios.items()
        },
        "intermediate_bytes": memory,
        "largest_difference": {
            name: float(np.abs(gradient - gradients[ONE_PASS]).max() / largest) for name, gradient in gradients.items()
        },
    }


def main() -> None:
    results = [measure(rows) for rows in ROWS]
    write_results("backward_passes", turns=TURNS, results=results)
    for result in results:
        print(f"{result['rows']} rows, {result['parameters']} parameters")
        for name, milliseconds in result["milliseconds"].items():
            ratio = result["ratios"].get(name)
            times = "" if ratio is None else f", {ratio['median']:.3g} times ({ratio['min']:.3g} to {ratio['max']:.3g})"
            held = result["intermediate_bytes"].get(name)
            memory = "" if held is None else f", {held / 2**20:.2f} MiB of intermediates"
            print(f"  {name}: {milliseconds:.2f} ms{times}{memory}")


if __name__ == "__main__":
    main()
