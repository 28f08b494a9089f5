"""LinearQuadratic-v0: linear dynamics and a quadratic cost, whose optimal policy and return are known exactly."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium.spaces
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, UInt8
from numpy.typing import ArrayLike

from klimb.environments.base import ClassicControl, Clocked
from klimb.environments.rendering.canvas import BLUE, ORANGE, Canvas
from klimb.errors import ConfigError

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class LinearQuadratic(ClassicControl):
    """x' = A x + B u, without noise, from x₀ ~ N(μ, Σ); any sizes.

        reward = −(xᵀ Q x + uᵀ R u), of the state *before* the step

    Q is positive semidefinite and R positive definite. Actions are unbounded: clipping would make it nonlinear.
    The optimal return over T steps from x₀ is −x₀ᵀ P_T x₀, with P_T of the Riccati recursion from P₀ = 0 (Anderson &
    Moore 1990, chapter 2). The task never terminates.

    By default a point mass of 1 kg in a plane: x is its position [m] and velocity [m/s], u the force on it [N],
    constant for 0.1 s. Matrices are tuples of rows, so that environments can be compared and hashed; `of` takes arrays.

    Raises ConfigError when the matrices do not fit each other, Q or Σ is not positive semidefinite, or R is not
    positive definite.
    """

    id = "jax:LinearQuadratic-v0"

    transition: Matrix = ((1.0, 0.0, 0.1, 0.0), (0.0, 1.0, 0.0, 0.1), (0.0, 0.0, 1.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    """A `[n, n]`."""
    control: Matrix = ((0.005, 0.0), (0.0, 0.005), (0.1, 0.0), (0.0, 0.1))
    """B `[n, m]`."""
    state_cost: Matrix = ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0, 0.0, 0.0), (0.0, 0.0, 0.1, 0.0), (0.0, 0.0, 0.0, 0.1))
    """Q `[n, n]`."""
    action_cost: Matrix = ((0.1, 0.0), (0.0, 0.1))
    """R `[m, m]`."""
    initial_mean: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0)
    """μ `[n]`."""
    initial_covariance: Matrix = (
        (1.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 0.0, 0.0),
        (0.0, 0.0, 0.25, 0.0),
        (0.0, 0.0, 0.0, 0.25),
    )
    """Σ `[n, n]`; zeros start every episode at μ."""
    max_episode_steps: int = 100

    @classmethod
    def of(
        cls,
        transition: ArrayLike,
        control: ArrayLike,
        state_cost: ArrayLike,
        action_cost: ArrayLike,
        *,
        initial_mean: ArrayLike | None = None,
        initial_covariance: ArrayLike | None = None,
        max_episode_steps: int = 100,
    ) -> LinearQuadratic:
        """The problem with these matrices, as arrays.

        transition: A. control: B. state_cost: Q. action_cost: R. initial_mean: μ, by default zeros.
        initial_covariance: Σ, by default the identity. max_episode_steps: steps after which an episode is truncated.
        Raises ConfigError as the class does.
        """
        size = len(np.atleast_1d(transition))
        mean = np.zeros(size) if initial_mean is None else np.asarray(initial_mean)
        return cls(
            transition=_rows(transition),
            control=_rows(control),
            state_cost=_rows(state_cost),
            action_cost=_rows(action_cost),
            initial_mean=tuple(mean.astype(float).tolist()),
            initial_covariance=_rows(np.eye(size) if initial_covariance is None else initial_covariance),
            max_episode_steps=max_episode_steps,
        )

    def __post_init__(self) -> None:
        n, m = len(self.transition), len(self.action_cost)
        shapes = {
            "transition": (n, n),
            "control": (n, m),
            "state_cost": (n, n),
            "action_cost": (m, m),
            "initial_mean": (n,),
            "initial_covariance": (n, n),
        }
        for name, shape in shapes.items():
            _require_shape(name, getattr(self, name), shape)
        for name in ("state_cost", "action_cost", "initial_covariance"):
            _require_positive(name, np.array(getattr(self, name)), strictly=name == "action_cost")

    @property
    def observation_space(self) -> gymnasium.spaces.Box:
        """The unbounded box of x."""
        return gymnasium.spaces.Box(-np.inf, np.inf, (len(self.transition),), np.float32)

    @property
    def action_space(self) -> gymnasium.spaces.Box:
        """The unbounded box of u."""
        return gymnasium.spaces.Box(-np.inf, np.inf, (len(self.action_cost),), np.float32)

    def initial(self, key: PRNGKeyArray) -> Float[Array, " n"]:
        # Not the Cholesky factor, which does not exist for a covariance of zeros.
        """A draw of x₀ ~ N(μ, Σ)."""
        eigenvalues, vectors = np.linalg.eigh(np.array(self.initial_covariance))
        root = vectors * np.sqrt(np.maximum(eigenvalues, 0))
        normal = jax.random.normal(key, (len(root),))
        return jnp.asarray(self.initial_mean, normal.dtype) + jnp.asarray(root, normal.dtype) @ normal

    def dynamics(self, physics: Float[Array, " n"], action: Float[Array, " m"]) -> Float[Array, " n"]:
        """A x + B u.

        physics: x. action: u.
        """
        transition, control = (jnp.asarray(matrix, physics.dtype) for matrix in (self.transition, self.control))
        return transition @ physics + control @ action.astype(physics.dtype)

    def reward(
        self, physics: Float[Array, " n"], action: Float[Array, " m"], successor: Float[Array, " n"]
    ) -> Float[Array, ""]:
        """−(xᵀ Q x + uᵀ R u).

        physics: x before the step. action: u. successor: is not used.
        """
        action = action.astype(physics.dtype)
        state_cost, action_cost = (jnp.asarray(cost, physics.dtype) for cost in (self.state_cost, self.action_cost))
        return -(physics @ state_cost @ physics + action @ action_cost @ action)

    def observe(self, physics: Float[Array, " n"]) -> Float[Array, " n"]:
        """The state itself."""
        return physics

    def render(self, state: Clocked) -> UInt8[np.ndarray, "H W 3"]:
        """The first two coordinates of x as a point in a plane, and the origin that it is brought to."""
        x, y = np.resize(np.asarray(state.physics, float), 2) * ([1, 1] if len(self.transition) > 1 else [1, 0])
        canvas = Canvas(4.0)
        canvas.disc((0, 0), 0.12, ORANGE)
        canvas.disc((np.clip(x, -4, 4), np.clip(y, -4, 4)), 0.16, BLUE)
        return canvas.picture()

    def terminal(self, physics: Float[Array, " n"]) -> Bool[Array, ""]:
        """False: the task never ends."""
        return jnp.zeros((), bool)


def _rows(matrix: ArrayLike) -> Matrix:
    return tuple(tuple(row) for row in np.atleast_2d(np.asarray(matrix, float)).tolist())


def _require_shape(name: str, entries: tuple, shape: tuple[int, ...]) -> None:
    rows = {np.shape(row) for row in entries}
    if len(entries) != shape[0] or rows != {shape[1:]}:
        raise ConfigError(
            f"{name} of a linear-quadratic problem has to have the shape {list(shape)} to fit its transition and "
            f"action_cost, and has {len(entries)} rows of the shapes {sorted(map(list, rows))}"
        )
    if not np.isfinite(entries).all():
        raise ConfigError(f"{name} of a linear-quadratic problem holds a number that is not finite")


def _require_positive(name: str, matrix: np.ndarray, *, strictly: bool) -> None:
    smallest = float(np.linalg.eigvalsh(matrix)[0])
    symmetric = np.allclose(matrix, matrix.T, rtol=1e-6)
    # Rounding may make an eigenvalue of 0 slightly negative.
    if not symmetric or smallest < -1e-9 * np.abs(matrix).max() or (strictly and smallest <= 0):
        kind = "positive definite" if strictly else "positive semidefinite"
        flaw = f"its smallest eigenvalue is {smallest:.3g}" if symmetric else "it is not symmetric"
        raise ConfigError(f"{name} of a linear-quadratic problem has to be symmetric and {kind}: {flaw}")
