"""A task solved by Tianshou's TRPO, NPG or PPO on EnvPool; protocol and clock are those of until_solved.py.

The argument also has `rule`: trpo, npg or ppo. Settings are those of Tianshou's examples/mujoco, the decay of the
learning rate over three million steps included.
"""

import logging
import warnings

import envpool
import numpy as np
import torch
from tianshou.algorithm import NPG, PPO, TRPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory, LRSchedulerFactoryLinear
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import VectorEnvNormObs
from tianshou.utils.torch_utils import policy_within_training_step
from tianshou_networks import networks
from torch.distributions import Independent, Normal
from until_solved import Clock, serve, task_and_goal

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

task, goal = task_and_goal()
RULE = task["rule"]
NUM_ENVS, COLLECT, REPEAT, BATCH = (8, 2048, 10, 64) if RULE == "ppo" else (16, 1024, 1, None)
DECAY = LRSchedulerFactoryLinear(max_epochs=100, epoch_num_steps=30_000, collection_step_num_env_steps=COLLECT)


def algorithm_of(policy, critic):
    common = {"policy": policy, "critic": critic, "gamma": 0.99, "gae_lambda": 0.95, "return_scaling": True}
    optimizer = AdamOptimizerFactory(lr=3e-4 if RULE == "ppo" else 1e-3).with_lr_scheduler_factory(DECAY)
    if RULE == "ppo":
        clipping = {"eps_clip": 0.2, "vf_coef": 0.25, "ent_coef": 0.0, "max_grad_norm": 0.5}
        others = {"value_clip": True, "dual_clip": None, "advantage_normalization": False, "recompute_advantage": True}
        return PPO(**common, optim=optimizer, **clipping, **others)
    natural = {"optim": optimizer, "advantage_normalization": True, "optim_critic_iters": 20}
    if RULE == "trpo":
        return TRPO(**common, **natural, max_kl=0.01, backtrack_coeff=0.8, max_backtracks=10)
    return NPG(**common, **natural, trust_region_size=0.1)


class Training:
    """One seed's training, and its evaluations."""

    def __init__(self, seed):
        np.random.seed(seed)  # noqa: NPY002 (Tianshou draws from it)
        torch.manual_seed(seed)
        pool = envpool.make(goal.env, env_type="gymnasium", num_envs=NUM_ENVS, seed=seed)
        self.envs = VectorEnvNormObs(pool)
        actor, critic = networks(pool)
        self.policy = ProbabilisticActorPolicy(
            actor=actor,
            dist_fn=lambda loc_scale: Independent(Normal(*loc_scale), 1),
            action_space=pool.action_space,
            action_scaling=True,
            action_bound_method="clip",
        )
        self.algorithm = algorithm_of(self.policy, critic)
        buffer = VectorReplayBuffer(4096, NUM_ENVS)
        self.collector = Collector(self.algorithm, self.envs, buffer, exploration_noise=True)
        self.collector.reset()
        self.trial = envpool.make(goal.env, env_type="gymnasium", num_envs=goal.episodes, seed=10_000 + seed)

    def advance(self):
        """What Tianshou's OnPolicyTrainer does in one iteration; the environment steps of it."""
        with policy_within_training_step(self.policy):
            steps = self.collector.collect(n_step=COLLECT).n_collected_steps
            self.algorithm.update(buffer=self.collector.buffer, batch_size=BATCH, repeat=REPEAT)
            self.collector.reset_buffer(keep_statistics=True)
        return steps

    def mean_return(self):
        """One episode of each environment, by the means of the actions, with the statistics of training."""
        obs, alive, returns = self.trial.reset()[0], np.ones(goal.episodes, bool), np.zeros(goal.episodes)
        statistics = self.envs.get_obs_rms()
        while alive.any():
            with torch.no_grad():
                (mean, _), _ = self.policy.actor(statistics.norm(obs))
            actions = self.policy.map_action(mean.numpy())
            obs, reward, terminated, truncated, _ = self.trial.step(actions)
            returns += np.where(alive, reward, 0)
            alive &= ~(terminated | truncated)
        return float(returns.mean())

    def close(self):
        self.trial.close()
        self.envs.close()


def solve(seed):
    training = Training(seed)
    clock = Clock(goal, training.mean_return)
    steps = 0
    while not clock.over(steps):
        steps += training.advance()
    training.close()
    return clock


Training(10**6).advance()
serve(solve)
