"""Every library's environments against the library's own stepping, and the contract of compiled environments."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb.cli.main import main
from klimb.environments.rendering import offscreen
from klimb.environments.suites.gymnax import CLASSIC_CONTROL
from klimb.errors import ConfigError
from problems import assert_same_bits

# What the libraries warn of is theirs.
pytestmark = [pytest.mark.suites, pytest.mark.filterwarnings("ignore")]

NAMES = (
    "jumanji:Snake-v1",
    "jumanji:Tetris-v0",
    "jumanji:Cleaner-v0",
    "jumanji:GraphColoring-v1",
    "navix:Navix-DoorKey-5x5-v0",
    "navix:Navix-Empty-Random-5x5-v0(pictures=True)",
    "pgx:2048",
    "pgx:connect_four",
    "pgx:kuhn_poker",
    "craftax:Craftax-Classic-Symbolic-v1",
    "playground:CartpoleBalance",
    "brax:inverted_pendulum(backend=spring)",
)
WITHOUT_PICTURES = ("pgx:kuhn_poker",)
LIBRARIES = {"playground": "mujoco_playground", "craftax": "craftax.craftax_env", "brax": "brax.envs"}
STEPS = 24


def make(name):
    """The environment; the test is skipped where its library is not installed."""
    prefix = name.partition(":")[0]
    pytest.importorskip(LIBRARIES.get(prefix, prefix))
    return klimb.make(name)


def legacy(key):
    return jax.random.key_data(key)


def steps_of(env, seed=0):
    """STEPS steps with allowed actions in one program, without resets: (keys, states before, actions, transitions)."""
    choices = env.actions.choices

    @jax.jit
    def run(key):
        def step(carry, key):
            state, obs = carry
            mask = env.observations.mask(obs)
            if not choices:
                action = jax.random.uniform(key, env.actions.shape, minval=-1, maxval=1)
            else:
                logits = jnp.zeros(sum(choices)) if mask is None else jnp.where(mask, 0.0, -jnp.inf)
                parts = jnp.split(logits, np.cumsum(choices)[:-1])
                numbers = [jax.random.categorical(jax.random.fold_in(key, i), x) for i, x in enumerate(parts)]
                action = jnp.stack(numbers).reshape(env.actions.shape).astype(env.actions.dtype)
            after = env.step(key, state, env.actions.unflatten(action))
            return (after.state, after.obs), (key, state, action, after)

        return jax.lax.scan(step, env.reset(key), jax.random.split(key, STEPS))[1]

    return run(jax.random.key(seed))


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_of_compiled_environments(name):
    env = make(name)
    assert env.id == name
    assert klimb.make(name) is env
    state, obs = jax.eval_shape(env.reset, jax.random.key(0))
    assert (obs.shape, obs.dtype) == (env.observations.shape, env.observations.dtype)
    assert env.observation_space.shape == obs.shape
    _, states, _, after = steps_of(env)
    kinds = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]  # noqa: E731
    assert (
        kinds(jax.tree.map(lambda x: x[0], after.state)) == kinds(state) == kinds(jax.tree.map(lambda x: x[0], states))
    )
    assert not any(x.weak_type for x in jax.tree.leaves(state))
    assert after.reward.dtype == jnp.float32
    assert after.terminated.dtype == after.truncated.dtype == bool
    assert np.isfinite(np.asarray(after.obs, np.float64)).all()
    mask = env.observations.mask(np.asarray(after.obs))
    if mask is not None:
        goes_on = ~np.asarray(after.terminated)
        for flags in np.split(mask[goes_on], np.cumsum(env.actions.choices)[:-1], axis=-1):
            assert flags.any(-1).all()
    again = steps_of(env)[3]
    jax.tree.map(np.testing.assert_array_equal, again.obs, after.obs)
    assert (np.asarray(steps_of(env, seed=1)[3].obs) != np.asarray(after.obs)).any()


def peer_step(env, prefix, key, state, action):
    """(state, observation, reward, end) by the library alone."""
    peer = env.env
    match prefix:
        case "jumanji":
            if env.combinations is not None:
                action = jnp.stack(jnp.unravel_index(action, env.combinations))
            state, step = peer.step(state, action)
            return state, step.observation, step.reward, step.last()
        case "navix":
            step = peer.step(state, action)  # the public one: the state is of an episode that goes on
            return step, step.observation, step.reward, step.step_type > 0
        case "pgx":
            board = peer.step(state.board, action, legacy(jax.random.split(key)[0]))
            return board, board.observation, board.rewards[state.player], board.terminated
        case "craftax":
            obs, state, reward, done, _ = peer.step_env(legacy(key), state, action, env.params)
            return state, obs, reward, done
    after = peer.step(jax.tree.map(lambda x: x, state.inner), action)
    return after, after.obs, after.reward, after.done > 0.5


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("pgx:connect_four", "pgx:kuhn_poker")])
def test_observations_rewards_and_ends_are_the_librarys(name):
    env, prefix = make(name), name.partition(":")[0]
    keys, states, actions, after = steps_of(env)
    step = jax.jit(lambda key, state, action: peer_step(env, prefix, key, state, action))
    for t in range(STEPS):
        at = lambda tree, t=t: jax.tree.map(lambda x: x[t], tree)  # noqa: E731
        _, obs, reward, ended = step(keys[t], at(states), env.actions.unflatten(actions[t]))
        parts = vars(obs) if hasattr(obs, "__dict__") and not hasattr(obs, "shape") else None
        if hasattr(obs, "_asdict"):
            parts = obs._asdict()
        if parts is None:
            seen = np.ravel(np.asarray(after.obs[t], np.float64))[: np.size(obs)]
            np.testing.assert_allclose(seen, np.ravel(np.asarray(obs, np.float64)), rtol=1e-5, atol=1e-5)
        else:
            flat = env.observations.flatten({key: np.asarray(part) for key, part in parts.items()})
            np.testing.assert_allclose(after.obs[t], flat, rtol=1e-6)
        np.testing.assert_allclose(after.reward[t], reward, rtol=1e-5, atol=1e-6)
        assert bool(after.terminated[t] | after.truncated[t]) == bool(ended)
        if ended:
            break


def test_a_mask_of_combinations_is_of_one_choice_among_all_of_them():
    """Tetris: rotations × columns. A flag for each is not the same as flags for rotations and flags for columns."""
    env = make("jumanji:Tetris-v0")
    assert env.actions.num_choices == 40
    assert env.combinations == (4, 10)
    assert make("jumanji:Cleaner-v0").combinations is None
    after = steps_of(env)[3]
    mask = env.observations.mask(np.asarray(after.obs)).reshape(STEPS, 4, 10)
    assert any(not np.array_equal(m, m.any(1)[:, None] & m.any(0)) for m in mask)


def test_several_rewards_are_refused():
    pytest.importorskip("jumanji")
    with pytest.raises(klimb.UnsupportedSpace, match="has a reward for each of 10 agents"):
        klimb.make("jumanji:Connector-v3")


CLOCKS = (
    "navix:Navix-Empty-5x5-v0",
    "craftax:Craftax-Classic-Symbolic-v1",
    "playground:CartpoleBalance",
    "jumanji:Maze-v0",
    "jumanji:Cleaner-v0",
    "jumanji:RubiksCube-partly-scrambled-v0",
)


@pytest.mark.parametrize("name", CLOCKS)
def test_the_clock_truncates_and_nothing_is_reset(name):
    env = make(name)
    state, obs = jax.jit(env.reset)(jax.random.key(0))
    mask = env.observations.mask(np.asarray(obs))
    last = env.max_episode_steps - 1
    match name.partition(":")[0]:
        case "navix":
            state = state.replace(t=jnp.asarray(last, state.t.dtype))
        case "jumanji":
            state = dataclasses.replace(state, step_count=jnp.asarray(last, state.step_count.dtype))
        case "craftax":
            state = state.replace(timestep=jnp.asarray(last, state.timestep.dtype))
        case _:
            state = state._replace(time=jnp.int32(last))
    step = jax.jit(env.step)
    action = np.zeros(env.actions.shape, env.actions.dtype)
    if mask is not None:
        allowed = [flags.argmax() for flags in np.split(mask, np.cumsum(env.actions.choices)[:-1])]
        action = np.reshape(allowed, env.actions.shape).astype(env.actions.dtype)
    after = step(jax.random.key(1), state, env.actions.unflatten(jnp.asarray(action)))
    assert (bool(after.terminated), bool(after.truncated)) == (False, True)
    if name.startswith("craftax"):
        # A death on the clock's last tick is a death.
        dead = step(jax.random.key(1), state.replace(player_health=-jnp.ones_like(state.player_health)), jnp.int32(0))
        assert (bool(dead.terminated), bool(dead.truncated)) == (True, False)


def test_the_opponents_moves_are_part_of_a_step():
    """Connect four: the policy is always to move, moves first in half of the games, and rewards are its own."""
    env = make("pgx:connect_four")
    states, _ = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 400))
    assert (states.board.current_player == states.player).all()
    stones = np.asarray(states.board._step_count)
    assert set(stones) == {0, 1}  # of the opponent
    assert 140 < stones.sum() < 260
    after = steps_of(env)[3]
    ended = np.asarray(after.terminated)
    goes_on = ~ended
    assert (np.asarray(after.state.board.current_player) == np.asarray(after.state.player))[goes_on].all()
    assert set(np.asarray(after.reward)[goes_on]) == {0.0}


def test_an_opponent_of_your_own():
    """One that always drops its stone into the first column that is open loses to one that builds a column."""
    pgx = pytest.importorskip("pgx")
    from klimb.environments.suites.pgx import PgxEnvironment

    env = PgxEnvironment("pgx:connect_four", pgx.make("connect_four"), lambda key, obs, mask: jnp.argmax(mask))

    @jax.jit
    def play(key):
        state, _ = env.reset(key)
        return jax.lax.scan(
            lambda state, key: (lambda after: (after.state, (after.reward, after.terminated)))(
                env.step(key, state, jnp.int32(3))
            ),
            state,
            jax.random.split(key, 4),
        )[1]

    reward, terminated = jax.vmap(play)(jax.random.split(jax.random.key(0), 20))
    first = np.asarray(reward)[:, :4].sum(1)
    # Who begins has four in its column first, whoever it is.
    assert set(first) == {1.0, -1.0}
    assert np.asarray(terminated).any(1).all()


def test_more_than_two_players_are_refused():
    pytest.importorskip("pgx")
    with pytest.raises(klimb.UnsupportedSpace, match="is for 3 players"):
        klimb.make("pgx:sparrow_mahjong")


def test_stoa_is_the_same_environment():
    """Jumanji's Snake through Stoa's adapter to it, and through klimb's."""
    stoa = pytest.importorskip("stoa")
    jumanji = pytest.importorskip("jumanji")
    from klimb.environments.suites.stoa import StoaEnvironment

    env, own = StoaEnvironment("stoa:Snake", stoa.JumanjiToStoa(jumanji.make("Snake-v1"))), make("jumanji:Snake-v1")
    assert klimb.check_env(env, steps=30).trainable
    assert env.masked
    _, _, actions, after = steps_of(own)
    state, _ = jax.jit(env.reset)(jax.random.key(0))
    step = jax.jit(env.step)
    for t in range(STEPS):
        found = step(jax.random.key(t), state, actions[t])
        state = found.state
        assert found.reward == after.reward[t]
        assert (found.terminated, found.truncated) == (after.terminated[t], after.truncated[t])
        assert (
            np.asarray(own.observations.mask(after.obs[t])).tolist()
            == np.asarray(env.observations.mask(found.obs)).tolist()
        )


