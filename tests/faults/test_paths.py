"""Names that are taken or too long, files without an end, links and devices: nothing is waited for or lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fuzz_loaders
import jax
import pytest

import klimb
from klimb import PPO, RunConfig, RunError, TrainOptions
from klimb.cli.main import main
from klimb.files import read_lines, write_atomically, write_output
from klimb.report.page import write_report
from klimb.runs.arrays import save_arrays
from klimb.runs.checkpoint import load_checkpoint, saved_iterations
from klimb.runs.directory import NewName, RunDirectory
from klimb.runs.metrics import MetricsLog, read_metrics
from klimb.runs.policy_file import policy_iteration
from klimb.runs.sweep_file import Sweep
from klimb.training.recent_score import RecentScore
from klimb.training.stopping import Stopping
from klimb.types import TrainState

fault = pytest.mark.fault
SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
RULE = PPO(epochs=1, num_minibatches=2)
GIGABYTES = 6 * 2**30


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run with half of its steps, and `best/`."""
    folder = tmp_path_factory.mktemp("stopped")
    run = klimb.train(
        "jax:CartPole-v1", RULE, run_dir=folder / "run", env_steps=1024, checkpoint_every=2, **SMALL,
        callback=lambda run: run.stop() if run.iteration == 4 else None,
    )  # fmt: skip
    assert run.ended.reason == "callback"
    assert (folder / "run" / "best" / "score.json").exists()
    return folder / "run"


@pytest.fixture
def run(stopped, tmp_path) -> Path:
    return Path(shutil.copytree(stopped, tmp_path / "run"))


def sparse(path: Path, size: int = GIGABYTES) -> None:
    """A file that says that it is large, and takes no room."""
    path.unlink(missing_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def text(content: str):
    return lambda path: path.write_text(content)


SCORES = {
    "a pipe": pipe,
    "6 gigabytes of nothing": sparse,
    "nested 100,000 deep": text("[" * 100_000),
    "a score of 400 digits": text(f'{{"score": {"9" * 400}, "by": "training"}}'),
    "a score that is NaN": text('{"score": NaN, "by": "training"}'),
    "a list": text("[1]"),
}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=fault(f"the file of the best score of a run is {what}", "it counts as missing"))
        for what, make in SCORES.items()
    ],
    ids=list(SCORES),
)
def test_the_best_score_is_a_strangers(make, run):
    make(run / "best" / "score.json")
    directory = RunDirectory.open(run)
    assert directory.best_score() is None
    assert directory.is_better(-1e9)


@pytest.mark.slow
def test_a_run_with_such_a_score_goes_on(run):
    pipe(run / "best" / "score.json")
    ended = klimb.resume(run)
    assert ended.ended.reason == "complete"
    assert ended.history[-1]["iteration"] == 8


@fault("an evaluation is a file of 6 gigabytes", "refused, without reading it")
def test_an_endless_evaluation(run):
    sparse(run / "evaluation.json")
    with pytest.raises(RunError, match="is not an evaluation"):
        write_report(run)


@fault("the metrics are a line of 6 gigabytes", "no more than the longest line is read; then they count as damaged")
def test_an_endless_line_of_metrics(run):
    sparse(run / "metrics.jsonl")
    with pytest.raises(RunError, match="holds no iteration yet"):
        write_report(run)


@fault("the metrics end in a line of 6 gigabytes", "the lines before it are read; a resumed run cuts it off")
def test_metrics_that_end_without_an_end(run, caplog):
    before = (run / "metrics.jsonl").stat().st_size
    os.truncate(run / "metrics.jsonl", GIGABYTES)
    assert [record["iteration"] for record in read_metrics(run / "metrics.jsonl")] == [1, 2, 3, 4]
    assert "1 damaged lines are skipped" in caplog.text
    MetricsLog(run, keep_until=4).close()
    assert (run / "metrics.jsonl").stat().st_size == before


ODD = {"a text": "x", "nested": [[1]], "an object": {}, "a number of 400 digits": 10**400, "three numbers": [1, 2, 3]}


