"""Along the natural gradient: the surrogate, the true improvement, the guaranteed one, and the step that TRPO takes."""

from __future__ import annotations

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klimb.estimate.bounds import average_improvement_bound
from klimb.improve.divergences import kl_divergence
from klimb.improve.rules.trpo import TRPO
from klimb.policies.distributions import Categorical
from klimb.policies.parameters import flatten
from klimb.tabular.mdp import TabularMDP
from klimb.tabular.table import SoftmaxTable
from klimb.theory.exact_batch import exact_batch
from klimb.theory.exact_gradient import fisher_matrix, policy_gradient
from klimb.theory.figures import style
from klimb.theory.surrogate import state_variation, surrogate, worst_gain

GAMMA = 0.9


@dataclass(frozen=True)
class TrustRegion:
    """Curves over `length`, in units of the full step √(2 max_kl/xᵀFx) x; gains are sums over time, Σ γᵗ ….

    limit: the length at which the mean KL is max_kl. slope: of J and the surrogate at 0, per full step.
    accepted: length, surrogate, improvement, guarantee and mean KL of the step that TRPO took.
    """

    max_kl: float
    length: Float[np.ndarray, " N"]
    surrogate: Float[np.ndarray, " N"]
    improvement: Float[np.ndarray, " N"]
    guarantee: Float[np.ndarray, " N"]
    kl: Float[np.ndarray, " N"]
    limit: float
    accepted: Float[np.ndarray, "5"]
    slope: float


def compute(max_kl: float = 0.05, seed: int = 64, states: int = 6, actions: int = 3, points: int = 301) -> TrustRegion:
    """The curves of a random problem, and the step that `TRPO.step` takes on its exact batch.

    max_kl: TRPO's limit, in nats. seed: of the problem and the policy. states, actions: their numbers.
    points: of each curve.
    """
    length = np.linspace(0, 3, points)
    with jax.enable_x64(True):
        mdp = TabularMDP.random(seed, states, actions, GAMMA)
        policy = SoftmaxTable(1.5 * jax.random.normal(jax.random.key(seed), (states, actions)))
        rule = TRPO(max_kl=max_kl, damping=1e-3, cg_iterations=40, cg_tolerance=1e-12, cg_min_progress=0)
        taken, slope, curves, accepted = map(np.asarray, _computed(mdp, policy, rule, jnp.asarray(length)))
    # Where the rising KL curve crosses the limit, by linear interpolation between two points.
    limit = float(np.interp(max_kl, curves[3], length))
    accepted = np.array([taken, *accepted])
    gains = dict(zip(("surrogate", "improvement", "guarantee", "kl"), curves, strict=True))
    return TrustRegion(max_kl=max_kl, length=length, **gains, limit=limit, accepted=accepted, slope=float(slope))


@eqx.filter_jit
def _computed(
    mdp: TabularMDP, policy: SoftmaxTable, rule: TRPO, length: Float[Array, " N"]
) -> tuple[Float[Array, ""], Float[Array, ""], Float[Array, "4 N"], Float[Array, "4"]]:
    """How much of the full step TRPO takes, the slope at 0, and the gains along the step and at TRPO's."""
    new, _, _ = rule.step(jax.random.key(0), policy, rule.init(policy), exact_batch(mdp, policy))
    step, slope = full_step(mdp, policy, rule)
    moved = flatten(new).theta - flatten(policy).theta
    taken = (moved @ step) / (step @ step)
    gains = jax.vmap(lambda s: _gains(mdp, policy, s * step), out_axes=1)
    return taken, slope, gains(length), _gains(mdp, policy, moved)


def full_step(mdp: TabularMDP, policy: SoftmaxTable, rule: TRPO) -> tuple[Float[Array, " P"], Float[Array, ""]]:
    """√(2 max_kl/xᵀFx) x with x = (F + damping·I)⁻¹ ∇J, by dense linear algebra, and the slope of J along it.

    mdp: the problem. policy: where the step starts. rule: gives max_kl and damping.
    """
    gradient, fisher = policy_gradient(mdp, policy), fisher_matrix(mdp, policy)
    # TRPO's gradient is a mean over steps, not a sum over time, hence the factor 1 − γ.
    x = jnp.linalg.solve(fisher + rule.damping * jnp.eye(gradient.size), (1 - GAMMA) * gradient)
    step = jnp.sqrt(2 * rule.max_kl / (x @ fisher @ x)) * x
    return step, gradient @ step


def _gains(mdp: TabularMDP, policy: SoftmaxTable, step: Float[Array, " P"]) -> Float[Array, "4"]:
    """Surrogate, improvement, guarantee and mean KL(π_old‖π_new)."""
    old, new = policy.logits, policy.logits + step.reshape(policy.logits.shape)
    pi, pi_new, occupancy = jax.nn.softmax(old), jax.nn.softmax(new), mdp.occupancy(jax.nn.softmax(old))
    gain = surrogate(mdp, pi, pi_new)
    summed_tv = occupancy @ state_variation(pi, pi_new)
    guarantee = average_improvement_bound(gain, worst_gain(mdp, pi, pi_new), summed_tv, GAMMA)
    kl = (1 - GAMMA) * occupancy @ kl_divergence(Categorical(old), Categorical(new))
    return jnp.stack([gain, mdp.objective(pi_new) - mdp.objective(pi), guarantee, kl])


