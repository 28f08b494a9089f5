"""A run that is killed at any moment and resumed equals the uninterrupted run, byte for byte."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time

import equinox as eqx
import gymnasium as gym
import jax
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from safetensors.numpy import load_file

import klimb
from klimb import PPO, TRPO
from klimb.runs.metrics import read_metrics
from problems import without_timing

fault = pytest.mark.fault

CHILD = """
import os, sys
import klimb
path = sys.argv[1]
say = lambda run: print(run.iteration, flush=True)
if os.path.exists(path):
    klimb.resume(path, callback=say)
else:
    klimb.train(
        "CartPole-v1", klimb.PPO(epochs=1, num_minibatches=2), run_dir=path, callback=say, num_envs=4, num_steps=32,
        hidden=(8,), critic_epochs=2, critic_num_minibatches=2, env_steps=600 * 128, checkpoint_every=7,
    )
"""


def records_of(path) -> list[dict]:
    return without_timing(read_metrics(path / "metrics.jsonl"))


def require_same_run(one, other) -> None:
    assert records_of(one) == records_of(other)
    for name in ("policy.safetensors", "policy.json", "config.toml", "best/policy.safetensors", "best/score.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    newest = [sorted((path / "checkpoints").glob("*.safetensors"))[-1] for path in (one, other)]
    assert newest[0].name == newest[1].name
    arrays = [load_file(path) for path in newest]
    assert arrays[0].keys() == arrays[1].keys()
    assert all(np.array_equal(arrays[0][name], arrays[1][name], equal_nan=True) for name in arrays[0])


def start(path) -> subprocess.Popen:
    cache = jax.config.jax_compilation_cache_dir
    environment = {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    return subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, text=True, env=environment)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("kill") / "whole"
    with start(path) as child:
        child.communicate()
    assert child.returncode == 0
    return path


def kill_and_resume(path, kills: int, seed: int) -> int:
    """Kill the training at random moments, then let it finish; how many of them hit it."""
    rng, hit = random.Random(seed), 0
    for _ in range(kills):
        with start(path) as child:
            # Now and then before it has begun; else while it trains, writes, or is about to.
            if rng.random() < 0.85:
                child.stdout.readline()
            time.sleep(rng.random() * 0.25)
            hit += child.poll() is None
            child.kill()
        if path.exists():
            records = records_of(path)
            assert [record["iteration"] for record in records] == list(range(1, len(records) + 1))
    with start(path) as child:
        child.communicate()
    assert child.returncode == 0
    return hit


@pytest.mark.slow
@fault("a training on a compiled environment is killed (SIGKILL) at random moments, 3 times", "the same bytes")
def test_killed_a_few_times(uninterrupted, tmp_path):
    assert kill_and_resume(tmp_path / "run", 3, seed=0) >= 2
    require_same_run(tmp_path / "run", uninterrupted)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(900)
@fault("a training is killed (SIGKILL) at random moments, 12 times", "the same bytes every time")
def test_killed_many_times(uninterrupted, tmp_path):
    assert kill_and_resume(tmp_path / "run", 12, seed=1) >= 6
    require_same_run(tmp_path / "run", uninterrupted)


SMALL = {"num_envs": 3, "num_steps": 16, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}


def resumed_after(path, whole, iteration):
    """A copy of a whole run as it was after an iteration, gone on with."""
    shutil.copytree(whole.directory, path)
    for checkpoint in (path / "checkpoints").glob("*.safetensors"):
        if int(checkpoint.stem) > iteration:
            checkpoint.unlink()
    shutil.rmtree(path / "best", ignore_errors=True)
    return klimb.resume(path)


EXACT = "the simulator continues where it was: the same bytes"


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        pytest.param(
            "CartPole-v1", 2, marks=[pytest.mark.slow, fault("a run on Gymnasium's CartPole is resumed", EXACT)]
        ),
        pytest.param(
            "Pendulum-v1", 0, marks=[pytest.mark.slow, fault("a run on Gymnasium's Pendulum is resumed", EXACT)]
        ),
        pytest.param(
            "HalfCheetah-v5", 2, marks=[pytest.mark.slow, fault("a run on MuJoCo's HalfCheetah is resumed", EXACT)]
        ),
        pytest.param("Ant-v5", 0, marks=[pytest.mark.slow, fault("a run on MuJoCo's Ant is resumed", EXACT)]),
    ],
)
def test_host_environments_go_on_exactly(name, workers, tmp_path):
    if "v5" in name:
        pytest.importorskip("mujoco")
    options = {**SMALL, "env_steps": 6 * 48, "checkpoint_every": 2, "keep_checkpoints": 9, "workers": workers}
    options |= {"num_seeds": 2} if name == "CartPole-v1" else {}
    whole = klimb.train(f"gymnasium:{name}", TRPO(), run_dir=tmp_path / "whole", **options)
    resumed = resumed_after(tmp_path / "run", whole, 2)
    assert records_of(tmp_path / "run") == records_of(tmp_path / "whole")
    for policy in tmp_path.glob("whole/policy*.safetensors"):
        assert (tmp_path / "run" / policy.name).read_bytes() == policy.read_bytes()
    assert resumed.history[-1]["iteration"] == 6


class Forty(CartPoleEnv):
    """Episodes of forty steps. A subclass: what it remembers is not known."""

    def reset(self, **options):
        self.steps = 0
        return super().reset(**options)

    def step(self, action):
        self.steps += 1
        self.state = np.zeros(4)
        obs, reward, *_ = super().step(action)
        return obs, reward, self.steps == 40, False, {}


@pytest.mark.slow
@fault("a run on an environment whose state can't be saved is resumed", "its episodes restart, and are not counted")
def test_other_environments_restart(tmp_path):
    environment = klimb.GymnasiumEnvironment.from_maker("forty", Forty)
    options = {**SMALL, "env_steps": 6 * 48, "checkpoint_every": 2, "keep_checkpoints": 9}
    whole = klimb.train(environment, TRPO(), run_dir=tmp_path / "whole", **options)
    path = shutil.copytree(whole.directory, tmp_path / "run")
    for checkpoint in (path / "checkpoints").glob("0000000*"):
        if int(checkpoint.stem) > 2:
            checkpoint.unlink()
    shutil.rmtree(path / "best", ignore_errors=True)
    resumed = klimb.resume(path, env=environment)
    # 8 steps of the second episodes were done (16 steps before the first iteration, and 32): they end in the fourth
    # iteration, or begin again in the third.
    assert [record["episodes"] for record in whole.history] == [0, 3, 0, 3, 0, 0]
    assert [record["episodes"] for record in resumed.history] == [0, 3, 0, 0, 3, 0]
    assert resumed.history[4]["episode_length"] == 40
    assert records_of(path)[:2] == records_of(whole.directory)[:2]


@fault("a checkpoint holds environment states that no environment can have", "refused in one line, whatever it is")
@pytest.mark.parametrize("part", ["states", "obs", "tally"])
@pytest.mark.parametrize("nonsense", [None, [], {}, "x", [[1e300]], [[[2**40] * 9]], 10**400], ids=repr)
def test_nonsense_about_environments_is_refused(part, nonsense):
    from klimb.collect.host.collector import VectorCollector
    from klimb.environments.seeds import environment_seeds
    from klimb.policies.actions import Discrete
    from klimb.policies.networks import NetworkPolicy

    policy = NetworkPolicy(4, Discrete(2), hidden=(), key=jax.random.key(0))
    arrays, static = eqx.partition(policy, eqx.is_array)
    collector = VectorCollector(
        klimb.make("gymnasium:CartPole-v1"), static, arrays, num_seeds=1, num_envs=2, num_steps=3
    )
    seeds = environment_seeds(0, 0, 2)[None]
    collector.reset(seeds)
    captured = json.loads(json.dumps(collector.capture()))
    collector.restore(seeds, captured)
    value = {"time": nonsense, "return": nonsense} if part == "tally" else nonsense
    with pytest.raises(klimb.RunError):
        collector.restore(seeds, {**captured, part: value})
    collector.close()


@pytest.mark.slow
@fault("a checkpoint holds invalid environment states", "one line; nothing is run")
def test_states_that_are_none_are_refused(tmp_path):
    from klimb.environments.adapters.gymnasium import GymnasiumVector

    vector = GymnasiumVector(lambda: gym.make("CartPole-v1"), 1)
    vector.reset(np.zeros(1, int))
    (state,) = vector.capture()
    state = json.loads(json.dumps(state))
    state["values"] = {"state": "nowhere"}
    with pytest.raises(klimb.RunError, match="does not fit"):
        vector.restore([state])
    vector.close()


SAME = "the same records and the same policy, bit for bit"


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"checkpoint_every": 1}, marks=fault("checkpoints after every iteration, instead of none", SAME)),
        pytest.param(
            {"callback": lambda run: print(run.records)},
            marks=[pytest.mark.slow, fault("records are read during the run, instead of never", SAME)],
        ),
        pytest.param(
            {"keep_checkpoints": 1},
            marks=[pytest.mark.slow, fault("one checkpoint is kept, instead of three", SAME)],
        ),
    ],
)
def test_how_a_run_is_watched_changes_nothing(options, tmp_path):
    small = {**SMALL, "num_envs": 4, "env_steps": 8 * 64}
    rule = PPO(epochs=1, num_minibatches=2)
    plain = klimb.train("CartPole-v1", rule, **small)
    watched = klimb.train("CartPole-v1", rule, run_dir=tmp_path / "run", **small, **options)
    assert without_timing(plain.history) == without_timing(watched.history)
    for a, b in zip(jax.tree.leaves(plain.policy), jax.tree.leaves(watched.policy), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@fault("one run of a sweep on Gymnasium's Pendulum is resumed by itself", "its simulators continue where they were")
def test_a_run_of_a_sweep_goes_on_exactly(tmp_path):
    options = {**SMALL, "env_steps": 4 * 48, "checkpoint_every": 2, "keep_checkpoints": 9, "num_seeds": 2}
    runs = klimb.sweep("gymnasium:Pendulum-v1", TRPO(), {"max_kl": [0.01, 0.02]}, run_dir=tmp_path / "sweep", **options)
    resumed_after(tmp_path / "run", runs[1], 2)
    # Of a program of its own, the rows are others and the last digits may be too.
    for one, other in zip(records_of(tmp_path / "run"), records_of(runs[1].directory), strict=True):
        assert one["kl_old_new"] == pytest.approx(other["kl_old_new"], rel=0.05)
