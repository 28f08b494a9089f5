"""Which steps a policy gradient encourages: Â of every step of a few episodes, by every choice of Â.

The episodes are the three batches of the slides, told in words there: a humanoid that learns to walk with its
forward velocity as the reward, twice, and a jacket that is to be folded, with a reward at the end. Rewards and
situations are made up to fit the words; every weight is what klimb's estimators make of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from klimb.estimate.advantages import AdvantageKind, estimate_advantages
from klimb.theory.figures import style
from klimb.types import Rollout

NAMES: dict[AdvantageKind, str] = {
    "total_return": "total return",
    "reward_to_go": "reward-to-go",
    "reward_to_go_average": "reward-to-go\n− batch average",
    "value_baseline": "reward-to-go\n− $V(s_t, t)$",
    "gae": "GAE, $\\lambda=0$",
}

TRACK = "#f3f4f6"
ROUNDING = 1e-12
LEFT = ("figure fraction", 0.012)


class Episode(NamedTuple):
    """One episode: what happens in it, the situation that each step finds (a letter), and the reward of each step."""

    name: str
    situation: str
    reward: tuple[float, ...]


class Example(NamedTuple):
    """Episodes that make one batch. A situation is a letter, and the same letter at the same step is one state."""

    title: str
    episodes: tuple[Episode, ...]


# U upright, B falling backwards, F falling forwards, R stepping backwards, S stepping forwards, W walking, Q running.
WALKING = Example(
    "A humanoid; the reward is its forward velocity",
    (
        Episode("falls backwards", "UUBB", (0.0, -0.3, -1.0, -0.5)),
        Episode("falls forwards", "UUFF", (0.0, 0.3, 1.1, 0.6)),
        Episode("stands still", "UUUUUUUU", (0.0,) * 8),
        Episode("one small step forwards,\nthen falls backwards", "UUUUBB", (0.0, 0.5, 0.2, -0.2, -0.6, -0.4)),
        Episode(
            "a large step backwards,\nthen small steps forwards",
            "UURUSSSS",
            (-0.1, -1.7, -0.3, 0.1, 0.4, 0.4, 0.4, 0.4),
        ),
    ),
)
FORWARDS = Example(
    "The same reward, another batch, in which all move forwards",
    (
        Episode("falls forwards", "UUFF", (0.0, 0.3, 1.1, 0.6)),
        Episode("slowly stumbles forwards", "USSSSSSS", (0.1, 0.3, 0.2, 0.4, 0.2, 0.3, 0.4, 0.2)),
        Episode("steadily walks forwards", "USWWWWWW", (0.1, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8)),
        Episode("runs forwards", "USWQQQQQ", (0.1, 0.7, 1.1, 1.5, 1.7, 1.8, 1.8, 1.8)),
    ),
)
# O untouched, S sleeves folded, F flattened, H half folded, D folded.
JACKET = Example(
    "A jacket; the reward is 1 at the end if it is neatly folded",
    (
        Episode("doesn't touch the jacket", "OOOOOOOO", (0.0,) * 8),
        Episode("folds only the sleeves", "OOSSSSSS", (0.0,) * 8),
        Episode("flattens the jacket,\nbut does not fold it", "OOFFFFFF", (0.0,) * 8),
        Episode("folds the jacket", "OOFFHHDD", (*(0.0,) * 7, 1.0)),
    ),
)


@dataclass(frozen=True)
class Weights:
    """Of one batch of N episodes, padded to T steps.

    value: V of each step's state. weight: Â of each kind of `NAMES`. All are 0 where not valid.
    """

    example: Example
    valid: Bool[np.ndarray, "T N"]
    reward: Float[np.ndarray, "T N"]
    value: Float[np.ndarray, "T N"]
    weight: dict[AdvantageKind, Float[np.ndarray, "T N"]]


@dataclass(frozen=True)
class Credit:
    """The weights of every example."""

    examples: tuple[Weights, ...]


def compute(examples: tuple[Example, ...] = (WALKING, FORWARDS, JACKET)) -> Credit:
    """Every Â of every step, with γ = 1, by the functions that training uses.

    examples: episodes with situations and rewards of the same length; each ends by termination.
    """
    return Credit(tuple(_weights(example) for example in examples))


def _weights(example: Example) -> Weights:
    with jax.enable_x64(True):
        rollout = _rollout(example)
        state, valid = np.asarray(rollout.obs), np.asarray(rollout.valid)
        value = _values(state, _estimate("reward_to_go", rollout, np.zeros(valid.shape)), valid)
        weight = {kind: np.where(valid, _estimate(kind, rollout, value), 0.0) for kind in NAMES}
    return Weights(example, valid, np.asarray(rollout.reward), value, weight)


def _rollout(example: Example) -> Rollout:
    """One episode per column; rows after its end are not valid."""
    length = np.array([len(episode.reward) for episode in example.episodes])
    time = np.arange(length.max())[:, None]
    letters = sorted(set("".join(episode.situation for episode in example.episodes)))
    situation = np.zeros((len(time), len(length)), int)
    reward = np.zeros(situation.shape)
    for column, episode in enumerate(example.episodes):
        situation[: length[column], column] = [letters.index(letter) for letter in episode.situation]
        reward[: length[column], column] = episode.reward
    # A situation at one time and at another are two states: what is left to earn differs.
    state = time * len(letters) + situation
    return Rollout(
        obs=jnp.asarray(state),
        action=jnp.zeros(situation.shape, int),
        log_prob=jnp.zeros(reward.shape),
        reward=jnp.asarray(reward),
        terminated=jnp.asarray(time == length - 1),
        truncated=jnp.zeros(reward.shape, bool),
        successor=jnp.asarray(np.concatenate([state[1:], state[-1:]])),
        valid=jnp.asarray(time < length),
        whole_episodes=True,
    )


def _values(
    state: Int[np.ndarray, "T N"], to_go: Float[np.ndarray, "T N"], valid: Bool[np.ndarray, "T N"]
) -> Float[np.ndarray, "T N"]:
    """V of every row: the mean reward-to-go of the batch's visits to its state, which a table fits to the batch."""
    visits = np.bincount(state[valid], minlength=state.max() + 1)
    sums = np.bincount(state[valid], to_go[valid], minlength=state.max() + 1)
    return np.where(valid, (sums / np.maximum(visits, 1))[state], 0.0)


