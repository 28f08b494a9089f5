"""Bytes of strangers, fed to everything that reads a file: python tests/faults/fuzz_loaders.py --seconds 60

Each loader either takes them or raises a KlimbError of one line. Needs atheris (`pip install atheris`); ends with 1
when a loader does anything else, and with 2 without atheris. Without it, tests/faults/test_fuzzing.py feeds the same
loaders with the files of fuzz_corpus.py, and with mutations of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None
try:
    import h5py
    import minari
except ImportError:
    h5py = minari = None

import jax
import numpy as np

MAX_LENGTH = 20_000
"""Bytes of the files that atheris makes."""

# The fuzzer follows which lines are reached in what is imported here; tests import this file without it.
follow = atheris is not None and __name__ == "__main__"
with atheris.instrument_imports(include=["klimb.runs", "klimb.cli"]) if follow else contextlib.nullcontext():
    from fuzz_corpus import corpus as hostile

    from klimb import (
        TRPO,
        KlimbError,
        NetworkPolicy,
        RunConfig,
        TrainOptions,
        load_demonstrations,
        load_policy,
        make,
        save_policy,
    )
    from klimb.cli.compare import summary
    from klimb.collect.demonstrations import Demonstrations
    from klimb.policies.actions import Discrete
    from klimb.presets.preset import read_preset
    from klimb.report.comparison import read_comparison
    from klimb.report.page import write_report
    from klimb.report.statistics import Resampling
    from klimb.report.tuning_page import write_tuning_report
    from klimb.runs import zoo
    from klimb.runs.checkpoint import Checkpoint, load_checkpoint, load_checkpoint_of, save_checkpoint
    from klimb.runs.demonstration_file import save_demonstrations
    from klimb.runs.directory import RunDirectory
    from klimb.runs.ending import Ending, read_ending, write_ending
    from klimb.runs.located import located
    from klimb.runs.lock import RunLock
    from klimb.runs.own_files import TRACKING
    from klimb.runs.policy_file import policy_iteration
    from klimb.runs.provenance import read_provenance, write_provenance
    from klimb.runs.search_space import search_space
    from klimb.runs.sweep_file import SWEEP, Sweep
    from klimb.runs.tracking_file import identifier_of
    from klimb.runs.tune_file import Trial, Tuning, read_trials, write_trials
    from klimb.tracking.described import outcome_of
    from klimb.tracking.points import points_of
    from klimb.tracking.wandb_sink import in_files
    from klimb.training.recent_score import RecentScore
    from klimb.training.rejections import Rejections
    from klimb.training.stopping import Stopping
    from klimb.training.surroundings import observe


def make_state() -> dict[str, jax.Array]:
    return {"weights": jax.numpy.arange(12.0).reshape(3, 4), "keys": jax.random.split(jax.random.key(5), 2)}


TEMPLATE = jax.eval_shape(make_state)


@dataclass(frozen=True)
class Loader:
    """What reads `file` of a run that is whole but for it. lenient: what can't be read is left out, without a word."""

    file: str
    load: Callable[[Path], object]
    lenient: bool = False

    @property
    def kind(self) -> str:
        """What the file holds."""
        return {".toml": "toml", ".jsonl": "lines", ".json": "json", ".safetensors": "arrays", ".hdf5": "hdf5"}.get(
            Path(self.file).suffix, "text"
        )


def trainable(run: Path) -> object:
    """A configuration, with a rule that can be trained with, as `klimb resume` needs it."""
    return RunConfig.read(run / "config.toml").require_modules(run / "config.toml", trust=False)


def compare(run: Path) -> object:
    return summary(read_comparison([run, run.parent / "other"]), None, Resampling(10, 0, 0.9))


def locked(run: Path) -> object:
    with contextlib.closing(RunDirectory.open(run)) as directory:
        return directory.lock()


def resumed_metrics(run: Path) -> object:
    """What `klimb resume` reads of the metrics: where they are cut off, and what goes on from their records."""
    directory = RunDirectory.open(run)
    try:
        directory.start_log(keep_until=3)
        records, options = directory.history(), TrainOptions(eval_every=64, until_return=1e9, patience=99)
        Rejections(5, ["seed 0"]).restore(records)
        for option in (options, TrainOptions(until_return=1e9)):
            Stopping(option).restore(records)
        score = RecentScore()
        score.restore(records, 1)
        return score.draw(), directory.env_steps_at(2)
    finally:
        directory.close()
        for file in run.glob("events.*"):
            file.unlink()
        shutil.rmtree(run / "seed_0", ignore_errors=True)