def summary(data: TrustRegion) -> list[str]:
    """The accepted step: its length, KL, and predicted, true and guaranteed improvement. data: of the figure."""
    length, predicted, improved, guaranteed, kl = data.accepted
    guaranteed_length = data.length[data.guarantee >= 0].max()
    return [
        f"TRPO took {length:.4f} of the full step: mean KL {kl:.5f}, limit {data.max_kl:g}",
        f"the surrogate predicts {predicted:+.4f}, J rose by {improved:+.4f}, guaranteed {guaranteed:+.4f}",
        f"the guarantee is positive up to {guaranteed_length:.2f} of the full step",
        f"common slope of the surrogate and J at 0: {data.slope:.4f} per full step",
    ]


@style.with_style
def draw(data: TrustRegion) -> Figure:
    """Gains above, with the neighbourhood of 0 enlarged; the KL, which limits the step, below. data: of the figure."""
    figure = style.page(9.0, 6.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[2.5, 1])
    _draw_gains(above, data)
    _draw_near_zero(above.inset_axes((0.44, 0.065, 0.35, 0.26)), data)
    _draw_kl(below, data)
    for axes in (above, below):
        axes.axvline(data.limit, color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.spines["bottom"].set_visible(axes is below)
    above.tick_params(axis="x", length=0)
    figure.align_ylabels()
    return figure


def _curves(data: TrustRegion) -> list[tuple[Float[np.ndarray, " N"], str]]:
    return [(data.surrogate, style.ORANGE), (data.improvement, style.BLUE), (data.guarantee, style.GREEN)]


def _draw_gains(axes: Axes, data: TrustRegion) -> None:
    top = data.surrogate.max()
    axes.axhline(0, color=style.QUIET, linewidth=0.8)
    for curve, colour in _curves(data):
        axes.plot(data.length, curve, color=colour, linewidth=2.2)
    for dot, colour in zip(data.accepted[1:3], (style.ORANGE, style.BLUE), strict=True):
        axes.plot(data.accepted[0], dot, "o", color=colour, markersize=8, markeredgecolor="white", zorder=6)
    axes.set(ylabel=r"gain in $J$", ylim=(-0.8 * top, 1.08 * top))
    for curve, colour, name in (
        (data.surrogate, style.ORANGE, "surrogate\n" + r"$\bar A(\theta')$"),
        (data.improvement, style.BLUE, "true\n" + r"$J(\theta')-J(\theta)$"),
    ):
        style.annotate(axes, name, (data.length[-1], curve[-1]), (8.0, 0.0), colour)
    lowest = int(np.argmax(data.guarantee < -0.35 * top))
    start = data.length[lowest] + 0.06
    style.label(axes, "guaranteed", start, -0.4 * top, style.GREEN, fontsize=12, va="center")
    axes.annotate(
        "TRPO’s step",
        (data.accepted[0], data.accepted[1]),
        (-14, 34),
        textcoords="offset points",
        ha="right",
        fontsize=12,
        arrowprops={"arrowstyle": "-", "color": style.INK, "linewidth": 0.8, "shrinkB": 5},
    )
    style.label(axes, "KL limit", data.limit + 0.03, top, style.QUIET, fontsize=12, va="center")
    axes.set_title("A step along the natural gradient: predicted, true and guaranteed gain")


def _draw_near_zero(axes: Axes, data: TrustRegion) -> None:
    guaranteed_length = data.length[data.guarantee >= 0].max()
    highest = data.guarantee.max()
    axes.axhline(0, color=style.QUIET, linewidth=0.8)
    for curve, colour in _curves(data):
        axes.plot(data.length, curve, color=colour, linewidth=1.8)
    axes.set(xlim=(0, 1.5 * guaranteed_length), ylim=(-1.2 * highest, 3 * highest))
    axes.tick_params(labelsize=9)
    axes.locator_params(nbins=4)
    axes.set_title("near 0", fontsize=11, pad=3, color=style.QUIET)


def _draw_kl(axes: Axes, data: TrustRegion) -> None:
    length, quadratic = data.length, data.max_kl * np.square(data.length)
    axes.plot(length, quadratic, color=style.QUIET, linewidth=1.4, linestyle=(0, (1.5, 1.5)))
    axes.plot(length, data.kl, color=style.PINK, linewidth=2.2)
    axes.plot(data.accepted[0], data.accepted[4], "o", color=style.PINK, markersize=8, markeredgecolor="white")
    axes.axhline(data.max_kl, color=style.QUIET, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    axes.set(
        xlabel="step length, in full steps", ylabel="mean KL", xlim=(0, length[-1]), ylim=(0, 1.05 * data.kl.max())
    )
    for name, end, shift, colour in (
        ("true KL", data.kl[-1], 2.0, style.PINK),
        (r"$\frac{1}{2}\,\delta^{\!\top}\!F\delta$", quadratic[-1], -5.0, style.QUIET),
        ("limit", data.max_kl, 0.0, style.QUIET),
    ):
        style.annotate(axes, name, (length[-1], end), (8.0, shift), colour)
