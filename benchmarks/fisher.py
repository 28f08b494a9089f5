"""What a Fisher-vector product costs, in surrogate gradients: `make bench-fisher`.

Two hidden layers of 64 and a batch of 16 384 observations. Everything is compiled and warm; the contenders take
turns, so that whatever else the machine does hits all of them, and the results are ratios of the same turn. One
product is timed as ten in a chain, as conjugate gradient does them, on a linearisation made once and divided
out by the difference between chains of twenty and of ten.
"""

from __future__ import annotations

import statistics
import time

import jax
import jax.numpy as jnp

from klimb import Batch, NetworkPolicy, fisher_vector_product, kl_divergence
from klimb.improve.objectives import surrogate_gain
from klimb.policies.actions import Box, Discrete
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from results_file import write_results

ROWS, TURNS = 16_384, 25
KINDS = {
    "categorical, 8 observations, 4 actions": (8, Discrete(4)),
    "Gaussian, 17 observations, 6 dimensions": (17, Box((-1.0,) * 6, (1.0,) * 6)),
}


def contenders(observations: int, actions: Discrete | Box) -> dict:
    """name ↦ a compiled function of no arguments."""
    policy = NetworkPolicy(observations, actions, hidden=(64, 64), key=jax.random.key(0))
    theta, rebuild = flatten(policy)
    policy = rebuild(theta + 0.1 * jax.random.normal(jax.random.key(1), theta.shape))
    theta = flatten(policy).theta
    obs = jax.random.normal(jax.random.key(2), (ROWS, observations))
    old = action_distribution(policy, obs)
    action = old.sample(jax.random.key(3))
    advantage = jax.random.normal(jax.random.key(4), (ROWS,))
    batch = Batch(obs, action, old.log_prob(action), advantage, jnp.zeros(ROWS), jnp.ones(ROWS))
    vector = jax.random.normal(jax.random.key(5), theta.shape)

    def gradient(theta, batch):
        return jax.grad(lambda v: surrogate_gain(action_distribution(rebuild(v), batch.obs), batch))(theta)

    def ten_gradients(theta, batch):
        return jax.lax.fori_loop(0, 10, lambda _, v: v + 1e-6 * gradient(v, batch), theta)

    def chain(length, theta, obs, vector):
        product = fisher_vector_product(rebuild(theta), obs)
        return jax.lax.fori_loop(0, length, lambda _, v: product(v) + 0.1 * v, vector)

    def hessian_product(theta, obs, vector):
        def mean_kl(v):
            return jnp.mean(kl_divergence(action_distribution(policy, obs), action_distribution(rebuild(v), obs)))

        return jax.grad(lambda u: jnp.vdot(jax.grad(mean_kl)(u), vector))(theta) + 0.1 * vector

    def ten_in_one_program(theta, obs, vector):
        # The compiler takes what does not depend on the vector out of the loop by itself.
        return jax.lax.fori_loop(0, 10, lambda _, v: hessian_product(theta, obs, v), vector)

    def ten_one_by_one(theta, obs, vector):
        for _ in range(10):
            vector = one_hessian(theta, obs, vector)
        return vector

    many = jax.jit(chain, static_argnums=0)
    ten_gradients, ten_in_one_program = jax.jit(ten_gradients), jax.jit(ten_in_one_program)
    one_hessian = jax.jit(hessian_product)
    return {
        "ten gradients": lambda: ten_gradients(theta, batch),
        "ten products": lambda: many(10, theta, obs, vector),
        "twenty products": lambda: many(20, theta, obs, vector),
        "ten by double backpropagation": lambda: ten_one_by_one(theta, obs, vector),
        "the same in one program": lambda: ten_in_one_program(theta, obs, vector),
    }


def seconds(run) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def measure(name: str) -> dict:
    """Medians and ranges of the ratios, and seconds for orientation."""
    runs = contenders(*KINDS[name])
    for run in runs.values():
        seconds(run)
    turns = [{key: seconds(run) for key, run in runs.items()} for _ in range(TURNS)]
    ratios = {
        "one product / one gradient": [(t["twenty products"] - t["ten products"]) / t["ten gradients"] for t in turns],
        "ten products with linearisation / ten gradients": [t["ten products"] / t["ten gradients"] for t in turns],
        "ten products with linearisation / ten by double backpropagation": [
            t["ten products"] / t["ten by double backpropagation"] for t in turns
        ],
        "ten products with linearisation / the same in one program": [
            t["ten products"] / t["the same in one program"] for t in turns
        ],
        "ten products / the same in one program": [
            (t["twenty products"] - t["ten products"]) / t["the same in one program"] for t in turns
        ],
    }
    return {
        "policy": name,
        "milliseconds": {key: 1e3 * statistics.median(t[key] for t in turns) for key in runs},
        "ratios": {
            key: {"median": statistics.median(values), "min": min(values), "max": max(values)}
            for key, values in ratios.items()
        },
    }


def main() -> None:
    results = [measure(name) for name in KINDS]
    write_results("fisher", rows=ROWS, turns=TURNS, results=results)
    for result in results:
        print(result["policy"])
        print("  " + ", ".join(f"{key} {value:.1f} ms" for key, value in result["milliseconds"].items()))
        for key, ratio in result["ratios"].items():
            print(f"  {key}: median {ratio['median']:.2f}, from {ratio['min']:.2f} to {ratio['max']:.2f}")


if __name__ == "__main__":
    main()
