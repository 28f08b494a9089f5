"""The environments made for planning, against mechanics, SciPy's integrator and Riccati's recursion."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from jaxtyping import Array

import klimb
from klimb.collect.compiled import CompiledCollector
from klimb.environments.base import Clocked
from klimb.environments.control.acrobot import Acrobot
from klimb.environments.control.cartpole import CartPole
from klimb.environments.control.cartpole_swing_up import CartPoleSwingUp
from klimb.environments.control.linear_quadratic import LinearQuadratic
from klimb.environments.control.mountain_car_continuous import MountainCarContinuous
from klimb.environments.control.pendulum import Pendulum
from klimb.environments.control.reacher import Reacher
from klimb.policies.actions import Box, action_spec
from klimb.policies.distributions import DiagGaussian
from klimb.policies.networks import NetworkPolicy

ARM = Reacher(mass_1=1.3, mass_2=0.7, length_1=0.4, length_2=0.6)
POLE = CartPoleSwingUp(cart_mass=1.1, pole_mass=0.3, half_length=0.45, friction=0.4)
each_mechanism = pytest.mark.parametrize("env", [POLE, ARM], ids=["pole", "arm"])
ENVIRONMENTS = [CartPoleSwingUp(), Reacher(), LinearQuadratic()]
each_environment = pytest.mark.parametrize("env", ENVIRONMENTS, ids=lambda env: env.id)

# Physics states are drawn from these boxes: turns in both directions, arms folded and straight.
REACH = {
    CartPoleSwingUp: [3, 4, 7, 12],
    Reacher: [7, 7, 6, 6, 0.9, 0.9],
    LinearQuadratic: [3, 3, 3, 3],
}
PUSH = {CartPoleSwingUp: 20, Reacher: 4, LinearQuadratic: 3}  # actions, beyond the bounds where there are any


def random_cases(env, n, seed=0):
    """Physics states [n, D] and actions [n, A]."""
    rng = np.random.default_rng(seed)
    reach, push = np.array(REACH[type(env)], float), PUSH[type(env)]
    kind = jnp.zeros(()).dtype
    physics, actions = (
        rng.uniform(-reach, reach, (n, len(reach))),
        rng.uniform(-push, push, (n, *env.action_space.shape)),
    )
    return physics.astype(kind), actions.astype(kind)


def links(env, q):
    """(mass, length, angle, centre of mass) of each rigid body."""
    if isinstance(env, CartPoleSwingUp):
        cart = jnp.stack([q[0], 0 * q[0]])
        pole = cart + env.half_length * jnp.stack([jnp.sin(q[1]), jnp.cos(q[1])])
        return [(env.cart_mass, 0.0, 0 * q[0], cart), (env.pole_mass, 2 * env.half_length, q[1], pole)]
    inner, outer = q[0], q[0] + q[1]
    first = env.length_1 * jnp.stack([jnp.cos(inner), jnp.sin(inner)])
    second = env.length_2 * jnp.stack([jnp.cos(outer), jnp.sin(outer)])
    return [(env.mass_1, env.length_1, inner, first / 2), (env.mass_2, env.length_2, outer, first + second / 2)]


def lagrangian(env, q, rate):
    """Kinetic minus potential energy, from where the links' centres of mass are and how they turn."""
    gravity = env.gravity if isinstance(env, CartPoleSwingUp) else 0.0
    moving = jax.jvp(lambda q: [link[2:] for link in links(env, q)], (q,), (rate,))[1]
    energy = 0.0
    for (mass, length, _, centre), (spin, velocity) in zip(links(env, q), moving, strict=True):
        energy += mass / 2 * velocity @ velocity + mass * length**2 / 24 * spin**2 - mass * gravity * centre[1]
    return energy


def mechanics(env, coordinates, action):
    """d/dt of (q, q̇) by Euler and Lagrange: ∂²L/∂q̇² q̈ = forces + ∂L/∂q − ∂²L/∂q̇∂q q̇."""
    q, rate = jnp.split(coordinates, 2)
    if isinstance(env, CartPoleSwingUp):
        forces = jnp.stack([action[0] - env.friction * rate[0], 0 * action[0]])
    else:
        forces = action - env.damping * rate

    def of(q, rate):
        return lagrangian(env, q, rate)

    mass = jax.hessian(of, 1)(q, rate)
    coriolis = jax.jacfwd(jax.grad(of, 1), 0)(q, rate) @ rate
    return jnp.concatenate([rate, jnp.linalg.solve(mass, forces + jax.grad(of, 0)(q, rate) - coriolis)])


