"""The types that everything else passes around. Every array's axes are named here, once.

Axes: T time steps, N environments, E kept successors, B rows of a batch, A discrete actions, D action dimensions,
`obs` the axes of one observation, `act` the axes of one action (none for discrete actions). With memory: M parts of a
rollout in time, S sequences of L steps each, C and G numbers that policy and critic remember.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num, PRNGKeyArray, PyTree, Shaped, UInt32

from klimb.mesh import gather_rows, spread_rows


class Metric(NamedTuple):
    """A number that a run records in every iteration.

    title: what it is called in charts. meaning: what it means, in one sentence with its unit.
    """

    title: str
    meaning: str


class Status(enum.IntEnum):
    """The outcome of one improvement step. Arrays hold the number; `message` is for people."""

    ACCEPTED = 0
    """The step was taken."""
    KL_TOO_LARGE = 1
    """Every step tried left the trust region."""
    NO_IMPROVEMENT = 2
    """No step tried improved the surrogate."""
    NONFINITE = 3
    """The batch, the gradient or the new policy held a NaN or an infinity."""
    CG_BREAKDOWN = 4
    """Conjugate gradient met a direction without curvature."""
    CRITIC_WARMUP = 5
    """No step was tried, because the critic still learns the value of the policy that the run started from."""
    FINISHED = 6
    """No step was tried, because this seed has made its `env_steps` and waits for the others."""

    @property
    def rejected(self) -> bool:
        """Whether a step was tried and not taken."""
        return self not in (Status.ACCEPTED, Status.CRITIC_WARMUP, Status.FINISHED)

    @property
    def message(self) -> str:
        """Cause and remedy, in one line."""
        return _STATUS_MESSAGES[self]


_STATUS_MESSAGES = {
    Status.ACCEPTED: "the step was taken",
    Status.KL_TOO_LARGE: "every step tried left the trust region: raise max_backtracks or the limit (max_kl, "
    "climb_kl), lower the learning rate, or collect larger batches so that the quadratic model of the KL is better",
    Status.NO_IMPROVEMENT: "no step tried improved the surrogate: the gradient is mostly noise (collect larger "
    "batches) or the policy is at a stationary point",
    Status.NONFINITE: "the batch, the gradient or the new policy held a NaN or an infinity: look at the "
    "environment's observations and rewards, and lower the learning rate",
    Status.CG_BREAKDOWN: "conjugate gradient met a direction without curvature: raise damping",
    Status.CRITIC_WARMUP: "no step was tried: the critic is still learning the value of the policy that the run "
    "started from; lower critic_warmup for a shorter wait",
    Status.FINISHED: "no step was tried: this seed has made its env_steps, and waits for the others",
}


class Sequences(eqx.Module):
    """Observations that networks with memory read in order, in place of the rows `[B, *obs]` that others read.

    The B = M·L·N rows are those of a rollout in their usual order, step after step. Each of its N columns is cut into M
    parts of L steps: S = M·N sequences, through each of which derivatives flow, and at whose start the memory is given.
    obs: of the rows. begins: rows before which everything is forgotten, because an episode begins. carry: what the
    policy remembers at the start of every sequence, a constant. critic_carry: the same of the critic; None for one
    without memory.
    """

    obs: Num[Array, " B *obs"]
    begins: Bool[Array, " B"]
    carry: Float[Array, "M N C"]
    critic_carry: Float[Array, "M N G"] | None = None

    @property
    def count(self) -> int:
        """S."""
        return self.carry.shape[0] * self.carry.shape[1]

    @property
    def steps(self) -> int:
        """L."""
        return len(self.begins) // self.count

    def in_order(self, rows: Shaped[Array, " B *rest"]) -> Shaped[Array, "L S *rest"]:
        """Rows as sequences. rows: in the order of `obs`."""
        parts, columns = self.carry.shape[:2]
        by_part = rows.reshape(parts, self.steps, columns, *rows.shape[1:])
        return jnp.moveaxis(by_part, 0, 1).reshape(self.steps, self.count, *rows.shape[1:])

    def in_rows(self, ordered: Shaped[Array, "L S *rest"]) -> Shaped[Array, " B *rest"]:
        """The inverse of `in_order`. ordered: sequences."""
        parts, columns = self.carry.shape[:2]
        by_step = ordered.reshape(self.steps, parts, columns, *ordered.shape[2:])
        return jnp.moveaxis(by_step, 1, 0).reshape(-1, *ordered.shape[2:])

    def rows_of(self, numbers: Int[Array, "*some s"]) -> Int[Array, "*some r"]:
        """The rows of some sequences, r = L·s, in the order that `take` wants. numbers: of the sequences."""
        columns = self.carry.shape[1]
        first = numbers // columns * (self.steps * columns) + numbers % columns
        rows = first[..., None, :] + columns * jnp.arange(self.steps, dtype=numbers.dtype)[:, None]
        return rows.reshape(*numbers.shape[:-1], -1)

    def take(self, rows: Int[Array, " r"]) -> Sequences:
        """Some of the sequences. rows: theirs, as `rows_of` gives them."""
        columns = self.carry.shape[1]
        first = rows[: len(rows) // self.steps]
        part, column = first // (self.steps * columns), first % columns

        def of_sequences(carry: Array | None) -> Array | None:
            return None if carry is None else carry[part, column][None]

        return Sequences(
            take_rows(self.obs, rows),
            take_rows(self.begins, rows),
            self.carry[part, column][None],
            of_sequences(self.critic_carry),
        )


class Derivatives(eqx.Module):
    """First derivatives of every step in its simulator state x and its action u, at the values that occurred.

    Axes: those of the rows, `[T, N]` in a rollout; S state dimensions of the simulator, Z = S + D coordinates (x, u),
    O observation dimensions.
    dynamics: of the simulator state after the step. obs: of the observation before it, in x.
    next_obs: of the true successor's observation. reward: of the reward.
    """

    dynamics: Float[Array, "*row S Z"]
    obs: Float[Array, "*row O S"]
    next_obs: Float[Array, "*row O Z"]
    reward: Float[Array, "*row Z"]


class Rollout(eqx.Module):
    """What every collector returns: T steps of N environments, in order. Leaves are `[T, N, ...]`, or as they say.

    `next_obs`, the true successor of `obs` before any reset, is the next row's `obs` but where an episode ends, and
    after the last row. Only the successors of such rows are kept.

    obs: before the step. action: that was sampled. log_prob: log π_β(action | obs) under the behaviour policy that
    collected the data, in nats. reward: of the step.
    terminated: the episode ended, and there is no value beyond. truncated: it was cut off, and the value goes on. The
    two are never merged.
    successor: `[E, N]`, of rows at which an episode ends and of the last row; `[T, N]` where `successor_step` is None.
    valid: False for rows that an environment's own reset has inserted; they are never trained on.
    time: steps since the episode began; None when unknown (then it counts from the start of the rollout).
    env_state: the simulator's own state before the step, of classic control under a rule that plans with it, else None.
    whole_episodes: whether every column is one trajectory: an episode from its first step to its end, then padding.
    derivatives: of the steps, of an environment that is differentiated by differences, for a rule that asks for them
    (`Traits.records_derivatives`), else None; rows that are not valid hold zeros.
    successor_step: the numbers of the rows of `successor`, first the last row's, and T where a column has fewer than E
    of them. None where every row has its own successor.
    carry: what a policy with memory remembered at the start of each of M equal parts of the rollout, else None.
    critic_carry: the same of the critic.
    """

    obs: Num[Array, "T N *obs"]
    action: Float[Array, "T N *act"] | Int[Array, "T N *act"]
    log_prob: Float[Array, "T N"]
    reward: Float[Array, "T N"]
    terminated: Bool[Array, "T N"]
    truncated: Bool[Array, "T N"]
    successor: Num[Array, "E N *obs"]
    valid: Bool[Array, "T N"]
    time: Int[Array, "T N"] | None = None
    env_state: Float[Array, "T N *state"] | None = None
    whole_episodes: bool = eqx.field(static=True, default=False)
    derivatives: Derivatives | None = None
    successor_step: Int[Array, "E N"] | None = None
    carry: Float[Array, "M N C"] | None = None
    critic_carry: Float[Array, "M N G"] | None = None

    @property
    def inputs(self) -> Num[Array, " B *obs"] | Sequences:
        """What policy and critic read: the observations of all rows; with memory, sequences of them."""
        obs = jnp.reshape(self.obs, (-1, *self.obs.shape[2:]))
        if self.carry is None:
            return obs
        return Sequences(obs, jnp.reshape(self.begins, -1), self.carry, self.critic_carry)

    @property
    def begins(self) -> Bool[Array, "T N"]:
        """Rows with which an episode begins."""
        if self.time is not None:
            return self.time == 0
        before = (self.terminated | self.truncated | ~self.valid)[:-1]
        return jnp.concatenate([jnp.zeros_like(before[:1], shape=(1, self.reward.shape[1])), before])

    @property
    def next_obs(self) -> Num[Array, "T N *obs"]:
        """The true successor of every row's observation; of rows that are not valid it may be anything."""
        return self.with_successors(jnp.asarray(self.obs), jnp.asarray(self.successor))

    def with_successors(
        self, of_rows: Shaped[Array, "T N *rest"], of_successors: Shaped[Array, "E N *rest"]
    ) -> Shaped[Array, "T N *rest"]:
        """A function of the true successors, `[T, N]`, from its values where they stand.

        of_rows: its values of `obs`. of_successors: those of `successor`.
        """
        if self.successor_step is None:
            return of_successors
        following = jnp.concatenate([of_rows[1:], of_successors[:1]])
        column = jnp.arange(following.shape[1])
        return following.at[self.successor_step, column].set(of_successors, mode="drop")

    def with_all_successors(self) -> Rollout:
        """The same rollout with a successor of every row, `[T, N]`: for parts of it, and to put it beside another."""
        return dataclasses.replace(self, successor=self.next_obs, successor_step=None)

    @property
    def cut_off(self) -> Bool[Array, "T N"]:
        """Rows after which rewards go on unseen: of a truncation, and the last ones of episodes that still run."""
        return (self.truncated & ~self.terminated).at[-1].set(~self.terminated[-1])


