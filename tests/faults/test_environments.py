"""Failing environments: exceptions, hangs, exits and invalid returns do not lose the data of the others."""

from __future__ import annotations

import importlib
import os
import re
import signal
import sys

import equinox as eqx
import gymnasium
import jax
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

import klimb
from klimb import TRPO, TrainingFailed
from klimb.collect.host.collector import VectorCollector
from klimb.environments.adapters.gymnasium import GymnasiumVector
from klimb.environments.faults import RemoteTraceback
from klimb.errors import EnvironmentFault
from klimb.policies.actions import Discrete
from klimb.policies.networks import NetworkPolicy
from problems import column_of

SEEDS, ENVS, STEPS = 2, 4, 12
ENV_SEEDS = np.arange(SEEDS * ENVS).reshape(SEEDS, ENVS)
SMALL = {"num_steps": 16, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
fault = pytest.mark.fault

FAULTY = '''
import os, signal, sys, time
import gymnasium
import numpy as np

ESCAPES = "first\\n\\tthen \\x1b]0;taken\\x07\\x1b[2J \\u202eturned\\r\\x85"

class Faulty(gymnasium.Env):
    """Counts its steps; what `what` says happens in the second copy that a process makes, at step `at`, once."""
    observation_space = gymnasium.spaces.Box(-1e9, 1e9, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    made = 0

    def __init__(self, what="nothing", at=5, marker=None, length=7):
        self.what, self.at, self.marker, self.length = what, at, marker, length
        Faulty.made += 1
        self.chosen = Faulty.made % 10 == 2 or what.startswith("always")
        if what == "raises when made":
            raise RuntimeError("no such robot")

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        if self.due("raises at reset", step=None):
            raise RuntimeError("the robot lies on its back")
        return self.obs(), {}

    def obs(self):
        return np.array([self.steps, 1.0], np.float32)

    def due(self, what, step=-1):
        """Whether it happens now. Files tell whether it has happened before, in whatever process."""
        if not (self.chosen and self.what == what and (step is None or step == self.at)):
            return False
        if step is None and not os.path.exists(self.marker + ".armed"):
            return False
        try:
            os.close(os.open(self.marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def step(self, action):
        self.steps += 1
        t = self.steps
        if self.marker and t == self.at:
            open(self.marker + ".armed", "w").close()
        if self.what == "always raises" or self.due("raises", t):
            raise ValueError("the motor is\\non fire")
        if self.what == "always hangs" or self.due("hangs", t):
            time.sleep(3600)
        if self.what == "always exits" or self.due("exits", t):
            os._exit(3)
        if self.due("exits after escapes", t):
            os.write(2, ESCAPES.encode())
            os._exit(3)
        if self.due("raises escapes", t):
            raise ValueError(ESCAPES)
        if self.due("crashes", t):
            os.kill(os.getpid(), signal.SIGSEGV)
        obs, reward = self.obs(), 1.0
        if self.due("gives a wrong shape", t):
            obs = np.zeros(3, np.float32)
        if self.due("gives words", t):
            obs = ["left", "right"]
        if self.due("gives a word", t):
            reward = "much"
        if self.due("gives two rewards", t):
            reward = np.ones(2)
        if self.due("gives no reward", t):
            reward = None
        if self.due("gives a reward beyond floats", t):
            reward = 10**400
        if self.due("answers in four", t):
            return obs, reward, False, {}
        if self.due("answers nothing", t):
            return None
        if self.due("is over in two ways", t):
            return obs, reward, np.zeros(2, bool), False, {}
        if self.due("leaves by sys.exit", t):
            sys.exit(1)
        if self.what == "prints":
            print("x" * 10000)
            os.write(1, b"from C: done\\n")
        return obs, reward, t >= self.length, False, {}

gymnasium.register("Faulty-v0", "faulty_environment:Faulty", disable_env_checker=True)
'''


@pytest.fixture
def faulty(tmp_path, monkeypatch):
    """Registers `Faulty-v0` with arguments, and makes the klimb environment of it."""
    (tmp_path / "faulty_environment.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    module = importlib.import_module("faulty_environment")

    def make(what="nothing", **options):
        gymnasium.registry["Faulty-v0"].kwargs = {"what": what, "marker": str(tmp_path / "marker"), **options}
        environment = klimb.make("gymnasium:faulty_environment:Faulty-v0")
        module.Faulty.made = 0
        return environment

    yield make
    gymnasium.registry.pop("Faulty-v0")
    sys.modules.pop("faulty_environment")


class Collecting:
    """A collector of two seeds, closed at the end."""

    def __init__(self, environment, workers, **options):
        make = eqx.filter_vmap(lambda key: NetworkPolicy(2, Discrete(2), hidden=(4,), key=key))
        self.policy, static = eqx.partition(make(jax.random.split(jax.random.key(0), SEEDS)), eqx.is_array)
        one = jax.tree.map(lambda x: x[0], self.policy)
        shape = {"num_seeds": SEEDS, "num_envs": ENVS, "num_steps": STEPS}
        self.collector = VectorCollector(environment, static, one, **shape, workers=workers, restart=True, **options)

    def __enter__(self):
        self.collector.reset(ENV_SEEDS)
        return self

    def __exit__(self, *_):
        self.collector.close()

    def rollout(self, number=0):
        return self.collector.collect(jax.random.split(jax.random.key(number), SEEDS), self.policy)


ROW = "its row is not valid, it is restarted, and the other environments' data is kept"


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("raises", marks=fault("one environment of many raises", ROW)),
        pytest.param(
            "raises at reset",
            marks=fault("one environment of many raises when it is reset", "it is restarted, and no row is lost"),
        ),
        pytest.param("gives a wrong shape", marks=fault("an observation has the wrong shape", ROW)),
        pytest.param("gives words", marks=fault("an observation consists of strings", ROW)),
        pytest.param("gives a word", marks=fault("a reward is a string", ROW)),
        pytest.param("gives two rewards", marks=fault("a reward is an array", ROW)),
        pytest.param("gives no reward", marks=fault("a reward is None", ROW)),
        pytest.param("gives a reward beyond floats", marks=fault("a reward is an integer too large for a float", ROW)),
        pytest.param("answers in four", marks=fault("step returns four values, as in old Gym", ROW)),
        pytest.param("answers nothing", marks=fault("step returns None", ROW)),
        pytest.param("is over in two ways", marks=fault("terminated is an array", ROW)),
        pytest.param("leaves by sys.exit", marks=fault("an environment calls sys.exit", ROW)),
    ],
)
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_one_faulty_environment_costs_a_row(faulty, what, workers, caplog):
    with Collecting(faulty(what), workers) as collecting:
        rollout, episodes = collecting.rollout()
        valid = np.asarray(rollout.valid)
        at_reset = what == "raises at reset"
        assert (~valid).sum() == (0 if at_reset else 1)
        assert np.asarray(episodes.faults).sum() == 1
        assert "is restarted" in caplog.text
        assert "\n" not in caplog.records[0].getMessage()
        (kept,) = collecting.collector.take_faults()
        if "raises" in what:
            # From worker processes too.
            assert "faulty_environment.py" in kept.traceback
            assert kept.traceback.startswith("Traceback")
            assert "klimb/collect" not in kept.traceback
        if not at_reset:
            seed, step, copy = np.argwhere(~valid)[0]
            assert step == 4
            # What came before is cut off there, and does not look into the new episode.
            assert rollout.truncated[seed, step - 1, copy]
            np.testing.assert_array_equal(rollout.time[seed, :, copy][step + 1 : step + 4], [0, 1, 2])
        assert np.isfinite(column_of(rollout, "next_obs")[valid]).all()
        assert (np.asarray(rollout.reward)[valid] == 1).all()
        again, episodes = collecting.rollout(1)
        assert again.valid.all()
        assert not np.asarray(episodes.faults).any()


