"""Rollouts stepped by worker processes, against the same ones stepped here."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import signal
import sys

import equinox as eqx
import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium.envs.classic_control import CartPoleEnv

import klimb
from klimb import RunError
from klimb.collect.host.collector import VectorCollector
from klimb.collect.host.in_process import InProcess
from klimb.collect.host.workers import Workers
from klimb.environments.adapters.gymnasium import GymnasiumEnvironment
from klimb.environments.seeds import environment_seeds
from klimb.policies.actions import action_spec
from klimb.policies.networks import NetworkPolicy

SEEDS, ENVS, STEPS = 2, 3, 30
SHAPE = {"num_seeds": SEEDS, "num_envs": ENVS, "num_steps": STEPS}


def seeds_of_copies(seed):
    """As a training has them."""
    return np.stack([environment_seeds(seed + k, 0, ENVS) for k in range(SEEDS)])


def policies(environment):
    """One policy a seed, far from uniform, so that one seed's rows under another's policy are noticed."""
    size, actions = environment.observations, environment.actions
    make = eqx.filter_vmap(lambda key: NetworkPolicy(size, actions, hidden=(8,), key=key))
    policy = make(jax.random.split(jax.random.key(0), SEEDS))
    weights = policy.network.weights
    policy = eqx.tree_at(lambda p: p.network.weights, policy, (*weights[:-1], 100 * weights[-1]))
    return eqx.partition(policy, eqx.is_array)


class Collecting:
    """A collector, closed at the end, and its policies."""

    def __init__(self, environment, workers, **shape):
        self.policy, static = policies(environment)
        one = jax.tree.map(lambda x: x[0], self.policy)
        self.collector = VectorCollector(environment, static, one, **{**SHAPE, **shape}, workers=workers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.collector.close()

    def key(self, number):
        return jax.random.split(jax.random.key(number), SEEDS)

    def rollouts(self, seed=5):
        self.collector.reset(seeds_of_copies(seed))
        return [self.collector.collect(self.key(number), self.policy) for number in (1, 2)]

    @property
    def processes(self):
        stepping = self.collector._stepping
        return [worker.process for worker in stepping._workers] if isinstance(stepping, Workers) else []


@pytest.fixture(scope="module")
def here():
    """Two rollouts of an environment with `workers=0`, and the episodes that ended in them."""
    found = {}

    def rollouts(name):
        if name not in found:
            with Collecting(klimb.make(name), 0) as collecting:
                found[name] = collecting.rollouts()
        return found[name]

    return rollouts


def require_equal(actual, expected, discrete):
    """Where the actions are equal to the bit, so is all that follows from them."""
    tolerance = {"rtol": 0, "atol": 0} if discrete else {"rtol": 1e-4, "atol": 1e-4}
    for (rollout, summary), (other, other_summary) in zip(actual, expected, strict=True):
        for field in dataclasses.fields(rollout):
            if getattr(other, field.name) is None:  # not recorded here
                continue
            values, others = np.asarray(getattr(rollout, field.name)), np.asarray(getattr(other, field.name))
            assert values.dtype == others.dtype
            by_name = {"rtol": 1e-5, "atol": 1e-5} if discrete and field.name == "log_prob" else tolerance
            np.testing.assert_allclose(values, others, **by_name, err_msg=field.name)
        np.testing.assert_array_equal(summary.count, other_summary.count)
        np.testing.assert_allclose(summary.mean_return, other_summary.mean_return, rtol=1e-4)
        np.testing.assert_allclose(summary.mean_length, other_summary.mean_length)


@pytest.mark.parametrize(
    "workers", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", ["gymnasium:CartPole-v1", "gymnasium:Pendulum-v1"])
def test_rollouts_are_those_of_this_process(here, name, workers):
    """Whatever the number of processes; again after a reset with the same seed; and the processes end."""
    discrete = "CartPole" in name
    expected = here(name)
    assert not np.allclose(expected[0][0].obs, expected[1][0].obs)
    with Collecting(klimb.make(name), workers) as collecting:
        require_equal(collecting.rollouts(), expected, discrete)
        processes = collecting.processes
        assert len(processes) == workers
        if workers == 2:
            require_equal(collecting.rollouts(), expected, discrete)
            assert not np.allclose(collecting.rollouts(seed=7)[0][0].obs[:, 0], expected[0][0].obs[:, 0])
            assert collecting.processes == processes, "a reset needs no new processes"
        assert all(process.poll() is None for process in processes)
    assert [process.poll() for process in processes] == [0] * workers
    if discrete:
        assert sum(int(summary.count.sum()) for _, summary in expected) > 5


def test_more_workers_than_environments_are_one_each(here):
    with Collecting(klimb.make("gymnasium:CartPole-v1"), 8) as collecting:
        require_equal(collecting.rollouts(), here("gymnasium:CartPole-v1"), discrete=True)
        assert len(collecting.processes) == ENVS


@pytest.mark.parametrize("workers", [0, 1])
def test_a_rollout_begun_and_finished_is_one_collected(here, workers):
    """It goes on meanwhile in a thread or in the worker; the rest of a rollout is computed of what it has seen."""
    with Collecting(klimb.make("gymnasium:Pendulum-v1"), workers) as collecting:
        collector, policy = collecting.collector, jax.tree.map(np.array, collecting.policy)
        collector.reset(seeds_of_copies(5))
        for number, (rollout, summary) in zip((1, 2), here("gymnasium:Pendulum-v1"), strict=True):
            assert not collector.under_way
            collector.begin(collector.draw(collecting.key(number), policy), policy)
            assert collector.under_way
            seen, seen_summary = collector.finish()
            for name, values in {**seen.columns._asdict(), "time": seen.time}.items():
                if name in ("derivatives", "carry"):  # none
                    continue
                np.testing.assert_allclose(values, getattr(rollout, name), rtol=1e-4, atol=1e-4, err_msg=name)
            np.testing.assert_array_equal(seen_summary.count, summary.count)


FAILING = """
import gymnasium
import numpy as np

