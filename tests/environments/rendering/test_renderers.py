"""What draws states: each picture shows the state that it is asked for."""

from __future__ import annotations

import sys

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb.environments.rendering import offscreen
from klimb.environments.rendering.observed import ObservedPictures
from klimb.environments.rendering.renderer import enlarged
from klimb.environments.toy_text import TabularEnvironment
from klimb.errors import ConfigError, MissingExtra
from klimb.policies.observation_parts import MaskedObservations
from klimb.policies.observations import observation_spec
from klimb.policies.picture_observations import PictureObservations
from problems import make_mdp

DRAWN_BY_GYMNASIUM = (
    "CartPole-v1",
    "Pendulum-v1",
    "Acrobot-v1",
    "MountainCarContinuous-v0",
    "FrozenLake-v1",
    "Taxi-v4",
)


@pytest.mark.parametrize("name", DRAWN_BY_GYMNASIUM)
def test_gymnasiums_picture_of_the_same_state(name: str) -> None:
    pytest.importorskip("pygame")
    offscreen.prepare()
    environment = klimb.make(f"jax:{name}")
    state, obs = environment.reset(jax.random.key(0))
    action = jnp.asarray(np.zeros_like(environment.action_space.sample()) + 1)
    other = state
    for _ in range(5):
        other = environment.step(jax.random.key(1), other, action).state
    renderer = environment.renderer()
    first, second, again = (renderer.picture(s, np.asarray(obs)) for s in (state, other, state))
    assert first.dtype == np.uint8
    assert first.shape[2] == 3
    assert first.std() > 5
    np.testing.assert_array_equal(first, again)
    if name != "Taxi-v4":
        assert (first != second).any()
    assert renderer.steps_per_second == gym.make(name).metadata["render_fps"]
    renderer.close()


@pytest.mark.parametrize("name", ["CartPoleSwingUp-v0", "PlanarReacher-v0", "LinearQuadratic-v0"])
def test_klimbs_own_pictures(name: str) -> None:
    environment = klimb.make(f"jax:{name}")
    state, obs = environment.reset(jax.random.key(0))
    moved = state._replace(physics=state.physics + 0.5)
    renderer = environment.renderer()
    first, second = (renderer.picture(s, np.asarray(obs)) for s in (state, moved))
    assert first.shape == second.shape == (400, 400, 3)
    assert (first != second).any(axis=2).sum() > 100


def test_the_arm_reaches_where_its_fingertip_is() -> None:
    environment = klimb.make("jax:PlanarReacher-v0")
    state, _ = environment.reset(jax.random.key(0))
    # Stretched out along x, and the target far from it.
    picture = environment.render(state._replace(physics=np.array([0.0, 0.0, 0.0, 0.0, -0.5, -0.5])))
    blue = np.argwhere((picture[..., 2] > 150) & (picture[..., 0] < 60))
    orange = np.argwhere((picture[..., 0] > 180) & (picture[..., 2] < 60))
    assert blue[:, 1].max() == pytest.approx(200 + 200 / 1.2, abs=12)
    assert abs(blue[:, 0].mean() - 200) < 3
    assert orange.mean(axis=0) == pytest.approx([200 + 100 / 1.2, 200 - 100 / 1.2], abs=3)


def test_pictures_that_are_observed() -> None:
    grey = PictureObservations((10, 12))
    board = np.zeros((10, 12), np.uint8)
    board[2, 3] = 255
    picture = ObservedPictures(grey).picture(None, board)
    assert picture.shape == (240, 288, 3)
    assert (picture[48:72, 72:96] == 255).all()
    assert picture.sum() == 24 * 24 * 3 * 255

    colours = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    np.testing.assert_array_equal(
        ObservedPictures(PictureObservations((8, 9, 3))).picture(None, colours)[::30, ::30], colours
    )
    first = PictureObservations((3, 8, 9))
    np.testing.assert_array_equal(
        ObservedPictures(first).picture(None, np.moveaxis(colours, -1, 0))[::30, ::30], colours
    )

    stack = np.zeros((8, 8, 4), np.uint8)
    stack[..., 3] = 90
    assert (ObservedPictures(PictureObservations((8, 8, 4))).picture(None, stack) == 90).all()
    in_time = np.zeros((4, 8, 8, 3), np.uint8)
    in_time[-1] = 70
    assert (ObservedPictures(PictureObservations((4, 8, 8, 3))).picture(None, in_time) == 70).all()


