"""Runs that are resumed with other settings: which may change, what comes out, and what is written down."""

from __future__ import annotations

import dataclasses
import json
import shutil
import typing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO, ConfigError, DualDescent, OffPolicyGradient, Reinforce, RunConfig, TrainOptions
from klimb.cli.flags import plain_types
from klimb.cli.main import main
from klimb.improve.rule import traits_of
from klimb.rules import RULES
from klimb.runs.changes import FIXED, changes_between, describe, require_changeable, with_changes
from klimb.runs.directory import RunDirectory
from klimb.runs.provenance import Change, as_plain, read_provenance
from klimb.training.driver import _schedule_lines
from klimb.training.program import Program
from klimb.types import TrainState
from problems import Stopper, assert_same_bits, slow_except, without_timing

SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}
BATCH = 4 * 32


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A run of four iterations, trained to its end."""
    path = tmp_path_factory.mktemp("changes") / "short"
    klimb.train("CartPole-v1", TRPO(), run_dir=path, env_steps=4 * BATCH, checkpoint_every=2, **SMALL)
    return path


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """The same run with eight iterations."""
    path = tmp_path_factory.mktemp("changes") / "long"
    klimb.train("CartPole-v1", TRPO(), run_dir=path, env_steps=8 * BATCH, checkpoint_every=2, **SMALL)
    return path


@pytest.fixture
def run(short, tmp_path) -> Path:
    """A copy of the short one."""
    return Path(shutil.copytree(short, tmp_path / "run"))


def records(path: Path) -> list[dict[str, Any]]:
    return without_timing([json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()])


def files(path: Path) -> dict[str, bytes]:
    """What stands in a run, without the lock and what a log may append."""
    names = ("config.toml", "provenance.json", "metrics.jsonl", "policy.safetensors")
    return {name: (path / name).read_bytes() for name in names}


@pytest.mark.slow
def test_a_run_that_is_made_longer_is_the_longer_run(run, long):
    """Byte for byte: nothing in it depended on its length."""
    result = klimb.resume(run, env_steps=8 * BATCH)
    assert len(result.history) == 8
    assert records(run) == records(long)
    for name in ("policy.safetensors", "config.toml", "best/score.json"):
        assert (run / name).read_bytes() == (long / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_that_is_made_shorter_ends_earlier(tmp_path, long):
    path = tmp_path / "run"
    with pytest.raises(klimb.Interrupted):
        klimb.train(
            "CartPole-v1",
            TRPO(),
            run_dir=path,
            callback=Stopper(3),
            env_steps=99 * BATCH,
            checkpoint_every=2,
            **SMALL,
        )
    done = len(records(path))
    assert 3 <= done < 7
    klimb.resume(path, env_steps=7 * BATCH)
    assert records(path) == records(long)[:7]


@pytest.mark.slow
def test_a_changed_rule_steps_on_from_the_same_state(run):
    """What comes out is what a program with the new settings makes of the old state."""
    directory = RunDirectory.open(run)
    config = with_changes(directory.config, {"max_kl": 0.002, "gamma": 0.9, "env_steps": 6 * BATCH})
    program = Program(config, klimb.make("CartPole-v1"))
    state = program.place(directory.load(program.state_template()).state)
    expected, _ = program.advance(state, 2)
    result = klimb.resume(run, max_kl=0.002, gamma=0.9, env_steps=6 * BATCH)
    assert_same_bits(result.state, expected)
    kl = [record["kl_old_new"] for record in result.history]
    assert all(value > 0.004 for value in kl[:4])
    assert all(value <= 0.002 for value in kl[4:])
    assert result.config == config


@pytest.mark.slow
def test_what_has_changed_is_written_down(run):
    klimb.resume(run, env_steps=5 * BATCH, critic_epochs=3)
    klimb.resume(run, rule=TRPO(max_kl=0.02), env_steps=6 * BATCH)
    config = RunConfig.read(run / "config.toml")
    assert (config.options.env_steps, config.options.critic_epochs, config.rule.max_kl) == (6 * BATCH, 3, 0.02)
    first, second, third = read_provenance(run)
    assert first.changes == []
    assert second.changes == [Change("env_steps", 4 * BATCH, 5 * BATCH), Change("critic_epochs", 2, 3)]
    assert third.changes == [Change("max_kl", 0.01, 0.02), Change("env_steps", 5 * BATCH, 6 * BATCH)]
    assert (second.iteration, third.iteration) == (4, 5)
    page = klimb.write_report(run).read_text()
    assert f"changed: env_steps {4 * BATCH} → {5 * BATCH}" in page
    assert "0.01 up to iteration 5" in page
    assert "Settings were changed when this run was resumed" in page


@pytest.mark.slow
def test_without_a_change_nothing_is_said_of_one(run):
    before = (run / "config.toml").read_bytes()
    klimb.resume(run)
    klimb.resume(run, env_steps=4 * BATCH, rule=TRPO())
    assert (run / "config.toml").read_bytes() == before
    assert [entry.changes for entry in read_provenance(run)] == [[], [], []]
    assert "Settings were changed" not in klimb.write_report(run).read_text()


@pytest.mark.slow
def test_entries_of_before_there_were_changes_are_read(run):
    trees = as_plain(read_provenance(run))
    for tree in trees:
        del tree["changes"]
    (run / "provenance.json").write_text(json.dumps(trees))
    assert [entry.changes for entry in read_provenance(run)] == [[]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"env_steps": 4 * BATCH, "gamma": 0.5},
            "env_steps = 512, but the run has already made 640 .* and is complete",
        ),
        (
            {"env_steps": 3 * BATCH},
            "env_steps = 384, but the run has already made 640 environment steps in 4 iterations",
        ),
        ({"env_steps": 0}, "env_steps = 0: input should be greater than or equal to 1"),
        ({"hidden": (4,)}, "hidden can't change when a run is resumed: the networks are made at the start"),
        ({"num_envs": 8}, "num_envs can't change .* in the checkpoints have this size"),
        ({"num_seeds": 2}, "num_seeds can't change .* are those of the run's seeds; train a new run"),
        ({"bootstrap": None, "advantage": "reward_to_go"}, "bootstrap can't change .* trains a critic"),
        ({"max_kll": 1.0}, "a training with trpo has no option 'max_kll'; did you mean 'max_kl'"),
        ({"max_kl": -1.0}, "max_kl = -1.0: input should be greater than 0"),
        ({"rule": PPO()}, "the run uses trpo and can't continue with ppo"),
    ],
    ids=str,
)
def test_what_cannot_change_is_refused_and_leaves_the_run_as_it_is(changes, said, short, capsys):
    before = files(short)
    with pytest.raises(ConfigError, match=said) as error:
        klimb.resume(short, **changes)
    assert "\n" not in str(error.value)
    assert files(short) == before


@pytest.mark.parametrize(
    ("rule", "fields", "reason"),
    [
        (PPO(), {"kl_coef": 2.0}, "kl_coef can't change .* at the start of a run only"),
        (DualDescent(), {"initial_multiplier": 2.0}, "at the start of a run only"),
        (DualDescent(), {"log_multiplier": True}, "steps of log λ never leave 0"),
        (DualDescent(), {"divergence": "tv"}, "found for this one"),
        (RULES["v-mpo"](), {"initial_multiplier": 2.0}, "at the start of a run only"),
        (RULES["behaviour-cloning"](), {"holdout": 0.2}, "trained on would be held out"),
        (RULES["guided"](), {"supervised_iterations": 3}, "the first iterations of a run"),
    ],
)
def test_fields_of_rules_that_have_done_their_work_are_refused(rule, fields, reason):
    config = RunConfig("CartPole-v1", rule, TrainOptions())
    with pytest.raises(ConfigError, match=reason):
        require_changeable(config, with_changes(config, fields))
    require_changeable(config, config)


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        pytest.param(Reinforce(), {"optimizer": "sgd"}, marks=pytest.mark.slow),
        pytest.param(OffPolicyGradient(), {"history": 3}, marks=pytest.mark.slow),
        pytest.param(OffPolicyGradient(history=2), {"behaviour": "mixture"}, marks=pytest.mark.slow),
        pytest.param(PPO(target_kl=0.01), {"learning_rate_schedule": "kl"}, marks=pytest.mark.slow),
    ],
)
def test_what_changes_the_shape_of_the_saved_state_is_refused(rule, changed, tmp_path):
    klimb.train("CartPole-v1", rule, run_dir=tmp_path / "run", env_steps=BATCH, **SMALL)
    before = files(tmp_path / "run")
    (name,) = changed
    with pytest.raises(ConfigError, match=f"^{name} can't change when a run is resumed: the saved state has another"):
        klimb.resume(tmp_path / "run", env_steps=2 * BATCH, learning_rate=1e-4, **changed)
    assert files(tmp_path / "run") == before


@pytest.mark.slow
def test_schedules_follow_the_new_length(tmp_path):
    """The rate falls to 0 at the new end; where it has been 0 already, it rises again, and that is said."""
    lines: list[str] = []
    rule = Reinforce(optimizer="sgd", learning_rate_schedule="linear", learning_rate=0.1)
    options = {**SMALL, "env_steps": 4 * BATCH, "normalize_observations": False}
    before = klimb.train("CartPole-v1", rule, run_dir=tmp_path / "run", **options).policy
    run = klimb.resume(tmp_path / "run", env_steps=5 * BATCH, notify=lines.append)
    assert lines == [
        f"changed      env_steps {4 * BATCH} → {5 * BATCH}",
        "changed      the schedules follow the new length: 80% of it is over, of the old one 100%",
    ]
    # A step of plain gradient ascent is rate × gradient, and one fifth of the training is left.
    moved = np.linalg.norm(klimb.flatten(run.policy).theta - klimb.flatten(before).theta)
    np.testing.assert_allclose(moved, 0.1 * 0.2 * run.history[4]["grad_norm"], rtol=1e-4)


@pytest.mark.slow
def test_a_learning_rate_that_follows_the_kl_is_resumed_where_it_was(tmp_path):
    """Its factor is in the checkpoint, and it does not depend on the length: a longer run is the run made longer."""
    rule = PPO(learning_rate_schedule="kl", target_kl=1e-3)
    whole = klimb.train("CartPole-v1", rule, run_dir=tmp_path / "whole", env_steps=6 * BATCH, **SMALL)
    klimb.train("CartPole-v1", rule, run_dir=tmp_path / "run", env_steps=3 * BATCH, **SMALL)
    lines: list[str] = []
    klimb.resume(tmp_path / "run", env_steps=6 * BATCH, notify=lines.append)
    assert lines == [f"changed      env_steps {3 * BATCH} → {6 * BATCH}"]
    assert records(tmp_path / "run") == records(tmp_path / "whole")
    rates = [record["learning_rate"] for record in whole.history]
    for record, rate, following in zip(whole.history, rates, rates[1:], strict=False):
        kl = record["kl_old_new"]
        factor = 1 / 1.5 if kl > 2e-3 else 1.5 if kl < 5e-4 else 1
        assert following == pytest.approx(factor * rate, rel=1e-5)
    assert len(set(rates)) > 2


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_the_schedule_of_the_critic_follows_the_new_length_too(schedule):
    """A rule without schedules says nothing of its own; nor does a change of other settings."""
    config = RunConfig("CartPole-v1", klimb.TRPO(), TrainOptions(critic_learning_rate_schedule=schedule, **SMALL))
    longer = dataclasses.replace(config, options=dataclasses.replace(config.options, env_steps=10 * BATCH))
    shorter = dataclasses.replace(config, options=dataclasses.replace(config.options, env_steps=4 * BATCH))
    parts = dict.fromkeys(field.name for field in dataclasses.fields(TrainState))
    parts |= {"iteration": jnp.int32(2), "env_steps": jnp.uint32(2 * BATCH), "key": jax.random.key(0)}
    state = TrainState(**parts)
    line = "the schedules follow the new length: 20% of it is over, of the old one 50%"
    assert _schedule_lines(shorter, longer, state, 2) == ([line] if schedule == "cosine" else [])
    assert _schedule_lines(shorter, shorter, state, 2) == []


@dataclasses.dataclass(frozen=True)
class Steady:
    """A rule without a module that a file could name: all steps are of one length."""

    length: float = 0.01

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        theta, rebuild = klimb.flatten(policy)
        return klimb.accept_or_reject(policy, state, rebuild(theta + self.length), state, batch)


@pytest.mark.slow
def test_a_rule_of_ones_own_changes_too(tmp_path):
    klimb.train("CartPole-v1", Steady(), run_dir=tmp_path / "run", env_steps=2 * BATCH, **SMALL)
    klimb.resume(tmp_path / "run", rule=Steady(length=0.02), env_steps=3 * BATCH)
    assert read_provenance(tmp_path / "run")[-1].changes[0] == Change("length", 0.01, 0.02)
    klimb.resume(tmp_path / "run", rule=Steady(length=0.02), env_steps=4 * BATCH, length=0.04)
    assert read_provenance(tmp_path / "run")[-1].changes[0] == Change("length", 0.02, 0.04)
    assert "length = 0.04" in (tmp_path / "run" / "config.toml").read_text()


def other_value(owner: type, name: str, value: Any) -> Any:
    """A valid value of a field besides the one that it has."""
    kinds = plain_types(typing.get_type_hints(owner, include_extras=True)[name])
    choices = [
        choice for kind in kinds if typing.get_origin(kind) is typing.Literal for choice in typing.get_args(kind)
    ]
    if choices:
        return next((choice for choice in choices if choice != value), None)
    if bool in kinds:
        return not value
    if float in kinds:
        return 0.25 if value in (None, 0) else value / 2
    if int in kinds:
        return 2 if value is None else value * 2 if value > 0 else 1
    if str in kinds:
        return "own_code:thing"
    if name == "log":
        return ("wandb",)
    return (4, 4) if name != "kl_coef_range" else (1e-2, 1e2)


def template(config: RunConfig) -> list[Any]:
    """Path, shape and dtype of everything that a checkpoint of a run holds."""
    state = Program(config, klimb.make(config.env)).state_template()
    return [(jax.tree_util.keystr(path), x.shape, x.dtype) for path, x in jax.tree_util.tree_leaves_with_path(state)]


OPTIONS = [field.name for field in dataclasses.fields(TrainOptions)]


def test_every_option_that_cannot_change_is_one():
    assert set(FIXED) <= set(OPTIONS)
    assert not any(name in RULES["trpo"].__dataclass_fields__ for name in FIXED)
    for rule in RULES.values():
        assert set(traits_of(rule()).fixed) <= {field.name for field in dataclasses.fields(rule)}


@pytest.mark.parametrize("name", slow_except({"gamma", "certificate"}, [name for name in OPTIONS if name not in FIXED]))
def test_options_that_may_change_leave_the_saved_state_as_it_is(name, request):
    """An option that is added and changes its shape has to stand in FIXED."""
    # The steps for which noise is held are for noise that is held, of continuous actions; only workers are late.
    held = {"exploration": "gsde"} if name == "exploration_steps" else {}
    env = {"exploration_steps": "Pendulum-v1", "straggler_timeout": "gymnasium:CartPole-v1"}.get(name, "CartPole-v1")
    if name == "learn_on":
        request.getfixturevalue("two_devices")
    config = RunConfig(env, TRPO(), TrainOptions(**SMALL, **held))
    value = other_value(TrainOptions, name, getattr(config.options, name))
    changed = dataclasses.replace(config, options=dataclasses.replace(config.options, **{name: value}))
    assert changed != config
    try:
        require_changeable(config, changed)
    except ConfigError as error:
        assert "no critic" in str(error)  # noqa: PT017 (the one reason that depends on the value)
        return
    assert template(changed) == template(config)


@pytest.mark.slow
@pytest.mark.parametrize("rule", [name for name in RULES if name != "behaviour-cloning"])
def test_fields_of_rules_either_keep_the_saved_state_or_are_refused(rule):
    env = "Pendulum-v1" if rule == "guided" else "CartPole-v1"
    config = RunConfig(env, RULES[rule](), TrainOptions(**SMALL, gae_lambda=0.9))
    program, now = Program(config, klimb.make(env)), template(config)
    allowed = 0
    for field in dataclasses.fields(config.rule):
        value = other_value(type(config.rule), field.name, getattr(config.rule, field.name))
        try:
            changed = with_changes(config, {field.name: value})
            require_changeable(config, changed)
            same = program.rule_shapes(changed.rule) == program.rule_shapes(config.rule)
            other = template(changed)
        except ConfigError:
            continue
        assert same == (other == now) or not same, field.name
        allowed += same
    assert allowed >= 3


def test_a_change_is_told_in_one_line():
    config = RunConfig("CartPole-v1", PPO(), TrainOptions())
    changed = with_changes(config, {"kl_coef_range": (0.1, 10.0), "workers": 2, "max_grad_norm": None})
    assert [describe(change) for change in changes_between(config, changed)] == [
        "max_grad_norm 0.5 → none",
        "kl_coef_range 0.001 1000.0 → 0.1 10.0",
        "workers none → 2",
    ]


@pytest.mark.slow
def test_on_the_command_line(run, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    words = ["--max-kl", "0.02", "--no-certificate", "--eval-episodes", "1"]
    assert main(["resume", "run", "--env-steps", str(5 * BATCH), *words]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("changed max_kl 0.01 → 0.02", "changed env_steps 512 → 640", "changed certificate True → False"):
        assert words in said
    assert [change.name for change in read_provenance(run)[-1].changes] == [
        "max_kl",
        "env_steps",
        "eval_episodes",
        "certificate",
    ]
    # What has been changed once is what holds from then on.
    assert main(["resume", "--env-steps", str(6 * BATCH), "run"]) == 0
    assert RunConfig.read(run / "config.toml").rule == TRPO(max_kl=0.02)
    assert len(records(run)) == 6
    capsys.readouterr()
    assert main(["resume", "run", "--help"]) == 0
    page = capsys.readouterr().out
    assert "(default: 768)" in page
    assert "--max-kl FLOAT" in page
    for words, line in {
        "run --hidden 4": "hidden can't change when a run is resumed",
        "run --env-steps 3": "env_steps = 3, but the run has already made",
        "run --max-kll 3": "there is no flag --max-kll; did you mean '--max-kl'",
        "run more": "'more' is one word too many",
        "nowhere --env-steps 3": "nowhere is not a run",
        "nowhere --max-kl 3": "nowhere is not a run: there is no such directory",
        "--init-from run run": "RUN stands before the flags",
    }.items():
        assert main(["resume", *words.split()]) == 2
        error = capsys.readouterr().err
        assert line in error
        assert error.count("\n") == 1


@pytest.mark.slow
def test_time_out_and_workers_change_on_host_environments(tmp_path):
    options = {**SMALL, "env_steps": 2 * BATCH}
    klimb.train("gymnasium:CartPole-v1", TRPO(), run_dir=tmp_path / "run", workers=0, **options)
    whole = klimb.train("gymnasium:CartPole-v1", TRPO(), workers=0, **{**options, "env_steps": 4 * BATCH})
    result = klimb.resume(tmp_path / "run", env_steps=4 * BATCH, workers=2, env_timeout=60.0, env_fault="stop")
    for record, other in zip(result.history, whole.history, strict=True):
        assert record["episode_length"] == other["episode_length"]
        np.testing.assert_allclose(record["kl_old_new"], other["kl_old_new"], rtol=1e-3)


@pytest.mark.slow
def test_a_checkpoint_that_is_not_usable_changes_nothing(run):
    before = files(run)
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    shutil.rmtree(run / "best", ignore_errors=True)
    with pytest.raises(klimb.RunError, match="no usable checkpoint"):
        klimb.resume(run, env_steps=9 * BATCH)
    assert files(run) == before