def _estimate(kind: AdvantageKind, rollout: Rollout, value: Float[np.ndarray, "T N"]) -> Float[np.ndarray, "T N"]:
    # What follows a row that is not the last of its episode is the next row.
    next_value = np.concatenate([value[1:], np.zeros_like(value[:1])])
    values = (jnp.asarray(value), jnp.asarray(next_value))
    return np.asarray(estimate_advantages(kind, rollout, *values, gamma=1.0, gae_lambda=0.0, n_step=1).advantage)


def summary(data: Credit) -> list[str]:
    """For each example, the steps that an estimator makes more likely (+) or less likely (−). data: of the figure."""
    lines = []
    for part in data.examples:
        signs = [f"{kind} +{np.sum(x > ROUNDING)} −{np.sum(x < -ROUNDING)}" for kind, x in part.weight.items()]
        lines.append(f"{part.example.title}, {np.sum(part.valid)} steps: " + ", ".join(signs))
    return lines


@style.with_style
def draw(data: Credit) -> Figure:
    """A row of panels per example: rewards, then the weights by estimator, as bars up and down. data: of the figure."""
    figure = style.page(13.0, 9.6)
    heights = [len(part.example.episodes) + 0.75 for part in data.examples]
    grid = figure.subplots(len(heights), 1 + len(NAMES), height_ratios=heights, sharex=True, squeeze=False)
    for row, part in enumerate(data.examples):
        scale = max(np.abs(x).max() for x in part.weight.values())
        _draw_panel(grid[row, 0], part, part.reward / np.abs(part.reward).max(), style.QUIET)
        for axes, kind in zip(grid[row, 1:], NAMES, strict=True):
            _draw_panel(axes, part, part.weight[kind] / scale, None)
        _name_rows(grid[row, 0], part)
    for axes, name in zip(grid[0], ("reward", *NAMES.values()), strict=True):
        axes.set_title(name, loc="center", fontsize=13, linespacing=1.25)
    for axes in grid[-1]:
        axes.set_xlabel("step $t$")
    for text, colour, up in (("■ made more likely", style.BLUE, -12.0), ("■ made less likely", style.ORANGE, -28.0)):
        _note(grid[-1, 0], text, LEFT, (0.0, up), color=colour, fontsize=12)
    figure.suptitle(
        "What the gradient encourages: the weight of $\\nabla\\log\\pi(a_t|s_t)$, step by step",
        x=LEFT[1],
        ha="left",
        fontsize=15,
    )
    return figure


def _draw_panel(axes: Axes, part: Weights, height: Float[np.ndarray, "T N"], colour: str | None) -> None:
    """Bars of every episode around a line of its own. height: in [−1, 1]. colour: of the bars, None for by sign."""
    steps, count = height.shape
    for column in range(count):
        time = np.flatnonzero(part.valid[:, column])
        axes.barh(column, len(time), height=0.94, left=-0.5, color=TRACK, linewidth=0)
        bars = 0.44 * height[time, column]
        colours = [colour or (style.BLUE if bar > 0 else style.ORANGE) for bar in bars]
        axes.bar(time, -bars, width=0.8, bottom=column, color=colours, linewidth=0)
        axes.plot([-0.5, len(time) - 0.5], [column, column], color=style.INK, linewidth=0.7, solid_capstyle="butt")
    axes.set(xlim=(-0.6, steps - 0.4), ylim=(count - 0.45, -1.2), xticks=range(steps), yticks=[])
    axes.tick_params(axis="x", length=0, labelsize=9)
    axes.set_frame_on(False)


def _name_rows(axes: Axes, part: Weights) -> None:
    axes.set_yticks(range(len(part.example.episodes)), [episode.name for episode in part.example.episodes], fontsize=11)
    axes.tick_params(axis="y", length=0)
    _note(axes, part.example.title, LEFT, (1.0, -16.0), fontsize=13)


def _note(axes: Axes, text: str, place: tuple[str, float], height: tuple[float, float], **options: Any) -> None:
    """Text beside the axes, which leaves their size as it is.

    place: coordinates along x, and where in them. height: share of the axes' height, and points above that.
    """
    at, up = height
    where: dict[str, Any] = {"xycoords": (place[0], "axes fraction"), "textcoords": "offset points"}
    axes.annotate(text, (place[1], at), (0, up), annotation_clip=False, **where, **options).set_in_layout(False)