@pytest.mark.parametrize("name", ["episodes", "episode_return", "eval_return", "status", "env_steps"])
@pytest.mark.parametrize(
    "value",
    [
        pytest.param(value, marks=fault(f"metrics of a resumed run are {what}", "they count as missing"))
        for what, value in ODD.items()
    ],
    ids=list(ODD),
)
def test_metrics_that_are_no_numbers(name, value, run, capsys):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[-1][name] = lines[-2][name] = value
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = (run / "config.toml").read_text()
    (run / "config.toml").write_text(config.replace('until_return = "none"', "until_return = 1e6"))
    directory = RunDirectory.open(run)
    assert directory.env_steps_at(4) in (640, None)
    score, stopping = RecentScore(), Stopping(directory.config.options)
    score.restore(directory.history(), 1)
    stopping.restore(directory.history())
    assert stopping.reason is None
    score.draw()


def test_lines_have_a_limit(tmp_path):
    (tmp_path / "lines").write_bytes(b"ab\nabcd\n")
    assert list(read_lines(tmp_path / "lines", 5)) == [b"ab\n", b"abcd\n"]
    with pytest.raises(ValueError, match="a line of more than 3 bytes"):
        list(read_lines(tmp_path / "lines", 3))


@fault("the numbers of a cloned demonstrator are in a pipe", "they count as missing")
def test_a_pipe_in_place_of_the_cloning(run):
    (run / "demonstrator").mkdir()
    pipe(run / "demonstrator" / "cloning.json")
    assert RunDirectory.open(run).demonstrator_figures() == {}
    (run / "demonstrator" / "cloning.json").unlink()
    (run / "demonstrator" / "cloning.json").write_text("[[1, 2]]")
    assert RunDirectory.open(run).demonstrator_figures() == {}


@fault("the policy whose iteration is asked for is a pipe", "it is not known")
def test_the_iteration_of_a_pipe(tmp_path):
    pipe(tmp_path / "policy.safetensors")
    assert policy_iteration(tmp_path) is None


LINKED = "refused; the other file keeps its contents"


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=fault(f"{name} of a run is a hard link to another file", LINKED))
        for name in (".lock", "metrics.jsonl", "faults.log")
    ],
)
def test_hard_links_are_not_written(name, run, tmp_path):
    (tmp_path / "precious").write_text("mine")
    (run / name).unlink(missing_ok=True)
    os.link(tmp_path / "precious", run / name)
    with pytest.raises(RunError, match="is a hard link; klimb writes into the run directory alone"):
        klimb.resume(run)
    assert (tmp_path / "precious").read_text() == "mine"


@fault("the lock of a run is a pipe", "one line that says so")
def test_a_lock_that_is_a_pipe(run):
    pipe(run / ".lock")
    with pytest.raises(RunError, match=r"cannot write .*\.lock: it is not a regular file"):
        klimb.resume(run)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "checkpoints/.x.part", marks=fault("a directory has the name of an unfinished checkpoint", "left alone")
        ),
        pytest.param(
            ".policyx.part",
            marks=(pytest.mark.slow, fault("a directory has the name of an unfinished policy", "left alone")),
        ),
    ],
)
def test_directories_in_place_of_temporary_files(name, run):
    (run / name).mkdir()
    assert klimb.resume(run).ended.reason == "complete"
    assert saved_iterations(run / "checkpoints")[0] == 8


class Begun(Exception):
    """A training would begin, after an iteration."""


HEADERS = {
    "iteration −3": {"iteration": -3},
    "another iteration than its state": {"iteration": 100},
    "an iteration of 300 digits": {"iteration": 10**300},
    "a wall time that is NaN": {"wall_time": float("nan")},
    "a wall time that is infinite": {"wall_time": float("inf")},
    "a negative wall time": {"wall_time": -1.0},
}


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(header, marks=fault(f"a checkpoint with a right checksum claims {what}", "the one before is used"))
        for what, header in HEADERS.items()
    ],
    ids=list(HEADERS),
)
def test_checkpoints_say_what_can_be(header, run, monkeypatch, caplog):
    newest = run / "checkpoints" / "000000004.safetensors"

    def begin(*_, iteration, **__):
        raise Begun(iteration)

    monkeypatch.setattr("klimb.training.driver.drive", begin)
    monkeypatch.setattr("klimb.runs.checkpoint.write_checkpoint", lambda *_: None)

    def forge(path, template, **options):
        """The state of a checkpoint, written again with another header."""
        state, metadata = load(path, template, **options)
        if path == newest:
            told = {**json.loads(metadata["klimb"]), **header}
            save_arrays(run / "forged.safetensors", state, {**metadata, "klimb": json.dumps(told)})
            return load(run / "forged.safetensors", template, **options)
        return state, metadata

    load = klimb.runs.checkpoint.load_arrays
    monkeypatch.setattr("klimb.runs.checkpoint.load_arrays", forge)
    with pytest.raises(Begun, match=r"^2$"):
        klimb.resume(run)
    assert "its metadata do not belong to its state" in caplog.text or "its metadata can't be read" in caplog.text


