"""Policies that come with klimb: found by name, evaluated, loaded and trained on from, and never written to."""

from __future__ import annotations

import json

import jax
import pytest

import klimb
import returns
import zoo as zoo_benchmark
from klimb.cli.main import execute
from klimb.errors import ConfigError, RunError
from klimb.files import as_path
from klimb.policies.encoders import DEFAULT_HIDDEN
from klimb.runs import zoo
from klimb.runs.config import RunConfig
from klimb.runs.located import located
from returns_tasks import Piece

PIECE = Piece("v4", "trpo", "jax:Pendulum-v1", 64, 3, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A zoo with one policy: that of seed 4 of a tiny training."""
    place = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(returns, "RUNS", place / "runs")
        patch.setattr(zoo_benchmark, "RUNS", place / "runs")
        for module in (zoo, zoo_benchmark):
            patch.setattr(module, "ROOT", place / "zoo")
        klimb.train(
            PIECE.env,
            klimb.TRPO(),
            env_steps=64,
            seed=3,
            num_seeds=2,
            num_envs=2,
            num_steps=16,
            critic_num_minibatches=1,
            hidden=(4,),
            eval_episodes=0,
            run_dir=place / "runs" / PIECE.name,
        )
        row = {**vars(PIECE), "command": PIECE.command, "klimb": "0", "commit": "abc"}
        row |= {"final": [-900.0, -800.0], "final_standard_error": [10.0, 20.0]}
        lost = {**row, **vars(Piece("v4", "trpo", "jax:CartPole-v1", 64, 0, 2))}
        # Of two lengths of training the longer one counts, and the shorter one's seeds do not mix with its own.
        shorter = {**row, "env_steps": 32, "final": [0.0, 0.0]}
        ((key, rows),) = zoo_benchmark.cells([shorter, row, lost]).items()
        assert (key, rows) == (("trpo", PIECE.env), [row])
        zoo_benchmark.add(rows)
    return place


@pytest.fixture
def with_zoo(folder, monkeypatch):
    monkeypatch.setattr(zoo, "ROOT", folder / "zoo")
    return folder / "zoo" / "trpo" / "Pendulum-v1"


def test_an_entry_is_the_best_seed_with_where_it_is_from(with_zoo, folder):
    (entry,) = zoo.zoo().values()
    assert (entry.seed, entry.mean, entry.standard_error, entry.seeds) == (4, -800, 20, [-900, -800])
    assert entry.command == PIECE.command
    options = RunConfig.read(with_zoo / "config.toml").options
    assert (options.seed, options.num_seeds) == (4, 1)
    of_the_run = folder / "runs" / PIECE.name / "policy_seed4.safetensors"
    assert (with_zoo / "policy.safetensors").read_bytes() == of_the_run.read_bytes()


def test_it_is_evaluated_and_loaded_by_name(with_zoo, folder, capsys):
    execute(["evaluate", "zoo:trpo/Pendulum-v1", "--episodes", "2", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert said["run"] == "zoo:trpo/Pendulum-v1"
    policy = klimb.load_policy("zoo:trpo/Pendulum-v1")
    assert said["seeds"][0]["mean"] == pytest.approx(klimb.evaluate(policy, "Pendulum-v1", episodes=2).mean)
    execute(["list", "zoo"])
    (line,) = capsys.readouterr().out.splitlines()[1:]
    said = "return -800.0 ± 20.0 after 64 steps, the best of 2 seeds (their mean: -850.0)"
    assert line.split(maxsplit=1) == ["zoo:trpo/Pendulum-v1", said]


@pytest.mark.slow
def test_a_training_starts_from_it(with_zoo):
    given = klimb.load_policy("zoo:trpo/Pendulum-v1")
    run = klimb.train("Pendulum-v1", klimb.TRPO(), env_steps=1, init_from="zoo:trpo/Pendulum-v1", hidden=(4,))
    assert run.policy.network.sizes == given.network.sizes
    # The critic warms up: no step is taken yet.
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), run.policy.network, given.network))


def test_nothing_is_written_into_it(with_zoo, tmp_path, capsys):
    before = sorted(path.name for path in with_zoo.iterdir())
    with pytest.raises(ConfigError, match="give one with -o FILE"):
        execute(["record", "zoo:trpo/Pendulum-v1", "--episodes", "1"])
    execute(["record", "zoo:trpo/Pendulum-v1", "--episodes", "1", "-o", str(tmp_path / "x.safetensors")])
    assert (tmp_path / "x.safetensors").exists()
    for command in ("resume", "report"):
        with pytest.raises(RunError, match=r"is not a run|there is no"):
            execute([command, "zoo:trpo/Pendulum-v1"])
    assert sorted(path.name for path in with_zoo.iterdir()) == before


def test_a_wrong_name_gets_the_nearest(with_zoo, tmp_path):
    with pytest.raises(RunError, match=r"the zoo has no .*did you mean 'trpo/Pendulum-v1'\? \(klimb list zoo"):
        klimb.load_policy("zoo:trpo/Pendulum-v0")
    assert located(tmp_path) == as_path(tmp_path)


def test_every_policy_that_comes_with_klimb_can_be_loaded():
    """And is as good as the rest of its training says: the best seed's."""
    for name, entry in zoo.zoo().items():
        policy = klimb.load_policy(f"zoo:{name}")
        config = RunConfig.read(zoo.ROOT / name / "config.toml")
        assert (config.env, config.options.seed, config.options.num_seeds) == (entry.env, entry.seed, 1)
        assert entry.mean == max(entry.seeds)
        assert policy.network.sizes[1:-1] == (config.options.hidden or DEFAULT_HIDDEN)
