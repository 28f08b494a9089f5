"""Trainings laid over two devices, against the same on one."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

import klimb
from klimb import PPO, TRPO, ConfigError, RunConfig, TrainOptions
from klimb.training import devices
from klimb.training.devices import run_concurrently
from klimb.training.iteration import Iteration
from klimb.training.program import Program
from problems import assert_same_bits, without_timing

RULES = {"trpo": TRPO(), "ppo": PPO(epochs=2, num_minibatches=2)}
SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
CARTPOLE = "CartPole-v1"

pytestmark = pytest.mark.usefixtures("two_devices")


def every_bit(x):
    """The bits of an array, as bytes."""
    return np.ascontiguousarray(x).reshape(-1).view(np.uint8).tobytes()


def odd_numbers(dtype):
    """Not a number (of two payloads), both zeros, both infinities, the smallest number, and ordinary ones."""
    dtype = np.dtype(dtype)
    tiny = np.array([1], f"uint{8 * dtype.itemsize}").view(dtype)
    payload = np.array([np.nan], dtype).view(f"uint{8 * dtype.itemsize}") | 3
    usual = np.array([np.nan, -0.0, 0.0, np.inf, -np.inf, 1 / 3, -7.0], dtype)
    return np.concatenate([usual, tiny, -tiny, payload.view(dtype)]).reshape(2, 5)


def tree():
    return {
        "float32": odd_numbers(np.float32),
        "float16": odd_numbers(np.float16),
        "bfloat16": odd_numbers(ml_dtypes.bfloat16),
        "int32": np.array([-(2**31), -1, 0, 2**31 - 1], np.int32),
        "uint32": np.array([0, 1, 2**32 - 1], np.uint32),
        "int8": np.array([-128, -1, 127], np.int8),
        "bool": (np.array([[True, False]]), np.array(True)),
        "scalar": np.float32(-0.0),
        "empty": np.zeros((0, 3), np.float32),
        "none": None,
    }


def on_two_devices(function, *arguments):
    mesh = Mesh(jax.local_devices(), ("both",), axis_types=(AxisType.Auto,))
    shared = jax.shard_map(function, mesh=mesh, in_specs=P(), out_specs=P(), check_vma=False)
    return jax.jit(shared)(*arguments)


def require_both_sides(first, second):
    """Each is made on one device; both have to be on both, bit for bit, in type and in shape."""
    made = on_two_devices(lambda a, b: run_concurrently(lambda: a, lambda: b, "both"), first, second)
    assert jax.tree.structure(made) == jax.tree.structure((first, second))
    for result, expected in zip(jax.tree.leaves(made), jax.tree.leaves((first, second)), strict=True):
        assert result.dtype == expected.dtype
        assert result.shape == np.shape(expected)
        assert len(result.addressable_shards) == 2
        for shard in result.addressable_shards:
            assert every_bit(shard.data) == every_bit(expected)


def test_results_are_exchanged_bit_for_bit():
    """Also not-a-numbers of another payload, negative zeros and denormals, which sums of floats would lose."""
    require_both_sides(tree(), {"numbers": odd_numbers(np.float32)[::-1], "flag": np.array(False)})
    require_both_sides(np.float32(1), tree())


def test_results_in_double_precision_are_exchanged_bit_for_bit(x64):
    doubles = {"float64": odd_numbers(np.float64), "int64": np.array([-(2**63), -1, 2**63 - 1])}
    require_both_sides({**tree(), **doubles}, [np.float64(1 / 3), odd_numbers(np.float32)])


def test_nothing_can_be_exchanged():
    require_both_sides((), np.float32(1))
    require_both_sides((), None)


def test_work_side_by_side_is_the_work_alone():
    x = jax.random.normal(jax.random.key(0), (16, 16))

    def work(axis):
        def both(x):
            loop = lambda: jax.lax.fori_loop(0, 5, lambda i, y: jnp.tanh(y @ x), x)  # noqa: E731
            return run_concurrently(loop, lambda: (jnp.sum(x), jnp.argmax(x), x > 0), axis)

        return both

    alone, shared = jax.jit(work(None))(x), on_two_devices(work("both"), x)
    jax.tree.map(np.testing.assert_array_equal, shared, alone)


def test_without_an_axis_both_are_just_called():
    calls = []
    first, second = run_concurrently(lambda: calls.append("first"), lambda: calls.append("second") or "result", None)
    assert (first, second, calls) == (None, "result", ["first", "second"])


class Training:
    """`iterations` of a rule, one a call: the state after each, and the metrics."""

    def __init__(self, rule, iterations, env=CARTPOLE, **options):
        config = RunConfig(env, rule, TrainOptions(**{**SMALL, **options}, env_steps=128 * iterations))
        self.program = Program(config, klimb.make(env))
        self.first = self.numpy(self.program.initial_state())
        self.iterations = iterations

    def run(self, state=None):
        """From a state (of NumPy arrays) on; the policies after each iteration, and the metrics by name."""
        state = self.program.initial_state() if state is None else self.program.place(state)
        self.program.start(iteration=0)
        policies, metrics = [], []
        for _ in range(self.iterations):
            state, row = self.program.advance(state, 1)
            policies.append(self.numpy(state.policy))
            metrics.append(row)
        self.program.close()
        self.last = state
        return policies, {name: np.concatenate([row[name] for row in metrics]) for name in metrics[0]}

    def numpy(self, tree):
        """A copy on the host: a state is given up to the next one. Keys stay keys."""
        is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
        return jax.tree.map(lambda x: jax.device_get(x) if is_key(x) else np.array(x), tree)


def seed(tree, k):
    return jax.tree.map(lambda x: x[k : k + 1], tree)


def require_close(actual, expected):
    """The same training up to rounding: what a line search decides by it may differ only much later."""
    (policies, metrics), (others, other_metrics) = actual, expected
    assert metrics.keys() == other_metrics.keys()
    for name, values in metrics.items():
        assert values.shape == other_metrics[name].shape
    for name in ("surrogate_gain", "kl_old_new", "value_loss", "episode_return", "env_steps"):
        np.testing.assert_allclose(metrics[name][:2], other_metrics[name][:2], rtol=1e-3, atol=1e-6, err_msg=name)
    for policy, other in zip(policies[:2], others[:2], strict=True):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), policy, other)


def require_no_drift(state):
    """Both devices hold the whole state, the same to the bit."""
    for leaf in jax.tree.leaves(state):
        assert len(leaf.sharding.device_set) == 2
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            first, second = leaf.addressable_shards
            assert every_bit(first.data) == every_bit(second.data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trpo", "ppo"])
def test_a_seed_on_two_devices_learns_what_it_learns_on_one(name):
    """Its step is taken on one while its critic is fitted on the other; both know all of the state."""
    alone, shared = (Training(RULES[name], 3, cores=cores) for cores in (1, 2))
    assert (alone.program.iteration.role_axis, shared.program.iteration.role_axis) == (None, devices.AXIS)
    result = shared.run()
    require_close(result, alone.run())
    assert np.abs(result[1]["surrogate_gain"]).min() > 0
    require_no_drift(shared.last)


@pytest.mark.slow
def test_seeds_on_two_devices_are_the_seeds_they_would_be_alone():
    """Two seeds, one a device; and three, of which the second device gets one twice."""
    rule, alone = RULES["ppo"], Training(RULES["ppo"], 2, cores=1)
    expected = {}
    for count in (3, 2):
        together = Training(rule, 2, num_seeds=count, cores=2)
        assert together.program.iteration.role_axis is None
        policies, metrics = together.run()
        assert all(values.shape == (2, count) for values in metrics.values())
        assert all(leaf.shape[0] == count for leaf in jax.tree.leaves(together.last))
        assert len(together.program.policies(together.last)) == count
        for k in range(count):
            if k not in expected:
                expected[k] = alone.run(seed(together.first, k))
            own = [seed(policy, k) for policy in policies], {name: x[:, k : k + 1] for name, x in metrics.items()}
            require_close(own, expected[k])
    first = Training(rule, 1, seed=1, cores=1).first.policy
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), seed(together.first.policy, 1), first
    )


@pytest.mark.slow
def test_seeds_on_two_devices_go_on_from_a_state_on_the_host_bit_for_bit():
    """As a resumed run does; and by the same program, not one compiled for where the state lay."""
    training = Training(RULES["ppo"], 2, num_seeds=3, cores=2)
    program = training.program
    state, _ = program.advance(program.initial_state(), 1)
    kept = training.numpy(state)
    state, metrics = program.advance(state, 1)
    again, again_metrics = program.advance(program.place(kept), 1)
    jax.tree.map(np.testing.assert_array_equal, again_metrics, metrics)
    for leaf, other in zip(jax.tree.leaves(again), jax.tree.leaves(state), strict=True):
        assert leaf.sharding == other.sharding
    assert_same_bits(again, state)
    assert program.source._run._cache_size() == 1


def test_no_more_devices_are_used_than_there_are_seeds_or_cores():
    both = devices.available()
    assert len(both) == 2
    assert [devices.Layout(seeds, both).splits_roles for seeds in (1, 2, 3)] == [True, False, False]
    assert [devices.Layout(seeds, both[:1]).splits_roles for seeds in (1, 2, 3)] == [False] * 3
    state = Training(RULES["ppo"], 1, cores=1).program.initial_state()
    assert {leaf.sharding.device_set == {both[0]} for leaf in jax.tree.leaves(state)} == {True}


@pytest.mark.slow
def test_resume_on_two_devices_gives_the_same_bytes(tmp_path):
    """Gone on with from the checkpoint at 3 of 5 iterations."""
    options = {**SMALL, "env_steps": 5 * 128, "cores": 2, "checkpoint_every": 3}
    whole = klimb.train(CARTPOLE, RULES["ppo"], run_dir=tmp_path / "whole", **options)
    path = shutil.copytree(whole.directory, tmp_path / "run")
    (path / "checkpoints" / "000000005.safetensors").unlink()
    for policy_file in path.glob("policy.*"):
        policy_file.unlink()
    resumed = klimb.resume(path)
    assert without_timing(resumed.history) == without_timing(whole.history)
    assert (path / "policy.safetensors").read_bytes() == (whole.directory / "policy.safetensors").read_bytes()
    assert_same_bits(resumed.state, whole.state)


@pytest.mark.slow
def test_a_host_environment_trains_on_two_devices():
    training = Training(RULES["trpo"], 2, env="gymnasium:CartPole-v1", cores=2, workers=0)
    _, metrics = training.run()
    assert training.program.iteration.role_axis == devices.AXIS
    assert (metrics["surrogate_gain"] > 0).all()
    assert (metrics["kl_old_new"] <= 0.01).all()
    require_no_drift(training.last)


def test_overlap_on_a_compiled_environment_is_refused():
    with pytest.raises(ConfigError, match=r"CartPole-v1 is compiled: .*leave --overlap off"):
        klimb.train(CARTPOLE, TRPO(), **SMALL, env_steps=128, overlap=True)


@pytest.mark.slow
def test_with_overlap_a_rollout_is_of_the_policy_before(monkeypatch):
    """The first two rollouts are of the first policy; each later one of the policy one iteration older.

    Their log-probs, as they are learned from, are those of the policy that acted: importance weights need them.
    """
    rollouts = []
    learn = Iteration.learn

    def spied(self, state, rollout, *others):
        jax.debug.callback(lambda x: rollouts.append(jax.tree.map(jnp.array, x)), rollout)
        return learn(self, state, rollout, *others)

    monkeypatch.setattr(Iteration, "learn", spied)
    options = dict(cores=1, workers=0, overlap=True, normalize_observations=False)
    training = Training(RULES["trpo"], 4, env="gymnasium:CartPole-v1", **options)
    policies, metrics = training.run()
    jax.effects_barrier()
    assert np.isfinite(metrics["surrogate_gain"]).all()
    np.testing.assert_array_equal(metrics["env_steps"][:, 0], 128 * np.arange(1, 5))
    policies = [training.first.policy, *policies]

    def log_prob(policy, rollout):
        own = eqx.combine(jax.tree.map(lambda x: jnp.asarray(x[0]), policy), training.program.policy_static)
        return own(rollout.obs).log_prob(rollout.action)

    assert len(rollouts) == 4
    for i, rollout in enumerate(rollouts):
        np.testing.assert_allclose(rollout.log_prob, log_prob(policies[max(i - 1, 0)], rollout), atol=1e-5)
        if i > 0:
            assert np.abs(rollout.log_prob - log_prob(policies[i], rollout)).max() > 1e-3
    for rollout, following in itertools.pairwise(rollouts):
        goes_on = ~np.asarray(rollout.terminated | rollout.truncated)[-1]
        np.testing.assert_array_equal(following.obs[0][goes_on], rollout.next_obs[-1][goes_on])


def run_python(code):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=environment)


def test_every_core_is_a_device_unless_their_number_has_been_chosen():
    run_python(
        """