class Residuals(eqx.Module):
    """What per-decision importance weighting makes advantages of: Â_t = residual_t + decay_t · ρ_{t+1} Â_{t+1}.

    residual: r_t + γ V(s'_t) − V(s_t), or without a baseline r_t (plus γ V(s'_t) where the data is cut off).
    decay: γλ, 0 where the episode ends. discount: the leading γᵗ of the exact gradient, or 1.
    """

    residual: Float[Array, "T N"]
    decay: Float[Array, "T N"]
    discount: Float[Array, "T N"]


class Mixture(eqx.Module):
    """The K policies that collected a rollout between them: log-probs of every action under each, and log shares.

    log_share: of the trajectories, log n_k/n. log_row_share: of the rows, for weights of single steps; None where the
    shares are the same. A policy that has collected nothing has the share 0, and its log-probs are finite.
    """

    log_prob: Float[Array, "K T N"]
    log_share: Float[Array, " K"]
    log_row_share: Float[Array, " K"] | None = None


class Trajectory(eqx.Module):
    """A batch in its order in time, for rules that need rewards, or weights over several steps.

    rollout: the `[T, N]` rows that the batch was made of. residuals: its advantages, step by step; None where no rule
    weights decisions. mixture: the policies that collected it; None unless a rule asks for them. demonstrated: the
    columns that hold demonstrations; None where there are none.
    """

    rollout: Rollout
    residuals: Residuals | None = None
    mixture: Mixture | None = None
    demonstrated: Bool[Array, " N"] | None = None