def ordered(env, physics):
    """(q, q̇) of a physics state: the cart-pole keeps each coordinate beside its rate."""
    return physics[..., np.array([0, 2, 1, 3])] if isinstance(env, CartPoleSwingUp) else physics[..., :4]


def starts(env, n):
    return jax.jit(lambda key: jax.vmap(env.reset)(jax.random.split(key, n)))(jax.random.key(0))


def roll(env, physics, actions):
    """The physics states after each of the actions, `[T, D]`."""

    def step(physics, action):
        successor = env.dynamics(physics, action)
        return successor, successor

    return jax.jit(lambda physics, actions: jax.lax.scan(step, physics, actions)[1])(physics, actions)


@pytest.mark.slow
@each_mechanism
@pytest.mark.usefixtures("x64")
def test_equations_of_motion_are_those_of_euler_and_lagrange(env):
    physics, actions = random_cases(env, 200)
    tiny = dataclasses.replace(env, time_step=1e-3)

    # One Runge-Kutta step of the oracle's derivative: equal derivatives give equal steps, up to rounding.
    def oracle(physics, action):
        z, h = ordered(env, physics), tiny.time_step
        k1 = mechanics(env, z, action)
        k2 = mechanics(env, z + h / 2 * k1, action)
        k3 = mechanics(env, z + h / 2 * k2, action)
        k4 = mechanics(env, z + h * k3, action)
        return (k1 + 2 * k2 + 2 * k3 + k4) / 6

    moved = jax.jit(jax.vmap(tiny.dynamics))(physics, actions)
    derivative = ordered(env, moved - physics) / tiny.time_step
    np.testing.assert_allclose(derivative, jax.jit(jax.vmap(oracle))(physics, actions), rtol=1e-9, atol=1e-9)


@each_mechanism
@pytest.mark.usefixtures("x64")
def test_a_second_of_motion_equals_scipys_integrator(env):
    physics, _ = random_cases(env, 1, seed=3)
    physics, steps = 0.5 * physics[0], round(1 / env.time_step)
    actions = 0.5 * PUSH[type(env)] * jnp.sin(0.7 * jnp.arange(steps)[:, None] + jnp.arange(env.action_space.shape[0]))
    ours = ordered(env, np.asarray(roll(env, physics, actions)))
    rate = jax.jit(lambda z, action: mechanics(env, z, action))
    z, errors = np.asarray(ordered(env, physics)), []
    for t in range(steps):  # the action is held over a step
        held = np.asarray(actions[t])
        solution = scipy.integrate.solve_ivp(
            lambda _, z, held=held: np.asarray(rate(z, held)), (0, env.time_step), z, method="DOP853", rtol=1e-10
        )
        z = solution.y[:, -1]
        errors.append(np.abs(ours[t] - z).max())
    assert np.ptp(ours, axis=0).min() > 0.1
    assert max(errors) < 5e-3


@pytest.mark.slow
@each_mechanism
@pytest.mark.usefixtures("x64")
def test_the_error_of_a_step_shrinks_with_its_fifth_power(env):
    physics, actions = random_cases(env, 50)
    physics = 0.5 * physics

    def defect(h):
        """The largest difference between one step and two of half the length."""
        whole = dataclasses.replace(env, time_step=h)
        half = dataclasses.replace(env, time_step=h / 2)
        return lambda x, u: half.dynamics(half.dynamics(x, u), u) - whole.dynamics(x, u)

    def defects(physics, actions):
        return jnp.stack([jnp.max(jnp.abs(jax.vmap(defect(h))(physics, actions))) for h in (4e-3, 2e-3, 1e-3)])

    first, second, third = np.asarray(jax.jit(defects)(physics, actions))
    np.testing.assert_allclose(np.log2([first / second, second / third]), 5, atol=0.3)


