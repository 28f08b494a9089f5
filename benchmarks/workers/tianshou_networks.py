"""The networks of Tianshou's MuJoCo examples."""

import math

from tianshou.utils.net.common import Net
from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic
from torch import nn


def networks(pool):
    """The actor and the critic of the examples."""
    shape = pool.observation_space.shape

    def net():
        return Net(state_shape=shape, hidden_sizes=[64, 64], activation=nn.Tanh)

    actor = ContinuousActorProbabilistic(preprocess_net=net(), action_shape=pool.action_space.shape, unbounded=True)
    critic = ContinuousCritic(preprocess_net=net())
    nn.init.constant_(actor.sigma_param, -0.5)
    for module in [*actor.modules(), *critic.modules()]:
        if isinstance(module, nn.Linear):
            nn.init.orthogonal_(module.weight, gain=math.sqrt(2))
            nn.init.zeros_(module.bias)
    for module in actor.mu.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.mul_(0.01)
    return actor, critic
