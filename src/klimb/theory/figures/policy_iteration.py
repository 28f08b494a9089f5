"""One family of policy improvements, from policy iteration to the plain gradient, on two states and three actions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klimb.estimate.bounds import conservative_step
from klimb.tabular.mdp import TabularMDP
from klimb.tabular.table import SoftmaxTable
from klimb.theory.exact_gradient import policy_gradient
from klimb.theory.exact_soft_improvement import greedy_improvement, multiplier_at, soft_improvement
from klimb.theory.figures import style
from klimb.theory.surrogate import gains, worst_gain

GAMMA = 0.9
START = np.array([[0.20, 0.20, 0.60], [0.10, 0.45, 0.45]])
CORNERS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, np.sqrt(0.75)]])
"""Where the three actions' certain policies are drawn."""
Step = Callable[[Array], Array]


@dataclass(frozen=True)
class Member:
    """A method: its name, its colour, and where the name stands beside its curve: iteration, J and alignment."""

    name: str
    colour: str
    place: tuple[float, float, str]


MEMBERS = {
    "greedy": Member("policy iteration", style.INK, (1.15, 6.9, "right")),
    "soft": Member("small λ", style.BLUE, (3.05, 6.9, "right")),
    "trust_region": Member("trust region", style.GREEN, (7.9, 6.9, "left")),
    "softer": Member("large λ", style.GOLD, (34.0, 6.9, "left")),
    "conservative": Member("conservative policy iteration", style.PINK, (175.0, 6.9, "left")),
    "plain": Member("plain gradient", style.ORANGE, (400.0, 4.4, "left")),
}


@dataclass(frozen=True)
class PolicyIteration:
    """Of each method of `MEMBERS`: its policies, the first of which is the common start, and their J.

    optimal: J of the best policy. multipliers: λ of the soft steps. max_kl: of the trust region.
    """

    policies: dict[str, Float[np.ndarray, "N S A"]]
    objective: dict[str, Float[np.ndarray, " N"]]
    optimal: float
    multipliers: tuple[float, float]
    max_kl: float


def problem() -> TabularMDP:
    """In state 0: 0.4 per step, the way to state 1, or nothing. In state 1 the first action gives 1 per step.

    Its other two actions cost 1 and lead back, so that state 1 has to be learned before the way to it looks good.
    """
    transition = np.zeros((2, 3, 2))
    transition[0, [0, 2], 0] = transition[0, 1, 1] = 1
    transition[1, 0, 1] = transition[1, [1, 2], 0] = 1
    return TabularMDP(transition, np.array([[0.4, 0.0, 0.0], [1.0, -1.0, -1.0]]), np.array([1.0, 0.0]), GAMMA)


def compute(
    iterations: int = 3000,
    multipliers: tuple[float, float] = (1.0, 10.0),
    max_kl: float = 0.02,
    learning_rate: float = 1.0,
) -> PolicyIteration:
    """Every method from the same policy, with exact advantages.

    iterations: of each. multipliers: λ of the two soft steps, in units of reward. max_kl: of the step whose λ is chosen
    anew each time, in nats. learning_rate: of the plain gradient, on the logits.
    """
    with jax.enable_x64(True):
        mdp = problem()
        policies = {
            name: np.asarray(_iterate(step, iterations))
            for name, step in _steps(mdp, multipliers, max_kl, learning_rate).items()
        }
        value = jax.jit(jax.vmap(mdp.objective))
        objective = {name: np.asarray(value(table)) for name, table in policies.items()}
        return PolicyIteration(policies, objective, float(mdp.objective(mdp.optimal_policy())), multipliers, max_kl)


def _steps(mdp: TabularMDP, multipliers: tuple[float, float], max_kl: float, learning_rate: float) -> dict[str, Step]:
    """From one policy's table to the next, by name."""

    def greedy(pi: Array) -> Array:
        """Over all actions: policy iteration has no need of a positive probability."""
        return greedy_improvement(jnp.full_like(pi, 1 / pi.shape[1]), mdp.advantages(pi))

    def trust_region(pi: Array) -> Array:
        advantage = mdp.advantages(pi)
        return soft_improvement(pi, advantage, multiplier_at(pi, advantage, mdp.state_distribution(pi), max_kl))

    def plain(pi: Array) -> Array:
        logits = jnp.log(pi)
        gradient = policy_gradient(mdp, SoftmaxTable(logits)).reshape(pi.shape)
        return jax.nn.softmax(logits + learning_rate * gradient)

    def conservative(pi: Array) -> Array:
        target = greedy(pi)
        mean = mdp.state_distribution(pi) @ gains(mdp, pi, target)
        alpha = conservative_step(mean, worst_gain(mdp, pi, target), GAMMA)
        return (1 - alpha) * pi + alpha * target

    return {
        "greedy": greedy,
        "soft": lambda pi: soft_improvement(pi, mdp.advantages(pi), multipliers[0]),
        "trust_region": trust_region,
        "softer": lambda pi: soft_improvement(pi, mdp.advantages(pi), multipliers[1]),
        "plain": plain,
        "conservative": conservative,
    }