@pytest.mark.parametrize(
    "env",
    [dataclasses.replace(POLE, friction=0.0), dataclasses.replace(ARM, damping=0.0)],
    ids=["pole", "arm"],
)
@pytest.mark.usefixtures("x64")
def test_energy_is_conserved_without_friction_and_action(env):
    physics, _ = random_cases(env, 20, seed=1)

    @jax.jit
    @jax.vmap
    def energy(physics):
        """What is conserved where L does not depend on time: q̇ · ∂L/∂q̇ − L."""
        q, rate = jnp.split(ordered(env, physics), 2)
        return rate @ jax.grad(lambda rate: lagrangian(env, q, rate))(rate) - lagrangian(env, q, rate)

    def drift(time_step, seconds=2.0):
        """The largest change of energy, over the largest energy."""
        fine = dataclasses.replace(env, time_step=time_step)
        idle = jnp.zeros((round(seconds / time_step), *env.action_space.shape))
        after = jax.jit(jax.vmap(lambda physics: roll(fine, physics, idle)[-1]))(physics)
        return np.abs(energy(after) - energy(physics)).max() / np.abs(energy(physics)).max()

    assert drift(1e-3) < 1e-7
    assert drift(env.time_step) < 0.05
    own = env.energy if isinstance(env, CartPoleSwingUp) else lambda x: x[2:4] @ env.inertia(x) @ x[2:4] / 2
    np.testing.assert_allclose(jax.jit(jax.vmap(own))(physics), energy(physics), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_friction_takes_energy():
    pole, arm = CartPoleSwingUp(friction=1.0), Reacher()
    after = roll(pole, np.array([0.0, 3.0, 2.0, 0.0]), np.zeros((200, 1)))
    energy = np.asarray(jax.jit(jax.vmap(pole.energy))(after))
    assert (np.diff(energy) < 1e-6).all()
    assert energy[-1] < energy[0] - 0.5
    after = roll(arm, np.array([0.0, 1.0, 3.0, -2.0, 0.5, 0.0]), np.zeros((100, 2)))
    energy = np.asarray(jax.jit(jax.vmap(lambda x: x[2:4] @ arm.inertia(x) @ x[2:4]))(after))
    assert (np.diff(energy) < 0).all()


@pytest.mark.usefixtures("x64")
def test_the_arms_inertia_is_symmetric_and_positive_definite():
    arm = ARM
    physics, _ = random_cases(arm, 300)
    physics = np.concatenate([physics, np.zeros((1, 6)), np.pi * np.eye(1, 6, 1)])  # straight and folded
    inertia = np.asarray(jax.jit(jax.vmap(arm.inertia))(physics))
    np.testing.assert_array_equal(inertia, np.swapaxes(inertia, 1, 2))
    assert np.linalg.eigvalsh(inertia).min() > 1e-3


@pytest.mark.usefixtures("x64")
def test_the_fingertip_is_where_geometry_puts_it():
    arm = ARM
    quarter = np.pi / 2
    cases = {(0, 0): (1.0, 0), (quarter, 0): (0, 1.0), (0, quarter): (0.4, 0.6), (quarter, quarter): (-0.6, 0.4)}
    fingertip = jax.jit(arm.fingertip)
    for angles, place in cases.items():
        np.testing.assert_allclose(fingertip(np.array([*angles, 1.0, 2.0, 3.0, 4.0])), place, atol=1e-12)
    physics, _ = random_cases(arm, 100)
    q = np.asarray(physics)
    complex_place = 0.4 * np.exp(1j * q[:, 0]) + 0.6 * np.exp(1j * (q[:, 0] + q[:, 1]))
    tip = np.asarray(jax.jit(jax.vmap(arm.fingertip))(physics))
    np.testing.assert_allclose(tip[:, 0] + 1j * tip[:, 1], complex_place, atol=1e-12)
    obs = np.asarray(jax.jit(jax.vmap(arm.observe))(physics))
    np.testing.assert_allclose(obs[:, :4], np.hstack([np.cos(q[:, :2]), np.sin(q[:, :2])]), atol=1e-12)
    np.testing.assert_allclose(obs[:, 4:], np.hstack([q[:, 4:], q[:, 2:4], tip - q[:, 4:]]), atol=1e-12)


def test_targets_are_uniform_over_their_ring_and_stay_where_they_are():
    arm = Reacher()
    state, _ = starts(arm, 4000)
    target = np.asarray(state.physics[:, 4:])
    squared = (target**2).sum(1)
    near, far = arm.nearest_target**2, arm.farthest_target**2
    assert scipy.stats.kstest((squared - near) / (far - near), "uniform").pvalue > 1e-3
    angle = np.arctan2(target[:, 1], target[:, 0]) / (2 * np.pi) + 0.5
    assert scipy.stats.kstest(angle, "uniform").pvalue > 1e-3
    arms = np.asarray(state.physics[:, :4]) - [0, arm.initial_elbow, 0, 0]
    assert 0.09 < np.abs(arms).max() <= arm.initial_spread + 1e-6
    after = roll(arm, state.physics[0], jnp.ones((30, 2)))
    np.testing.assert_array_equal(after[:, 4:], np.broadcast_to(target[0], (30, 2)))


def test_the_pole_starts_hanging_and_everywhere_below_the_cart():
    env = CartPoleSwingUp()
    state, obs = starts(env, 1000)
    offset = np.asarray(state.physics) - [0, 0, np.pi, 0]
    assert 0.049 < np.abs(offset).max() <= env.initial_spread + 1e-6
    assert (np.ptp(offset, axis=0) > 0.09).all()
    assert (obs[:, 2] < -0.99).all()
    # Nothing holds the pole up: upright, the cost is that of the action alone.
    cost = jax.jit(env.cost)
    np.testing.assert_allclose(cost(jnp.zeros(4), jnp.ones(1)), env.force_cost, rtol=1e-6)
    np.testing.assert_allclose(cost(np.float32([0, 0, np.pi, 0]), jnp.zeros(1)), 2, rtol=1e-6)


@each_environment
@pytest.mark.usefixtures("x64")
def test_reward_is_the_stated_one(env):
    physics, actions = random_cases(env, 100)
    reward = jax.jit(jax.vmap(lambda x, u: env.reward(x, u, env.dynamics(x, u))))(physics, actions)
    x, u = np.asarray(physics), np.asarray(actions)
    match env:
        case CartPoleSwingUp():
            c = [env.position_cost, env.velocity_cost, env.rate_cost, env.force_cost]
            costs = [np.hypot(1, x[:, 0]) - 1, x[:, 1] ** 2, x[:, 3] ** 2, u[:, 0] ** 2]
            expected = 1 - np.cos(x[:, 2]) + np.array(c) @ costs
        case Reacher():
            miss = np.asarray(jax.jit(jax.vmap(env.fingertip))(physics)) - x[:, 4:]
            expected = (miss**2).sum(1) + env.torque_cost * (u**2).sum(1)
        case LinearQuadratic():
            expected = np.einsum("bi,ij,bj->b", x, env.state_cost, x) + np.einsum("bi,ij,bj->b", u, env.action_cost, u)
    np.testing.assert_allclose(reward, -expected, rtol=1e-12)


@pytest.mark.parametrize(
    "env", [*ENVIRONMENTS, CartPole(), Pendulum(), MountainCarContinuous(), Acrobot()], ids=lambda env: env.id
)
def test_cost_is_minus_the_reward_of_the_step(env):
    action = jnp.full(env.action_space.shape, 0.3) if env.action_space.shape else jnp.int32(1)

    @jax.jit
    def both(key):
        state, _ = env.reset(key)
        return env.step(key, state, action).reward, env.cost(state.physics, action)

    reward, cost = both(jax.random.key(0))
    assert reward != 0
    np.testing.assert_allclose(cost, -reward, rtol=1e-6)


def outcome(env, physics, action):
    successor = env.dynamics(physics, action)
    return jnp.concatenate([successor, env.observe(successor), env.cost(physics, action)[None]])


@pytest.mark.slow
@each_environment
@pytest.mark.usefixtures("x64")
def test_derivatives_equal_finite_differences(env):
    physics, actions = random_cases(env, 60)
    physics = np.concatenate([physics, starts(env, 4)[0].physics, np.zeros_like(physics[:1])])
    variables = np.hstack([physics, np.concatenate([actions, np.zeros_like(actions[:5])])])
    size = physics.shape[1]

    def of(v):
        return outcome(env, v[:size], v[size:])

    def central_difference(v, h=1e-6):
        shifts = h * jnp.eye(len(v))
        above, below = (jax.vmap(lambda shift, s=s: of(v + s * shift))(shifts) for s in (1, -1))
        return ((above - below) / (2 * h)).T

    exact, numeric = (jax.jit(jax.vmap(f))(variables) for f in (jax.jacrev(of), central_difference))
    np.testing.assert_allclose(exact, numeric, rtol=1e-6, atol=1e-6)
    # Beyond the bounds too, every action moves what comes next.
    assert (np.abs(exact[:, :size, size:]).max(axis=1) > 1e-5).all()


@each_environment
def test_what_planning_differentiates_is_finite_at_the_start_in_float32(env):
    physics = np.asarray(starts(env, 1)[0].physics[0])
    size, variables = len(physics), np.concatenate([physics, np.zeros(env.action_space.shape, np.float32)])

    @jax.jit
    def derivatives(v):
        return jax.jacfwd(lambda v: env.dynamics(v[:size], v[size:]))(v), jax.hessian(
            lambda v: env.cost(v[:size], v[size:])
        )(v)

    jacobian, hessian = derivatives(variables)
    assert jacobian.dtype == hessian.dtype == jnp.float32
    assert np.isfinite(jacobian).all()
    assert np.isfinite(hessian).all()
    assert np.linalg.eigvalsh(hessian[size:, size:])[0] > 0


@pytest.mark.slow
@each_environment
@pytest.mark.usefixtures("x64")
def test_the_gradient_of_a_whole_episodes_cost_is_finite(env):
    start = np.asarray(starts(env, 1)[0].physics[0])
    actions = jnp.asarray(np.random.default_rng(0).normal(size=(30, *env.action_space.shape)))

    def total(actions):
        def step(physics, action):
            return env.dynamics(physics, action), env.cost(physics, action)

        return jnp.sum(jax.lax.scan(step, start, actions)[1])

    gradient = jax.jit(jax.grad(total))(actions)
    shift = 1e-5 * jnp.asarray(np.random.default_rng(1).normal(size=actions.shape))
    numeric = jax.jit(lambda: (total(actions + shift) - total(actions - shift)) / 2)()
    np.testing.assert_allclose(jnp.vdot(gradient, shift), numeric, rtol=1e-6)
    assert float(jnp.max(jnp.abs(gradient))) > 1e-3


@pytest.mark.slow
@each_environment
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_every_float_has_the_dtype_of_the_physics(env, dtype):
    state = Clocked(jax.ShapeDtypeStruct((len(REACH[type(env)]),), dtype), jax.ShapeDtypeStruct((), "int32"))
    action = jax.ShapeDtypeStruct(env.action_space.shape, "float32")
    with jax.numpy_dtype_promotion("strict"):
        after = jax.eval_shape(env.step, jax.random.key(0), state, action)
    assert {after.state.physics.dtype, after.obs.dtype, after.reward.dtype} == {jnp.dtype(dtype)}
    assert after.terminated.dtype == after.truncated.dtype == bool
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(after))


