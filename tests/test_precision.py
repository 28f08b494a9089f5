"""Products of float32 arrays are asked for in float32: accelerators round their factors by default, CPUs never do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.lax import Precision

import klimb
import own_code
from klimb import PPO, TRPO, Batch, NaturalGradient, NetworkPolicy, RunConfig, Status, TrainOptions
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.natural_direction import conjugate_gradient
from klimb.policies.actions import Box, Discrete
from klimb.policies.mlp import MLP
from klimb.policies.observations import BoxObservations
from klimb.policies.parameters import flatten
from klimb.policies.policy import action_distribution
from klimb.policies.weights import orthogonal
from klimb.rules import RULES
from klimb.training.program import Program

FULL = {(Precision.HIGHEST, Precision.HIGHEST)}
SMALL = {"num_envs": 4, "num_steps": 16, "hidden": (4,), "critic_num_minibatches": 2}
SIZE, ACTIONS = 8, Box((-1.0,) * 3, (1.0,) * 3)


def products(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """All products of float32 arrays in a program, those in its loops, branches and calls included."""
    for equation in jaxpr.eqns:
        is_product = equation.primitive.name in ("dot_general", "conv_general_dilated")
        if is_product and any(x.aval.dtype == jnp.float32 for x in equation.invars):
            yield equation
        for part in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, ClosedJaxpr | Jaxpr)):
            if isinstance(part, ClosedJaxpr | Jaxpr):
                yield from products(getattr(part, "jaxpr", part))


def precisions(function: Any, *arguments: Any) -> set[Any]:
    """The precisions of all products of float32 arrays in a function; None for the device's default."""
    closed, *_ = eqx.filter_make_jaxpr(function)(*arguments)
    return {equation.params["precision"] for equation in products(closed.jaxpr)}


# What the programs ask for ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def traceable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program with options of its own for the compiler can't be traced as a part of another one."""
    monkeypatch.setattr("klimb.training.devices.compiler_options", lambda: None)


def in_training(rule: Any, env: str, recorded: Any = None, **options: Any) -> set[Any]:
    """The precisions of everything that a training computes, from its first state on; nothing is run."""
    program = Program(RunConfig(env, rule, TrainOptions(**SMALL, **options)), klimb.make(env), None, recorded)
    found, run = precisions(program._init, program._copies.keys(), program._copies.values), program.source._run

    def listening(*arguments: Any) -> Any:
        found.update(precisions(run, *arguments))
        return run(*arguments)

    program.source._run = listening
    try:
        program.source.trace(program.initial_state())
    finally:
        program.close()
    return found


def test_a_training_asks_for_the_precision_of_its_option() -> None:
    rounded = in_training(TRPO(), "CartPole-v1", precision="tensorfloat32")
    # Its first state is made in full, whatever the option.
    assert rounded - FULL == {(Precision.HIGH, Precision.HIGH)}
    with jax.default_matmul_precision("bfloat16"):
        chosen = in_training(TRPO(), "CartPole-v1", precision="tensorfloat32")
    assert chosen == {(Precision.DEFAULT, Precision.DEFAULT)}


QUICK = ("trpo",)


@pytest.mark.parametrize(
    "rule",
    [
        *(
            pytest.param(rule(), id=name, marks=[] if name in QUICK else pytest.mark.slow)
            for name, rule in RULES.items()
        ),
        pytest.param(GuidedPolicySearch("mirror_descent"), id="mirror-descent", marks=pytest.mark.slow),
    ],
)
def test_a_training_multiplies_in_full_precision(rule: Any) -> None:
    if isinstance(rule, klimb.BehaviourCloning):
        policy = NetworkPolicy(4, Discrete(2), hidden=(4,), key=jax.random.key(0))
        recorded = klimb.record(policy, "CartPole-v1", episodes=2)
        assert in_training(rule, "CartPole-v1", recorded, demonstrations="the test") == FULL
    else:
        assert in_training(rule, "Pendulum-v1" if isinstance(rule, GuidedPolicySearch) else "CartPole-v1") == FULL


@pytest.mark.slow
def test_a_training_with_networks_of_ones_own_does() -> None:
    """Convolutions on a compiled environment, Equinox's layers on one of Gymnasium's."""
    pictures = {"policy": "own_code:picture_network", "critic": "own_code:picture_critic"}
    assert in_training(PPO(), "own_code:Spot", **pictures) == FULL
    layers = {"policy": "own_code:network", "critic": "own_code:value"}
    assert in_training(TRPO(), "gymnasium:CartPole-v1", **layers, workers=0) == FULL


def gaussian(network: type[MLP] = MLP) -> NetworkPolicy:
    """Of the default size, its head as large as training makes it."""
    policy = NetworkPolicy(SIZE, ACTIONS, initial_log_std=-0.5, key=jax.random.key(0))
    mlp = network((SIZE, 64, 64, 3), activation="tanh", output_gain=0.5, key=jax.random.key(1))
    return eqx.tree_at(lambda p: p.network, policy, mlp)


