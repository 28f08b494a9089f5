"""Bytes of strangers, fed to everything that reads a file: python tests/faults/fuzz_loaders.py --seconds 60

Each loader either takes them or raises a KlimbError of one line. Needs atheris (`pip install atheris`); ends with 1
when a loader does anything else, and with 2 without atheris.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

try:
    import atheris
except ImportError:
    atheris = None

import jax
import numpy as np

# The fuzzer follows which lines are reached in what is imported here; tests import this file without it.
follow = atheris is not None and __name__ == "__main__"
with atheris.instrument_imports(include=["klimb.runs", "klimb.cli"]) if follow else contextlib.nullcontext():
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
    from klimb.report.comparison import read_comparison
    from klimb.report.page import write_report
    from klimb.report.statistics import Resampling
    from klimb.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
    from klimb.runs.demonstration_file import save_demonstrations
    from klimb.runs.provenance import write_provenance
    from klimb.training.surroundings import observe


def make_state() -> dict[str, jax.Array]:
    return {"weights": jax.numpy.arange(12.0).reshape(3, 4), "keys": jax.random.split(jax.random.key(5), 2)}


TEMPLATE = jax.eval_shape(make_state)


@dataclass(frozen=True)
class Loader:
    """What reads `file` of a run that is whole but for it."""

    file: str
    load: Callable[[Path], object]


def resumed(run: Path) -> object:
    return load_checkpoint(run / "checkpoints", TEMPLATE)


def trainable(run: Path) -> object:
    """A configuration, with a rule that can be trained with, as `klimb resume` needs it."""
    return RunConfig.read(run / "config.toml").require_modules(run / "config.toml", trust=False)


def compare(run: Path) -> object:
    return summary(read_comparison([run, run.parent / "other"]), None, Resampling(10, 0, 0.9))


LOADERS = {
    "config": Loader("config.toml", trainable),
    "policy description": Loader("policy.json", load_policy),
    "policy arrays": Loader("policy.safetensors", load_policy),
    "demonstrations": Loader("demonstrations.safetensors", load_demonstrations),
    "checkpoint": Loader(
        "checkpoints/000000001.safetensors", lambda run: load_checkpoint(run / "checkpoints", TEMPLATE)
    ),
    "report of metrics": Loader("metrics.jsonl", write_report),
    "report of an evaluation": Loader("evaluation.json", write_report),
    "report of a provenance": Loader("provenance.json", write_report),
    "report of a configuration": Loader("config.toml", write_report),
    "comparison of metrics": Loader("metrics.jsonl", compare),
    "comparison of a configuration": Loader("config.toml", compare),
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
    run = folder / "run"
    (run / "checkpoints").mkdir()
    save_checkpoint(run / "checkpoints", Checkpoint(make_state(), 1, 0.5), keep=1)
    save_demonstrations(make_demonstrations(), run / "demonstrations.safetensors")
    return run


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


def fuzz(seconds: int) -> None:
    """Until the time is up or a loader does what it must not, a warning included; ends the process."""
    warnings.simplefilter("error")
    with tempfile.TemporaryDirectory() as folder:
        run = make_runs(Path(folder))
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        loaders = list(LOADERS.values())
        for number, loader in enumerate(loaders):
            (corpus / str(number)).write_bytes(bytes([number]) + (run / loader.file).read_bytes())

        def one_input(data: bytes) -> None:
            if data:
                attempt(loaders[data[0] % len(loaders)], run, data[1:])

        options = [f"-max_total_time={seconds}", "-max_len=20000", "-timeout=30", "-rss_limit_mb=8192"]
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