def test_what_downloads_is_refused():
    for name, library in {"jumanji:Sokoban-v0": "jumanji", "gymnax:MNISTBandit-bsuite": "gymnax"}.items():
        pytest.importorskip(library)
        with pytest.raises(klimb.ConfigError, match="klimb downloads nothing"):
            klimb.make(name)
    playground = pytest.importorskip("mujoco_playground")
    if not playground.registry.mjx_env.MENAGERIE_PATH.exists():
        with pytest.raises(klimb.ConfigError, match="downloads models of robots"):
            klimb.make("playground:Go1JoystickFlatTerrain")


def test_integers_without_a_number_of_choices_are_refused():
    pytest.importorskip("jumanji")
    with pytest.raises(klimb.UnsupportedSpace, match="actions of integers without a number of choices"):
        klimb.make("jumanji:MultiCVRP-v0")


def test_options_of_playground_and_brax():
    pytest.importorskip("mujoco_playground")
    brax = klimb.make("brax:inverted_pendulum(backend=generalized)")
    assert brax is klimb.make("brax:inverted_pendulum")
    short = klimb.make("playground:CartpoleBalance(episode_length=7)")
    assert short.max_episode_steps == 7
    for name, message in {
        "playground:CartpoleBalance(implementation=cuda)": "there are jax, warp",
        "playground:CartpoleBalance(impl=warp)": "it is implementation here",
        "playground:CartpoleBalance(episode_length=0)": "have to be at least 1",
        "playground:CartpoleBalance(episode_length=abc)": "episode_length = 'abc'",
        "playground:CartpoleBalance(episode_length=500.5)": "episode_length = 500.5",
        "playground:CartpoleBalance(randomize=yes)": "is no True or False",
        "playground:CartpoleBalance(randomize=True)": "defines no randomisation",
        "playground:CartpoleBalance(episode_lenght=7)": "no option episode_lenght; did you mean 'episode_length'",
        "brax:ant(backend=bullet)": "Brax has generalized",
    }.items():
        with pytest.raises(klimb.ConfigError, match=message):
            klimb.make(name)
    with pytest.raises(klimb.EnvironmentNotFound, match="did you mean 'CartpoleBalance'"):
        klimb.make("playground:CartpoleBalanced")


