"""TensorBoard's files: tags in groups, a folder per seed, and steps that are there once, resumed or not."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from klimb.improve.rule import traits_of
from klimb.rules import RULES
from klimb.runs.metrics import METRICS, MetricsLog
from klimb.runs.series import GROUPS, SEPARATE_SEEDS, tag


def events(folder: Path) -> list[Event]:
    """The events of a folder in the order in which TensorBoard reads them: by name of the file; checksums right."""
    found = []
    for path in sorted(folder.glob("*tfevents*")):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12]) == (masked_crc32c(data[:8]),)
            body, data = data[12 : 12 + length], data[12 + length :]
            assert struct.unpack("<I", data[:4]) == (masked_crc32c(body),)
            data = data[4:]
            found.append(Event.FromString(body))
        assert found[0].file_version == "brain.Event:2"
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, number) by tag, as TensorBoard shows them: a session's start withdraws its step and later ones."""
    shown: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            shown = {name: [point for point in points if point[0] < event.step] for name, points in shown.items()}
        for value in event.summary.value:
            shown.setdefault(value.tag, []).append((event.step, value.simple_value))
    return {name: points for name, points in shown.items() if points}


def record(iteration: int, seeds: int = 1, **more) -> dict:
    several = seeds > 1
    own = {"kl_old_new": [k + iteration / 8 for k in range(seeds)], "status": ["ACCEPTED", "NONFINITE"] * seeds}
    return {
        "iteration": iteration,
        "env_steps": 100 * iteration,
        "steps_per_second": 7.0,
        **{name: values[:seeds] if several else values[0] for name, values in own.items()},
        **more,
    }


def test_every_common_metric_is_in_a_group_and_those_of_rules_in_one_of_their_own():
    grouped = [name for names in GROUPS.values() for name in names]
    evaluations = {name for name in METRICS if name.startswith("eval_")}
    assert sorted(grouped) == sorted(METRICS.keys() - evaluations - {"env_steps"})
    assert tag("eval_return") == "evaluation/eval_return"
    assert tag("kl_old_new") == "step/kl_old_new"
    for rule in RULES.values():
        assert all(tag(name) == f"rule/{name}" for name in traits_of(rule()).metrics)


def test_one_seed_stands_in_the_run_itself(tmp_path):
    log = MetricsLog(tmp_path)
    log.append([record(1, explained_variance=None, cg_residual=0.5)])
    log.append([record(2, explained_variance=0.25), record(3, explained_variance=0.5)])
    log.close()
    assert curves(tmp_path) == {
        "speed/iteration": [(100, 1), (300, 3)],
        "speed/steps_per_second": [(100, 7), (300, 7)],
        "step/kl_old_new": [(100, 0.125), (300, 0.375)],
        "step/status": [(100, 0), (300, 0)],
        "rule/cg_residual": [(100, 0.5)],
        "critic/explained_variance": [(300, 0.5)],
    }
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == set()


def test_seeds_are_runs_of_their_own_under_the_same_tags(tmp_path):
    log = MetricsLog(tmp_path, seeds=(5, 6))
    log.append([record(2, 2, episode_return=[None, 30.0])])
    log.close()
    assert not list(tmp_path.glob("*tfevents*"))
    first, second = (curves(tmp_path / f"seed_{seed}") for seed in (5, 6))
    assert first["step/kl_old_new"] == [(200, 0.25)]
    assert second["step/kl_old_new"] == [(200, 1.25)]
    assert second["step/status"] == [(200, 3)]
    assert "return/episode_return" not in first
    assert second["return/episode_return"] == [(200, 30)]
    assert first["speed/steps_per_second"] == second["speed/steps_per_second"] == [(200, 7)]


def test_of_many_seeds_there_are_three_curves(tmp_path):
    count = SEPARATE_SEEDS + 1
    log = MetricsLog(tmp_path, seeds=range(count))
    log.append([record(8, count, episode_return=[None, 3.0, 5.0, 10.0] + [None] * (count - 4))])
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["highest", "lowest", "median"]
    for name, kl, value in (("lowest", 1, 3), ("median", 9, 5), ("highest", 17, 10)):
        assert curves(tmp_path / name)["step/kl_old_new"] == [(800, kl)]
        assert curves(tmp_path / name)["return/episode_return"] == [(800, value)]


@pytest.mark.parametrize("kept", [0, 2])
def test_a_resumed_run_has_every_step_once(kept, tmp_path):
    """Killed after iteration 4, its newest checkpoint is of an earlier one: what follows is made, and shown, again."""
    log = MetricsLog(tmp_path)
    for i in range(1, 5):
        log.append([record(i)])
    log.close()
    (before,) = tmp_path.glob("*tfevents*")
    content = before.read_bytes()
    log = MetricsLog(tmp_path, keep_until=kept)
    for i in range(kept + 1, 7):
        log.append([record(i, kl_old_new=-1.0)])
    log.close()
    assert curves(tmp_path)["step/kl_old_new"] == [
        *((100 * i, i / 8) for i in range(1, kept + 1)),
        *((100 * i, -1) for i in range(kept + 1, 7)),
    ]
    # What was written before is left as it is, even within the same second.
    assert before.read_bytes() == content
    assert len(list(tmp_path.glob("*tfevents*"))) == 2


def test_passes_over_demonstrations_stand_one_after_the_other(tmp_path):
    """They make no environment steps."""
    log = MetricsLog(tmp_path)
    for i in (1, 2):
        log.append([record(i, env_steps=0)])
    log.close()
    log = MetricsLog(tmp_path, keep_until=1)
    log.append([record(2, env_steps=0)])
    log.close()
    assert curves(tmp_path)["step/kl_old_new"] == [(1, 0.125), (2, 0.25)]


def test_strange_files_and_links_of_others_do_no_harm(tmp_path, caplog):
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    for name in ("events.out.tfevents.zzz.klimb", "events.out.tfevents.99999999999999999999.klimb"):
        (run / name).write_bytes(b"not an event")
    MetricsLog(run).close()
    assert len(list(run.glob("*tfevents*"))) == 3
    (run / "seed_1").symlink_to(elsewhere)
    MetricsLog(run, seeds=(0, 1)).close()
    assert not list(elsewhere.iterdir())
    assert "there is a link" in caplog.text
