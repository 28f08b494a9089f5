"""Sweeps: several values in one program are the runs that they would be alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO, RunConfig
from klimb.runs.provenance import read_provenance
from klimb.runs.sweep_file import SWEEP, Sweep, is_sweep
from klimb.training.progress.view import View
from klimb.training.sweep import start_sweep
from problems import Stopper, without_timing

SMALL = {
    "env_steps": 3 * 128, "num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2,
    "critic_num_minibatches": 2, "num_seeds": 2,
}  # fmt: skip
OVER = {"max_kl": [0.003, 0.03], "damping": [0.1, 0.2]}


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Four combinations, two seeds each, in directories."""
    folder = tmp_path_factory.mktemp("sweep") / "all"
    return klimb.sweep("jax:CartPole-v1", TRPO(), OVER, run_dir=folder, **SMALL)


def test_every_combination_is_a_run_of_its_own(swept):
    found = [(run.config.rule.max_kl, run.config.rule.damping) for run in swept]
    assert found == [(0.003, 0.1), (0.003, 0.2), (0.03, 0.1), (0.03, 0.2)]
    assert [run.directory.name for run in swept][1] == "max_kl=0.003,damping=0.2"
    for run in swept:
        assert len(run.history) == 3
        assert len(run.policies) == 2
        assert [entry.event for entry in read_provenance(run.directory)] == ["start"]
        kl = np.array([record["kl_old_new"] for record in run.history])
        assert kl.shape == (3, 2)
        limit = run.config.rule.max_kl
        assert ((kl > 0.5 * limit) & (kl <= limit)).all()


@pytest.mark.slow
def test_a_combination_is_what_it_would_be_alone(swept):
    run = swept[3]
    alone = klimb.train("jax:CartPole-v1", run.config.rule, **SMALL)
    for record, other in zip(run.history[:2], alone.history, strict=False):
        for name in ("surrogate_gain", "kl_old_new", "episode_return", "value_loss", "step_size"):
            np.testing.assert_allclose(record[name], other[name], rtol=2e-3, err_msg=name)
    elsewhere = swept[0].history[0]["surrogate_gain"]
    assert not np.allclose(run.history[0]["surrogate_gain"], elsewhere, rtol=0.1)


def test_each_directory_is_resumed_and_read_as_any_other(swept):
    run = swept[2]
    again = klimb.resume(run.directory)
    assert again.config == run.config
    assert again.history == run.history
    kept = klimb.load_policy(run.directory, seed=1)
    obs = jnp.ones(4)
    np.testing.assert_array_equal(kept(obs).logits, run.policies[1](obs).logits)


@pytest.mark.slow
def test_host_environments_are_swept_too():
    options = {**SMALL, "env_steps": 2 * 128, "num_seeds": 1, "workers": 0}
    runs = klimb.sweep("gymnasium:CartPole-v1", TRPO(), {"max_kl": [0.003, 0.03]}, **options)
    assert [run.history[-1]["kl_old_new"] > 0.01 for run in runs] == [False, True]


@pytest.mark.slow
def test_a_combination_on_a_host_environment_is_what_it_would_be_alone():
    """Copies v·S + s of all values v play the episodes of seed s."""
    options = {**SMALL, "env_steps": 2 * 128, "workers": 0}
    run = klimb.sweep("gymnasium:CartPole-v1", TRPO(), {"max_kl": [0.003, 0.03]}, **options)[1]
    alone = klimb.train("gymnasium:CartPole-v1", run.config.rule, **options)
    for name in ("episodes", "episode_length", "episode_return"):
        assert run.history[0][name] == alone.history[0][name]
    np.testing.assert_allclose(run.history[0]["kl_old_new"], alone.history[0]["kl_old_new"], rtol=2e-3)


