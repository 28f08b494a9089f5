"""A film shows every state of the episode that an evaluation runs, in its order, with its rewards and actions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from counting import Counting, Half, HostCounting

import klimb
from klimb.environments.control.reacher import Reacher
from klimb.errors import ConfigError, EnvironmentFault, PolicyFileError
from klimb.filming import clip as clip_module
from klimb.filming.scenes import scene_of


def host(**given):
    return klimb.GymnasiumEnvironment.from_maker(
        "counting", lambda render_mode=None: HostCounting(render_mode, **given)
    )


# 64 steps are one call of the program: the last state of an episode of that length is in no row of it.
@pytest.mark.parametrize("steps", [1, 3, 63, 64, 65])
@pytest.mark.parametrize("kind", ["compiled", "host"])
def test_every_state_is_shown_once_and_the_last_one_too(kind: str, steps: int) -> None:
    env = Counting(steps) if kind == "compiled" else host(steps=steps)
    clip = klimb.film(Half(), env)
    assert clip.pictures.shape == (steps + 1, 16, 24, 3)
    assert clip.pictures[:, 0, 0, 0].tolist() == list(range(steps + 1))
    assert clip.shown.tolist() == list(range(steps + 1))
    assert clip.reward.tolist() == list(range(1, steps + 1))
    # The action is taken in the state that is shown.
    np.testing.assert_allclose(clip.action, np.repeat(np.arange(steps)[:, None] / 10, 2, axis=1), rtol=1e-6)
    assert clip.whole
    assert clip.pictures_per_second == 20
    assert clip.seconds == (steps + 1) / 20


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("env", [Reacher(max_episode_steps=7), "gymnasium:CartPole-v1"], ids=["compiled", "host"])
def test_the_episode_is_the_one_that_is_evaluated(env, deterministic: bool) -> None:
    environment = klimb.make(env)
    policy = klimb.NetworkPolicy(environment.observations, environment.actions, hidden=(8,), key=jax.random.key(1))
    for seed in (3, 4):
        evaluation = klimb.evaluate(policy, environment, episodes=1, seed=seed, deterministic=deterministic)
        with scene_of(environment, deterministic=deterministic) as scene:
            # Without a picture, so that nothing needs to be installed.
            shots = list(scene.episode(policy, seed))
        assert sum(np.float64(shot.reward) for shot in shots) == pytest.approx(evaluation.mean, rel=1e-12)
        assert len(shots) - 1 == evaluation.lengths[0]


def test_of_a_fast_environment_every_second_state_is_shown_and_the_last_one() -> None:
    clip = klimb.film(Half(), host(steps=5, fps=50))
    assert clip.shown.tolist() == [0, 2, 4, 5]
    assert clip.pictures[:, 0, 0, 0].tolist() == [0, 2, 4, 5]
    assert clip.pictures_per_second == 25
    assert len(clip.reward) == 5


def test_a_long_film_ends_before_its_episode_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_module, "MOST_PICTURES", 4)
    drawn = []
    clip = klimb.film(Half(), Counting(9), on_pictures=drawn.append)
    assert not clip.whole
    assert clip.shown.tolist() == [0, 1, 2, 3]
    assert clip.episode_return == 45
    assert drawn == [1, 2, 3, 4]
    assert klimb.film(Half(), Counting(3)).whole


def test_large_pictures_become_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostCounting, "render", lambda self: np.full((1200, 900, 3), 7, np.uint8))
    assert klimb.film(Half(), host()).pictures.shape == (4, 400, 300, 3)


def test_a_policy_of_other_observations_is_refused() -> None:
    other = klimb.make("CartPole-v1")
    policy = klimb.NetworkPolicy(other.observations, other.actions, hidden=(4,), key=jax.random.key(0))
    with pytest.raises(PolicyFileError, match="trained on another environment"):
        klimb.film(policy, Counting())


def test_an_environment_that_fails_in_a_step_is_named() -> None:
    class Failing(HostCounting):
        def step(self, action):
            raise ValueError("the motor is hot")

    env = klimb.GymnasiumEnvironment.from_maker("failing", lambda render_mode=None: Failing(render_mode))
    with pytest.raises(EnvironmentFault, match=r"failing fails.*the motor is hot"):
        klimb.film(Half(), env)


@pytest.mark.parametrize(
    ("drawn", "text"),
    [
        (lambda *_: None, "None was returned"),
        (lambda *_: np.zeros((4, 4), np.uint8), r"shape \[4, 4\] was returned"),
        (lambda *_: np.zeros((4, 4, 3)), "an array of float64"),
        (lambda *_: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_an_environment_that_draws_no_picture_is_named(monkeypatch: pytest.MonkeyPatch, drawn, text: str) -> None:
    monkeypatch.setattr(HostCounting, "render", drawn)
    monkeypatch.setattr(Counting, "render", drawn)
    for env in (host(), Counting()):
        with pytest.raises(ConfigError, match=rf"counting can't be drawn: .*{text}"):
            klimb.film(Half(), env)


def test_an_environment_without_pictures_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match="let the function that makes it take a render_mode"):
        klimb.film(Half(), klimb.GymnasiumEnvironment.from_maker("counting", lambda: HostCounting()))
    with pytest.raises(ConfigError, match=r"no method render\(state\)"):
        klimb.film(Half(), BlindCounting())


class BlindCounting(Counting):
    render = klimb.CompiledEnvironment.render


def test_pictures_of_different_sizes_are_no_film(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counting, "render", lambda self, state: np.zeros((10 + int(state), 12, 3), np.uint8))
    with pytest.raises(ConfigError, match="different sizes, 10 × 12 and 11 × 12"):
        klimb.film(Half(), Counting(3))


@pytest.mark.parametrize("fps", [0.0, -5.0, float("nan")])
def test_a_speed_that_is_none_is_named(fps, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r'its metadata\["render_fps"\] is .*, not above 0'):
        klimb.film(Half(), host(fps=fps))
    monkeypatch.setattr(Counting, "steps_per_second", fps)
    with pytest.raises(ConfigError, match=r"its steps_per_second is .*, not above 0"):
        klimb.film(Half(), Counting(3))


def test_a_speed_of_gymnasium_that_is_no_number_is_named_and_none_is_thirty() -> None:
    with pytest.raises(ConfigError, match="is 'x', not above 0"):
        klimb.film(Half(), host(fps="x"))
    assert klimb.film(Half(), host(fps=None)).pictures_per_second == 30