LONG = "x" * 300
TOO_LONG = "one line, exit status 2"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=fault(f"a name of 300 letters: klimb {words.format(x='NAME', run='RUN')}", TOO_LONG))
        for words in (
            "train ppo CartPole-v1 --run-dir {x}",
            "sweep ppo CartPole-v1 --over clip_eps 0.1 0.2 --run-dir {x}",
            "record {run} --episodes 1 -o {x}",
            "compare {run} {x}",
            "resume {x}",
        )
    ],
)
def test_names_of_300_letters(words, run, capsys):
    assert main(words.format(x=LONG, run=run).split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "File name too long" in line


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=fault(f"a directory that must not be read: klimb {words}", TOO_LONG))
        for words in (
            "train ppo CartPole-v1 --run-dir closed/run",
            "sweep ppo CartPole-v1 --over clip_eps 0.1 0.2 --run-dir closed/sweep",
            "record run --episodes 1 -o closed/file.safetensors",
            "compare closed/run",
        )
    ],
)
def test_directories_of_other_users(words, run, monkeypatch, capsys):
    def look(path, **options):
        if "closed" in path.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return stat_of(path, **options)

    stat_of = Path.stat
    monkeypatch.setattr(Path, "stat", look)
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Permission denied" in line


def numbered(number: int) -> TrainState:
    """A state that holds a number."""
    env_steps, zero = jax.numpy.uint32(number), jax.numpy.int32(0)
    return TrainState((), (), (), (), (), (), (), iteration=zero, env_steps=env_steps, key=jax.random.key(0))


@fault("four trainings take the same unused name in the same moment", "each gets a directory of its own")
def test_names_are_taken_once(tmp_path):
    config = RunConfig("CartPole-v1", RULE, TrainOptions())
    barrier = threading.Barrier(4)

    class Together(NewName):
        def unused(self):
            path = super().unused()
            if not seen.get(threading.get_ident()):
                seen[threading.get_ident()] = path
                barrier.wait()
            return path

    def make(number: int) -> str:
        state = numbered(number)
        directory = RunDirectory.create(Together(tmp_path / "runs", "run"), config, state, [])
        directory.close()
        return directory.path.name

    seen: dict[int, Path] = {}
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(make, range(4)))
    assert {path.name for path in seen.values()} == {"run"}
    assert sorted(names) == ["run", "run-2", "run-3", "run-4"]
    for number, name in enumerate(names):
        checkpoint = load_checkpoint(tmp_path / "runs" / name / "checkpoints", jax.eval_shape(lambda: numbered(0)))
        assert int(checkpoint.state.env_steps) == number
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == sorted(names)


@pytest.mark.slow
@fault("two sweeps take the same unused name in the same moment", "each gets a directory of its own")
def test_names_of_sweeps_are_taken_once(tmp_path, monkeypatch):
    taken = []

    def take_first(plan, directory):
        if not taken:
            taken.append(directory)
            directory.mkdir(parents=True)
        write(plan, directory)

    write = Sweep.write
    monkeypatch.setattr(Sweep, "write", take_first)
    words = "sweep ppo jax:CartPole-v1 --over clip_eps 0.1 0.2 --env-steps 128 --num-envs 4 --num-steps 32 --hidden 8"
    assert main([*words.split(), "--critic-epochs", "1", "--num-minibatches", "2", "--eval-episodes", "0"]) == 0
    assert [path.name for path in taken] == ["sweep-ppo-jax-CartPole-v1"]
    assert list(taken[0].iterdir()) == []
    second = taken[0].with_name("sweep-ppo-jax-CartPole-v1-2")
    assert {path.name for path in second.iterdir()} == {"sweep.toml", "clip_eps=0.1", "clip_eps=0.2"}