@pytest.mark.parametrize(
    ("rule", "over", "words"),
    [
        (TRPO(), {"maxkl": [0.1]}, "no option 'maxkl'; did you mean 'max_kl'"),
        (TRPO(), {"cg_iterations": [0, 4]}, "cg_iterations = 0: input should be greater"),
        (TRPO(), {"gama": [0.9]}, "no option 'gama'; did you mean 'gamma'"),
        (TRPO(), {"seed": [5, 0, 1]}, "seed = 0 and seed = 1 with num_seeds = 2 both train seed 1: choose values that"),
        (TRPO(), {"num_seeds": [1, 2]}, "num_seeds can't be swept over"),
        (TRPO(), {"num_envs": [3, 4], "num_steps": [1]}, "critic_num_minibatches = 2"),
        (TRPO(), {}, "needs a field and its values"),
        (TRPO(), {"gamma": [i / 5000 for i in range(5000)]}, "5000 combinations"),
        (TRPO(), {"max_kl": [-1.0]}, "max_kl = -1.0: input should be greater than 0"),
        (TRPO(), {"max_kl": []}, "no values of max_kl"),
        (TRPO(), {"max_kl": [0.1, 0.2, 0.1]}, "are not all different"),
        (TRPO(), {"hidden": [(4,), [4]]}, "the values of hidden to sweep over are not all different"),
    ],
)
def test_what_cannot_be_swept_is_said_and_leaves_nothing(rule, over, words, tmp_path):
    with pytest.raises(klimb.ConfigError, match=words):
        klimb.sweep("jax:CartPole-v1", rule, over, run_dir=tmp_path / "sweep", **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_sweep_starts_from_the_policy_that_it_is_told(tmp_path):
    """As a training does; while the critic warms up no copy of it moves."""
    start = klimb.train("jax:CartPole-v1", TRPO(), run_dir=tmp_path / "start", **{**SMALL, "num_seeds": 1})
    options = {**SMALL, "num_seeds": 1, "env_steps": 2 * 128, "init_from": str(start.directory), "critic_warmup": 9}
    for run in klimb.sweep("jax:CartPole-v1", TRPO(), {"max_kl": [0.003, 0.03]}, **options):
        np.testing.assert_array_equal(run.policy.network.weights[0], start.policy.network.weights[0])
        assert run.history[0]["status"] == "CRITIC_WARMUP"


def test_a_directory_that_is_there_is_refused_whole(tmp_path):
    (tmp_path / "sweep").mkdir()
    with pytest.raises(klimb.RunError, match="exists already"):
        klimb.sweep("jax:CartPole-v1", TRPO(), {"max_kl": [0.003]}, run_dir=tmp_path / "sweep", **SMALL)
    assert not list((tmp_path / "sweep").iterdir())


MIXED = {"max_kl": [0.003, 0.03], "gamma": [0.9, 0.99]}
"""A field whose values share a program, and one whose values do not."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Two programs of two combinations, trained to their end."""
    folder = tmp_path_factory.mktemp("mixed") / "whole"
    options = {**SMALL, "checkpoint_every": 1, "num_seeds": 1}
    runs = klimb.sweep("CartPole-v1", TRPO(), MIXED, run_dir=folder, **options)
    assert [(run.config.rule.max_kl, run.config.options.gamma) for run in runs] == [
        (0.003, 0.9), (0.003, 0.99), (0.03, 0.9), (0.03, 0.99)
    ]  # fmt: skip
    return folder


def records(run: Path) -> list[dict[str, Any]]:
    return without_timing([json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()])


def require_same_runs(one: Path, other: Path) -> None:
    """The same combinations with the same records and the same policies, to the byte."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        if name == SWEEP:
            assert (one / name).read_text() == (other / name).read_text()
            continue
        assert records(one / name) == records(other / name), name
        for file in [*(one / name).glob("policy*.safetensors"), one / name / "config.toml"]:
            assert file.read_bytes() == (other / name / file.name).read_bytes(), (name, file.name)


@pytest.mark.slow
def test_the_values_of_an_option_are_what_they_would_be_alone(mixed):
    """Each of them in a program of its own, to the byte: nothing else is in it."""
    options = {**SMALL, "num_seeds": 1, "gamma": 0.9}
    (run,) = klimb.sweep("CartPole-v1", TRPO(max_kl=0.003), {"gae_lambda": [0.95]}, **options)
    alone = klimb.train("CartPole-v1", TRPO(max_kl=0.003), **options)
    assert without_timing(run.history) == without_timing(alone.history)
    recorded = records(mixed / "max_kl=0.003,gamma=0.9")
    np.testing.assert_allclose(recorded[0]["kl_old_new"], alone.history[0]["kl_old_new"], rtol=2e-3)


class Begun(View):
    """Keeps the names of the combinations of every program."""

    def __init__(self) -> None:
        self.programs: list[list[str]] = []

    def begin(self, config, iteration, directories, parts=()) -> None:
        self.programs.append([part.name for part in parts])


@pytest.mark.slow
def test_programs_are_begun_one_after_the_other_with_all_that_share_them():
    """Of shapes, counts and switches each value has its own; numbers that a rule only calculates with share one."""
    over = {"epochs": [1, 2], "learning_rate": [1e-3, 1e-4], "ent_coef": [0.0, 0.1]}
    options = klimb.TrainOptions(**{**SMALL, "env_steps": 128, "num_seeds": 1})
    plan = Sweep(RunConfig("jax:CartPole-v1", PPO(num_minibatches=2), options), over)
    begun = Begun()
    lines: list[str] = []
    trained = list(start_sweep(plan, klimb.make("CartPole-v1"), new_view=lambda: begun, notify=lines.append))
    assert begun.programs == [
        [f"epochs={epochs},learning_rate={rate},ent_coef={coef}" for rate in (0.001, 0.0001)]
        for epochs in (1, 2)
        for coef in (0.0, 0.1)
    ]
    assert [list(part) for part in trained] == begun.programs
    told = "sweep        the program of ppo depends on ent_coef: each value is compiled separately"
    assert [line for line in lines if line.startswith("sweep")] == [told]
    named = [line for line in lines if line.startswith("training")]
    assert named[0] == f"training     {', '.join(begun.programs[0])} (2 of 8 combinations begun)"
    assert named[-1].endswith("(8 of 8 combinations begun)")
    runs = {name: run for part in trained for name, run in part.items()}
    assert [run.config for run in runs.values()] == [
        next(member.config for member in plan.members() if member.name == name) for name in runs
    ]
    # Each has been trained with its own values, and not with those of its neighbours.
    assert len({run.history[0]["kl_old_new"] for run in runs.values()}) == 8


@pytest.mark.slow
def test_a_sweep_that_was_stopped_at_its_start_goes_on_in_one_program(swept, tmp_path):
    """To the byte what it would have been, and a second time there is nothing left to do."""
    folder = Path(shutil.copytree(swept[0].directory.parent, tmp_path / "cut"))
    cut(folder, 0, *swept_names(swept))
    begun = Begun()
    runs = klimb.resume_sweep(folder, progress=begun)
    assert begun.programs == [swept_names(swept)]
    assert [run.directory.name for run in runs] == swept_names(swept)
    require_same_runs(swept[0].directory.parent, folder)
    assert read_provenance(runs[0].directory)[-1].event == "resume"
    assert klimb.resume_sweep(folder) == []


def swept_names(runs: list[klimb.Run]) -> list[str]:
    return [run.directory.name for run in runs]


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2])
def test_a_sweep_that_was_stopped_goes_on_as_a_whole(after, mixed, tmp_path):
    """In the first program or in the second: to the byte what it would have been, and each run says it was resumed."""
    options = {**SMALL, "checkpoint_every": 1, "num_seeds": 1}
    with pytest.raises(klimb.Interrupted) as stopped:
        klimb.sweep("CartPole-v1", TRPO(), MIXED, run_dir=tmp_path / "cut", callback=Stopper(after), **options)
    assert str(stopped.value).endswith(f"go on with: klimb resume {tmp_path / 'cut'}")
    assert not (tmp_path / "cut" / "max_kl=0.003,gamma=0.99").exists()
    runs = klimb.resume_sweep(tmp_path / "cut")
    assert [run.directory.name for run in runs] == [path.name for path in _members(mixed)]
    require_same_runs(mixed, tmp_path / "cut")
    events = [[entry.event for entry in read_provenance(path)] for path in _members(tmp_path / "cut")]
    assert events == [["start", "resume"], ["start"]] * 2
    assert klimb.resume_sweep(tmp_path / "cut") == []


def _members(folder: Path) -> list[Path]:
    return [folder / member.name for member in Sweep.read(folder).members()]


def cut(folder: Path, iteration: int, *names: str) -> None:
    """Take runs of a sweep back to the checkpoint of an iteration."""
    for name in names:
        for checkpoint in (folder / name / "checkpoints").glob("*.safetensors"):
            if int(checkpoint.stem) > iteration:
                checkpoint.unlink()


@pytest.mark.slow
def test_runs_that_stand_at_different_iterations_go_on_from_the_newest_that_all_have(mixed, tmp_path):
    folder = Path(shutil.copytree(mixed, tmp_path / "cut"))
    cut(folder, 2, "max_kl=0.003,gamma=0.9")
    cut(folder, 1, "max_kl=0.03,gamma=0.9")
    names = [run.directory.name for run in klimb.resume_sweep(folder)]
    assert names == ["max_kl=0.003,gamma=0.9", "max_kl=0.03,gamma=0.9"]
    assert [read_provenance(folder / name)[-1].iteration for name in names] == [1, 1]
    require_same_runs(mixed, folder)


@pytest.mark.slow
def test_a_run_of_a_sweep_that_was_changed_goes_on_by_itself(mixed, tmp_path):
    folder = Path(shutil.copytree(mixed, tmp_path / "cut"))
    name = "max_kl=0.003,gamma=0.9"
    cut(folder, 2, name, "max_kl=0.03,gamma=0.9")
    klimb.resume(folder / name, env_steps=5 * 128, max_kl=0.005)
    cut(folder, 4, name)
    runs = klimb.resume_sweep(folder)
    assert [(run.directory.name, len(run.history)) for run in runs] == [(name, 5), ("max_kl=0.03,gamma=0.9", 3)]
    assert runs[0].config.rule.max_kl == 0.005
    assert without_timing(runs[1].history)[:2] == records(mixed / "max_kl=0.03,gamma=0.9")[:2]


@pytest.mark.slow
@pytest.mark.parametrize("env", ["gymnasium:CartPole-v1", "gymnasium:Pendulum-v1"])
def test_a_sweep_on_a_host_environment_goes_on_where_its_simulators_were(env, tmp_path):
    options = {**SMALL, "checkpoint_every": 1, "workers": 0, "env_steps": 4 * 128}
    over = {"max_kl": [0.003, 0.03], "hidden": [(8,), (4, 4)]}
    whole = klimb.sweep(env, TRPO(), over, run_dir=tmp_path / "whole", **options)
    assert [run.directory.name for run in whole][1] == "max_kl=0.003,hidden=4x4"
    with pytest.raises(klimb.Interrupted):
        klimb.sweep(env, TRPO(), over, run_dir=tmp_path / "cut", callback=Stopper(2), **options)
    klimb.resume_sweep(tmp_path / "cut")
    for run in whole:
        other = tmp_path / "cut" / run.directory.name
        assert records(other) == without_timing(run.history)


@pytest.mark.slow
def test_behaviour_cloning_is_swept_too(tmp_path):
    """One program after the other: it is a training of its own kind."""
    policy = klimb.NetworkPolicy(4, klimb.make("CartPole-v1").actions, hidden=(), key=jnp.array([0, 7], jnp.uint32))
    file = klimb.save_demonstrations(
        klimb.record(policy, "CartPole-v1", episodes=6, seed=1), tmp_path / "demonstrations.safetensors"
    )
    rule = klimb.BehaviourCloning(max_epochs=2, minibatch_size=16)
    over = {"learning_rate": [1e-3, 1e-2], "hidden": [(), (4,)]}
    runs = klimb.sweep("CartPole-v1", rule, over, run_dir=tmp_path / "sweep", demonstrations=str(file))
    assert [(run.config.rule.learning_rate, run.config.options.hidden) for run in runs] == [
        (1e-3, ()), (1e-3, (4,)), (1e-2, ()), (1e-2, (4,))
    ]  # fmt: skip
    assert klimb.resume_sweep(tmp_path / "sweep") is not None


@pytest.mark.slow
def test_a_value_that_cannot_be_trained_with_does_not_cost_the_others(tmp_path):
    options = {**SMALL, "num_seeds": 1, "max_rejections": 1, "env_steps": 4 * 128}
    over = {"initial_log_std": [1e9, 0.0]}
    with pytest.raises(klimb.TrainingFailed, match=r"^initial_log_std=1000000000.0: stopped after iteration 1"):
        klimb.sweep("jax:Pendulum-v1", TRPO(), over, run_dir=tmp_path / "sweep", **options)
    assert len(records(tmp_path / "sweep" / "initial_log_std=0.0")) == 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[over]\nmax_kl = 3\n", r"\[over\] has a list of values"),
        ("", r"\[over\] has a list of values for each field; here it is None"),
        ("[over]\nmax_kl = [0.1, -1.0]\n", "max_kl = -1.0"),
        ('[over]\n"../../x" = [1]\n', "no option '../../x'"),
        ("[over", "not valid TOML"),
    ],
)
def test_a_description_that_is_damaged_is_refused_in_one_line(text, said, swept, tmp_path):
    (tmp_path / SWEEP).write_text((swept[0].directory.parent / SWEEP).read_text().partition("[over]")[0] + text)
    with pytest.raises(klimb.ConfigError, match=said) as error:
        klimb.resume_sweep(tmp_path)
    assert "\n" not in str(error.value)


def test_names_of_directories_stay_inside_the_sweep():
    config = RunConfig("CartPole-v1", TRPO(), klimb.TrainOptions())
    over: dict[str, list[Any]] = {"init_from": ["../../elsewhere", None], "overlap": [True], "hidden": [(), (64, 32)]}
    names = [member.name for member in Sweep(config, over).members()]
    assert names[0] == "init_from=..-..-elsewhere,overlap=true,hidden=none"
    assert names[3] == "init_from=none,overlap=true,hidden=64x32"
    assert not any("/" in name for name in names)


def test_a_sweep_is_not_a_run_and_a_run_is_no_sweep(swept):
    run = swept[0].directory
    folder = run.parent
    with pytest.raises(klimb.RunError, match="is not a run: it is a sweep"):
        klimb.resume(folder)
    with pytest.raises(klimb.RunError, match=r"is not a sweep: it has no sweep\.toml"):
        klimb.resume_sweep(run)
    assert (is_sweep(folder), is_sweep(run), is_sweep(Path("no\0where"))) == (True, False, False)
    assert Sweep.read(folder).over == OVER
