"""Full disks, incomplete files, removed directories, and two processes at once."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, RunError
from klimb.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from klimb.runs.metrics import MetricsLog, read_metrics

SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
RULE = PPO(epochs=1, num_minibatches=2)
fault = pytest.mark.fault


def state(number: float) -> dict:
    return {"weights": jnp.full((30, 20), number), "key": jax.random.key(5)}


TEMPLATE = jax.eval_shape(lambda: state(0.0))


@pytest.fixture
def checkpoints(tmp_path):
    """Two checkpoints, of iterations 1 and 2."""
    for iteration in (1, 2):
        save_checkpoint(tmp_path / "c", Checkpoint(state(float(iteration)), iteration, 0.5), keep=3)
    return tmp_path / "c"


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def cut_a_byte(path):
    path.write_bytes(path.read_bytes()[:-1])


def empty(path):
    path.write_bytes(b"")


def flip(where):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(where * (len(content) - 1))] ^= 4
        path.write_bytes(bytes(content))

    return damage


def overwrite(path):
    path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size))


def become_a_directory(path):
    path.unlink()
    path.mkdir()


def other_format(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b"klimb-checkpoint-2", b"klimb-checkpoint-9"))


USED = "the one before is used, with a line that says so"


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(halve, marks=fault("the newest checkpoint is cut in half", USED)),
        pytest.param(cut_a_byte, marks=fault("the newest checkpoint lacks its last byte", USED)),
        pytest.param(empty, marks=fault("the newest checkpoint is empty", USED)),
        pytest.param(flip(0.0), marks=fault("a bit of its first bytes is flipped", USED)),
        pytest.param(flip(0.95), marks=fault("a bit of a parameter is flipped", USED)),
        pytest.param(overwrite, marks=fault("the newest checkpoint holds random bytes of the same length", USED)),
        pytest.param(become_a_directory, marks=fault("the newest checkpoint is a directory", USED)),
        pytest.param(other_format, marks=fault("the newest checkpoint is of another format", USED)),
    ],
)
def test_a_damaged_newest_checkpoint_gives_way(damage, checkpoints, caplog):
    damage(checkpoints / "000000002.safetensors")
    found = load_checkpoint(checkpoints, TEMPLATE)
    assert found.iteration == 1
    assert float(found.state["weights"][0, 0]) == 1.0
    assert "000000002.safetensors" in caplog.text
    assert "resuming from iteration 1" in caplog.text


def test_every_flipped_bit_of_a_checkpoint_is_noticed_or_harmless(checkpoints):
    """Harmless: in the blanks that fill the header up."""
    path = checkpoints / "000000002.safetensors"
    (checkpoints / "000000001.safetensors").unlink()
    content = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.choice(len(content), 150, replace=False):
        spoiled = bytearray(content)
        spoiled[position] ^= 1 << rng.integers(8)
        path.write_bytes(bytes(spoiled))
        try:
            found = load_checkpoint(checkpoints, TEMPLATE)
        except RunError:
            continue
        assert (np.asarray(found.state["weights"]) == 2.0).all()
        assert found.iteration == 2


@fault("all checkpoints are damaged", "the run can't be resumed, with what is wrong with each of them")
def test_no_usable_checkpoint_names_all(checkpoints):
    for path in checkpoints.iterdir():
        halve(path)
    with pytest.raises(RunError, match=r"no usable checkpoint \(000000002.*000000001"):
        load_checkpoint(checkpoints, TEMPLATE)


@fault("all checkpoints but the best are damaged", "the best is used")
def test_the_best_is_the_last_resort(checkpoints, tmp_path):
    shutil.copy(checkpoints / "000000001.safetensors", tmp_path / "best.safetensors")
    for path in checkpoints.iterdir():
        halve(path)
    (checkpoints / "000000001.safetensors").rename(checkpoints / "000000009.safetensors")
    assert load_checkpoint(checkpoints, TEMPLATE, otherwise=tmp_path / "best.safetensors").iteration == 1
    # What is written then is not taken for older than the damaged ones.
    written = save_checkpoint(checkpoints, Checkpoint(state(1.5), 1, 0.5), keep=1)
    assert list(checkpoints.iterdir()) == [written]


@fault("a process is killed while it writes a checkpoint", "the partial file is not used, and is removed")
def test_half_written_files_are_tidied_away(checkpoints):
    torn = checkpoints / ".000000003.safetensors.part"
    torn.write_bytes(b"half of it")
    assert load_checkpoint(checkpoints, TEMPLATE).iteration == 2
    save_checkpoint(checkpoints, Checkpoint(state(4.0), 4, 0.5), keep=3)
    assert not torn.exists()


@pytest.fixture
def small_disk():
    """Sets how many bytes a file may have; writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if size is None else size, hard))

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield limit
    limit(None)
    signal.signal(signal.SIGXFSZ, before)


