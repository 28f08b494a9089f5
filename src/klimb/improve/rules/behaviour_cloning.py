"""Behaviour cloning: maximum likelihood of a demonstrator's actions, with early stopping on held-out episodes."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from pydantic import Field

from klimb.fields import Count, Positive, checked
from klimb.improve.acceptance import accept_or_reject
from klimb.improve.optimizer import Optimizer, fit_epochs
from klimb.improve.rule import Traits
from klimb.improve.schedules import Schedule, anneals, current, schedule_metrics
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.types import Batch, Metric, Rollout, Sequences, Status, UpdateInfo


class CloningState(NamedTuple):
    """The state of the ascent, which goes on past the best policy.

    theta: parameters. moments: Adam's. waited: epochs since the held-out likelihood last rose.
    """

    theta: Float[Array, " P"]
    moments: optax.OptState
    waited: Int[Array, ""]


@checked
class BehaviourCloning:
    """Maximises mean log π_θ(a|s) over demonstrations: one epoch of minibatch ascent per step.

    The full log-likelihood for every kind of distribution (for a Gaussian with fixed σ that is the squared error). An
    epoch that raises the likelihood of the held-out episodes is accepted. Otherwise the best policy so far is returned
    and training continues, until `holdout_patience` epochs in a row have not raised it. Advantages and behaviour
    log-probs are not used.
    """

    learning_rate: Positive = 1e-3
    """Adam's step size."""
    minibatch_size: Count = 256
    """Samples per gradient step."""
    max_epochs: Count = 200
    """Maximum number of passes over the demonstrations."""
    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    """Fraction of the episodes (of the samples, if there is one episode) held out; 0 accepts every epoch."""
    holdout_patience: Count = 10
    """Number of epochs in a row without a higher held-out likelihood after which the training ends."""
    max_grad_norm: Positive | None = None
    """Maximum global norm of the gradient; none does not clip."""
    learning_rate_schedule: Schedule = "constant"
    """constant; linear or cosine: it decreases to 0 over max_epochs."""

    @property
    def traits(self) -> Traits:
        return Traits(
            title="Behaviour cloning",
            learns_from="demonstrations",
            uses_critic=False,
            watched=("held_out_log_likelihood", "waited"),
            metrics={
                "log_likelihood": Metric("Log-likelihood", "nats per sample on the episodes trained on"),
                "held_out_log_likelihood": Metric(
                    "Held-out log-likelihood", "nats per sample on the episodes held out"
                ),
                "waited": Metric("Epochs without gain", "passes since the held-out likelihood last rose"),
                "grad_norm": Metric("Gradient norm", "norm of the last gradient, before it is clipped"),
            }
            | schedule_metrics(self),
            anneals=anneals(self),
            fixed={"holdout": "episodes that have been trained on would be held out"},
        )

    def init(self, policy: PyTree) -> CloningState:
        """The state of training before the first epoch.

        policy: the one to start from.
        """
        theta = flatten(policy).theta
        return CloningState(theta, self._optimizer.init(theta), jnp.int32(0))

    def finished(self, state: CloningState) -> Bool[Array, "..."]:
        """Whether early stopping has ended the training.

        state: after the last step, with a leading axis of seeds or without.
        """
        return state.waited >= self.holdout_patience

    def step(
        self, key: PRNGKeyArray, policy: PyTree, state: CloningState, batch: Batch
    ) -> tuple[PyTree, CloningState, UpdateInfo]:
        """One epoch: (policy, state, info).

        key: for the order of the rows. policy: the best so far. state: where training continues from.
        batch: the demonstrations.

        `info.extra`: log_likelihood of the rows trained on and held_out_log_likelihood (nats per row), both of the
        policy returned; waited, the epochs since the last gain; grad_norm of the last minibatch, before clipping; and
        what has a schedule.
        """
        _, rebuild = flatten(policy)
        now, scheduled = current(self, batch)
        train, test = self._split(batch)
        judge = train if self.holdout == 0 else test
        fitted = fit_epochs(
            self._optimizer,
            lambda vector, rows: _log_likelihood(rebuild(vector), rows),
            key,
            state.theta,
            state.moments,
            train,
            learning_rate=now.learning_rate,
            epochs=1,
            num_minibatches=self._num_minibatches(batch),
        )
        candidate = rebuild(fitted.theta)
        better = _log_likelihood(candidate, judge) > _log_likelihood(policy, judge)
        if self.holdout == 0:
            better = jnp.ones_like(better)
        waited = jnp.where(better, 0, state.waited + 1)
        policy, state, info = accept_or_reject(
            policy,
            state,
            candidate,
            CloningState(fitted.theta, fitted.moments, waited),
            batch,
            status=jnp.where(better, Status.ACCEPTED, Status.NO_IMPROVEMENT),
            log_likelihood=lambda returned: train.mean(returned.log_prob(batch.action)),
            held_out_log_likelihood=lambda returned: test.mean(returned.log_prob(batch.action)),
            grad_norm=fitted.grad_norm,
            **scheduled,
        )
        return policy, state, info.with_metrics(waited=state.waited)

    def log_likelihoods(self, policy: PyTree, batch: Batch) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Mean log π(a|s) of the rows trained on and of those held out, in nats.

        policy: any. batch: the demonstrations.
        """
        train, test = self._split(batch)
        return _log_likelihood(policy, train), _log_likelihood(policy, test)

    @property
    def _optimizer(self) -> Optimizer:
        return Optimizer.make("adam", self.max_grad_norm)

    def _num_minibatches(self, batch: Batch) -> int:
        """With memory each has the same number of whole sequences; less than one minibatch of them is left out."""
        count = max(1, len(batch.weight) // self.minibatch_size)
        if not isinstance(batch.obs, Sequences):
            return count
        sequences = batch.obs.count
        return sequences // -(-sequences // min(count, sequences))

    def _split(self, batch: Batch) -> tuple[Batch, Batch]:
        """(the rows to train on, the rows held out): the same batch twice, with weight 0 for the others."""
        held = self._held_out(batch)
        train, test = (eqx.tree_at(lambda b: b.weight, batch, jnp.where(m, batch.weight, 0)) for m in (~held, held))
        return train, test

    def _held_out(self, batch: Batch) -> Bool[Array, " B"]:
        """The rows of every k-th episode, k = 1/holdout: whole episodes, because rows of one episode are correlated."""
        if self.holdout == 0:
            return jnp.zeros(batch.weight.shape, bool)
        rows = jnp.arange(len(batch.weight))
        number, episodes = rows, jnp.int32(len(rows))
        if batch.trajectory is not None:
            number, episodes = _episode_numbers(batch.trajectory.rollout, batch.weight)
            number, episodes = (jnp.where(episodes > 1, a, b) for a, b in ((number, rows), (episodes, len(rows))))
        every = round(1 / self.holdout)
        # Not the first one of every k, because packing puts the longest episodes first.
        return number % every == jnp.minimum(every // 2, episodes - 1)


def _log_likelihood(policy: PyTree, batch: Batch) -> Float[Array, ""]:
    """Mean log π(a|s) of a policy over the rows of a batch."""
    return batch.mean(action_distribution(policy, batch.obs).log_prob(batch.action))


def _episode_numbers(rollout: Rollout, weight: Float[Array, " B"]) -> tuple[Int[Array, " B"], Int[Array, ""]]:
    """(the number of each row's episode, the number of episodes), counted environment by environment."""
    counted = (weight > 0).reshape(rollout.valid.shape)
    ended = (rollout.terminated | rollout.truncated) & counted
    before = jnp.cumsum(ended, axis=0) - ended
    in_column = jnp.sum(ended, axis=0)
    return (before + jnp.cumsum(in_column) - in_column).reshape(-1), jnp.sum(in_column)