import os
import jax
from klimb.training import devices
devices.cores = lambda: 3
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
devices.use_all_cores()
assert jax.config.jax_num_cpu_devices < 1
del os.environ["XLA_FLAGS"]
jax.config.update("jax_num_cpu_devices", 2)
devices.use_all_cores()
assert jax.config.jax_num_cpu_devices == 2
jax.config.update("jax_num_cpu_devices", -1)
devices.use_all_cores()
assert len(jax.devices()) == 3
"""
    )


def test_once_jax_has_started_the_cores_stay_as_they_are():
    run_python(
        """
import io, logging
import jax
from klimb.training import devices
said = io.StringIO()
logging.getLogger("klimb").addHandler(logging.StreamHandler(said))
devices.cores = lambda: 3
assert len(jax.devices()) == 1
devices.use_all_cores()
assert len(jax.devices()) == 1
assert jax.config.jax_num_cpu_devices < 1
assert "came too late: JAX has started, with 1 of 3 cores" in said.getvalue(), said.getvalue()
"""
    )


def test_more_cores_than_there_are_is_said(caplog):
    """A run may come from a larger machine, so it is no error."""
    both = devices.available()
    assert list(devices.limited(both, None)) == list(devices.limited(both, 2)) == list(both)
    assert not caplog.records
    assert list(devices.limited(both, 64)) == list(both)
    assert "cores = 64, but JAX has only 2 here, which are all used" in caplog.text