@pytest.mark.parametrize("name", ["navix:Navix-Empty-5x5-v0", "pgx:connect_four", "playground:CartpoleBalance"])
def test_a_run_resumes_to_the_same_bytes(name, tmp_path):
    make(name)
    options = {"num_envs": 4, "num_steps": 16, "hidden": (8,), "critic_epochs": 1, "critic_num_minibatches": 2}
    options["eval_episodes"] = 1
    whole = klimb.train(name, klimb.TRPO(), env_steps=256, run_dir=tmp_path / "whole", **options)
    stop = lambda run: run.stop() if run.iteration == 2 else None  # noqa: E731
    klimb.train(name, klimb.TRPO(), env_steps=256, run_dir=tmp_path / "cut", callback=stop, **options)
    resumed = klimb.resume(tmp_path / "cut")
    assert_same_bits(resumed.policy, whole.policy)
    assert resumed.history[-1]["kl_old_new"] == whole.history[-1]["kl_old_new"]
    assert klimb.evaluate(resumed.policy, name, episodes=2).returns.shape == (2,)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_PICTURES])
def test_states_are_drawn(name):
    env = make(name)
    if "play" in name or "brax" in name:
        offscreen.prepare()
        if offscreen.installed() is None:
            pytest.skip("needs EGL or OSMesa")
    _, states, _, after = steps_of(env)
    renderer = env.renderer()
    part = renderer.part(states)
    draw = lambda t: renderer.picture(jax.tree.map(lambda x: x[t], part), np.asarray(after.obs[t - 1]))  # noqa: E731
    pictures = [draw(t) for t in (1, STEPS - 1, 1)]
    assert all(picture.dtype == np.uint8 and picture.ndim == 3 for picture in pictures)
    assert min(pictures[0].shape[:2]) >= 240
    assert pictures[0].std() > 1
    np.testing.assert_array_equal(pictures[0], pictures[2])
    assert (pictures[0] != pictures[1]).any()
    assert 0 < renderer.steps_per_second < 1000
    renderer.close()