def test_layers_of_a_board_have_colours_of_their_own() -> None:
    layers = np.zeros((8, 8, 6), np.float32)
    for k in range(6):
        layers[k, k, k] = 1
    spec = MaskedObservations(PictureObservations((8, 8, 6), "float32"), 3)
    renderer = ObservedPictures.of(spec)
    assert renderer is not None
    picture = renderer.picture(None, np.concatenate([layers.ravel(), np.ones(3)]).astype(np.float32))
    cells = {tuple(picture[30 * k, 30 * k]) for k in range(6)}
    assert len(cells) == 6
    assert (0, 0, 0) not in cells
    assert (picture[30 * 7, 30 * 7] == 0).all()


def test_numbers_are_no_pictures() -> None:
    assert ObservedPictures.of(observation_spec(gym.spaces.Box(-1, 1, (4,)))) is None
    with pytest.raises(ConfigError, match="has no pictures"):
        TabularEnvironment.of(make_mdp()).renderer()


def test_small_pictures_are_enlarged_by_a_whole_number() -> None:
    assert enlarged(np.zeros((10, 20, 3), np.uint8)).shape == (240, 480, 3)
    assert enlarged(np.zeros((300, 400, 3), np.uint8)).shape == (300, 400, 3)
    assert enlarged(np.zeros((100, 100, 3), np.uint8)).shape == (300, 300, 3)


def test_without_pygame_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pygame", None)
    env = klimb.make("CartPole-v1")
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(4,), key=jax.random.key(0))
    for name in ("jax:CartPole-v1", "gymnasium:CartPole-v1"):
        with pytest.raises(MissingExtra, match=rf"{name} can't be drawn: .*pip install 'klimb\[video\]'"):
            klimb.film(policy, name)


def test_envpool_names_the_environment_that_is_drawn() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(ConfigError, match="--env gymnasium:CartPole-v1"):
        klimb.make("envpool:CartPole-v1").drawn()


@pytest.mark.parametrize(
    ("libraries", "screen", "chosen"),
    [
        ({"EGL", "OSMesa"}, None, "egl"),
        ({"OSMesa"}, None, "osmesa"),
        (set(), None, None),
        ({"EGL"}, ":0", None),
    ],
)
def test_mujoco_draws_with_what_is_there(monkeypatch: pytest.MonkeyPatch, libraries, screen, chosen) -> None:
    monkeypatch.setattr(offscreen.ctypes.util, "find_library", lambda name: name if name in libraries else None)
    monkeypatch.setattr(offscreen, "READERS", ())
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    if screen is not None:
        monkeypatch.setenv("DISPLAY", screen)
    offscreen.prepare()
    assert offscreen.os.environ.get("MUJOCO_GL") == chosen
    assert offscreen.os.environ.get("SDL_VIDEODRIVER") == (None if screen else "dummy")


def test_mujocos_choice_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    offscreen.prepare()
    assert offscreen.os.environ["MUJOCO_GL"] == "osmesa"


def test_without_egl_and_osmesa_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    monkeypatch.setattr(offscreen.ctypes.util, "find_library", lambda name: None)
    for name in ("MUJOCO_GL", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    env = klimb.make("gymnasium:InvertedPendulum-v5")
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(4,), key=jax.random.key(0))

    def fails(self):
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    drawn = env.drawn()
    monkeypatch.setattr(type(drawn.unwrapped), "render", fails)
    with pytest.raises(ConfigError, match="apt install libegl1"):
        klimb.film(policy, env)


@pytest.mark.slow
def test_a_robot_is_drawn_without_a_screen() -> None:
    pytest.importorskip("mujoco")
    if offscreen.installed() is None:
        pytest.skip("needs EGL or OSMesa")
    env = klimb.make("gymnasium:InvertedPendulum-v5")
    policy = klimb.NetworkPolicy(env.observations, env.actions, hidden=(4,), key=jax.random.key(0))
    clip = klimb.film(policy, env)
    assert clip.pictures.shape[1:] == (400, 400, 3)
    assert clip.pictures.std() > 5
    assert (clip.pictures[0] != clip.pictures[-1]).any()
    assert clip.pictures_per_second == 25
