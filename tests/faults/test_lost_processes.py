"""Processes that train together, of which one is lost or stopped."""

from __future__ import annotations

import os
import signal
import time

import pytest

from two_processes import SMALL, finish, said, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
fault = pytest.mark.fault
TRAIN = ["train", "trpo", "CartPole-v1", *SMALL, "--checkpoint-every", 10]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that nothing happens to."""
    path = tmp_path_factory.mktemp("whole")
    assert finish(start([*TRAIN, "--env-steps", 200 * 128, "--run-dir", path / "run"], path)) == [0, 0]
    return path / "run"


def wait_for(file, seconds=90):
    end = time.monotonic() + seconds
    while not file.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert file.exists()


def stopped(path, number, what):
    """A training one of whose processes gets a signal after ten iterations: the exit statuses of both."""
    processes = start([*TRAIN, "--env-steps", 200 * 128, "--run-dir", path / "run"], path)
    try:
        wait_for(path / "run" / "checkpoints" / "000000010.safetensors")
        os.kill(processes[number].pid, what)
        begun = time.monotonic()
        statuses = finish(processes)
        assert time.monotonic() - begun < 15
        return statuses
    finally:
        finish(processes)


def require_the_same_after_resuming(path, whole):
    assert finish(start(["resume", path / "run"], path / "on")) == [0, 0]
    assert (path / "run" / "policy.safetensors").read_bytes() == (whole / "policy.safetensors").read_bytes()


@pytest.mark.long
@fault("one of two processes that train together is killed (SIGKILL)", "one line within seconds; resuming: same bytes")
def test_a_process_is_killed(whole, tmp_path):
    first, second = stopped(tmp_path, 1, signal.SIGKILL)
    assert (first, second) == (1, -signal.SIGKILL)
    (line,) = said(tmp_path, 0)
    assert "another process of the training is gone" in line
    assert f"go on with: klimb resume {tmp_path / 'run'}, in all processes" in line
    require_the_same_after_resuming(tmp_path, whole)


@fault("the first of two processes that train together is killed (SIGKILL)", "the other ends within seconds")
def test_the_first_process_is_killed(tmp_path):
    first, second = stopped(tmp_path, 0, signal.SIGKILL)
    assert first == -signal.SIGKILL
    # JAX ends it, or the collective that it waits for does.
    assert second not in (0, 2)


@fault("one of two processes that train together gets SIGTERM", "both stop with one checkpoint; resuming: same bytes")
def test_a_process_is_told_to_stop(whole, tmp_path):
    assert stopped(tmp_path, 1, signal.SIGTERM) == [128 + signal.SIGTERM] * 2
    assert f"checkpoint saved; go on with: klimb resume {tmp_path / 'run'}" in said(tmp_path, 0)[0]
    assert "the first process has the run" in said(tmp_path, 1)[0]
    require_the_same_after_resuming(tmp_path, whole)


@fault(
    "an environment of one of two processes that train together fails", "one line in each; the last checkpoint stays"
)
def test_an_environment_of_one_process_fails(tmp_path):
    words = [
        "train",
        "trpo",
        "gymnasium:two_processes:FailsInTheSecond-v0",
        *SMALL,
        "--env-fault",
        "stop",
        "--checkpoint-every",
        2,
    ]
    assert finish(start([*words, "--env-steps", 40 * 128, "--run-dir", tmp_path / "run"], tmp_path)) == [1, 1]
    assert "the simulator has failed" in said(tmp_path, 1)[0]
    assert "another process of the training is gone" in said(tmp_path, 0)[0]
    assert (tmp_path / "run" / "checkpoints" / "000000004.safetensors").exists()