@pytest.mark.parametrize("name", WITHOUT_PICTURES)
def test_cards_of_numbers_are_not_drawn(name):
    with pytest.raises(ConfigError, match="has no pictures"):
        make(name).renderer()


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCarContinuous-v0"])
def test_gymnaxs_classic_control_is_drawn_as_klimbs(name):
    pytest.importorskip("pygame")
    offscreen.prepare()
    theirs, ours = make(f"gymnax:{name}"), klimb.make(f"jax:{name}")
    state, obs = theirs.reset(jax.random.key(3))
    begun, _ = ours.reset(jax.random.key(3))
    fields = CLASSIC_CONTROL[name]
    same = begun._replace(physics=jnp.stack([getattr(state, field) for field in fields]))
    np.testing.assert_array_equal(
        theirs.renderer().picture(state, np.asarray(obs)), ours.renderer().picture(same, np.asarray(obs))
    )


WARP = "playground:CartpoleBalance(implementation=warp)"


def test_warp_simulates_as_jax_does():
    theirs, ours = make(WARP), make("playground:CartpoleBalance")
    keys = jax.random.split(jax.random.key(0), 3)
    state, obs = jax.jit(theirs.reset_all)(keys)
    other, same = jax.jit(ours.reset_all)(keys)
    np.testing.assert_allclose(obs, same, atol=1e-5)
    step, reference = jax.jit(theirs.step_all), jax.jit(ours.step_all)
    for t in range(20):
        action = jax.random.uniform(jax.random.key(t), (3, 1), minval=-1, maxval=1)
        after, expected = step(keys, state, action), reference(keys, other, action)
        np.testing.assert_allclose(after.obs, expected.obs, atol=2e-3)
        np.testing.assert_allclose(after.reward, expected.reward, atol=2e-3)
        state, other = after.state, expected.state


