"""How far apart are the policies of consecutive rollouts? `make bench-acting` writes docs/theory/certificate.md.

A rule reports the KL of its step; then the observation statistics take the batch in. For every rule and environment:
the largest KL between the policies of two consecutive rollouts, as klimb trains (the first layer absorbs the new
statistics), and with statistics that are not absorbed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

import klimb
from klimb import PPO, TRPO, Batch, DualDescent, NaturalGradient
from klimb.improve.divergences import kl_divergence
from klimb.improve.rule import Rule, Setting, Traits, bind, traits_of
from klimb.policies.mlp import MLP
from klimb.types import UpdateInfo
from results_file import HERE, write_results

PAGE = HERE.parent / "docs" / "theory" / "certificate.md"
BEGIN, END = "<!-- acting policies -->", "<!-- end of acting policies -->"
SIZES = {"num_envs": 16, "num_steps": 128, "env_steps": 30 * 16 * 128, "workers": 0}
RULES = {
    "trpo": TRPO(),
    "natural-gradient": NaturalGradient(),
    "dual-descent": DualDescent(),
    "ppo": PPO(num_minibatches=32),
}
ENVIRONMENTS = (
    "CartPole-v1",
    "Pendulum-v1",
    "gymnasium:Hopper-v5",
    "gymnasium:HalfCheetah-v5",
    "gymnasium:Ant-v5",
)


class Before(NamedTuple):
    """What is remembered of the last step: the policy that acted, the rows it saw `[B, *obs]`, and their weights."""

    policy: PyTree
    obs: Array
    weight: Array


@dataclass(frozen=True)
class Watched:
    """A rule that lets another one decide, and reports how far apart the policies of two consecutive rollouts are.

    The metrics acting_old_new and acting_new_old are KLs between the policy of the last rollout and that of this one,
    in the mean over the states of the last one. rows, obs: rows of a batch, and the shape of one observation.
    """

    rule: Rule
    rows: int
    obs: tuple[int, ...]

    @property
    def traits(self) -> Traits:
        return traits_of(self.rule)

    def bind(self, environment: Any, setting: Setting) -> Watched:
        """The watched rule, bound to an environment."""
        return Watched(bind(self.rule, environment, setting), self.rows, self.obs)

    def init(self, policy: PyTree) -> tuple[PyTree, Before]:
        """The rule's own state, and nothing remembered."""
        before = Before(eqx.filter(policy, eqx.is_array), jnp.zeros((self.rows, *self.obs)), jnp.zeros(self.rows))
        return self.rule.init(policy), before

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: tuple[PyTree, Before], batch: Batch
    ) -> tuple[PyTree, tuple[PyTree, Before], UpdateInfo]:
        """The rule's own step, with the two metrics."""
        inner, before = state
        arrays, static = eqx.partition(policy, eqx.is_array)
        acted = klimb.action_distribution(eqx.combine(before.policy, static), before.obs)
        acts = klimb.action_distribution(policy, before.obs)
        total = jnp.maximum(jnp.sum(before.weight), 1)

        def mean(kl: Array) -> Array:
            return jnp.sum(jnp.where(before.weight > 0, before.weight * kl, 0)) / total

        new, inner, info = self.rule.step(key, policy, inner, batch)
        info = info.with_metrics(
            acting_old_new=mean(kl_divergence(acted, acts)), acting_new_old=mean(kl_divergence(acts, acted))
        )
        return new, (inner, Before(arrays, batch.obs, batch.weight)), info


def watched_run(env: str, rule: Rule, *, num_envs: int, num_steps: int, **options: Any) -> list[dict]:
    """The records of a training whose rule is watched."""
    watched = Watched(rule, num_envs * num_steps, klimb.make(env).observations.shape)
    return klimb.train(env, watched, num_envs=num_envs, num_steps=num_steps, **options).history


@contextlib.contextmanager
def not_absorbed() -> Iterator[None]:
    """Trainings whose new statistics change policy and critic, as is usual elsewhere."""
    absorb = MLP.absorb
    MLP.absorb = lambda self, rescaling: self  # type: ignore[method-assign]
    try:
        yield
    finally:
        MLP.absorb = absorb  # type: ignore[method-assign]


def largest(records: list[dict]) -> float:
    """The largest KL(old‖new) between the policies of two consecutive rollouts."""
    return max(record["acting_old_new"] for record in records[1:])


def measure(env: str, name: str) -> dict[str, Any]:
    """One row of the table."""
    rule = RULES[name]
    records = watched_run(env, rule, **SIZES)
    with not_absorbed():
        without = watched_run(env, rule, **SIZES)
    row = {
        "environment": env.removeprefix("gymnasium:"),
        "rule": name,
        "limit": traits_of(rule).kl.limit,
        "enforced": traits_of(rule).kl.enforced,
        "reported": max(record["kl_old_new"] for record in records),
        "acting": largest(records),
        "acting_not_absorbed": largest(without),
        "reported_not_absorbed": max(record["kl_old_new"] for record in without),
        "kl_normalizer": max(record["kl_normalizer"] for record in records),
    }
    print(row, flush=True)
    return row


def describe(rows: list[dict[str, Any]]) -> None:
    """The table, between its marks on the page."""
    lines = [
        "| environment | rule | limit | largest KL of a step | between acting policies | statistics not absorbed |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        limit = "none" if row["limit"] is None else f"{row['limit']:g}{'' if row['enforced'] else ' (aimed at)'}"
        lines.append(
            f"| {row['environment']} | {row['rule']} | {limit} | {row['reported']:.5f} | {row['acting']:.5f} "
            f"| {row['acting_not_absorbed']:.5f} |"
        )
    text = PAGE.read_text(encoding="utf-8")
    head, _, tail = text.partition(BEGIN)
    PAGE.write_text(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + tail.partition(END)[2], encoding="utf-8")


def main() -> None:
    """Measure, keep the numbers, and write the page."""
    rows = [measure(env, name) for env in ENVIRONMENTS for name in RULES]
    write_results("acting_policy", sizes=SIZES, rows=rows)
    describe(rows)


if __name__ == "__main__":
    main()
