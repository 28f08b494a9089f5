"""A run directory as klimb 0.1.0 wrote it, of 6 iterations: its newest checkpoint left is that of iteration 3."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb.report.data import read_run
from klimb.runs.directory import RunDirectory
from klimb.runs.metrics import read_metrics
from klimb.runs.provenance import read_provenance

OLD = Path(__file__).parent.parent / "data" / "run-0.1.0"


@pytest.fixture
def run_dir(tmp_path):
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_an_old_policy_acts_as_it_did(run_dir):
    policy = klimb.load_policy(run_dir)
    assert policy.observations.shape == (4,)
    # Computed from the arrays of the file, in NumPy.
    arrays = {name: np.asarray(x) for name, x in zip("mvcwWbB", jax.tree.leaves(policy), strict=False)}
    obs = np.array([0.3, -0.2, 0.1, 0.4], np.float32)
    scaled = np.clip((obs - arrays["m"]) / np.sqrt(arrays["v"]), -10, 10)
    logits = np.tanh(scaled @ arrays["w"] + arrays["b"]) @ arrays["W"] + arrays["B"]
    np.testing.assert_allclose(policy(jnp.asarray(obs)).logits, logits, rtol=1e-5)
    assert policy.act(obs) == logits.argmax()


@pytest.mark.slow
def test_an_old_run_is_resumed_where_it_would_have_gone(run_dir):
    """Options that have another name since are understood. The same step follows, up to rounding.

    Later ones differ: since then new statistics no longer change the policy after the step.
    """
    before = read_metrics(OLD / "metrics.jsonl")
    run = klimb.resume(run_dir)
    assert run.config.rule == klimb.DualDescent(epochs=2, num_minibatches=2, max_overshoot=3.0)
    assert [record["iteration"] for record in run.history] == [1, 2, 3, 4, 5, 6]
    assert [(entry.event, entry.iteration) for entry in read_provenance(run_dir)] == [("resume", 3)]
    for old, new in zip(before[3:], run.history[3:], strict=True):
        assert new.keys() - old.keys() == {"kl_normalizer"}
        assert old.keys() < new.keys()
    written = json.loads((run_dir / "policy.json").read_text())
    assert written["normalizer"] == {"clip": 10.0, "variance_floor": 1e-8}
    for name in ("surrogate_gain", "kl_old_new", "entropy", "value_loss", "multiplier"):
        assert run.history[3][name] == pytest.approx(before[3][name], rel=1e-3, abs=1e-6), name


def test_an_old_name_of_a_metric_is_read_as_the_present_one(run_dir):
    """In the records of a run, in its report, and in what `compare` reads."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    records = RunDirectory.open(run_dir).history()
    bound = [line["guaranteed_improvement"] for line in lines]
    assert [record["sampled_improvement_bound"] for record in records] == bound
    assert not any("guaranteed_improvement" in record for record in records)
    run = read_run(run_dir)
    np.testing.assert_allclose(run.columns["sampled_improvement_bound"][:, 0], bound)
    assert not run.has("guaranteed_improvement")
    page = klimb.write_report(run_dir).read_text()
    assert "Sampled lower bound and realised improvement" in page
    assert "uaranteed improvement" not in page


def test_an_old_run_is_evaluated_and_reported(run_dir):
    assert klimb.evaluate(klimb.load_policy(run_dir), "CartPole-v1", episodes=2).mean > 5
    assert "Dual descent" in klimb.write_report(run_dir).read_text()