def record(iteration: int) -> dict:
    return {"iteration": iteration, "env_steps": 128 * iteration, "status": "ACCEPTED", "kl_old_new": 0.5}


@fault(
    "the disk is full when metrics are written",
    "the file ends with a complete line; records are kept for the next attempt",
)
def test_metrics_wait_for_a_full_disk(tmp_path, small_disk):
    log = MetricsLog(tmp_path)
    path = tmp_path / "metrics.jsonl"
    log.append([record(1)])
    # Enough for the TensorBoard file of one record, and for one and a half lines of metrics.
    small_disk(path.stat().st_size * 3 // 2)
    with pytest.raises(OSError, match=r"File too large|No space left"):
        log.append([record(2)])
    assert [r["iteration"] for r in read_metrics(path)] == [1]
    assert path.read_bytes().endswith(b"\n")
    small_disk(None)
    log.append([record(3)])
    log.close()
    assert [r["iteration"] for r in read_metrics(path)] == [1, 2, 3]


@fault("the disk is full when a checkpoint is written", "earlier checkpoints are kept; no partial file is left")
def test_a_checkpoint_that_finds_no_room_leaves_the_others(checkpoints, small_disk):
    names = sorted(path.name for path in checkpoints.iterdir())
    small_disk(1000)
    with pytest.raises(OSError, match="File too large"):
        save_checkpoint(checkpoints, Checkpoint(state(3.0), 3, 0.5), keep=2)
    small_disk(None)
    assert sorted(path.name for path in checkpoints.iterdir()) == names
    assert load_checkpoint(checkpoints, TEMPLATE).iteration == 2


@pytest.mark.slow
@fault("metrics can't be written, but checkpoints can", "no checkpoint is ahead of the metrics")
def test_no_checkpoint_without_its_metrics(tmp_path, monkeypatch, caplog):
    full = {"now": False}
    write = MetricsLog.write_waiting

    def writes(self):
        if full["now"]:
            raise OSError(28, "No space left on device")
        write(self)

    monkeypatch.setattr(MetricsLog, "write_waiting", writes)
    path = tmp_path / "run"

    def watch(run):
        full["now"] = 3 <= run.iteration < 7

    train(path, watch, keep_checkpoints=20)
    saved = sorted(int(p.stem) for p in (path / "checkpoints").iterdir())
    assert saved == [0, 2, 8, 10, 12]
    assert "records wait in memory" in caplog.text
    assert [r["iteration"] for r in read_metrics(path / "metrics.jsonl")] == list(range(1, 13))


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "checkpoints", "best"])
@fault("a file that klimb writes into is a link to somewhere else", "refused; the file it points to is not changed")
def test_links_are_not_followed(name, tmp_path):
    from klimb import RunConfig, TrainOptions
    from klimb.runs.directory import RunDirectory

    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("mine")
    (tmp_path / "run" / name).symlink_to(tmp_path / "precious")
    directory = RunDirectory(tmp_path / "run", RunConfig("CartPole-v1", RULE, TrainOptions()))
    with pytest.raises(RunError, match="is a link; klimb writes into the run directory alone"):
        directory.lock()
    assert (tmp_path / "precious").read_text() == "mine"


@fault("the file system does not support locks", "a line is printed, and the training continues")
def test_without_locks_it_goes_on(tmp_path, monkeypatch, caplog):
    from klimb.runs import lock

    monkeypatch.setattr(lock.fcntl, "flock", lambda *a: (_ for _ in ()).throw(OSError(38, "Function not implemented")))
    lock.RunLock(tmp_path).release()
    assert "can't be locked (Function not implemented)" in caplog.text


@fault("a line of the metrics is damaged", "it is left out, with a line that says so; those after it are read")
def test_a_damaged_line_costs_one_record(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps(record(i)) for i in (1, 2, 3)]
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]) + "\n")
    assert [r["iteration"] for r in read_metrics(path)] == [1, 3]
    assert "1 damaged lines" in caplog.text


@fault("the last line of the metrics is incomplete", "it is left out, and written again when the run is resumed")
def test_a_torn_line_is_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(record(i)) + "\n" for i in (1, 2)) + '{"iteration":3,"env')
    log = MetricsLog(tmp_path, keep_until=2)
    log.append([record(3)])
    log.close()
    assert [r["iteration"] for r in read_metrics(path)] == [1, 2, 3]


@fault("the run directory can't be made", "one line, before anything is trained")
def test_a_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(RunError, match="cannot make the run directory"):
        klimb.train("CartPole-v1", RULE, run_dir=tmp_path / "file" / "run", **SMALL, env_steps=128)