def own_network() -> Any:
    return own_code.network(BoxObservations((SIZE,)), ACTIONS, jax.random.key(0))


def batch_of(policy: Any, rows: int) -> Batch:
    """Sampled actions with random advantages."""
    rng = np.random.default_rng(0)
    obs = jnp.asarray(rng.normal(size=(rows, SIZE)), jnp.float32)
    distribution = action_distribution(policy, obs)
    action, zeros = distribution.sample(jax.random.key(1)), jnp.zeros(rows)
    advantage = jnp.asarray(rng.normal(size=rows), jnp.float32)
    return Batch(obs, action, distribution.log_prob(action), advantage, zeros, zeros + 1, None, zeros[0])


@pytest.mark.slow
@pytest.mark.parametrize("make", [gaussian, own_network])
@pytest.mark.parametrize(
    "rule",
    [TRPO(), PPO(), *(NaturalGradient(solver=s) for s in ("cg", "woodbury", "dense"))],
    ids=lambda r: str(r)[:40],
)
def test_a_step_outside_of_a_training_does(rule: Any, make: Any) -> None:
    policy = make()
    assert precisions(rule.step, jax.random.key(0), policy, rule.init(policy), batch_of(policy, 16)) == FULL


def test_what_is_called_by_itself_does() -> None:
    policy, own, obs = gaussian(), own_network(), jnp.ones((4, SIZE))
    assert precisions(policy, obs) == FULL
    assert precisions(eqx.filter_grad(lambda p: jnp.sum(p(obs).mean)), policy) == FULL
    assert precisions(action_distribution, own, obs) == FULL
    assert precisions(lambda: klimb.fisher_vector_product(own, obs)(flatten(own).theta)) == FULL
    assert precisions(lambda key: orthogonal(key, 8, 4), jax.random.key(0)) == FULL


def test_a_precision_that_the_user_has_set_counts() -> None:
    policy, obs = gaussian(), jnp.ones((4, SIZE))
    with jax.default_matmul_precision("tensorfloat32"):
        assert precisions(policy, obs) == {(Precision.HIGH, Precision.HIGH)}
        assert in_training(PPO(), "CartPole-v1") == {(Precision.HIGH, Precision.HIGH)}
    assert jax.config.jax_default_matmul_precision is None
    assert precisions(policy, obs) == FULL


# What the numbers are -----------------------------------------------------------------------------------------


class Rounding(MLP):
    """A network whose products are those of TF32: factors of 10 bits behind the point, sums in float32."""

    def hidden(self, x):
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = jnp.tanh(self.rounded(x) @ self.rounded(weight) + bias)
        return x

    def output(self, features):
        return self.rounded(features) @ self.rounded(self.weights[-1]) + self.biases[-1]

    @staticmethod
    def rounded(x):
        return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=10)


def doubled(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, float)) if eqx.is_inexact_array(x) else x, tree)


def errors(network: type[MLP]) -> dict[str, float]:
    """What is wrong with a step in float32, measured in float64.

    network: of the policy in float32. log-prob: largest error, in nats. residual: of conjugate gradient. kl: relative
    error of the KL of the step.
    """
    policy, exact = gaussian(network), gaussian()
    rule = TRPO(cg_iterations=20, damping=0.1, cg_min_progress=0, preconditioner="none")
    batch = batch_of(policy, 512)
    new, _, info = eqx.filter_jit(rule.step)(jax.random.key(0), policy, (), batch)
    assert info.status == Status.ACCEPTED
    product = klimb.fisher_vector_product(policy, batch.obs)
    gradient = product(flatten(new).theta - flatten(policy).theta)
    damped = lambda v: product(v) + rule.damping * v  # noqa: E731
    x = jax.jit(lambda b: conjugate_gradient(damped, b, iterations=40, tolerance=1e-6).x)(gradient)
    log_prob = action_distribution(policy, batch.obs).log_prob(batch.action)
    with jax.enable_x64(True):
        old, moved = (doubled(jax.tree.unflatten(jax.tree.structure(exact), jax.tree.leaves(p))) for p in (policy, new))
        obs, action, x, gradient = (doubled(a) for a in (batch.obs, batch.action, x, gradient))
        before, after = action_distribution(old, obs), action_distribution(moved, obs)
        residual = klimb.fisher_vector_product(old, obs)(x) + rule.damping * x - gradient
        kl = float(jnp.mean(klimb.kl_divergence(before, after)))
        return {
            "log-prob": float(jnp.max(jnp.abs(before.log_prob(action) - np.asarray(log_prob, float)))),
            "residual": float(jnp.linalg.norm(residual) / jnp.linalg.norm(gradient)),
            "kl": abs(kl / float(info.kl_old_new) - 1),
        }


@pytest.mark.slow
def test_a_step_in_float32_is_that_of_float64_to_rounding() -> None:
    """On every device. With the products of TF32 nothing of it would hold, by a factor of 20 at least."""
    here, rounded = errors(MLP), errors(Rounding)
    for name in here:
        assert here[name] < 2e-5, name
        assert rounded[name] > 4e-4, name