def trials_of_a_search(run: Path) -> object:
    """What `klimb resume` reads: the trials, and what each is trained with."""
    tuning = Tuning.read(run)
    return [tuning.config_of(trial) for trial in read_trials(run, tuning)]


def entries_of_the_zoo(run: Path) -> object:
    before, zoo.ROOT = zoo.ROOT, run / "zoo"
    try:
        return zoo.zoo(), located("zoo:trpo/CartPole-v1")
    finally:
        zoo.ROOT = before


def minari_dataset(run: Path) -> object:
    before = os.environ.get("MINARI_DATASETS_PATH")
    os.environ["MINARI_DATASETS_PATH"] = str(run / "minari")
    try:
        return load_demonstrations("minari:klimb/fuzzed-v0")
    finally:
        os.environ.pop("MINARI_DATASETS_PATH")
        if before is not None:
            os.environ["MINARI_DATASETS_PATH"] = before


def points(run: Path) -> object:
    return list(points_of(RunDirectory.open(run).history(), range(1), 0.0))


def outcome(run: Path) -> object:
    return outcome_of(run, Ending("complete", 4, 256, "done"))


def tracker_file(run: Path) -> object:
    return in_files(run / "wandb", "0" * 32)


LOADERS = {
    "config": Loader("config.toml", trainable),
    "sweep": Loader(SWEEP, lambda run: Sweep.read(run).members()),
    "search": Loader("tune.toml", lambda run: Tuning.read(run)),
    "trials of a search": Loader("trials.json", trials_of_a_search),
    "report of a search": Loader("trials.json", write_tuning_report),
    "preset": Loader("preset.toml", lambda run: read_preset(run / "preset.toml", "trpo").settings()),
    "policy description": Loader("policy.json", load_policy),
    "policy arrays": Loader("policy.safetensors", load_policy),
    "iteration of a policy": Loader("policy.safetensors", policy_iteration, lenient=True),
    "demonstrations": Loader("demonstrations.safetensors", load_demonstrations),
    "checkpoint": Loader(
        "checkpoints/000000001.safetensors", lambda run: load_checkpoint(run / "checkpoints", TEMPLATE)
    ),
    "checkpoint by number": Loader(
        "checkpoints/000000001.safetensors", lambda run: load_checkpoint_of(run / "checkpoints", TEMPLATE, 1)
    ),
    "best score": Loader("best/score.json", lambda run: RunDirectory.open(run).best_score(), lenient=True),
    "cloned demonstrator": Loader(
        "demonstrator/cloning.json", lambda run: RunDirectory.open(run).demonstrator_figures(), lenient=True
    ),
    "ending": Loader("ended.json", read_ending),
    "provenance": Loader("provenance.json", read_provenance),
    "holder of the lock": Loader(".lock", RunLock.holder, lenient=True),
    "lock": Loader(".lock", locked, lenient=True),
    "resumed metrics": Loader("metrics.jsonl", resumed_metrics, lenient=True),
    "identifier for trackers": Loader(TRACKING, identifier_of),
    "points of metrics": Loader("metrics.jsonl", points, lenient=True),
    "outcome for trackers": Loader("evaluation.json", outcome, lenient=True),
    "file of a tracker": Loader(f"wandb/offline-run-1/run-{'0' * 32}.wandb", tracker_file, lenient=True),
    "zoo": Loader("zoo/trpo/CartPole-v1/zoo.json", entries_of_the_zoo),
    "report of metrics": Loader("metrics.jsonl", write_report),
    "report of an evaluation": Loader("evaluation.json", write_report),
    "report of a provenance": Loader("provenance.json", write_report),
    "report of an ending": Loader("ended.json", write_report),
    "report of a configuration": Loader("config.toml", write_report),
    "comparison of metrics": Loader("metrics.jsonl", compare),
    "comparison of a configuration": Loader("config.toml", compare),
}
if minari is not None:
    LOADERS |= {
        "metadata of a Minari dataset": Loader("minari/klimb/fuzzed-v0/data/metadata.json", minari_dataset),
        "arrays of a Minari dataset": Loader("minari/klimb/fuzzed-v0/data/main_data.hdf5", minari_dataset),
    }


