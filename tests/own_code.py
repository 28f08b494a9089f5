"""A rule, networks and an environment of a user's own. Imports nothing of klimb but its public names."""

from __future__ import annotations

from dataclasses import dataclass

import equinox as eqx
import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np

import klimb


@dataclass(frozen=True)
class GradientStep:
    """Plain gradient ascent of length √epsilon. The names of its fields mean something else elsewhere in klimb."""

    epsilon: float = 1e-3
    history: str = "short"
    offline: bool = False

    @property
    def traits(self) -> klimb.Traits:
        return klimb.Traits(title="Gradient step", metrics={"length": klimb.Metric("Length", "length of the step")})

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        theta, rebuild = klimb.flatten(policy)

        def gain(vector):
            return klimb.surrogate_gain(klimb.action_distribution(rebuild(vector), batch.obs), batch)

        gradient = jax.grad(gain)(theta)
        norm = jnp.linalg.norm(gradient)
        move = jnp.where(norm > 0, jnp.sqrt(self.epsilon) * gradient / norm, 0)
        length = jnp.linalg.norm(move)
        return klimb.accept_or_reject(policy, state, rebuild(theta + move), state, batch, length=length)


class Network(eqx.Module):
    """Equinox's own perceptron, whose leaves are not all arrays, with a distribution of klimb's."""

    mlp: eqx.nn.MLP
    log_std: jax.Array
    discrete: bool = eqx.field(static=True)

    def __call__(self, obs):
        output = self.mlp(jnp.ravel(obs))
        if self.discrete:
            return klimb.Categorical(logits=output)
        return klimb.DiagGaussian(mean=output, log_std=self.log_std)


def network(observations, actions, key):
    discrete = actions.kind == "discrete"
    size = actions.n if discrete else actions.shape[0]
    return Network(eqx.nn.MLP(observations.size, size, 8, 1, key=key), jnp.zeros(size), discrete)


class Value(eqx.Module):
    """A value function: one observation to one number."""

    mlp: eqx.nn.MLP

    def __call__(self, obs):
        return self.mlp(jnp.ravel(obs))


def value(observations, key):
    return Value(eqx.nn.MLP(observations.size, "scalar", 8, 1, key=key))


class PictureEncoder(klimb.Encoder):
    """A convolution over a picture of shape `[H, W]`."""

    kernel: jax.Array
    num_features = 9

    def features(self, inputs):
        windows = jax.lax.conv_general_dilated(inputs[None, None], self.kernel[None, None], (1, 1), "VALID")
        return jnp.tanh(jnp.ravel(windows))


def picture_network(observations, actions, key):
    key_kernel, key_rest = jax.random.split(key)
    encoder = PictureEncoder(jax.random.normal(key_kernel, (3, 3)))
    return klimb.NetworkPolicy(observations, actions, hidden=(8,), encoder=encoder, key=key_rest)


def picture_critic(observations, key):
    key_kernel, key_rest = jax.random.split(key)
    encoder = PictureEncoder(jax.random.normal(key_kernel, (3, 3)))
    return klimb.Critic(observations, hidden=(8,), encoder=encoder, key=key_rest)


@dataclass(frozen=True)
class Spot(klimb.CompiledEnvironment):
    """A bright row in a picture of 5 × 5 pixels. Moving it to the top pays 1 per step; 20 steps."""

    id = "own_code:Spot"
    reward: float = 1.0

    @property
    def observation_space(self):
        return gymnasium.spaces.Box(0, 1, (5, 5), np.float32)

    @property
    def action_space(self):
        return gymnasium.spaces.Discrete(2)

    def reset(self, key):
        state = (jax.random.randint(key, (), 0, 5), jnp.int32(0))
        return state, self._picture(state)

    def step(self, key, state, action):
        row, time = state
        state = (jnp.clip(row + 2 * action - 1, 0, 4), time + 1)
        reward = jnp.where(state[0] == 0, self.reward, 0.0)
        return klimb.Transition(state, self._picture(state), reward, jnp.bool_(False), time + 1 >= 20)

    def _picture(self, state):
        return jnp.broadcast_to(jax.nn.one_hot(state[0], 5)[:, None], (5, 5))


NOT_A_RULE = 3