def train(path, callback, **options):
    options = {**SMALL, "env_steps": 12 * 128, "checkpoint_every": 2, **options}
    return klimb.train("CartPole-v1", RULE, run_dir=path, callback=callback, **options)


class At:
    """Does something once, when an iteration has been recorded."""

    def __init__(self, iteration: int, do) -> None:
        self.iteration, self.do = iteration, do

    def __call__(self, run: klimb.OngoingRun) -> None:
        if self.do is not None and run.iteration >= self.iteration:
            do, self.do = self.do, None
            do()


@pytest.mark.slow
@fault("the run directory is removed during the training", "it stops with a line; the error holds the policies")
def test_a_removed_directory_stops_the_run(tmp_path):
    path = tmp_path / "run"
    with pytest.raises(klimb.NotSaved, match="has been removed during the training; stopped") as caught:
        train(path, At(3, lambda: shutil.rmtree(path)))
    assert caught.value.runs[0].policy(jnp.zeros(4)).logits.shape == (2,)
    assert not path.exists()


@pytest.mark.slow
@fault("checkpoints can't be written for a while", "the training continues, and prints a line; later ones are written")
def test_an_outage_of_the_disk_is_survived(tmp_path, caplog):
    path = tmp_path / "run"

    def block():
        shutil.rmtree(path / "checkpoints")
        (path / "checkpoints").write_text("in the way")

    outage = At(3, block)

    def watch(run):
        outage(run)
        if run.iteration >= 8 and (path / "checkpoints").is_file():
            (path / "checkpoints").unlink()

    run = train(path, watch)
    assert "can't be written" in caplog.text
    assert len(run.history) == 12
    assert sorted(p.stem for p in (path / "checkpoints").iterdir())[-1] == "000000012"


@pytest.mark.slow
@fault("the last checkpoint can't be written", "the error says so, and holds the policies")
def test_a_run_that_cannot_be_saved_is_not_lost(tmp_path):
    path = tmp_path / "run"

    def block():
        shutil.rmtree(path / "checkpoints")
        (path / "checkpoints").write_text("in the way")

    with pytest.raises(klimb.NotSaved, match="lacks the last checkpoint") as caught:
        train(path, At(3, block))
    saved = klimb.save_policy(caught.value.runs[0].policy, tmp_path / "rescued")
    assert klimb.load_policy(saved)(jnp.zeros(4)).logits.shape == (2,)


@pytest.mark.slow
@fault("TensorBoard's file can't be written", "a line is printed, and the training continues without it")
def test_tensorboard_is_given_up(tmp_path, caplog, monkeypatch):
    from klimb.runs import tensorboard

    monkeypatch.setattr(
        tensorboard._EventFile, "add", lambda self, *_: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    run = train(tmp_path / "run", None)
    assert len(run.history) == 12
    assert caplog.text.count("TensorBoard's events can't be written") == 1


@pytest.mark.slow
@fault("the policy file of a run is damaged when it is resumed", "the checkpoint is used, and the policy written again")
def test_a_damaged_policy_does_not_stop_a_resume(tmp_path, caplog):
    whole = train(tmp_path / "whole", None)
    path = shutil.copytree(whole.directory, tmp_path / "run")
    (path / "checkpoints" / "000000012.safetensors").unlink()
    halve(path / "policy.safetensors")
    klimb.resume(path)
    assert "policy.safetensors can't be used" in caplog.text
    assert (path / "policy.safetensors").read_bytes() == (whole.directory / "policy.safetensors").read_bytes()


HOLD = """
import sys, time
from pathlib import Path
from klimb.runs.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


@fault("a second process writes into the same run directory", "it is refused, with the process number of the first")
@fault("the process that holds a run directory is killed", "another process can use it at once")
def test_one_process_a_directory(tmp_path):
    from klimb.runs.lock import RunLock

    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"is being written by process {holder.pid} on .*: wait for it, or stop it"):
            RunLock(tmp_path)
        holder.kill()
        holder.wait()
    RunLock(tmp_path).release()


@pytest.mark.slow
@fault("a run is resumed while it is being trained", "the second process is refused; the first one continues")
def test_a_running_training_cannot_be_resumed(tmp_path):
    path = tmp_path / "run"
    refused = []

    def again():
        with pytest.raises(RunError, match=f"is being written by process {os.getpid()}"):
            klimb.resume(path)
        refused.append(True)

    run = train(path, At(3, again))
    assert refused
    assert len(run.history) == 12
    assert klimb.resume(path).history == run.history


@pytest.mark.slow
@fault("a run directory exists already", "nothing is overwritten; the message says how to continue the run")
def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "precious").write_text("mine")
    with pytest.raises(RunError, match="exists already; choose another --run-dir, or go on with it: klimb resume"):
        train(path, None)
    assert [p.name for p in path.iterdir()] == ["precious"]
