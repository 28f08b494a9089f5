"""Every bar against sums written out by hand, and what the slides say that the gradient encourages."""

from __future__ import annotations

import numpy as np
import pytest

from klimb.theory.figures.credit import FORWARDS, JACKET, NAMES, WALKING, Credit, Example, Weights, compute

EXAMPLES = {"walking": WALKING, "forwards": FORWARDS, "jacket": JACKET}


@pytest.fixture(scope="module")
def credit() -> Credit:
    return compute()


@pytest.fixture
def parts(credit: Credit) -> dict[str, Weights]:
    return dict(zip(EXAMPLES, credit.examples, strict=True))


def by_hand(example: Example) -> dict[str, list[list[float]]]:
    """Â of every episode, step by step, from the definitions."""
    to_go = [[sum(e.reward[t:]) for t in range(len(e.reward))] for e in example.episodes]
    every = [x for episode in to_go for x in episode]
    visits: dict[tuple[str, int], list[float]] = {}
    for episode, sums in zip(example.episodes, to_go, strict=True):
        for t, x in enumerate(sums):
            visits.setdefault((episode.situation[t], t), []).append(x)
    value = [[np.mean(visits[letter, t]) for t, letter in enumerate(e.situation)] for e in example.episodes]
    average = sum(every) / len(every)
    return {
        "total_return": [[sums[0]] * len(sums) for sums in to_go],
        "reward_to_go": to_go,
        "reward_to_go_average": [[x - average for x in sums] for sums in to_go],
        "value_baseline": [[x - v for x, v in zip(*pair, strict=True)] for pair in zip(to_go, value, strict=True)],
        "gae": [
            [r + following - v for r, v, following in zip(e.reward, own, [*own[1:], 0.0], strict=True)]
            for e, own in zip(example.episodes, value, strict=True)
        ],
    }


@pytest.mark.parametrize("name", EXAMPLES)
def test_weights_are_those_of_the_definitions(parts: dict[str, Weights], name: str) -> None:
    part, expected = parts[name], by_hand(EXAMPLES[name])
    assert set(expected) == set(NAMES) == set(part.weight)
    for kind, episodes in expected.items():
        for column, episode in enumerate(episodes):
            np.testing.assert_allclose(part.weight[kind][: len(episode), column], episode, rtol=0, atol=1e-12)
            assert not part.weight[kind][len(episode) :, column].any()


def test_total_return_encourages_falling_forwards_and_no_step_forwards(parts: dict[str, Weights]) -> None:
    """The first example of the slides; causality keeps the steps forwards that follow the step backwards."""
    total, to_go = (parts["walking"].weight[kind] for kind in ("total_return", "reward_to_go"))
    falls_back, falls_forwards, stands, one_step, back_then_forwards = range(5)
    assert (total[:4, falls_forwards] > 0).all()
    assert not total[:, stands].any()
    for column, length in ((falls_back, 4), (one_step, 6), (back_then_forwards, 8)):
        assert (total[:length, column] < 0).all()
    assert (to_go[:2, back_then_forwards] < 0).all()
    assert (to_go[3:, back_then_forwards] > 0).all()
    # The fall comes after the step, so causality alone does not save the step.
    assert (to_go[:6, one_step] < 0).all()
    one_step_ahead = parts["walking"].weight["gae"]
    assert (one_step_ahead[1:3, one_step] > 0).all()
    assert one_step_ahead[3, one_step] < -1


def test_without_a_baseline_everything_that_got_forwards_is_encouraged(parts: dict[str, Weights]) -> None:
    part = parts["forwards"]
    assert (part.weight["reward_to_go"][part.valid] > 0).all()
    centred = part.weight["reward_to_go_average"]
    assert (centred[:4, 0] < 0).all()
    assert (centred[:6, 3] > 0).all()
    assert abs(centred.sum()) < 1e-12


def test_with_a_reward_at_the_end_three_of_four_get_the_same_weight(parts: dict[str, Weights]) -> None:
    centred = parts["jacket"].weight["reward_to_go_average"]
    np.testing.assert_allclose(centred, np.broadcast_to([-0.25, -0.25, -0.25, 0.75], centred.shape), atol=1e-12)
    flattens, folds = parts["jacket"].weight["gae"][:, 2], parts["jacket"].weight["gae"][:, 3]
    np.testing.assert_allclose(flattens, [0, 0.25, 0, -0.5, 0, 0, 0, 0], atol=1e-12)
    np.testing.assert_allclose(folds, [0, 0.25, 0, 0.5, 0, 0, 0, 0], atol=1e-12)
