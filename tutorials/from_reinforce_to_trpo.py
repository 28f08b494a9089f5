# %% [markdown]
# # From REINFORCE to TRPO
#
# One idea after the other, each as a few lines on klimb's functions, and each on the same task. klimb collects the
# batches, estimates the advantages and fits the critic. What we write is the step: a *rule* gets the policy and a
# batch, and returns a better policy.
#
# On Colab, run `%pip install klimb` first.

# %%
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import klimb

SETTINGS = {"env_steps": 40_000, "num_seeds": 5, "num_envs": 16, "num_steps": 64}
curves = {}


def learn(name, rule, **options):
    """Train five seeds, and keep the mean return of every iteration."""
    run = klimb.train("CartPole-v1", rule, **{**SETTINGS, **options})
    steps = np.array([record["env_steps"] for record in run.history])
    returns = np.array([record["episode_return"] for record in run.history], float)
    ended = np.isfinite(returns).any(axis=1)  # no episode ends in an iteration without numbers
    curves[name] = steps[ended], np.nanmean(returns[ended], axis=1)
    print(f"{name}: mean return of the last five iterations {curves[name][1][-5:].mean():.0f}")
    return run


# %% [markdown]
# ## 1. Follow the gradient
#
# ∇J(θ) = E[∇ log π_θ(a|s) Â]: make actions more probable by as much as they were better than expected.
# `klimb.surrogate_gain` is E[π_θ(a|s) / π_old(a|s) Â]. At θ = θ_old, where the ratio is 1, its gradient is the policy
# gradient.


# %%
def surrogate_of(policy, batch):
    """The parameters as a vector, the way back, and the surrogate as a function of the vector."""
    theta, rebuild = klimb.flatten(policy)

    def surrogate(vector):
        return klimb.surrogate_gain(klimb.action_distribution(rebuild(vector), batch.obs), batch)

    return theta, rebuild, surrogate


@dataclass(frozen=True)
class GradientStep:
    """One step along the gradient."""

    learning_rate: float = 1.0

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        theta, rebuild, surrogate = surrogate_of(policy, batch)
        new = rebuild(theta + self.learning_rate * jax.grad(surrogate)(theta))
        return klimb.accept_or_reject(policy, state, new, state, batch)


# %% [markdown]
# With the return of the whole episode as Â this is REINFORCE at its plainest. Two ideas lower its variance and leave
# its mean alone: an action can't change the rewards *before* it (causality), and a baseline, here the critic's value
# of the state, takes away what would have come anyway.

# %%
learn("whole return", GradientStep(), advantage="total_return")
learn("causality", GradientStep(), advantage="reward_to_go")
plain = learn("causality and critic (GAE)", GradientStep(), advantage="gae")

# %% [markdown]
# ## 2. Use a batch more than once
#
# After one step the batch is from another policy. The ratio in the surrogate corrects for that, so why not take ten
# steps on it?


# %%
@dataclass(frozen=True)
class ManySteps:
    """Some gradient steps on one batch, corrected by importance weights."""

    learning_rate: float = 1.0
    steps: int = 10

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        theta, rebuild, surrogate = surrogate_of(policy, batch)
        for _ in range(self.steps):
            theta = theta + self.learning_rate * jax.grad(surrogate)(theta)
        return klimb.accept_or_reject(policy, state, rebuild(theta), state, batch)


greedy = learn("ten steps per batch", ManySteps())

# %% [markdown]
# The surrogate knows only the states that the *old* policy visits. The further the policy moves, the less it says
# about the true return. How far has it moved, as the KL divergence E_s[KL(π_old ‖ π_new)] of every step?

# %%
for name, run in {"one step": plain, "ten steps": greedy}.items():
    moved = np.array([record["kl_old_new"] for record in run.history])
    print(f"{name}: median KL {np.median(moved):.1e}, largest {moved.max():.1e}")