class Demonstrated(eqx.Module):
    """Demonstrations as a training gets them.

    rollout: their rows, `[T, M]`, with actions as the policy has them. demonstrator: the arrays of the policy that made
    them, where a rule learns from the mixture of all policies; else None.
    """

    rollout: Rollout
    demonstrator: PyTree = None


class Batch(eqx.Module):
    """What every rule consumes: B weighted rows. Every mean over a batch is Σ w x / Σ w.

    A row of weight 0 is padding. With weight d(s) π(a|s) over all (s, a) the same means are exact
    expectations (`klimb.exact_batch`), which is how rules are checked against theory.

    obs: what `klimb.action_distribution` takes: rows, or where the policy has memory the same rows as `Sequences`.
    action: that was taken. log_prob: of it under the policy that collected the data, in nats. advantage: its estimate
    Â. value_target: what the critic is fitted to. weight: w ≥ 0.
    trajectory: the `[T, N]` arrangement, row t·N + n being step t of environment n; None where there is none.
    fraction_done: the part of the training that is over, 0 to 1, for schedules of hyperparameters.
    advantage_scale: the standard deviation that advantages had, in units of reward, before they were normalised.
    gamma: the discount per step that they were estimated with; None where it is not known.
    epoch_advantage: advantages for each of E epochs, for a rule that wants them computed anew with the values of
    the critic at that stage of its fit (`Traits.advantage_epochs`), else None. `advantage` is then the first of them.
    """

    obs: Num[Array, " B *obs"] | Sequences
    action: Float[Array, " B *act"] | Int[Array, " B *act"]
    log_prob: Float[Array, " B"]
    advantage: Float[Array, " B"]
    value_target: Float[Array, " B"]
    weight: Float[Array, " B"]
    trajectory: Trajectory | None = None
    fraction_done: Float[Array, ""] | float = 0.0
    advantage_scale: Float[Array, ""] | float = 1.0
    gamma: Float[Array, ""] | float | None = None
    epoch_advantage: Float[Array, "E B"] | None = None

    @property
    def obs_rows(self) -> Num[Array, " B *obs"]:
        """The observations themselves."""
        return self.obs.obs if isinstance(self.obs, Sequences) else self.obs

    def mean(self, value: Float[Array, " B"]) -> Float[Array, ""]:
        """Σ w x / Σ w. A row of weight 0 has no say, whatever it holds. value: x."""
        return weighted_mean(value, self.weight)

    def blank_padding(self) -> Batch:
        """The same batch with zeros in the rows of weight 0: a NaN there would spread through gradients (0·NaN)."""
        counted = self.weight > 0

        def blank(column: Array) -> Array:
            return jnp.where(jnp.reshape(counted, counted.shape + (1,) * (column.ndim - 1)), column, 0)

        columns: dict[str, Any] = {name: blank(getattr(self, name)) for name in _COLUMNS if name != "obs"}
        obs = self.obs
        columns["obs"] = eqx.tree_at(lambda s: s.obs, obs, blank(obs.obs)) if isinstance(obs, Sequences) else blank(obs)
        epochs = None if self.epoch_advantage is None else jax.vmap(blank)(self.epoch_advantage)
        return dataclasses.replace(self, **columns, epoch_advantage=epochs)

    def at_epoch(self, epoch: Int[Array, ""]) -> Batch:
        """The same batch with the advantages of an epoch; without such it is unchanged. epoch: counted from 0."""
        if self.epoch_advantage is None:
            return self
        return dataclasses.replace(self, advantage=self.epoch_advantage[epoch], epoch_advantage=None)

    def spread(self) -> Batch:
        """The same batch with its rows spread over the devices of a mesh that has them (`klimb.mesh`)."""
        columns: dict[str, Any] = {name: spread_rows(getattr(self, name)) for name in _COLUMNS}
        return dataclasses.replace(self, **columns, epoch_advantage=spread_rows(self.epoch_advantage, axis=1))

    def gathered(self) -> Batch:
        """The same batch with all rows on every device, for minibatches out of any of them."""
        columns: dict[str, Any] = {name: gather_rows(getattr(self, name)) for name in _COLUMNS}
        return dataclasses.replace(self, **columns, epoch_advantage=gather_rows(self.epoch_advantage))

    def take(self, rows: Int[Array, " b"]) -> Batch:
        """A minibatch: some of the rows, without the trajectory they came from.

        rows: their numbers; those of whole sequences (`Sequences.rows_of`) where the policy has memory.
        """
        columns = {name: take_rows(getattr(self, name), rows) for name in _COLUMNS}
        scalars = {name: getattr(self, name) for name in ("fraction_done", "advantage_scale", "gamma")}
        return Batch(**columns, **scalars)


