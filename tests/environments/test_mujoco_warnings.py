"""MuJoCo's warnings are logged once, and leave no file in the current directory."""

from __future__ import annotations

import logging

import pytest

import klimb
from klimb.environments import mujoco_warnings

mujoco = pytest.importorskip("mujoco")

UNSTABLE = "Nan, Inf or huge value in QACC at DOF {}. The simulation is unstable. Time = {}."


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """As in a process that has made no environment yet, in an empty directory."""
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(None)
    monkeypatch.setattr(mujoco_warnings, "_SAID", set())
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    mujoco.set_mju_user_warning(before)


def test_a_warning_is_logged_once_and_no_file_is_left(fresh, caplog):
    klimb.make("gymnasium:InvertedPendulum-v5")
    warn = mujoco.get_mju_user_warning()
    with caplog.at_level(logging.WARNING, logger="klimb"):
        caplog.clear()
        for joint, time in ((0, 0.5), (3, 17.25)):
            warn(UNSTABLE.format(joint, time))
        warn("another warning")
    assert [record.getMessage() for record in caplog.records] == [
        f"MuJoCo: {UNSTABLE.format(0, 0.5)}",
        "MuJoCo: another warning",
    ]
    assert not list(fresh.iterdir())


def test_a_function_of_the_users_own_stays(fresh):
    said = []
    mujoco.set_mju_user_warning(said.append)
    mujoco_warnings.log_warnings("gymnasium.envs.mujoco.hopper_v5:HopperEnv")
    mujoco.get_mju_user_warning()("mine")
    assert said == ["mine"]


def test_nothing_is_imported_for_other_environments(monkeypatch):
    monkeypatch.delitem(mujoco_warnings.sys.modules, "mujoco")
    mujoco_warnings.log_warnings("gymnasium.envs.classic_control:CartPoleEnv")
    assert "mujoco" not in mujoco_warnings.sys.modules