# %% [markdown]
# ## 3. Measure the length of a step in the policy, not in its parameters
#
# A step of one length in θ can change the policy a lot or not at all. So limit the KL instead: maximise the surrogate
# subject to KL ≤ ε. To second order the KL is ½ dᵀF d, with F the Fisher matrix, and the solution is the *natural
# gradient* d = √(2ε / gᵀF⁻¹g) F⁻¹g.
#
# F is never formed: conjugate gradient needs only products F v, which `klimb.fisher_vector_product` computes.


# %%
def natural_direction(policy, batch, gradient, max_kl):
    """F⁻¹g, as long as the KL allows."""
    product = klimb.fisher_vector_product(policy, batch.obs, batch.weight)
    solution, _ = jax.scipy.sparse.linalg.cg(lambda v: product(v) + 0.1 * v, gradient, maxiter=10)
    squared = jnp.maximum(solution @ product(solution), 1e-12)
    return jnp.sqrt(2 * max_kl / squared) * solution


@dataclass(frozen=True)
class NaturalStep:
    """One step along the natural gradient, with a KL of max_kl to second order."""

    max_kl: float = 0.01

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        theta, rebuild, surrogate = surrogate_of(policy, batch)
        new = rebuild(theta + natural_direction(policy, batch, jax.grad(surrogate)(theta), self.max_kl))
        return klimb.accept_or_reject(policy, state, new, state, batch)


natural = learn("natural gradient", NaturalStep())

# %% [markdown]
# The picture behind it, for a problem with two parameters k and σ: the plain gradient first shrinks σ, and then
# follows it slowly; the natural gradient goes straight to the optimum.

# %%
from klimb.theory.figures import fields

fields.draw(fields.compute())

# %% [markdown]
# ## 4. Check before you step
#
# Second order is an approximation. TRPO tries the step, and shortens it until the *exact* KL is within the limit and
# the surrogate has really grown.


# %%
@dataclass(frozen=True)
class TrustRegion:
    """The longest of some natural steps that keeps the limit and improves the surrogate."""

    max_kl: float = 0.01
    tries: int = 10

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        theta, rebuild, surrogate = surrogate_of(policy, batch)
        full = natural_direction(policy, batch, jax.grad(surrogate)(theta), self.max_kl)
        old = klimb.action_distribution(policy, batch.obs)

        def is_good(factor):
            new = klimb.action_distribution(rebuild(theta + factor * full), batch.obs)
            kl = batch.mean(klimb.kl_divergence(old, new))
            return (kl <= self.max_kl) & (klimb.surrogate_gain(new, batch) > 0)

        factors = 0.8 ** jnp.arange(self.tries)
        good = jax.lax.map(is_good, factors)
        factor = factors[jnp.argmax(good)]
        status = jnp.where(good.any(), klimb.Status.ACCEPTED, klimb.Status.NO_IMPROVEMENT)
        return klimb.accept_or_reject(policy, state, rebuild(theta + factor * full), state, batch, status=status)


trusted = learn("TRPO, written here", TrustRegion())
learn("klimb.TRPO", klimb.TRPO())
for name, run in {"natural gradient": natural, "TRPO": trusted}.items():
    moved = np.array([record["kl_old_new"] for record in run.history])
    print(f"{name}: largest KL {moved.max():.4f} of 0.01")
assert moved.max() <= 0.01 + 1e-5

# %% [markdown]
# ## All of it in one figure

# %%
for name, (steps, returns) in curves.items():
    plt.plot(steps, returns, label=name)
plt.xlabel("environment steps")
plt.ylabel("mean return of five seeds")
plt.legend(fontsize="small")
plt.show()

# %% [markdown]
# `klimb.TRPO` is the same rule with more care: the exact Fisher product linearised once, the residual of conjugate
# gradient watched, everything checked for numbers that are not finite. The page *The theory, computed* of the
# documentation has the bound that the limit on the KL comes from, and `klimb verify` computes both sides of it.
#
# Next: your own rule, network and environment.
