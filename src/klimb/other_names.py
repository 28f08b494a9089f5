"""What other libraries call klimb's options, hyperparameters and rules: for the message about a name that is none.

The names are those of Stable-Baselines3, CleanRL, Tianshou, RLlib, skrl, Brax and Spinning Up. Imports nothing.
"""

from __future__ import annotations

from collections.abc import Mapping


def _named(**others: str) -> dict[str, tuple[str, ...]]:
    """For every word on the right the names on the left, in order. others: klimb's name = "their names"."""
    table: dict[str, tuple[str, ...]] = {}
    for name, theirs in others.items():
        for other in theirs.split():
            table[other] = (*table.get(other, ()), name)
    return table


OTHER_NAMES: Mapping[str, tuple[str, ...]] = _named(
    # how long, and how much at once
    env_steps="total_timesteps total_steps timesteps total_env_steps num_timesteps num_env_steps max_steps steps",
    num_steps="n_steps rollout_length rollout_steps unroll_length rollout_fragment_length rollouts "
    "train_batch_size steps_per_epoch step_per_collect steps_per_collect",
    num_envs="n_envs num_env n_env num_environments num_train_envs training_num num_actors",
    workers="num_workers num_env_runners",
    num_seeds="n_seeds seeds",
    # passes over a batch: the rule's where it has some, else the critic's
    epochs="n_epochs num_epochs update_epochs num_sgd_iter num_updates_per_batch repeat_per_collect learning_epochs "
    "ppo_epoch train_pi_iters",
    num_minibatches="batch_size minibatch_size sgd_minibatch_size mini_batches n_minibatches",
    learning_rate="lr pi_lr actor_lr policy_lr step_size",
    max_epochs="n_epochs num_epochs",
    critic_epochs="n_epochs num_epochs update_epochs num_sgd_iter learning_epochs train_v_iters train_critic_iters "
    "n_critic_updates",
    critic_num_minibatches="batch_size minibatch_size mini_batches n_minibatches",
    critic_learning_rate="lr learning_rate vf_lr critic_lr value_lr",
    learning_rate_schedule="anneal_lr lr_decay lr_schedule linear_schedule schedule anneal_learning_rate",
    max_grad_norm="grad_clip grad_norm_clip grad_norm max_gradient_norm gradient_clip",
    # objectives and trust regions
    ent_coef="entropy_coef entropy_coeff ent_coeff entropy_cost entropy_loss_scale entropy_weight entropy_beta",
    clip_eps="clip_range clip_coef clip_param clip_ratio eps_clip ratio_clip clipping_epsilon epsilon_clip clip",
    target_kl="kl_threshold kl_target max_kl",
    max_kl="target_kl delta kl_target kl_threshold epsilon trust_region",
    epsilon="target_kl max_kl delta trust_region",
    kl_coef="kl_coeff beta",
    damping="cg_damping damping_coeff",
    cg_iterations="cg_max_steps cg_iters cg_steps max_cg_iterations",
    min_gain_share="accept_ratio",
    max_backtracks="line_search_max_iter backtrack_iters backtracking_steps",
    backtrack_factor="line_search_shrinking_factor backtrack_coeff backtrack_ratio",
    # advantages
    gamma="discount discounting discount_factor",
    gae_lambda="lam lambda lambda_ gae gae_lam td_lambda",
    normalize_advantage="norm_adv normalize_advantages advantage_normalization standardize_advantages",
    # networks
    normalize_observations="norm_obs normalize_obs observation_filter",
    hidden="net_arch hidden_sizes hidden_size hidden_dims hidden_layer_sizes policy_hidden_layer_sizes fcnet_hiddens "
    "layers",
    critic_hidden="value_hidden_layer_sizes",
    activation="activation_fn fcnet_activation",
    initial_log_std="log_std_init",
    exploration="use_sde gsde sde",
    exploration_steps="sde_sample_freq",
    log_std_bounds="min_log_std max_log_std log_std_min log_std_max clip_log_std log_std_range",
    # files and evaluation
    run_dir="log_dir logdir output_dir save_dir save_path tensorboard_log",
    checkpoint_every="save_freq save_interval checkpoint_freq checkpoint_frequency",
    eval_episodes="n_eval_episodes num_eval_episodes evaluation_num_episodes",
    episodes="n_eval_episodes num_eval_episodes num_episodes n_episodes",
    # rules
    reinforce="vpg pg a2c vanilla_policy_gradient policy_gradient",
    natural_gradient="npg npo natural_policy_gradient",
    conservative_policy_iteration="cpi",
    v_mpo="mpo vmpo",
    behaviour_cloning="bc imitation behavior_cloning behavioral_cloning",
    guided="gps guided_policy_search",
    awr="marwil",
)
"""From another library's name to klimb's; where there are several, the first that the rule or the command has."""

REMARKS: Mapping[str, str] = {
    "batch_size": "a number of minibatches, not of rows",
    "minibatch_size": "a number of minibatches, not of rows",
    "sgd_minibatch_size": "a number of minibatches, not of rows",
    "train_batch_size": "per environment: a batch is num_steps × num_envs rows",
    "steps_per_epoch": "per environment: a batch is num_steps × num_envs rows",
    "step_per_collect": "per environment: a batch is num_steps × num_envs rows",
    **dict.fromkeys(
        ("anneal_lr", "lr_decay", "linear_schedule", "anneal_learning_rate"),
        "with a value: linear or cosine decreases it to 0 over the run",
    ),
    "steps_per_collect": "per environment: a batch is num_steps × num_envs rows",
}
"""Where klimb's option of that name is something else."""

_SEPARATE = "policy and critic share no parameters, so that no coefficient weighs their losses"
_NO_VALUES = "klimb improves stochastic policies by their gradients, and has no rule that learns Q"
_REGRESSION = "the critic is fitted by regression, without clipping"
WITHOUT_COUNTERPART: Mapping[str, str] = {
    "vf_coef": _SEPARATE,
    "vf_coeff": _SEPARATE,
    "value_coef": _SEPARATE,
    "value_loss_coef": _SEPARATE,
    "vf_loss_coeff": _SEPARATE,
    "value_loss_scale": _SEPARATE,
    "clip_range_vf": _REGRESSION,
    "clip_vloss": _REGRESSION,
    "vf_clip_param": _REGRESSION,
    "value_clip": _REGRESSION,
    "dqn": _NO_VALUES,
    "ddpg": _NO_VALUES,
    "td3": _NO_VALUES,
    "sac": _NO_VALUES,
}
"""Names of what klimb does not have, and why."""