class Failing(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        print("said aloud")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        print("said aloud")
        self.steps += 1
        if self.steps > 40:
            raise ValueError("the motor is on fire")
        return np.zeros(2, np.float32), 1.0, False, False, {}

gymnasium.register("Failing-v0", "failing_environment:Failing", disable_env_checker=True)
"""


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """An environment, of a module that only this process's path leads to, that talks, and fails at its 41st step."""
    (tmp_path / "failing_environment.py").write_text(FAILING)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield klimb.make("gymnasium:failing_environment:Failing-v0")
    gymnasium.registry.pop("Failing-v0")
    sys.modules.pop("failing_environment")


def test_an_environment_that_fails_is_named_with_the_remedy(failing):
    """The first rollout, with what the environment prints among the answers, is a rollout."""
    with Collecting(failing, 2) as collecting:
        collecting.collector.reset(seeds_of_copies(0))
        rollout, _ = collecting.collector.collect(collecting.key(1), collecting.policy)
        assert rollout.time.max() == STEPS - 1
        with pytest.raises(
            RunError, match=r"every seed: copy 0 .* ValueError: the motor is on fire \(.*\); --workers 0 "
        ):
            collecting.collector.collect(collecting.key(2), collecting.policy)
        processes = collecting.processes
    assert all(process.poll() is not None for process in processes)


def test_a_recipe_that_cannot_be_followed_is_named_with_the_remedy():
    environment = klimb.make("gymnasium:CartPole-v1")
    broken = dataclasses.replace(environment, env_spec={**environment.env_spec, "module": "no_such_module"})
    with Collecting(broken, 2) as collecting:
        with pytest.raises(RunError, match=r"0 to 0 .* No module named 'no_such_module'; --workers 0 "):
            collecting.rollouts()
        processes = collecting.processes
    assert all(process.poll() is not None for process in processes)


def test_a_worker_that_is_killed_is_missed_and_one_that_is_interrupted_is_not():
    """Ctrl-C reaches all processes of a terminal: the run saves its checkpoint, and the workers wait for it."""
    with Collecting(klimb.make("gymnasium:CartPole-v1"), 2) as collecting:
        collecting.rollouts()
        for process in collecting.processes:
            process.send_signal(signal.SIGINT)
        collecting.collector.collect(collecting.key(3), collecting.policy)
        collecting.processes[1].kill()
        collecting.processes[1].wait()
        with pytest.raises(RunError, match=r"environments 1 to 2 .* ended with status -9: it wrote nothing; --work"):
            collecting.collector.collect(collecting.key(4), collecting.policy)


class Own(CartPoleEnv):
    """Registered as an object of this process."""

    made = itertools.count()

    def __init__(self, **options):
        next(self.made)
        super().__init__(**options)


def by_object():
    gymnasium.register("Own-v0", Own)
    try:
        yield klimb.make("gymnasium:Own-v0")
    finally:
        gymnasium.registry.pop("Own-v0")


def by_maker():
    yield GymnasiumEnvironment.from_maker("own", Own)


@pytest.mark.parametrize("environments", [by_object, by_maker])
def test_what_no_other_process_can_make_is_stepped_in_this_one(environments):
    for environment in environments():
        assert environment.env_spec is None
        before = next(Own.made)
        with Collecting(environment, 2) as collecting:
            rollout, _ = collecting.rollouts()[0]
            assert collecting.processes == []
        assert next(Own.made) - before == 1 + SEEDS * ENVS
        assert np.isfinite(rollout.log_prob).all()


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_policy_of_ones_own_is_asked_wherever_environments_are_stepped(workers):
    class Bolder(NetworkPolicy):
        """NumPy knows no subclass."""

        def __call__(self, obs):
            return klimb.Categorical(logits=jnp.broadcast_to(jnp.array([-50.0, 50.0]), (*obs.shape[:-1], 2)))

    make = eqx.filter_vmap(lambda key: Bolder(4, action_spec(gymnasium.spaces.Discrete(2)), hidden=(8,), key=key))
    policy, static = eqx.partition(make(jax.random.split(jax.random.key(0), SEEDS)), eqx.is_array)
    environment, one = klimb.make("gymnasium:CartPole-v1"), jax.tree.map(lambda x: x[0], policy)
    collector = VectorCollector(environment, static, one, **SHAPE, workers=workers)
    collector.reset(seeds_of_copies(0))
    rollout, _ = collector.collect(jax.random.split(jax.random.key(0), SEEDS), policy)
    assert isinstance(collector._stepping, Workers if workers else InProcess)
    collector.close()
    assert (rollout.action == 1).all()