def test_of_warps_copies_those_begin_again_whose_episode_has_ended():
    env = make(WARP)
    keys = jax.random.split(jax.random.key(0), 6)
    state, _ = env.reset_all(keys[:3])
    state = env.step_all(keys[:3], state, jnp.ones((3, 1))).state
    first, _ = env.reset_all(keys[3:])
    chosen = env.restarted(jnp.array([False, True, False]), first, state)
    for copy, source in ((0, state), (1, first), (2, state)):
        np.testing.assert_array_equal(chosen.inner.data.qpos[copy], source.inner.data.qpos[copy])
        assert chosen.time[copy] == source.time[copy]
    shared = [a for a, is_shared in zip(jax.tree.leaves(chosen), env._shared, strict=True) if is_shared]
    stepped = [a for a, is_shared in zip(jax.tree.leaves(state), env._shared, strict=True) if is_shared]
    assert shared
    assert_same_bits(shared, stepped)
    alone = env.of_copy(chosen, 1)
    assert alone.inner.data.qpos.shape == chosen.inner.data.qpos.shape[1:]


def test_a_training_with_warp_goes_on_to_the_same_bytes(tmp_path):
    make(WARP)
    options = {"num_envs": 4, "num_steps": 8, "hidden": (4,), "num_seeds": 2, "critic_num_minibatches": 2}
    whole = klimb.train(WARP, klimb.TRPO(), run_dir=tmp_path / "whole", env_steps=96, **options)
    klimb.train(WARP, klimb.TRPO(), run_dir=tmp_path / "cut", env_steps=32, **options)
    cut = klimb.resume(tmp_path / "cut", env_steps=96)
    for a, b in zip(whole.policies, cut.policies, strict=True):
        assert_same_bits(a, b)
    assert np.isfinite(klimb.evaluate(whole.policies[0], WARP, episodes=1).mean)


def test_warp_does_not_randomise_models():
    make(WARP)
    with pytest.raises(ConfigError, match="leave one of the two out"):
        klimb.make("playground:Go1JoystickFlatTerrain(implementation=warp, randomize=True)")


@pytest.mark.parametrize("name", ["PendulumSwingup"])
def test_playground_through_the_command_line(name, tmp_path, capsys):
    """Train, resume to the same bytes, evaluate, film, report."""
    make("playground:CartpoleBalance")
    offscreen.prepare()
    sizes = ["--num-envs", "8", "--num-steps", "16", "--hidden", "8", "--eval-episodes", "0", "--quiet"]
    words = ["train", "trpo", f"playground:{name}", *sizes]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main([*words, "--env-steps", "384", "--run-dir", str(whole)]) == 0
    assert main([*words, "--env-steps", "128", "--run-dir", str(cut)]) == 0
    assert main(["resume", str(cut), "--env-steps", "384", "--quiet"]) == 0
    assert (whole / "policy.safetensors").read_bytes() == (cut / "policy.safetensors").read_bytes()
    video = tmp_path / "film.webp"
    flags = ["--video", str(video)] if offscreen.installed() else []
    capsys.readouterr()
    assert main(["evaluate", str(whole), "--episodes", "2", "--json", *flags]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["seeds"][0]["lengths"] == [1000, 1000]
    if flags:
        assert found["video"]["return"] == pytest.approx(found["seeds"][0]["returns"][0], rel=0.05)
        assert video.stat().st_size > 10_000
        assert main(["report", str(whole), "--video", "-o", str(tmp_path / "report.html")]) == 0
        assert "clip-data" in (tmp_path / "report.html").read_text()