@pytest.mark.parametrize(
    "what",
    [
        pytest.param("exits", marks=fault("an environment ends its worker process", "the worker is restarted")),
        pytest.param(
            "crashes",
            marks=[pytest.mark.slow, fault("an environment crashes its worker process", "the worker is restarted")],
        ),
        pytest.param("hangs", marks=fault("an environment hangs past the time limit", "the worker is restarted")),
    ],
)
def test_a_lost_worker_costs_its_rows_of_one_rollout(faulty, what, caplog):
    with Collecting(faulty(what), 2, timeout=2.0) as collecting:
        rollout, episodes = collecting.rollout()
        lost = ~np.asarray(rollout.valid).any(1)
        # A worker has two of the four environments of each seed.
        assert lost.sum() == SEEDS * ENVS / 2
        assert np.asarray(rollout.valid).any(1).sum() == SEEDS * ENVS / 2
        assert np.asarray(episodes.faults).tolist() == [2, 2]
        assert np.isfinite(np.asarray(rollout.log_prob)).all()
        assert "the process that steps the environments" in caplog.text
        where = {
            "exits": "ended with status 3",
            "crashes": "Segmentation fault",
            "hangs": "it hangs in step (faulty_env",
        }
        assert where[what] in caplog.text
        if what != "exits":
            # Written by the process itself, from a signal handler.
            assert all("faulty_environment.py" in fault.traceback for fault in collecting.collector.take_faults())
        again, _ = collecting.rollout(1)
        assert again.valid.all()