def make_runs(folder: Path) -> Path:
    """A small whole run, made up, beside another to be compared with; returns its directory."""
    for name, seed in (("run", 0), ("other", 1)):
        run = save_policy(NetworkPolicy(3, Discrete(2), hidden=(4,), key=jax.random.key(seed)), folder / name)
        (run / "config.toml").write_text(RunConfig("CartPole-v1", TRPO(), TrainOptions(seed=seed)).to_toml())
        records = [
            {
                "iteration": i,
                "env_steps": 64 * i,
                "status": "ACCEPTED",
                "episode_return": 9.5 * i,
                "kl_old_new": 0.01 / i,
            }
            for i in range(1, 5)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        one = {"seed": seed, "mean": 20.5, "standard_error": 0.5, "returns": [20, 21], "lengths": [20, 21]}
        evaluation = {"episodes": 2, "deterministic": True, "mean": 20.5, "seeds": [one]}
        (run / "evaluation.json").write_text(json.dumps(evaluation))
        write_provenance(run, [observe("start", make("CartPole-v1"))])
        write_ending(run, Ending("patience", 4, 256, "3 evaluations in a row brought no higher return (patience)"))
    run = folder / "run"
    (run / "checkpoints").mkdir()
    save_checkpoint(run / "checkpoints", Checkpoint(make_state(), 1, 0.5), keep=1)
    save_demonstrations(make_demonstrations(), run / "demonstrations.safetensors")
    for part in ("best", "demonstrator", "zoo/trpo/CartPole-v1"):
        (run / part).mkdir(parents=True)
    (run / "best" / "score.json").write_text('{"iteration": 4, "score": 20.5, "by": "training"}\n')
    (run / "demonstrator" / "cloning.json").write_text('{"log_likelihood": -0.5, "held_out_log_likelihood": -0.6}\n')
    (run / ".lock").write_text("process 123 on somewhere")
    entry = zoo.ZooEntry(
        "trpo", "CartPole-v1", 1, 20.5, 0.5, 100, [20.5, 19.0], 256, "klimb train trpo CartPole-v1", "0.2.0", "0" * 40
    )
    entry.write(run / "zoo" / "trpo" / "CartPole-v1")
    (run / TRACKING).write_text(json.dumps({"id": "0" * 32}) + "\n")
    (run / "wandb" / "offline-run-1").mkdir(parents=True)
    (run / "wandb" / "offline-run-1" / f"run-{'0' * 32}.wandb").write_bytes(wandb_file())
    (run / "preset.toml").write_text(PRESET)
    text = (run / "config.toml").read_text()
    (run / SWEEP).write_text(f'preset = "trpo/mujoco"\n{text}\n[over]\nmax_kl = [0.003, 0.01]\nhidden = [[], [8]]\n')
    make_search(run)
    if "arrays of a Minari dataset" in LOADERS:
        make_minari(run / "minari")
    return run


def wandb_file() -> bytes:
    """A file of W&B with one step, put together by hand."""
    from wandb.proto import wandb_internal_pb2

    item = wandb_internal_pb2.HistoryItem(key="speed/iteration", value_json="1")
    step = wandb_internal_pb2.HistoryStep(num=64)
    record = wandb_internal_pb2.Record(history=wandb_internal_pb2.HistoryRecord(item=[item], step=step))
    content = record.SerializeToString()
    return b":W&B&B\xe1\xbe"[:7] + struct.pack("<IHB", 0, len(content), 1) + content


def make_search(run: Path) -> None:
    """The files of a search, beside those of a run."""
    config = RunConfig.read(run / "config.toml")
    space = search_space(config, {"max_kl": "log:0.001:0.1", "hidden": [[4], [8, 8]]})
    tuning = Tuning(config, space, 4, 2, True, "trpo/mujoco")
    (run / "tune.toml").write_text(tuning.to_toml())
    values = {"max_kl": 0.01, "hidden": [8, 8]}
    write_trials(
        run,
        [
            Trial(0, values, "complete", 20.5, ((25, 1.5), (50, 2.5)), None, "2026-11-29T10:00:00+00:00"),
            Trial(1, values, "pruned", None, ((25, 1.0),)),
            Trial(2, values, "failed", note="of its own"),
            Trial(3, values),
        ],
    )


PRESET = """\
environments = ["gymnasium:Swimmer-v5", "jax:CartPole-v1"]
[rule]
max_kl = 0.02
[options]
gamma = 0.9999
hidden = [64, 64]
[evidence]
command = "klimb train trpo gymnasium:Swimmer-v5"
seeds = [0, 1]
mean_return = 340.5
commit = "0123abcd"
date = 2026-11-20
"""


def make_minari(folder: Path) -> None:
    """A dataset of two episodes, as Minari itself writes it, but for what it does not need."""
    data = folder / "klimb" / "fuzzed-v0" / "data"
    data.mkdir(parents=True)
    space = {"type": "Box", "dtype": "float32", "shape": [3], "low": [-1.0] * 3, "high": [1.0] * 3}
    metadata = {
        "dataset_id": "klimb/fuzzed-v0", "data_format": "hdf5", "minari_version": minari.__version__,
        "total_episodes": 2, "total_steps": 8, "observation_space": json.dumps(space), "dataset_size": 0.1,
        "action_space": json.dumps({"type": "Discrete", "dtype": "int64", "n": 2, "start": 0}),
    }  # fmt: skip
    (data / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for k in range(2):
            episode = file.create_group(f"episode_{k}")
            episode.attrs.update(id=k, total_steps=4)
            episode["observations"] = np.zeros((5, 3), np.float32)
            episode["actions"] = np.zeros(4, np.int64)
            episode["rewards"] = np.ones(4)
            episode["terminations"] = np.arange(4) == 3
            episode["truncations"] = np.zeros(4, bool)
            episode["infos/action_log_prob"] = np.full(4, -0.7)


def make_demonstrations() -> Demonstrations:
    rng, ends = np.random.default_rng(0), np.arange(8) % 4 == 3
    obs = rng.standard_normal((9, 3)).astype(np.float32)
    return Demonstrations(
        obs=obs[:-1],
        next_obs=obs[1:],
        action=rng.integers(2, size=8).astype(np.int32),
        log_prob=np.full(8, -0.7, np.float32),
        reward=np.ones(8, np.float32),
        terminated=ends,
        truncated=np.zeros(8, bool),
        actions=Discrete(2),
        environment="jax:CartPole-v1",
    )


def attempt(loader: Loader, run: Path, content: bytes) -> str | None:
    """What a loader says of a file's bytes, None if it takes them. AssertionError when that is no line for people."""
    path, said = run / loader.file, None
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        loader.load(run)
    except KlimbError as error:
        said = str(error)
    finally:
        path.write_bytes(whole)
    assert said is None or (said and said.isprintable() and len(said) < 2000), said
    return said


@contextlib.contextmanager
def little_memory(megabytes: int = 256) -> Iterator[None]:
    """No more memory than this on top of what the process has: what wants more fails."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + megabytes * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def fuzz(seconds: int) -> None:
    """Until the time is up or a loader does what it must not, a warning included; ends the process."""
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        run = make_runs(Path(folder))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        loaders = list(LOADERS.values())
        for number, loader in enumerate(loaders):
            whole = (run / loader.file).read_bytes()
            files = [whole, *(content for files in hostile(loader.kind, whole).values() for _, content in files)]
            for k, content in enumerate(files):
                if len(content) < MAX_LENGTH:
                    (corpus / f"{number}-{k}").write_bytes(bytes([number]) + content)

        def one_input(data: bytes) -> None:
            if data:
                attempt(loaders[data[0] % len(loaders)], run, data[1:])

        options = [f"-max_total_time={seconds}", f"-max_len={MAX_LENGTH}", "-timeout=30", "-rss_limit_mb=8192"]
        atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={tempfile.gettempdir()}/", str(corpus)], one_input)
        atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if atheris is None:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    logging.getLogger("klimb").setLevel(logging.ERROR)
    if flags.inside:
        fuzz(flags.seconds)
    # libFuzzer ends its process with a status of its own.
    return int(subprocess.run([sys.executable, __file__, "--inside", "--seconds", str(flags.seconds)]).returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