@pytest.mark.slow
@each_environment
def test_a_rollout_stays_in_its_spaces_and_ends_with_the_clock_alone(env):
    env = dataclasses.replace(env, max_episode_steps=12)
    policy = NetworkPolicy(
        env.observation_space.shape[0], action_spec(env.action_space), hidden=(4,), key=jax.random.key(0)
    )
    collector = CompiledCollector(env, num_envs=3, num_steps=30)
    collect = jax.jit(lambda key, state: collector.collect(key, policy, state))
    _, rollout, episodes = collect(jax.random.key(1), collector.init(jax.random.key(2)))
    assert all(env.observation_space.contains(np.asarray(obs)) for obs in rollout.next_obs.reshape(90, -1))
    assert not rollout.terminated.any()
    np.testing.assert_array_equal(rollout.truncated, rollout.time == 11)
    assert (episodes.count, episodes.mean_length) == (6, 12)
    np.testing.assert_allclose(episodes.mean_return, rollout.reward[:24].sum() / 6, rtol=1e-5)
    assert (rollout.reward < 0).all()
    assert not np.array_equal(rollout.next_obs[11], rollout.obs[12])


@each_environment
def test_a_step_under_vmap_is_the_same(env):
    physics, actions = random_cases(env, 3)

    def step(x, u):
        return env.step(jax.random.key(0), Clocked(x, jnp.int32(3)), u)

    together = jax.jit(jax.vmap(step))(physics, actions)
    alone = jax.jit(step)(physics[1], actions[1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[1], rtol=2e-5, atol=2e-5), alone, together)


