"""Untrusted files: every defect gives a one-line error."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import TRPO, NetworkPolicy, PolicyFileError
from klimb.cli.main import main
from klimb.policies.actions import Box

fault = pytest.mark.fault
SMALL = dict(num_envs=2, num_steps=16, hidden=(4,), critic_epochs=1, critic_num_minibatches=1, checkpoint_every=1)


def saved(folder: Path, change) -> Path:
    """A policy with other numbers, saved."""
    policy = NetworkPolicy(3, Box((-1.0, -1.0), (1.0, 1.0)), hidden=(4,), key=jax.random.key(0))
    return klimb.save_policy(change(policy), folder)


def with_weight(value: float, *places: tuple[int, int]):
    """A change of some weights of the first layer."""
    return lambda policy: eqx.tree_at(
        lambda p: p.network.weights[0],
        policy,
        policy.network.weights[0].at[tuple(zip(*places, strict=True))].set(value),
    )


def with_statistics(name: str, value: object):
    return lambda policy: eqx.tree_at(
        lambda p: getattr(p.encoder.normalizer, name), policy, jnp.asarray(value, jnp.float32)
    )


NOT_FINITE = "refused, with the array and how many of its numbers are not finite"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(
            with_weight(np.nan, (0, 1), (2, 3)),
            "array network.weights[0] holds 2 numbers of 12 that are not finite",
            marks=fault("weights of a policy are NaN", NOT_FINITE),
            id="nan",
        ),
        pytest.param(
            with_weight(-np.inf, (1, 1)),
            "array network.weights[0] holds 1 number of 12 that is not finite",
            marks=fault("a weight of a policy is infinite", NOT_FINITE),
            id="inf",
        ),
        pytest.param(
            lambda policy: eqx.tree_at(lambda p: p.log_std, policy, jnp.array([0, jnp.nan])),
            "array log_std holds 1 number of 2 that is not finite",
            marks=fault("a log standard deviation of a policy is NaN", NOT_FINITE),
            id="log_std",
        ),
        pytest.param(
            with_statistics("mean", [0, np.inf, 0]),
            "array encoder.normalizer.mean holds 1 number of 3 that is not finite",
            id="mean",
        ),
        pytest.param(
            with_statistics("variance", [1, -0.5, -2]),
            "array encoder.normalizer.variance holds 2 numbers of 3 that are negative",
            marks=fault(
                "a variance of a policy's observations is negative",
                "refused, with how many of its numbers are negative",
            ),
            id="variance",
        ),
        pytest.param(
            with_statistics("count", -1),
            "array encoder.normalizer.count holds 1 number of 1 that is negative",
            marks=fault("a policy has counted a negative number of observations", "refused, with the array"),
            id="count",
        ),
    ],
)
def test_policies_that_are_not_finite(tmp_path, change, said):
    path = saved(tmp_path, change)
    with pytest.raises(PolicyFileError) as raised:
        klimb.load_policy(path)
    message = str(raised.value)
    assert message == f"{path / 'policy.safetensors'} can't be used: {said}"


def test_policies_at_the_edge_are_read(tmp_path):
    for number, change in enumerate(
        (
            with_weight(3e38, (0, 0)),
            with_weight(1e-45, (0, 0)),
            with_statistics("variance", [0, 0, 3e38]),
            with_statistics("count", 0),
        )
    ):
        klimb.load_policy(saved(tmp_path / str(number), change))


class Foreign(eqx.Module):
    """A class of the user's own, whose arrays may mean anything."""

    table: jax.Array

    def __call__(self, obs):
        return klimb.Categorical(logits=self.table)


def test_arrays_of_other_classes_may_be_anything(tmp_path):
    klimb.save_policy(Foreign(jnp.array([0.0, -jnp.inf])), tmp_path)
    assert klimb.load_policy(tmp_path, like=Foreign(jnp.zeros(2))).table[1] == -jnp.inf


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "run"
    klimb.train("CartPole-v1", TRPO(), env_steps=64, run_dir=path, **SMALL)
    return path


def spoil(path: Path) -> None:
    policy = klimb.load_policy(path)
    klimb.save_policy(with_weight(np.nan, (0, 0))(policy), path)


@fault("the policy of a run is not finite when it is evaluated", "one line, and no return")
def test_evaluating_a_policy_that_is_not_finite(run, tmp_path, capsys):
    path = shutil.copytree(run, tmp_path / "run")
    spoil(path)
    assert main(["evaluate", str(path), "--episodes", "1"]) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(
        r"klimb: .*policy\.safetensors can't be used: array network\.weights\[0\] holds 1 number of 16 .*\n",
        printed.err,
    )
    assert "return" not in printed.out


@fault("the policy of a run is not finite when it is resumed", "the checkpoint is used, and the policy written again")
def test_resuming_a_run_whose_policy_is_not_finite(run, tmp_path, caplog):
    path = shutil.copytree(run, tmp_path / "run")
    spoil(path)
    resumed = klimb.resume(path, env_steps=96)
    assert "that is not finite; the checkpoint is used, and its policy written again" in caplog.text
    assert resumed.history[-1]["iteration"] == 3
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(eqx.filter(klimb.load_policy(path), eqx.is_array)))
