"""The options of a training as types of keyword arguments: for type checkers and editors.

Written by tests/typed_options.py from `klimb.TrainOptions`, which checks the values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypedDict


class TrainOptionsDict(TypedDict, total=False):
    """The fields of `klimb.TrainOptions` that `klimb.train` takes by name."""

    env_steps: int
    """Environment steps to train for, per seed."""
    seed: int
    """Seed of all random numbers; with several seeds the first of them."""
    num_seeds: int
    """Number of seeds to train together: seed, seed + 1, …"""
    num_envs: int
    """Number of environments stepped in parallel, per seed."""
    num_steps: int
    """Steps per environment and iteration: a batch has num_steps × num_envs samples."""
    batch: Literal["steps", "episodes"]
    """steps: episodes continue in the next batch; episodes: one whole episode per environment, up to num_steps."""
    exploration_steps: int | None
    """Steps for which exploration = gsde keeps a draw of its noise; none: a whole rollout, which is the maximum."""
    workers: int | None
    """Worker processes that step a Gymnasium environment; none: one per core; 0: in this process, as on Windows."""
    overlap: bool
    """Collect the next rollout of a host environment during the update: faster, but its data is one policy old."""
    env_fault: Literal["restart", "stop"]
    """What to do when a Gymnasium environment raises, hangs or ends its process: restart it, or stop the run."""
    env_timeout: float
    """Maximum time per rollout of a worker process, in seconds, after which it counts as hanging."""
    straggler_timeout: float | None
    """Seconds after which a late worker hands over what it has: not repeatable; none: a rollout waits for all steps."""
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
    """Number of rewards summed before the critic's value is added, for advantage = n_step."""
    bootstrap: Literal["value"] | None
    """Estimate of the rewards after a time limit or the end of a rollout: the critic's value; none for 0."""
    discount_states: bool
    """Keep the factor γᵗ of the exact policy gradient, which is usually dropped."""
    normalize_advantage: bool
    """Scale each batch's advantages to standard deviation 1 and mean 0; those without a baseline keep their mean."""
    normalize_observations: bool
    """Scale observations by their running mean and standard deviation, kept inside the policy."""
    hidden: Sequence[int] | int | None
    """Hidden layer sizes, of the critic too unless critic_hidden is given; none: 64 64, no layers behind pictures."""
    critic_hidden: Sequence[int] | int | None
    """Hidden layer sizes of the critic; none: the same as for the policy."""
    activation: Literal["tanh", "relu", "silu", "gelu"]
    """Activation of the hidden layers."""
    layer_norm: bool
    """Normalise the units of each hidden layer before its activation, in policy and critic."""
    residual: bool
    """Add the input of a hidden layer to its output where both have one size, in policy and critic."""
    initialization: Literal["orthogonal", "glorot", "he", "lecun"]
    """Distribution of the initial weights of policy and critic."""
    initial_log_std: float
    """Initial log standard deviation of a Gaussian policy; the unit of σ is the half-width of the action box."""
    state_dependent_std: bool
    """Compute the standard deviation from the observation; continuous actions only."""
    tanh_squash: bool
    """Squash Gaussian actions into the action box by tanh instead of clipping them; bounded boxes only."""
    log_std_bounds: tuple[float, float] | None
    """Minimum and maximum log standard deviation of a Gaussian policy, as for initial_log_std; none: no bounds."""
    exploration: Literal["independent", "gsde"]
    """Noise of Gaussian actions. independent: drawn at every step; gsde: a function of the state, smooth in time."""
    network: str | None
    """Network that reads pictures: minatar, nature, impala, or mlp for none; or a function of your own, module:name."""
    critic_network: str | None
    """Network that reads pictures in the critic; none: the same as for the policy."""
    memory: Literal["gru", "lstm"] | None
    """Memory of policy and critic, a recurrent layer behind what reads observations: gru or lstm; none: no memory."""
    memory_size: int
    """Units of that layer."""
    chunk_steps: int | None
    """Steps over which derivatives flow back in time, a divisor of num_steps; none: over a whole rollout."""
    critic_memory: bool
    """Whether the critic has a memory too; off where it observes what the policy has to remember."""
    critic_observes: Sequence[str] | str | None
    """Parts of Dict observations that only the critic sees; none: both see all parts."""
    init_from: str | None
    """Run (or policy directory) whose policy this training starts from; its observation statistics stay fixed."""
    critic_warmup: int
    """Iterations at the start in which only the critic is trained; used with init_from only."""
    demonstrator: Literal["recorded", "cloned"]
    """Its action probabilities, for importance weights. recorded: with the episodes; cloned: by behaviour cloning."""
    critic_learning_rate: float
    """Adam's step size for the critic."""
    critic_epochs: int
    """Passes over the batch per fit of the critic."""
    critic_num_minibatches: int
    """Minibatches per pass; has to divide num_steps × num_envs."""
    critic_clip_eps: float | None
    """Maximum change of a value that lowers the loss, in standard deviations of the value targets; none: no limit."""
    normalize_value_targets: bool
    """Fit the critic to value targets that are scaled by their running mean and standard deviation."""
    critic_learning_rate_schedule: Literal["constant", "linear", "cosine"]
    """constant; linear or cosine: critic_learning_rate decreases to 0 over the run."""
    eval_every: int
    """Environment steps, per seed, between evaluations during the training; 0 for none. They choose `best/`."""
    eval_episodes: int
    """Episodes per evaluation and seed, during the training and after it; 0 for no evaluation after it."""
    until_return: float | None
    """Stop once the mean return reaches this: in an evaluation (--eval-every), else over 100 training episodes."""
    patience: int | None
    """Stop after this many evaluations (--eval-every), else iterations, in a row without a higher return."""
    log: Sequence[str] | str
    """Where the run is logged to: wandb, mlflow, mlflow:URI or module:Class; repeat it for several; none for none."""
    certificate: bool
    """Record each step's predicted and realised improvement, and bounds (see docs/theory/certificate.md)."""
    cores: int | None
    """Number of CPU cores (or accelerators) to use; none for all. See docs/performance.md."""
    learn_on: int | None
    """Devices that each seed's environments and batches are spread over; none: one, or all of several processes'."""
    spread: Literal["auto", "rows", "environments"]
    """With learn_on. rows: every device learns from its share of a batch; environments: from all; auto: by size."""
    precision: Literal["float32", "tensorfloat32"]
    """Of products on an accelerator; tensorfloat32 rounds factors to ten bits, for speed: see docs/gpu.md."""
    max_rejections: int
    """Stop after this many numerical failures in a row, in every seed; warn if none of as many first steps is taken."""
    check_finite: bool
    """At the first step that is not finite, find the operation that produced the first NaN, and stop. Slower."""
    checkpoint_every: int
    """Iterations between checkpoints. The last iteration is always saved."""
    keep_checkpoints: int
    """Number of checkpoints that are kept: the newest ones."""


class SweepOptionsDict(TrainOptionsDict, total=False):
    """The fields of `klimb.TrainOptions` that `klimb.sweep` takes by name: all of them."""

    policy: str | None
    """A function of your own, module:name, that makes the policy: (observations, actions, key) -> policy."""
    critic: str | None
    """A function of your own, module:name, that makes the critic: (observations, key) -> critic."""
    demonstrations: str | None
    """Episodes to learn from: a run whose episodes `klimb record` has written, a file, or minari:DATASET."""