def _iterate(step: Step, iterations: int) -> Float[Array, "N S A"]:
    run = jax.jit(lambda start: jax.lax.scan(lambda pi, _: (step(pi), pi), start, length=iterations)[1])
    return run(jnp.asarray(START))


def summary(data: PolicyIteration) -> list[str]:
    """When each method has 95 % of what can be gained, and its J before that. data: of the figure."""
    start, last = data.objective["greedy"][0], len(data.objective["greedy"]) - 1

    def arrival(name: str) -> str:
        arrived = data.objective[name] - start >= 0.95 * (data.optimal - start)
        return str(int(np.argmax(arrived))) if arrived.any() else f"not reached in {last}"

    def of_all(value: Callable[[str], str]) -> str:
        return ", ".join(f"{member.name} {value(name)}" for name, member in MEMBERS.items())

    return [
        f"all from J = {start:.3f}; the best policy has {data.optimal:.3f}; λ = {data.multipliers[0]:g} and "
        f"{data.multipliers[1]:g}, KL ≤ {data.max_kl:g}",
        f"iterations to 95 % of the possible gain: {of_all(arrival)}",
        f"J after 10 iterations: {of_all(lambda name: f'{data.objective[name][10]:.3f}')}",
        f"J after {last}: {of_all(lambda name: f'{data.objective[name][-1]:.3f}')}",
    ]


@style.with_style
def draw(data: PolicyIteration) -> Figure:
    """The policies of state 0 in the triangle of its three actions, and J by iteration. data: of the figure."""
    figure = style.page(11.0, 4.6)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    _draw_triangle(left, data)
    _draw_objective(right, data)
    return figure


def _draw_triangle(axes: Axes, data: PolicyIteration) -> None:
    axes.set_axis_off()
    axes.set_aspect("equal")
    axes.fill(*CORNERS.T, facecolor="#f6f7f8", edgecolor=style.QUIET, linewidth=0.9)
    for name, member in MEMBERS.items():
        path = data.policies[name][:, 0] @ CORNERS
        dashed = {"linestyle": (0, (4, 2.5)), "linewidth": 1.3} if name == "greedy" else {"linewidth": 1.9}
        axes.plot(*path.T, color=member.colour, zorder=3, **dashed)
        if name not in ("conservative", "softer"):
            axes.plot(*path[1:40].T, "o", color=member.colour, markersize=4, markeredgecolor="white", zorder=4)
    start = START[0] @ CORNERS
    axes.plot(*start, "o", color=style.INK, markersize=8, markeredgecolor="white", zorder=6)
    style.annotate(axes, "start", tuple(start), (10.0, 4.0), style.INK)
    for text, corner, offset in (
        ("0.4 per step", CORNERS[0], (0, -16)),
        ("to state 1", CORNERS[1], (0, -16)),
        ("nothing", CORNERS[2], (0, 10)),
    ):
        axes.annotate(text, tuple(corner), offset, textcoords="offset points", ha="center", va="center", fontsize=12)
    axes.set(xlim=(-0.12, 1.12), ylim=(-0.12, 0.97))
    axes.set_title("The policy in state 0")


def _draw_objective(axes: Axes, data: PolicyIteration) -> None:
    iteration = np.arange(len(data.objective["greedy"]))
    axes.axhline(data.optimal, color=style.QUIET, linewidth=0.9, linestyle=(0, (4, 3)))
    for name, member in MEMBERS.items():
        axes.plot(iteration, data.objective[name], color=member.colour, linewidth=2.0)
        x, y, side = member.place
        style.label(axes, _label(name, data), x, y, member.colour, ha=side, va="center", fontsize=11, linespacing=1.25)
    # Linear up to 1, so that the start has a place.
    axes.set_xscale("symlog", linthresh=1, linscale=0.6)
    axes.set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1000"])
    lowest = data.objective["greedy"][0]
    axes.set(xlabel="iteration", ylabel="$J$", xlim=(0, iteration[-1]), ylim=(lowest - 0.4, data.optimal + 0.7))
    axes.grid(axis="y")
    axes.set_title("The softer the step, the more iterations; the plain gradient gets stuck")


def _label(name: str, data: PolicyIteration) -> str:
    """The name of a method and its one parameter, as drawn."""
    soft = dict(zip(("soft", "softer"), data.multipliers, strict=True))
    if name in soft:
        return r"$\pi e^{A/\lambda}$" + f"\n$\\lambda={soft[name]:g}$"
    if name == "trust_region":
        return f"trust region\nKL $\\leq$ {data.max_kl:g}"
    return MEMBERS[name].name.replace("policy iteration", "policy\niteration")
