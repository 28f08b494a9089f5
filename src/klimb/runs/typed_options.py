"""The options of a training as types of keyword arguments: for type checkers and editors.

Written by tests/typed_options.py from `klimb.TrainOptions`, which checks the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict


class TrainOptionsDict(TypedDict, total=False):
    """The fields of `klimb.TrainOptions` that `klimb.train` takes by name."""

    env_steps: int
    """Environment steps to train for, each seed."""
    seed: int
    """Seed of all randomness; with several seeds the first of them."""
    num_seeds: int
    """Seeds to train together: seed, seed + 1, …"""
    num_envs: int
    """Copies of the environment stepped together, each seed."""
    num_steps: int
    """Steps of each copy in one iteration: the batch is num_steps × num_envs rows."""
    batch: Literal["steps", "episodes"]
    """steps: episodes go on in the next batch; episodes: one whole episode of each copy, of num_steps steps at most."""
    workers: int | None
    """Processes that step a Gymnasium environment; none for one per core, 0 to step it in this process."""
    overlap: bool
    """Step host environments while the last rollout is learned from: faster, from data that is one policy old."""
    env_fault: Literal["restart", "stop"]
    """What follows when a Gymnasium environment raises, hangs or ends its process: restart it, or stop the run."""
    env_timeout: float
    """Seconds that a worker process may take for a rollout before it counts as hanging."""
    gamma: float
    """Discount of rewards, per step."""
    gae_lambda: float
    """λ of generalised advantage estimation: 1 is Monte Carlo, 0 one-step."""
    advantage: Literal[
        "total_return",
        "reward_to_go",
        "reward_to_go_average",
        "leave_one_out",
        "time_baseline",
        "value_baseline",
        "gae",
        "n_step",
    ]
    """How advantages are estimated."""
    n_step: int
    """Rewards summed before the critic's value is used, for advantage = n_step."""
    bootstrap: Literal["value"] | None
    """What stands for the rewards after the data is cut off: the critic's value; none for nothing."""
    discount_states: bool
    """Keep the leading γᵗ of the exact policy gradient, which practice drops."""
    normalize_advantage: bool
    """Scale each batch's advantages to standard deviation 1 and mean 0; those without a baseline keep their mean."""
    normalize_observations: bool
    """Scale observations by their running mean and standard deviation, kept inside the policy."""
    hidden: Sequence[int] | int
    """Hidden layer sizes of the policy, and of the critic without critic_hidden."""
    critic_hidden: Sequence[int] | int | None
    """Hidden layer sizes of the critic; none: the same as for the policy."""
    activation: Literal["tanh", "relu", "silu", "gelu"]
    """Activation of the hidden layers."""
    initial_log_std: float
    """Initial log standard deviation of a Gaussian policy; the unit of σ is the half-width of the action box."""
    state_dependent_std: bool
    """Compute the standard deviation from the observation; continuous actions only."""
    tanh_squash: bool
    """Squash Gaussian actions into the action box by tanh instead of clipping them; bounded boxes only."""
    init_from: str | None
    """A run (or policy directory) whose policy, with its observation normaliser as it is, this one starts from."""
    critic_warmup: int
    """Iterations in which only the critic learns, in a run that starts from another's policy."""
    demonstrator: Literal["recorded", "cloned"]
    """Who made them, for importance weights. recorded: by their log-probs; cloned: by behaviour cloning of them."""
    critic_learning_rate: float
    """Adam's step size for the critic."""
    critic_epochs: int
    """Passes over the batch per fit of the critic."""
    critic_num_minibatches: int
    """Minibatches per pass; has to divide num_steps × num_envs."""
    eval_every: int
    """Environment steps, per seed, between evaluations during the training; 0 for none. `best/` is chosen by them."""
    eval_episodes: int
    """Episodes of each evaluation, per seed: during the training, and after it; 0 for none after it."""
    until_return: float | None
    """Stop once this return is reached: in an evaluation (--eval-every), else by the last 100 training episodes."""
    patience: int | None
    """Stop after this many evaluations (--eval-every), else iterations, in a row without a higher return."""
    certificate: bool
    """Record each step's predicted and realised improvement, and bounds (see docs/theory/certificate.md)."""
    cores: int | None
    """CPU cores (or accelerators) to lay the training over; none for all. See docs/performance.md."""
    max_rejections: int
    """Numerically failed steps in a row, of every seed, after which the training stops."""
    check_finite: bool
    """After the first step that is not finite, find the operation that made the first NaN, and stop. Slower."""
    checkpoint_every: int
    """Iterations between checkpoints. The last iteration is always saved."""
    keep_checkpoints: int
    """Newest checkpoints kept."""


class SweepOptionsDict(TrainOptionsDict, total=False):
    """The fields of `klimb.TrainOptions` that `klimb.sweep` takes by name: all of them."""

    policy: str | None
    """Your own function, module:name, that makes the policy: (observations, actions, key) -> policy."""
    critic: str | None
    """Your own function, module:name, that makes the critic: (observations, key) -> critic."""
    demonstrations: str | None
    """Recorded episodes to learn from: a run that `klimb record` has recorded, a file, or minari:DATASET."""