def is_printable_text(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


@fault(
    "the last words of a worker hold terminal escapes and change the direction of text",
    "the message is one printable line; the quoted output keeps its lines, without them",
)
def test_last_words_are_printable(faulty, caplog):
    with Collecting(faulty("exits after escapes"), 2) as collecting:
        collecting.rollout()
        said = caplog.records[0].getMessage()
        assert "ended with status 3: " in said
        assert r"then \x1b]0;taken\x07\x1b[2J \u202eturned" in said
        assert said.isprintable()
        (quoted,) = {kept.traceback for kept in collecting.collector.take_faults()}
        assert "first\n\tthen \\x1b]0;taken" in quoted
        assert is_printable_text(quoted)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@fault(
    "the text of an environment's exception holds terminal escapes and changes the direction of text",
    "its traceback keeps its lines, and everything unprintable in it is written as an escape",
)
def test_tracebacks_are_printable(faulty, workers):
    with Collecting(faulty("raises escapes"), workers) as collecting:
        collecting.rollout()
        (kept,) = collecting.collector.take_faults()
        assert "ValueError: first\n\tthen \\x1b]0;taken\\x07\\x1b[2J \\u202eturned\\r\\x85\n" in kept.traceback
        assert is_printable_text(kept.traceback)
        assert kept.cause.isprintable()


CRYING = """
import os
import gymnasium
class Crying(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        if os.getpid() != int(os.environ["NOT_HERE"]):
            os.write(2, b"one\\ntwo \\x1b[2J\\x1b]0;taken\\x07")
            os._exit(7)
        return self.observation_space.low, {}
    def step(self, action):
        return self.observation_space.low, 0.5, False, False, {}
gymnasium.register("Crying-v0", "crying_environment:Crying")
"""


@fault("a process of check-env ends, and its last words hold terminal escapes", "the finding is one printable line")
def test_last_words_of_a_check_are_printable(tmp_path, monkeypatch):
    (tmp_path / "crying_environment.py").write_text(CRYING)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NOT_HERE", str(os.getpid()))
    try:
        check = klimb.check_env("crying_environment:Crying-v0", steps=5)
        (workers,) = (finding for finding in check.findings if finding.name == "worker processes")
        assert workers.text.endswith(r"ends with status 7: two \x1b[2J\x1b]0;taken\x07")
        assert "one\ntwo \\x1b[2J" in workers.traceback
        assert is_printable_text(workers.traceback)
    finally:
        sys.modules.pop("crying_environment", None)
        gymnasium.registry.pop("Crying-v0", None)


@fault("an environment fails at every step", "it is restarted once; then the run stops with the cause")
def test_an_environment_that_always_fails_is_given_up(faulty):
    with (
        Collecting(faulty("always raises"), 0) as collecting,
        pytest.raises(EnvironmentFault, match="fails right after it was restarted: ValueError: the motor is on"),
    ):
        collecting.rollout()


@pytest.mark.slow
@fault("a worker process is lost in every rollout", "it is restarted twice; then the run stops with the cause")
def test_a_worker_that_is_always_lost_is_given_up(faulty):
    with Collecting(faulty("always exits"), 2) as collecting:
        collecting.rollout()
        collecting.rollout()
        with pytest.raises(EnvironmentFault, match=r"ended with status 3.*\(3 rollouts in a row\); --workers 0"):
            collecting.rollout()


@fault(
    "an environment prints megabytes, from Python and from C",
    "its output is kept apart from its results, and discarded",
)
def test_what_environments_print_does_no_harm(faulty, monkeypatch):
    monkeypatch.setattr("klimb.collect.host.worker_process.MAX_STDERR", 10_000)
    with Collecting(faulty("prints"), 2) as collecting:
        for number in range(3):
            rollout, _ = collecting.rollout(number)
            assert rollout.valid.all()
        for worker in collecting.collector._stepping._workers:
            assert os.fstat(worker._errors.fileno()).st_size < 10_000


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@fault("an environment raises, with --env-fault stop", "the run stops with the cause and a checkpoint")
def test_a_run_can_be_told_to_stop(faulty, workers, tmp_path):
    path = tmp_path / "run"
    options = {**SMALL, "num_envs": 4, "workers": workers, "env_steps": 64 * 20, "env_fault": "stop"}
    with pytest.raises(
        TrainingFailed, match=r"ValueError: the motor is on fire.* checkpoint saved; go on with: klimb"
    ) as raised:
        klimb.train(faulty("raises", at=40, length=100), TRPO(), run_dir=path, **options)
    # Here the environment's own exception is the cause; from a worker one whose text holds the traceback there.
    cause = raised.value.__cause__.__cause__
    assert isinstance(cause, RemoteTraceback if workers else ValueError)
    if workers:
        assert 'raise ValueError("the motor is\\non fire")' in str(cause)
    log = (path / "faults.log").read_text()
    assert "after iteration 1: " in log
    assert 'raise ValueError("the motor is\\non fire")' in log
    assert [p.stem for p in (path / "checkpoints").iterdir() if p.stem != "000000000"] == ["000000001"]
    resumed = klimb.resume(path, env=faulty("nothing"))
    assert resumed.history[-1]["iteration"] == 20


@pytest.mark.slow
@fault("an environment raises during a training", "the training goes on; metrics count it as env_faults")
def test_a_training_goes_on(faulty, tmp_path, caplog):
    run = klimb.train(
        faulty("raises", at=40, length=100), TRPO(), run_dir=tmp_path / "run", **SMALL, num_envs=4, env_steps=64 * 6
    )
    log = (tmp_path / "run" / "faults.log").read_text()
    assert re.search(r"UTC  iteration 2, environment \d: ValueError: the motor is on fire .*; it is restarted\n", log)
    assert 'raise ValueError("the motor is\\non fire")' in log
    assert f"the traceback is in {tmp_path / 'run' / 'faults.log'}" in caplog.text
    # In the third rollout; the first is before the first iteration.
    assert [record["env_faults"] for record in run.history] == [0, 1, 0, 0, 0, 0]
    assert all(record["status"] == "ACCEPTED" or record["env_faults"] == 0 for record in run.history)
    assert sum(record["env_steps"] for record in run.history[-1:]) == 7 * 64 - 1


@fault("an environment raises when it is made", "one line with the cause, before anything is trained")
def test_an_environment_that_cannot_be_made(faulty):
    with pytest.raises(klimb.KlimbError, match="no such robot"):
        faulty("raises when made")


@fault("an environment never ends its episode", "training goes on; an evaluation stops with the limit and the remedy")
def test_an_episode_without_end_is_named(faulty):
    environment = faulty("nothing", length=10**9)
    policy = NetworkPolicy(2, Discrete(2), hidden=(4,), key=jax.random.key(0))
    with pytest.raises(EnvironmentFault, match="has not ended after 50 steps: give it an end"):
        klimb.evaluate(policy, environment, episodes=2, max_steps=50)
    with Collecting(environment, 0) as collecting:
        rollout, episodes = collecting.rollout()
        assert rollout.valid.all()
        assert (np.asarray(episodes.count) == 0).all()


@pytest.mark.slow
@fault(
    "a worker process does not start", "the run stops with the last output of the worker, and no process is left behind"
)
def test_a_worker_that_does_not_start(faulty, monkeypatch):
    environment = faulty("nothing")
    monkeypatch.setattr(sys, "path", ["/nonexistent"])
    collecting = Collecting(environment, 2, timeout=10.0)
    collecting.collector.reset(ENV_SEEDS)
    monkeypatch.undo()
    with pytest.raises(EnvironmentFault, match="No module named"):
        collecting.rollout()
    collecting.collector.close()
    assert all(worker.process.poll() is not None for worker in collecting.collector._stepping._workers)


@pytest.mark.slow
@fault("a training from the command line fails", "one line, exit status 1, and a report of the iterations so far")
def test_a_failed_training_leaves_a_report(faulty, tmp_path, monkeypatch, capsys):
    from klimb.cli.main import main

    monkeypatch.chdir(tmp_path)
    words = "--num-envs 4 --num-steps 16 --hidden 8 --critic-num-minibatches 2 --env-steps 640 --workers 1"
    faulty("raises", at=40, length=100)
    command = ["train", "trpo", "gymnasium:faulty_environment:Faulty-v0", "--run-dir", "run", *words.split()]
    assert main([*command, "--env-fault", "stop"]) == 1
    said = capsys.readouterr().err.splitlines()
    # The traceback stands before the line.
    assert "Traceback (most recent call last):" in said
    assert 'raise ValueError("the motor is\\non fire")' in "\n".join(said)
    assert said[-1].startswith("klimb: ")
    assert "go on with: klimb resume run --trust-environment" in said[-1]
    assert (tmp_path / "run" / "report.html").exists()
    assert main(["resume", "run"]) == 2
    assert "--trust-environment" in capsys.readouterr().err


class Unclosable(CartPoleEnv):
    """Something that it needs for that is gone."""

    def close(self):
        raise RuntimeError("the viewer is gone")


@fault("environments can't be closed", "a line for each says so, and the trained policy is kept")
def test_environments_that_cannot_be_closed(caplog):
    vector = GymnasiumVector(Unclosable, 2)
    vector.reset(np.arange(2))
    vector.close()
    assert caplog.text.count("can't be closed: RuntimeError: the viewer is gone") == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [
        pytest.param(
            signal.SIGTERM,
            marks=fault(
                "SIGTERM reaches the workers too, as systemd and SLURM send it",
                "they finish the rollout; no row is lost",
            ),
        ),
        pytest.param(
            signal.SIGHUP,
            marks=fault(
                "SIGHUP reaches the workers too, as a closed terminal sends it",
                "they finish the rollout; no row is lost",
            ),
        ),
    ],
)
def test_workers_outlive_signals(faulty, number):
    with Collecting(faulty("nothing"), 2) as collecting:
        collecting.rollout()
        for worker in collecting.collector._stepping._workers:
            worker.process.send_signal(number)
        rollout, episodes = collecting.rollout(1)
        assert rollout.valid.all()
        assert not np.asarray(episodes.faults).any()
