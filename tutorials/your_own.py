# %% [markdown]
# # Your own rule, network and environment
#
# Each is a small class. klimb gives it seeds in parallel, evaluation, figures and files. On Colab, run `%pip install
# klimb` first.
#
# ## An environment
#
# A Gymnasium environment is used as it is. This one shows a number between -1 and 1, and the right action is its
# opposite.

# %%
from dataclasses import dataclass

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np

import klimb


class Opposite(gymnasium.Env):
    """Ten steps per episode; the reward of a step is -(obs + action)²."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.show(), {}

    def show(self):
        self.obs = self.np_random.uniform(-1, 1, 1).astype(np.float32)
        return self.obs

    def step(self, action):
        reward = -float((self.obs[0] + action[0]) ** 2)
        self.time += 1
        return self.show(), reward, False, self.time >= 10, {}


environment = klimb.GymnasiumEnvironment.from_maker("Opposite-v0", Opposite)
print(klimb.check_env(environment, steps=100, in_worker=False))

# %%
run = klimb.train(environment, klimb.TRPO(), env_steps=20_000, workers=0)
print(klimb.evaluate(run.policy, environment, episodes=20).mean)

# %% [markdown]
# ## A compiled environment
#
# The same in JAX is compiled together with the training, and many times faster. `reset` and `step` are of one
# environment; klimb adds the others, and resets those whose episode has ended.


# %%
@dataclass(frozen=True)
class CompiledOpposite(klimb.CompiledEnvironment):
    """Ten steps per episode; the reward of a step is -(obs + action)²."""

    id = "opposite"
    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Box(-1, 1, (1,))

    def reset(self, key):
        obs = jax.random.uniform(key, (1,), minval=-1, maxval=1)
        return (obs, jnp.int32(0)), obs

    def step(self, key, state, action):
        obs, time = state
        reward = -((obs[0] + action[0]) ** 2)
        after = jax.random.uniform(key, (1,), minval=-1, maxval=1)
        time = time + 1
        return klimb.Transition(
            state=(after, time), obs=after, reward=reward, terminated=jnp.bool_(False), truncated=time >= 10
        )


compiled = klimb.train(CompiledOpposite(), klimb.TRPO(), env_steps=50_000)
result = klimb.evaluate(compiled.policy, CompiledOpposite(), episodes=50).mean
print(result)
assert result > -0.5

# %% [markdown]
# ## A network
#
# A policy is any callable that JAX sees as a tree of arrays, from an observation to a distribution. This one knows
# that the best action is linear in the observation, and learns two numbers.


# %%
class Linear(eqx.Module):
    """A Gaussian around gain · obs."""

    gain: jax.Array
    log_std: jax.Array

    def __call__(self, obs):
        return klimb.DiagGaussian(mean=self.gain * obs, log_std=self.log_std)


linear = klimb.train(CompiledOpposite(), klimb.TRPO(), policy=Linear(jnp.zeros(1), jnp.zeros(1)), env_steps=50_000)
print(linear.policy.gain)

# %% [markdown]
# Its gain is near -1, which is what the task wants. For klimb's own network with other layers there are options
# (`hidden`, `activation`, `layer_norm`, …), and `klimb.Encoder` for what reads pictures.
#
# ## A rule
#
# A rule gets the policy and a batch, and returns the next policy. This one is the cross-entropy method in the space
# of actions: make the best fifth of all actions more probable.


# %%
@dataclass(frozen=True)
class BestFifth:
    """Gradient steps on the log-likelihood of the actions with the highest advantages."""

    learning_rate: float = 0.01
    steps: int = 20

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        theta, rebuild = klimb.flatten(policy)
        chosen = batch.advantage >= jnp.quantile(batch.advantage, 0.8)

        def likelihood(vector):
            log_prob = klimb.action_distribution(rebuild(vector), batch.obs).log_prob(batch.action)
            return batch.mean(jnp.where(chosen, log_prob, 0))

        for _ in range(self.steps):
            theta = theta + self.learning_rate * jax.grad(likelihood)(theta)
        return klimb.accept_or_reject(policy, state, rebuild(theta), state, batch)


best = klimb.train(CompiledOpposite(), BestFifth(), env_steps=100_000, num_seeds=3)
returns = [np.mean(record["episode_return"]) for record in best.history]
print(f"first {returns[0]:.2f}, last {returns[-1]:.2f}")
assert returns[-1] > returns[0]

# %% [markdown]
# How far every step of *your* rule moved the policy is in the records, as it is for klimb's own. In a file
# `my_rules.py` the same class works on the command line: `klimb train my_rules:BestFifth CartPole-v1`.
#
# Next: sweep, compare, and a figure for a paper.
