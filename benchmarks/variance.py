"""How noisy the gradient estimates are: `make bench-variance`.

A half-trained policy on CartPole-v1 and the critic that it was trained with. Every estimator sees the same 1 000
batches, of 8 episodes (or their first 200 steps) each; the variance is that of the whole gradient vector from batch
to batch (the trace of its covariance), as a multiple of that of the first row. Off-policy, the batches are those of
the policy one TRPO step (KL 0.01) earlier.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import klimb
from klimb.collect.compiled import CompiledCollector
from klimb.environments.control.cartpole import CartPole
from klimb.estimate.estimator import Estimator
from klimb.estimate.values import values
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.training.program import Program
from results_file import write_results

BATCHES, EPISODES, STEPS = 1000, 8, 200
ON_POLICY = (
    "total_return",
    "reward_to_go",
    "reward_to_go_average",
    "leave_one_out",
    "time_baseline",
    "value_baseline",
    "gae",
)
OFF_POLICY = (
    ("trajectory", "total_return"),
    ("trajectory", "reward_to_go"),
    ("trajectory", "value_baseline"),
    ("per_decision", "reward_to_go"),
    ("per_decision", "value_baseline"),
    ("per_decision", "gae"),
    ("per_step", "gae"),
)


def train(iterations: int) -> klimb.Run:
    """The same run, for longer or shorter."""
    return klimb.train(
        "CartPole-v1", klimb.TRPO(), env_steps=iterations * 1024, num_envs=16, num_steps=64, hidden=(32,)
    )


def spread(target, behaviour, critic, rows) -> dict[tuple[str, str], dict[str, float]]:
    """For (weighting, advantage) pairs: the variance of the gradient, its squared mean, the effective sample size."""
    collector = CompiledCollector(CartPole(), EPISODES, STEPS, whole_episodes=True)
    theta, rebuild = flatten(target)

    @jax.jit
    def estimates(key):
        rollout = collector.collect(key, behaviour, collector.init(key))[1]
        gradients = {}
        for weighting, kind in rows:
            estimator = Estimator(advantage=kind, normalize_advantage=False)
            batch = estimator.estimate(rollout, *values(critic, rollout), fraction_done=jnp.zeros(())).blank_padding()
            rule = klimb.OffPolicyGradient(weighting=weighting)

            def objective(vector, rule=rule, batch=batch):
                return rule._objective(action_distribution(rebuild(vector), batch.obs), batch)

            ess = rule._sample_size(action_distribution(target, batch.obs), batch)[0]
            gradients[weighting, kind] = (jax.grad(objective)(theta), ess)
        return gradients

    keys = jax.random.split(jax.random.key(1), BATCHES)
    drawn = jax.lax.map(estimates, keys, batch_size=25)
    return {
        row: {
            "variance": float(np.var(np.asarray(gradient, np.float64), axis=0, ddof=1).sum()),
            "squared_mean": float(np.square(np.asarray(gradient, np.float64).mean(0)).sum()),
            "ess": float(np.mean(ess)),
        }
        for row, (gradient, ess) in ((row, drawn[row]) for row in rows)
    }


def main() -> None:
    earlier, later = train(12), train(13)
    program = Program(later.config, klimb.make(later.config.env))
    critic = eqx.combine(jax.tree.map(lambda x: x[0], later.state.critic), program.iteration.critic_static)
    tables = {
        "on-policy": spread(later.policy, later.policy, critic, [("per_step", kind) for kind in ON_POLICY]),
        "off-policy": spread(later.policy, earlier.policy, critic, OFF_POLICY),
    }
    results = {}
    for name, table in tables.items():
        first = next(iter(table.values()))["variance"]
        results[name] = [
            {"weighting": weighting, "advantage": kind, "relative_variance": row["variance"] / first, **row}
            for (weighting, kind), row in table.items()
        ]
        print(name)
        for row in results[name]:
            label = row["advantage"] if name == "on-policy" else f"{row['weighting']}, {row['advantage']}"
            noise = (row["variance"] / row["squared_mean"]) ** 0.5
            print(f"  {label:<32} {row['relative_variance']:8.4f}   noise/signal {noise:6.1f}   ess {row['ess']:.3f}")
    write_results("variance", batches=BATCHES, episodes=EPISODES, steps=STEPS, results=results)


if __name__ == "__main__":
    main()
