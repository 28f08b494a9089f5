"""Tianshou's TRPO, NPG or PPO on EnvPool with its MuJoCo examples' settings. Same protocol as klimb_training.py.

Arguments: trpo | npg | ppo, the environment's id (continuous actions), the number of environments, steps a turn.
The examples' decay of the learning rate is left out: learning goes on for as long as turns are asked for.
"""

import logging
import sys
import time
import warnings

import envpool
import torch
from tianshou.algorithm import NPG, PPO, TRPO
from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
from tianshou.algorithm.optim import AdamOptimizerFactory
from tianshou.data import Collector, VectorReplayBuffer
from tianshou.env import VectorEnvNormObs
from tianshou.utils.torch_utils import policy_within_training_step
from tianshou_networks import networks
from torch.distributions import Independent, Normal

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")

RULE, ENV = sys.argv[1:3]
NUM_ENVS, STEPS = map(int, sys.argv[3:])
COLLECT, REPEAT, BATCH = (2048, 10, 64) if RULE == "ppo" else (1024, 1, None)
COLLECT = -(-COLLECT // NUM_ENVS) * NUM_ENVS
ITERATIONS = -(-STEPS // COLLECT)

torch.manual_seed(0)
pool = envpool.make(ENV, env_type="gymnasium", num_envs=NUM_ENVS, seed=0)
envs = VectorEnvNormObs(pool)
actor, critic = networks(pool)
policy = ProbabilisticActorPolicy(
    actor=actor,
    dist_fn=lambda loc_scale: Independent(Normal(*loc_scale), 1),
    action_space=pool.action_space,
    action_scaling=True,
    action_bound_method="clip",
)
common = {"policy": policy, "critic": critic, "gamma": 0.99, "gae_lambda": 0.95, "return_scaling": True}
if RULE == "ppo":
    algorithm = PPO(
        **common,
        optim=AdamOptimizerFactory(lr=3e-4),
        eps_clip=0.2,
        vf_coef=0.25,
        ent_coef=0.0,
        max_grad_norm=0.5,
        value_clip=False,
        dual_clip=None,
        advantage_normalization=False,
        recompute_advantage=True,
    )
else:
    natural = {"optim": AdamOptimizerFactory(lr=1e-3), "advantage_normalization": True, "optim_critic_iters": 20}
    if RULE == "trpo":
        algorithm = TRPO(**common, **natural, max_kl=0.01, backtrack_coeff=0.8, max_backtracks=10)
    else:
        algorithm = NPG(**common, **natural, trust_region_size=0.1)

collector = Collector(algorithm, envs, VectorReplayBuffer(4096, NUM_ENVS), exploration_noise=True)
collector.reset()


def train(iterations: int) -> int:
    """What tianshou's OnPolicyTrainer does, without evaluation and logging."""
    steps = 0
    for _ in range(iterations):
        with policy_within_training_step(policy):
            steps += collector.collect(n_step=COLLECT).n_collected_steps
            algorithm.update(buffer=collector.buffer, batch_size=BATCH, repeat=REPEAT)
            collector.reset_buffer(keep_statistics=True)
    return steps


train(1)
print("ready", flush=True)
for _ in sys.stdin:
    start = time.perf_counter()
    steps = train(ITERATIONS)
    print(steps / (time.perf_counter() - start), flush=True)
