"""Settings that other projects tuned for the tasks of `make bench-seconds`, as they publish them.

ZOO_PPO, ZOO_TRPO: hyperparams/ppo.yml and trpo.yml of rl-baselines3-zoo (commit 22e3ff2); those of the MuJoCo tasks are
of version 4. REJAX: configs/gymnax of rejax (commit d751095). MINATAR: of purejaxrl's examples/brax_minatar (commit
31756b1), which rejax has none for; purejaxrl's decrease of the learning rate over ten million steps is left out.
"""

from typing import Any

Settings = dict[str, Any]

_WIDE = {
    "log_std_init": -2,
    "ortho_init": False,
    "activation_fn": "relu",
    "net_arch": {"pi": [256, 256], "vf": [256, 256]},
}
ZOO_PPO: dict[str, Settings] = {
    "CartPole-v1": {
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "ent_coef": 0.0,
        "learning_rate": "lin_0.001",
        "clip_range": "lin_0.2",
    },
    "Acrobot-v1": {
        "normalize": True,
        "n_envs": 16,
        "n_steps": 256,
        "gae_lambda": 0.94,
        "gamma": 0.99,
        "n_epochs": 4,
        "ent_coef": 0.0,
    },
    "Pendulum-v1": {
        "n_envs": 4,
        "n_steps": 1024,
        "gae_lambda": 0.95,
        "gamma": 0.9,
        "n_epochs": 10,
        "ent_coef": 0.0,
        "learning_rate": 0.001,
        "clip_range": 0.2,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "MountainCarContinuous-v0": {
        "normalize": True,
        "n_envs": 1,
        "n_steps": 8,
        "batch_size": 256,
        "gamma": 0.9999,
        "learning_rate": 7.77e-5,
        "ent_coef": 0.00429,
        "clip_range": 0.1,
        "n_epochs": 10,
        "gae_lambda": 0.9,
        "max_grad_norm": 5,
        "vf_coef": 0.19,
        "use_sde": True,
        "policy_kwargs": {"log_std_init": -3.29, "ortho_init": False},
    },
    "LunarLander-v3": {
        "n_envs": 16,
        "n_steps": 1024,
        "batch_size": 64,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
    "HalfCheetah-v5": {
        "normalize": True,
        "n_envs": 1,
        "n_steps": 512,
        "batch_size": 64,
        "gamma": 0.98,
        "learning_rate": 2.0633e-5,
        "ent_coef": 0.000401762,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "vf_coef": 0.58096,
        "policy_kwargs": _WIDE,
    },
    "Walker2d-v5": {
        "normalize": True,
        "n_envs": 1,
        "n_steps": 512,
        "batch_size": 32,
        "gamma": 0.99,
        "learning_rate": 5.05041e-5,
        "ent_coef": 0.000585045,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.95,
        "max_grad_norm": 1,
        "vf_coef": 0.871923,
    },
}
_MUJOCO = {
    "normalize": True,
    "n_envs": 2,
    "batch_size": 128,
    "n_steps": 1024,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "sub_sampling_factor": 1,
    "cg_max_steps": 25,
    "cg_damping": 0.1,
    "n_critic_updates": 20,
    "learning_rate": 0.001,
}
ZOO_TRPO: dict[str, Settings] = {"Hopper-v5": _MUJOCO, "Walker2d-v5": _MUJOCO}
_GYMNAX = {"num_envs": 5, "num_steps": 100, "gae_lambda": 0.95, "clip_eps": 0.2, "vf_coef": 0.5}
_DISCRETE = {
    **_GYMNAX,
    "agent_kwargs": {"activation": "tanh"},
    "num_epochs": 5,
    "num_minibatches": 5,
    "learning_rate": 0.00075,
    "max_grad_norm": 0.5,
    "gamma": 0.99,
    "ent_coef": 0.01,
}
_CONTINUOUS = {**_GYMNAX, "num_epochs": 10, "num_minibatches": 10, "max_grad_norm": 10, "ent_coef": 0.0}
REJAX: dict[str, Settings] = {
    "CartPole-v1": _DISCRETE,
    "Acrobot-v1": {**_DISCRETE, "normalize_observations": True},
    "Pendulum-v1": {
        **_CONTINUOUS,
        "agent_kwargs": {"activation": "swish"},
        "num_envs": 100,
        "learning_rate": 0.001,
        "gamma": 0.995,
        "normalize_observations": True,
    },
    "MountainCarContinuous-v0": {
        **_CONTINUOUS,
        "agent_kwargs": {"activation": "relu"},
        "learning_rate": 0.0003,
        "gamma": 0.9,
    },
}
MINATAR: Settings = {
    **_GYMNAX,
    "agent_kwargs": {"activation": "relu"},
    "num_envs": 64,
    "num_steps": 128,
    "num_epochs": 4,
    "num_minibatches": 8,
    "learning_rate": 0.005,
    "max_grad_norm": 0.5,
    "gamma": 0.99,
    "ent_coef": 0.01,
}
