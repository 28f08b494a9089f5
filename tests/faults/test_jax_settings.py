"""Settings of JAX with which no training is possible: one line before anything is written."""

from __future__ import annotations

import jax
import pytest

import klimb
from klimb import TRPO, ConfigError

fault = pytest.mark.fault
ONE_LINE = "one line with the setting and what to do, before anything is written"
SMALL = {"env_steps": 64, "num_envs": 2, "num_steps": 16, "hidden": (4,), "critic_num_minibatches": 1}


@pytest.mark.parametrize(
    ("name", "value", "usual"),
    [
        pytest.param(name, value, usual, marks=fault(f"JAX's {name} is {value}", ONE_LINE))
        for name, value, usual in (
            ("jax_debug_nans", True, False),
            ("jax_debug_infs", True, False),
            ("jax_numpy_dtype_promotion", "strict", "standard"),
            ("jax_numpy_rank_promotion", "raise", "allow"),
        )
    ],
)
def test_settings(name, value, usual, tmp_path):
    jax.config.update(name, value)
    try:
        with pytest.raises(ConfigError, match=f"JAX's setting {name} is {value}: ") as caught:
            klimb.train("CartPole-v1", TRPO(), run_dir=tmp_path / "run", **SMALL)
    finally:
        jax.config.update(name, usual)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(RuntimeError("Unable to\ninitialize"), marks=fault("JAX_PLATFORMS names no platform", ONE_LINE)),
        pytest.param(AssertionError(), marks=fault("JAX_PLATFORMS names a platform that is not installed", ONE_LINE)),
    ],
)
def test_platforms(error, monkeypatch, tmp_path):
    def fail():
        raise error

    monkeypatch.setattr(jax, "local_devices", fail)
    with pytest.raises(ConfigError, match=r"JAX can't use the platform .* \(JAX_PLATFORMS\): ") as caught:
        klimb.train("CartPole-v1", TRPO(), run_dir=tmp_path / "run", **SMALL)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