@each_environment
def test_environments_are_values(env):
    assert env == type(env)()
    assert hash(env) == hash(type(env)())
    assert env != type(env)(max_episode_steps=3)


@pytest.mark.slow
def test_a_short_training_runs():
    small = {"env_steps": 64, "num_envs": 2, "num_steps": 16, "hidden": (4,)}
    run = klimb.train("CartPoleSwingUp-v0", klimb.TRPO(), **small)
    assert len(run.history) == 2
    evaluation = klimb.evaluate(run.policy, "CartPoleSwingUp-v0", episodes=2)
    assert (evaluation.lengths == 200).all()
    assert (evaluation.returns < -20).all()


# Linear-quadratic problems ----------------------------------------------------------------------------------

SKEWED = LinearQuadratic.of(
    [[1.05, 0.2, 0.0], [-0.1, 0.9, 0.3], [0.0, 0.1, 0.8]],
    np.array([[0.0, 0.2], [1.0, 0.0], [0.3, -0.5]]),
    [[2.0, 0.3, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, 0.0]],
    [[0.5, 0.1], [0.1, 0.2]],
    initial_mean=[1.0, -2.0, 0.5],
    initial_covariance=[[1.0, 0.5, 0.0], [0.5, 0.5, 0.1], [0.0, 0.1, 0.3]],
    max_episode_steps=60,
)
each_problem = pytest.mark.parametrize("env", [LinearQuadratic(), SKEWED], ids=["default", "skewed"])