_COLUMNS = ("obs", "action", "log_prob", "advantage", "value_target", "weight")


def take_rows(tree: PyTree, rows: Int[Array, "..."]) -> PyTree:
    """The same rows of every array, and of all sequences, of a tree.

    rows: numbers of rows of the leading axis, none of them twice; they are not checked.
    """

    def take(x: Array | Sequences) -> Array | Sequences:
        if isinstance(x, Sequences):
            return x.take(rows)
        return jnp.take(x, rows, axis=0, unique_indices=True, mode="clip")

    return spread_rows(jax.tree.map(take, tree, is_leaf=lambda x: isinstance(x, Sequences)))


def weighted_mean(value: Float[Array, " B *rest"], weight: Float[Array, " B"]) -> Float[Array, " *rest"]:
    """Σ w x / Σ w over the leading axis; a non-finite row of weight 0 does not spread (0·∞ would be NaN).

    value: x. weight: w ≥ 0.
    """
    weight = jnp.reshape(weight, weight.shape + (1,) * (value.ndim - 1))
    total = jnp.sum(weight, axis=0)
    return jnp.sum(jnp.where(weight > 0, value * weight, 0), axis=0) / jnp.where(total > 0, total, 1)


class StepErrors(eqx.Module):
    """How exact the means of an `UpdateInfo` are, and what happened in the worst state. Scalars.

    surrogate_gain_se: standard error over independent rows. kl_old_new_se, kl_new_old_se, tv_se: standard errors over
        the environments of the rollout, because successive states are correlated.
    kl_old_new_max, kl_new_old_max: the largest KL over states, in either direction.
    tv_bound, tv_max_bound: upper bounds on the mean and on the worst total variation that follow from the KLs.
    """

    surrogate_gain_se: Float[Array, ""]
    kl_old_new_se: Float[Array, ""]
    kl_new_old_se: Float[Array, ""]
    tv_se: Float[Array, ""]
    kl_old_new_max: Float[Array, ""]
    kl_new_old_max: Float[Array, ""]
    tv_bound: Float[Array, ""]
    tv_max_bound: Float[Array, ""]