OWN = "refused; the run can still be read"


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=fault(f"an output would replace a file of a run: klimb {words}", OWN))
        for words in (
            "report run -o run/config.toml",
            "report run -o run/checkpoints/000000004.safetensors",
            "record run --episodes 1 -o run/policy.safetensors --overwrite",
        )
    ],
)
def test_outputs_do_not_replace_files_of_a_run(words, run, capsys):
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert main(words.split()) == 2
    assert "is a file of the run run: choose another one with -o FILE" in capsys.readouterr().err
    assert all(path.read_bytes() == content for path, content in before.items())


def test_outputs_may_be_inside_of_a_run(run):
    for _ in range(2):
        assert main(["report", "run", "-o", "run/other.html", "--overwrite"]) == 0
        assert main(["record", "run", "--episodes", "1", "--overwrite"]) == 0


@fault("a report is written to a pipe, as with `-o >(command)`", "it goes into the pipe, which stays one")
def test_a_report_into_a_pipe(run, tmp_path):
    pipe(tmp_path / "pipe")
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit((tmp_path / "pipe").read_bytes)
        assert main(["report", "run", "-o", "pipe"]) == 0
        assert received.result().startswith(b"<!doctype html>")
    assert (tmp_path / "pipe").is_fifo()


@fault("a report is written to a character device, such as /dev/null", "the device stays one")
def test_a_report_into_a_device(run, tmp_path):
    try:
        os.mknod(tmp_path / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        (tmp_path / "null").write_bytes(b"")
    except OSError:
        pytest.skip("devices can only be made, or opened, by an administrator")
    assert main(["report", "run", "-o", "null"]) == 0
    assert (tmp_path / "null").is_char_device()


@fault("the report in a stranger's run is a pipe", "it is replaced, without waiting for a reader")
def test_a_pipe_in_place_of_a_report(run):
    pipe(run / "report.html")
    assert main(["report", "run"]) == 0
    assert (run / "report.html").is_file()


@pytest.mark.slow
@fault("the file of the best score is a directory", "the training goes on; checkpoints are written, `best/` is not")
def test_a_best_score_that_can_not_be_written(run, caplog):
    (run / "best" / "score.json").unlink()
    (run / "best" / "score.json").mkdir()
    assert saved_iterations(run / "checkpoints")[0] == 4
    assert klimb.resume(run).ended.reason == "complete"
    assert "it is a directory" in caplog.text
    assert saved_iterations(run / "checkpoints")[0] == 8


@fault("an output is the name of a block device, a socket or a directory", "refused; it stays what it is")
def test_only_files_are_replaced(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="it is a directory"):
        write_output(tmp_path / "folder", b"x")
    disk = replace_mode(monkeypatch, tmp_path / "disk", stat.S_IFBLK)
    with pytest.raises(OSError, match="it is not a regular file"):
        write_output(disk, b"x")
    socket = replace_mode(monkeypatch, tmp_path / "socket", stat.S_IFSOCK)
    with pytest.raises(OSError, match="it is not a regular file"):
        write_atomically(socket, b"x")
    assert [path.read_bytes() for path in (disk, socket)] == [b"", b""]


def replace_mode(monkeypatch, path: Path, kind: int) -> Path:
    """A file that says that it is of another kind."""

    def look(self, **options):
        found = stat_of(self, **options)
        return os.stat_result((stat.S_IFMT(kind) | 0o600, *tuple(found)[1:])) if self == path else found

    path.write_bytes(b"")
    stat_of = Path.stat
    monkeypatch.setattr(Path, "stat", look)
    return path


@fault(
    "names of metrics and statuses hold terminal escapes and change the direction of text",
    "written as text in the report",
)
def test_escapes_in_the_report(tmp_path):
    run = fuzz_loaders.make_runs(tmp_path)
    odd = "odd\x1b[31m\u202e"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    records = [{**record, odd: 1.0, "status": odd} for record in lines]
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = write_report(run).read_text()
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert "odd\\x1b[31m\\u202e" in page.lower()