def matrices(env):
    return [np.array(m) for m in (env.transition, env.control, env.state_cost, env.action_cost)]


def riccati(env):
    """(P_T, gains `[T, m, n]` in order of time): the value function −xᵀ P x with T steps to go, u = −K x."""
    A, B, Q, R = matrices(env)
    P, gains = np.zeros_like(A), []
    for _ in range(env.max_episode_steps):
        K = np.linalg.solve(R + B.T @ P @ B, B.T @ P @ A)
        P = Q + K.T @ R @ K + (A - B @ K).T @ P @ (A - B @ K)
        gains.append(K)
    return P, np.array(gains[::-1])


def cost_matrix(env, K):
    """P with xᵀ P x the cost of an episode from x under u = −K x."""
    A, B, Q, R = matrices(env)
    P = np.zeros_like(A)
    for _ in range(env.max_episode_steps):
        P = Q + K.T @ R @ K + (A - B @ K).T @ P @ (A - B @ K)
    return P


def expected_return(env, P):
    mean = np.array(env.initial_mean)
    return -(mean @ P @ mean + np.trace(P @ np.array(env.initial_covariance)))


class LinearPolicy(eqx.Module):
    """u = −K x, with hardly any noise."""

    gain: Array

    def __call__(self, obs):
        mean = -obs @ self.gain.T
        return DiagGaussian(mean=mean, log_std=jnp.full_like(mean, -20))


@each_problem
@pytest.mark.usefixtures("x64")
def test_riccatis_gains_reach_riccatis_return(env):
    P, gains = riccati(env)
    state = jax.tree.map(lambda leaf: leaf[0], starts(env, 1)[0])

    def step(state, gain):
        after = env.step(jax.random.key(0), state, -gain @ state.physics)
        return after.state, (after.reward, after.truncated)

    _, (reward, truncated) = jax.jit(lambda s, g: jax.lax.scan(step, s, g))(state, jnp.asarray(gains))
    x = np.asarray(state.physics)
    np.testing.assert_allclose(reward.sum(), -x @ P @ x, rtol=1e-10)
    assert truncated.nonzero()[0].tolist() == [env.max_episode_steps - 1]


@pytest.mark.slow
@each_problem
@pytest.mark.usefixtures("x64")
def test_riccatis_return_is_where_the_gradient_is_zero(env):
    """Of a concave function: no sequence of actions does better."""
    P, _ = riccati(env)
    env = dataclasses.replace(env, initial_mean=tuple(np.linspace(1, 2, len(env.transition)).tolist()))
    x = jnp.asarray(env.initial_mean)

    def total(actions):
        def step(physics, action):
            return env.dynamics(physics, action), env.cost(physics, action)

        return jnp.sum(jax.lax.scan(step, x, actions.reshape(env.max_episode_steps, -1))[1])

    zero = np.zeros(env.max_episode_steps * env.action_space.shape[0])
    gradient, hessian = jax.jit(lambda u: (jax.grad(total)(u), jax.hessian(total)(u)))(zero)
    best = np.linalg.solve(hessian, -np.asarray(gradient))
    assert np.linalg.eigvalsh(hessian)[0] > 0
    np.testing.assert_allclose(jax.jit(total)(best), x @ P @ x, rtol=1e-8)


