"""Seed k of K plays the episodes that it would play alone, here or in worker processes, restarts included."""

from __future__ import annotations

import importlib
import sys

import equinox as eqx
import gymnasium
import jax
import numpy as np
import pytest

import klimb
from klimb.collect.host.collector import VectorCollector
from klimb.environments.adapters.gymnasium import GymnasiumVector
from klimb.environments.seeds import environment_seeds, restart_seed
from klimb.policies.networks import NetworkPolicy
from problems import column_of

SEEDS, ENVS, STEPS = 3, 4, 40
WORKERS = [pytest.param(1, marks=pytest.mark.slow), 2]

FRAGILE = """
import gymnasium
import numpy as np

class Fragile(gymnasium.Env):
    '''Observes random numbers. From its third step on it raises in every twentieth step, by chance.'''
    observation_space = gymnasium.spaces.Box(0, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.random(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps > 2 and self.np_random.random() < 0.05:
            raise RuntimeError("a wheel has come off")
        return self.np_random.random(2, np.float32), float(action), self.np_random.random() < 0.05, False, {}

gymnasium.register("Fragile-v0", "fragile_environment:Fragile", disable_env_checker=True)
"""


@pytest.fixture
def fragile(tmp_path, monkeypatch):
    (tmp_path / "fragile_environment.py").write_text(FRAGILE)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield klimb.make("gymnasium:fragile_environment:Fragile-v0")
    gymnasium.registry.pop("Fragile-v0")
    sys.modules.pop("fragile_environment")


class Collecting:
    """A collector of some of three seeds, with the policy, the noise and the environments of each; closed at the end.

    seeds: which of them.
    """

    def __init__(self, environment, workers, seeds=range(SEEDS)):
        size, actions = environment.observations, environment.actions
        make = eqx.filter_vmap(lambda key: NetworkPolicy(size, actions, hidden=(8,), key=key))
        self.policy, static = eqx.partition(make(self.keys(0, seeds)), eqx.is_array)
        one, shape = jax.tree.map(lambda x: x[0], self.policy), {"num_envs": ENVS, "num_steps": STEPS}
        self.seeds, self.env_seeds = seeds, np.stack([environment_seeds(seed, 0, ENVS) for seed in seeds])
        self.collector = VectorCollector(
            environment, static, one, num_seeds=len(seeds), **shape, workers=workers, restart=True
        )

    def __enter__(self):
        self.collector.reset(self.env_seeds)
        return self

    def __exit__(self, *_):
        self.collector.close()

    def keys(self, number, seeds):
        return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), number))(np.array(seeds))

    def rollout(self, number):
        """The columns of a rollout, `[K, T, N, …]`, and the faults of each seed."""
        rollout, episodes = self.collector.collect(self.keys(number, self.seeds), self.policy)
        names = ("obs", "action", "reward", "terminated", "truncated", "next_obs", "valid", "time")
        return {name: column_of(rollout, name) for name in names}, np.asarray(episodes.faults).tolist()

    def rollouts(self):
        return [self.rollout(number) for number in (1, 2)]


def require_seed(alone, together, k):
    """The rollouts of a seed alone are those of the k-th seed of several, exactly."""
    for (columns, faults), (all_columns, all_faults) in zip(alone, together, strict=True):
        assert faults == [all_faults[k]]
        for name, column in columns.items():
            np.testing.assert_array_equal(column[0], all_columns[name][k], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, *WORKERS])
def test_a_seed_of_several_is_the_seed_alone(workers):
    environment = klimb.make("gymnasium:CartPole-v1")
    with Collecting(environment, workers) as collecting:
        together = collecting.rollouts()
    with Collecting(environment, 0, [1]) as collecting:
        alone = collecting.rollouts()
    require_seed(alone, together, 1)
    assert sum(columns["terminated"].sum() for columns, _ in alone) > 5
    assert len(np.unique(together[0][0]["obs"][:, 0].reshape(-1, 4), axis=0)) == SEEDS * ENVS


@pytest.mark.parametrize("workers", [0, *WORKERS])
def test_copies_restarted_after_faults_do_not_depend_on_other_seeds(fragile, workers):
    with Collecting(fragile, workers) as collecting:
        together = collecting.rollouts()
    with Collecting(fragile, 0, [2]) as collecting:
        alone = collecting.rollouts()
    require_seed(alone, together, 2)
    assert min(count for _, faults in together for count in faults) > 0


def test_a_reset_begins_again_after_restarts(fragile):
    with Collecting(fragile, 0) as collecting:
        first = collecting.rollouts()
        collecting.collector.reset(collecting.env_seeds)
        again = collecting.rollouts()
    jax.tree.map(np.testing.assert_array_equal, again, first)


def test_the_nth_restart_has_the_nth_seed(fragile):
    """An environment with that seed, stepped alone, gives the same observations."""
    vector = GymnasiumVector(fragile.make, 1, restart=True)
    oracle, seed = fragile.make(), 11
    vector.reset(np.array([seed]))
    oracle.reset(seed=seed)
    restarts = 0
    for _ in range(200):
        step = vector.step(np.zeros(1, int))
        if step.valid[0]:
            obs, _, over, _, _ = oracle.step(0)
            obs = oracle.reset()[0] if over else obs
        else:
            restarts, seed = restarts + 1, restart_seed(seed)
            obs, _ = oracle.reset(seed=seed)
        np.testing.assert_array_equal(step.obs[0], obs)
    vector.close()
    assert restarts > 3


def after_a_lost_worker(environment, seeds):
    """The rollout after that in which the first of two workers was lost."""
    with Collecting(environment, 2, seeds) as collecting:
        collecting.rollout(1)
        worker = collecting.collector._stepping._workers[0].process
        worker.kill()
        worker.wait()
        lost, faults = collecting.rollout(2)
        assert not lost["valid"][:, :, : ENVS // 2].any()
        assert lost["valid"][:, :, ENVS // 2 :].all()
        assert faults == [ENVS // 2] * len(seeds)
        return collecting.rollout(3), collecting.env_seeds


@pytest.mark.slow
def test_copies_of_a_replaced_worker_do_not_depend_on_other_seeds():
    environment = klimb.make("gymnasium:CartPole-v1")
    together, env_seeds = after_a_lost_worker(environment, range(SEEDS))
    alone, _ = after_a_lost_worker(environment, [1])
    require_seed([alone], [together], 1)
    single = environment.make()
    for k, n in np.ndindex(SEEDS, ENVS // 2):
        obs, _ = single.reset(seed=restart_seed(int(env_seeds[k, n])))
        np.testing.assert_array_equal(together[0]["obs"][k, 0, n], obs)


@pytest.mark.slow
def test_a_replaced_worker_goes_on_after_its_environments_own_restarts(fragile):
    """A restart counts whether the environment or its process was replaced, so that no seed comes twice."""
    with Collecting(fragile, 2) as collecting:
        stepping, first = collecting.collector._stepping, collecting.env_seeds
        _, faults = collecting.rollout(1)
        assert min(faults) > 0
        seeds = stepping._shares._seeds.copy()
        restarts = np.zeros(first.shape, int)
        for k, n in np.ndindex(first.shape):
            seed = int(first[k, n])
            while seed != seeds[k, n]:
                seed, restarts[k, n] = restart_seed(seed), restarts[k, n] + 1
        assert restarts.sum(1).tolist() == faults
        stepping._workers[0].process.kill()
        collecting.rollout(2)
        for k, n in np.ndindex(SEEDS, ENVS // 2):
            assert stepping._shares._seeds[k, n] == restart_seed(int(seeds[k, n]))