class UpdateInfo(eqx.Module):
    """How far one step moved the policy, and the gain that was predicted. Scalars, from the parameters *returned*.

    surrogate_gain: mean of (π_new/π_old − 1) Â, in the units of the batch's advantages.
    kl_old_new: mean over states of KL(π_old‖π_new). kl_new_old: of KL(π_new‖π_old). kl_max: the largest
        over states, in the direction the rule constrains.
    tv: mean over states of the total variation in [0, 1]; tv_max: over the worst state. Closed form where
        there is one; for Gaussians of several dimensions `tv` is the sampled ½ mean |ratio − 1| and `tv_max`
        the Pinsker / Bretagnolle-Huber upper bound at the worst state.
    entropy: mean entropy of the returned policy (nats).
    ess: effective sample size of the ratios to the policies that collected the batch, as a fraction; on the old
        policy's own data 1 for an unmoved policy.
    status: a `Status`. errors: standard errors and worst states, for the step certificate; None where a rule does not
        measure them. extra: the rule's own scalars by name (CG residual, backtracks, clip fraction, …).
    """

    surrogate_gain: Float[Array, ""]
    kl_old_new: Float[Array, ""]
    kl_new_old: Float[Array, ""]
    kl_max: Float[Array, ""]
    tv: Float[Array, ""]
    tv_max: Float[Array, ""]
    entropy: Float[Array, ""]
    ess: Float[Array, ""]
    status: Int[Array, ""]
    errors: StepErrors | None
    extra: dict[str, Float[Array, ""]]

    def with_metrics(self, **metrics: Array) -> UpdateInfo:
        """The same with further metrics of the rule's own. metrics: scalars by name."""
        own = {name: jnp.asarray(value, self.entropy.dtype) for name, value in metrics.items()}
        return dataclasses.replace(self, extra=self.extra | own)


class TrainState(eqx.Module):
    """Everything a run is made of: exactly what a checkpoint holds. Leaves carry a leading axis of seeds.

    policy, critic: the networks. rule_state, critic_state: what the rule and the critic's fit keep from step to step.
    collector_state: where the environments stand. history: the last rollouts, for a rule that learns from several,
    else (). previous: what the next iteration needs to measure the realised improvement of this one.
    iteration: those that are done. env_steps: taken so far. key: for all random numbers from here on.
    critic_carry: what a critic with memory remembers of the running episodes, `[N, G]`; else ().
    """

    policy: PyTree
    critic: PyTree
    rule_state: PyTree
    critic_state: PyTree
    collector_state: PyTree
    history: PyTree
    previous: PyTree
    iteration: Int[Array, ""]
    env_steps: UInt32[Array, ""]
    key: PRNGKeyArray
    critic_carry: PyTree = ()