@pytest.mark.slow
@each_problem
def test_evaluate_with_the_best_linear_policy_reaches_the_best_return(env):
    P, gains = riccati(env)
    policy = LinearPolicy(jnp.asarray(gains[0]))
    best, constant = expected_return(env, P), expected_return(env, cost_matrix(env, gains[0]))
    # The gain of the first step, held throughout, is all but the best.
    assert best >= constant > best - 1e-3 * abs(best)
    evaluation = klimb.evaluate(policy, env, episodes=4000)
    assert abs(evaluation.mean - constant) < 4 * evaluation.standard_error
    assert evaluation.standard_error < 0.03 * abs(best)
    worse = klimb.evaluate(LinearPolicy(0.7 * jnp.asarray(gains[0])), env, episodes=4000)
    assert worse.mean < evaluation.mean

    point = dataclasses.replace(env, initial_covariance=tuple(tuple(0.0 for _ in row) for row in env.transition))
    exact = klimb.evaluate(policy, point, episodes=2)
    np.testing.assert_allclose(exact.returns, expected_return(point, cost_matrix(env, gains[0])), rtol=1e-4, atol=1e-6)


@each_problem
def test_initial_states_have_the_stated_mean_and_covariance(env):
    n = 20_000
    state, _ = starts(env, n)
    physics, covariance = np.asarray(state.physics), np.array(env.initial_covariance)
    deviation = np.sqrt(np.diag(covariance))
    assert (np.abs(physics.mean(0) - env.initial_mean) < 4.5 * deviation / np.sqrt(n)).all()
    np.testing.assert_allclose(np.cov(physics.T), covariance, atol=6 / np.sqrt(n))


@pytest.mark.slow
def test_trpo_learns_all_but_the_best_policy():
    """Measured (3 seeds, 100 episodes): −24 to −25, where the best is −20 and the untrained policy gets −1850."""
    env = LinearQuadratic()
    run = klimb.train(
        env,
        klimb.TRPO(max_kl=0.03),
        env_steps=160_000,
        num_envs=16,
        num_steps=100,
        hidden=(32,),
        gamma=0.95,
        initial_log_std=-1.0,
        normalize_observations=False,
    )
    best = LinearPolicy(jnp.asarray(riccati(env)[1][0]))
    untrained = NetworkPolicy(4, action_spec(env.action_space), hidden=(32,), key=jax.random.key(0))
    # From the same starts.
    best, trained, untrained = (klimb.evaluate(p, env, episodes=500).mean for p in (best, run.policy, untrained))
    assert untrained < 50 * best
    assert best > trained > 1.5 * best


def test_a_problem_of_arrays_is_the_problem_of_its_tuples():
    default = LinearQuadratic()
    same = LinearQuadratic.of(*matrices(default), initial_covariance=np.array(default.initial_covariance))
    assert same == default
    assert hash(same) == hash(default)
    assert LinearQuadratic.of([[0.5]], [[1.0]], [[1.0]], [[1.0]]).initial_covariance == ((1.0,),)
    assert action_spec(default.action_space) == Box((-np.inf, -np.inf), (np.inf, np.inf))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"control": [[1.0], [0.0], [0.0]]}, r"control .* shape \[2, 1\] .* 3 rows"),
        ({"transition": [[1.0, 0.0]]}, r"transition .* shape \[1, 1\]"),
        ({"initial_mean": [0.0]}, r"initial_mean .* shape \[2\]"),
        ({"state_cost": [[1.0, 1.0], [0.0, 1.0]]}, "state_cost .* semidefinite: it is not symmetric"),
        ({"state_cost": [[1.0, 2.0], [2.0, 1.0]]}, "state_cost .* smallest eigenvalue is -1"),
        ({"action_cost": [[0.0]]}, "action_cost .* positive definite: its smallest eigenvalue is 0"),
        ({"initial_covariance": -np.eye(2)}, "initial_covariance .* semidefinite"),
        ({"transition": [[np.nan, 0.0], [0.0, 1.0]]}, "transition .* not finite"),
    ],
)
def test_matrices_that_make_no_problem_are_refused(change, message):
    parts = {"transition": np.eye(2), "control": [[0.0], [1.0]], "state_cost": np.eye(2), "action_cost": [[1.0]]}
    with pytest.raises(klimb.ConfigError, match=message):
        LinearQuadratic.of(**{**parts, **change})
