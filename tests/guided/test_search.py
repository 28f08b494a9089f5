"""Guided policy search as a rule of the command line: its options, where it works, and its runs."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import RunConfig, TrainOptions
from klimb.errors import ConfigError
from klimb.fields import build
from klimb.guided.importance_sampled import ImportanceSampled
from klimb.guided.mirror_descent import MirrorDescent, MirrorState
from klimb.guided.search import GuidedPolicySearch
from klimb.improve.rule import Rule, Setting, bind, traits_of
from klimb.policies.actions import Box
from klimb.policies.networks import NetworkPolicy
from klimb.rules import RULES, rule_name
from klimb.runs.demonstration_file import save_demonstrations
from klimb.training.program import Program
from klimb.types import Status
from problems import same_bits, without_timing

SAMPLED = GuidedPolicySearch(
    guiding_samples=1,
    restarts=2,
    supervised_iterations=2,
    supervised_steps=20,
    kept_iterations=2,
    subset=3,
    gradient_steps=3,
)
MIRROR = GuidedPolicySearch(method="mirror_descent", projection_epochs=2, minibatch_size=32)
SMALL = {"num_envs": 3, "num_steps": 16, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}
MIRROR_EXTRA = {
    "epsilon", "local_kl", "eta", "dual_status", "local_improvement", "promised_improvement", "projection_kl",
    "model_r2", "reward_r2",
}  # fmt: skip


# Configuration ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [GuidedPolicySearch(), SAMPLED, MIRROR], ids=["default", "sampled", "mirror"])
def test_configuration_survives_json_and_toml(rule: GuidedPolicySearch) -> None:
    again = build(GuidedPolicySearch, json.loads(json.dumps(dataclasses.asdict(rule))))
    assert again == rule
    assert hash(again) == hash(rule)
    assert {name: type(value) for name, value in vars(again).items()} == {
        name: type(value) for name, value in vars(rule).items()
    }
    config = RunConfig("Pendulum-v1", rule, TrainOptions(hidden=(8,)))
    assert RunConfig.from_toml(config.to_toml()) == config
    assert config.to_dict()["rule"]["name"] == "guided"
    assert isinstance(rule, Rule)
    assert RULES[rule_name(rule)] is GuidedPolicySearch
    with pytest.raises(dataclasses.FrozenInstanceError):
        rule.temperature = 1.0


@pytest.mark.parametrize(
    "field",
    [
        "learning_rate", "guiding_samples", "temperature", "restarts", "supervised_steps", "supervised_learning_rate",
        "kept_iterations", "subset", "regularisation", "gradient_steps", "climb_kl", "initial_epsilon",
        "projection_epochs", "minibatch_size",
    ],
)  # fmt: skip
def test_what_has_to_be_positive_may_not_be_zero(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{field} = 0: .*greater than"):
        build(GuidedPolicySearch, {field: 0})


def test_zero_is_no_adaptation_and_no_imitation() -> None:
    rule = GuidedPolicySearch(adaptation=0.0, supervised_iterations=0)
    assert (rule.adaptation, rule.supervised_iterations) == (0, 0)
    with pytest.raises(ConfigError, match=r"^method = 'both': "):
        GuidedPolicySearch(method="both")


def test_steps_in_the_environment_for_each_row() -> None:
    rule = GuidedPolicySearch(guiding_samples=7)
    assert traits_of(rule).env_steps_per_row == 9
    assert traits_of(MIRROR).env_steps_per_row == 1
    assert traits_of(klimb.TRPO()).env_steps_per_row == 1
    options = TrainOptions(env_steps=10_000, num_envs=5, num_steps=20, critic_num_minibatches=1)
    assert RunConfig("Pendulum-v1", rule, options).num_iterations == 12  # of 900 steps
    assert RunConfig("Pendulum-v1", MIRROR, options).num_iterations == 100


# Where it works -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_method_gets_its_fields() -> None:
    setting = Setting(num_envs=3, num_steps=16, learns_scale=True, fresh=True, overlap=False)
    pendulum = klimb.make("Pendulum-v1")
    placed = bind(SAMPLED, pendulum, setting)
    assert isinstance(placed, ImportanceSampled)
    for field in dataclasses.fields(placed):
        if hasattr(SAMPLED, field.name):
            assert getattr(placed, field.name) == getattr(SAMPLED, field.name), field.name
    assert (placed.starts, placed.guides.horizon, placed.guides.restarts) == (3, 16, 2)
    assert placed.guides.environment == pendulum
    assert placed.guides.temperature == SAMPLED.temperature
    assert placed.learns_scale
    mirror = bind(MIRROR, pendulum, setting)
    assert mirror == MirrorDescent(initial_epsilon=0.1, epochs=2, minibatch_size=32, learning_rate=1e-3)
    assert bind(MIRROR, pendulum, setting._replace(overlap=True)) == dataclasses.replace(mirror, overlap=True)
    assert bind(klimb.TRPO(), pendulum, setting) == klimb.TRPO()


@pytest.mark.slow  # to bind it is to try the planner
def test_a_training_says_whether_the_scale_is_learned() -> None:
    pendulum = klimb.make("Pendulum-v1")
    for changed in ({}, {"normalize_observations": False}, {"init_from": "somewhere"}):
        rule = Program(RunConfig("Pendulum-v1", SAMPLED, TrainOptions(**SMALL, **changed)), pendulum).iteration.rule
        setting = Setting(
            num_envs=3, num_steps=16, learns_scale=not changed, fresh="init_from" not in changed, overlap=False
        )
        assert rule == bind(SAMPLED, pendulum, setting)


@pytest.mark.parametrize("rule", [SAMPLED, MIRROR], ids=["sampled", "mirror"])
@pytest.mark.parametrize("name", ["CartPole-v1", "gymnasium:CartPole-v1", "FrozenLake-v1"])
def test_discrete_actions_are_refused(rule: GuidedPolicySearch, name: str) -> None:
    with pytest.raises(ConfigError, match=r"for continuous actions, and those of .* are discrete: use trpo or ppo"):
        klimb.train(name, rule, env_steps=1, **SMALL, workers=0)


@pytest.mark.parametrize("name", ["gymnasium:Pendulum-v1", "gymnax:Pendulum-v1"])
def test_planning_without_dynamics_is_refused(name: str) -> None:
    if name.startswith("gymnax"):
        pytest.importorskip("gymnax")
    with pytest.raises(ConfigError, match=r"known dynamics and cost, and .* has none.* --method mirror_descent"):
        klimb.train(name, SAMPLED, env_steps=1, **SMALL, workers=0)


@pytest.mark.slow
def test_a_squashed_policy_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Gaussian|tanh"):
        klimb.train("Pendulum-v1", SAMPLED, env_steps=1, tanh_squash=True, **SMALL)


def test_without_an_environment_there_is_mirror_descent_only() -> None:
    policy = NetworkPolicy(3, Box((-2.0,), (2.0,)), hidden=(4,), key=jax.random.key(0))
    with pytest.raises(ConfigError, match=r"importance_sampling plans in an environment: .* bind"):
        SAMPLED.init(policy)
    state = MIRROR.init(policy)
    assert isinstance(state, MirrorState)
    assert not state.begun


# Runs ---------------------------------------------------------------------------------------------------------


def interrupted_and_resumed(name: str, rule: GuidedPolicySearch, iterations: int, folder, **options: str) -> klimb.Run:
    """Gone on with from the middle: the same records, state and policy as the whole run, which is returned."""
    options = {
        **options,
        **SMALL,
        "env_steps": iterations * 48 * traits_of(rule).env_steps_per_row,
        "checkpoint_every": 1,
        "workers": 0,
    }
    whole = klimb.train(name, rule, run_dir=folder / "whole", **options)
    shutil.copytree(folder / "whole", folder / "run")
    shutil.rmtree(folder / "run" / "best", ignore_errors=True)
    for path in (folder / "run" / "checkpoints").iterdir():
        if int(path.stem) > iterations // 2:
            path.unlink()
    resumed = klimb.resume(folder / "run")
    assert resumed.config == whole.config
    assert [record["iteration"] for record in whole.history] == list(range(1, iterations + 1))
    assert without_timing(resumed.history) == without_timing(whole.history)
    assert same_bits(resumed.state, whole.state)
    for file in ("policy.safetensors", "policy.json", "config.toml"):
        assert (folder / "run" / file).read_bytes() == (folder / "whole" / file).read_bytes()
    again, obs = klimb.load_policy(folder / "run"), jnp.ones(whole.policy.observations.shape)
    np.testing.assert_array_equal(again(obs).mean, whole.policy(obs).mean)
    return whole


@pytest.mark.long
@pytest.mark.slow
def test_an_interrupted_run_of_importance_sampling_resumes_to_the_same_bytes(tmp_path) -> None:
    """At the end of imitation, with samples of the past in the state. It results in the best policy."""
    whole = interrupted_and_resumed("Pendulum-v1", SAMPLED, 4, tmp_path)
    best, last = (jax.tree.map(lambda x: x[0], tree) for tree in (whole.state.rule_state.best, whole.state.policy))
    assert same_bits(whole.policy, best)
    assert not same_bits(whole.policy, last)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Pendulum-v1", "gymnasium:InvertedPendulum-v5"])
def test_an_interrupted_run_with_derivatives_resumes_to_the_same_bytes(env: str, tmp_path) -> None:
    """Exact ones, and recorded ones; with the multiplier in the state."""
    if env.startswith("gymnasium"):
        pytest.importorskip("mujoco")
    rule = dataclasses.replace(MIRROR, method="constrained", dynamics="simulator", look_ahead=5)
    whole = interrupted_and_resumed(env, rule, 4, tmp_path)
    assert whole.state.rule_state.multiplier > 0


@pytest.mark.long
@pytest.mark.slow
def test_an_interrupted_run_with_demonstrations_resumes_to_the_same_bytes(tmp_path) -> None:
    """Within imitation, where plans start from them."""
    policy = NetworkPolicy(3, Box((-2.0,), (2.0,)), hidden=(4,), key=jax.random.key(0))
    file = save_demonstrations(klimb.record(policy, "Pendulum-v1", episodes=3), tmp_path / "shown.safetensors")
    whole = interrupted_and_resumed("Pendulum-v1", SAMPLED, 2, tmp_path, demonstrations=str(file))
    assert whole.config.options.demonstrations == str(file)


@pytest.mark.slow
def test_an_interrupted_run_of_mirror_descent_resumes_to_the_same_bytes(tmp_path) -> None:
    whole = interrupted_and_resumed("Pendulum-v1", MIRROR, 4, tmp_path)
    assert same_bits(whole.policy, jax.tree.map(lambda x: x[0], whole.state.policy))


@pytest.mark.slow  # the next one takes the same steps
def test_mirror_descent_trains_on_a_compiled_environment() -> None:
    program = Program(
        RunConfig("Pendulum-v1", MIRROR, TrainOptions(**SMALL, env_steps=2 * 48)), klimb.make("Pendulum-v1")
    )
    assert program.source.rows_per_iteration == 48
    assert program.iteration.rule == MirrorDescent(initial_epsilon=0.1, epochs=2, minibatch_size=32, learning_rate=1e-3)
    state = program.initial_state()
    first = program.policies(state)[0]
    state, metrics = program.advance(state, 2)
    assert set(metrics) >= MIRROR_EXTRA
    assert all(np.isfinite(metrics[name]).all() for name in MIRROR_EXTRA)
    assert (metrics["status"] == Status.ACCEPTED).all()
    # One rollout before the first iteration, for the statistics.
    assert metrics["env_steps"][:, 0].tolist() == [96, 144]
    assert (metrics["kl_old_new"] > 0).all()
    assert state.rule_state.begun.all()
    assert not np.array_equal(first.network.weights[0], program.policies(state)[0].network.weights[0])


@pytest.mark.slow
def test_mirror_descent_trains_on_a_host_environment() -> None:
    pytest.importorskip("mujoco")
    run = klimb.train("gymnasium:InvertedPendulum-v5", MIRROR, env_steps=2 * 48, **SMALL, workers=0)
    # One rollout before the first iteration, for the statistics.
    assert [record["env_steps"] for record in run.history] == [96, 144]
    for record in run.history:
        assert set(record) >= MIRROR_EXTRA
        assert record["status"] == "ACCEPTED"
        assert record["model_r2"] > 0.5
        assert record["kl_old_new"] > 0


@pytest.mark.slow  # another program for what tests/guided/test_mirror_descent.py computes by hand
def test_mirror_descent_knows_that_collection_overlaps() -> None:
    """The first two batches are of one policy, so that the third step is the first with evidence of another one."""
    run = klimb.train("gymnasium:Pendulum-v1", MIRROR, overlap=True, env_steps=3 * 48, **SMALL, workers=0)
    records = run.history
    assert [record["epsilon"] for record in records[:2]] == pytest.approx([MIRROR.initial_epsilon] * 2)
    earlier = run.state.rule_state.earlier
    assert float(earlier.epsilon[0]) == pytest.approx(records[1]["epsilon"])
    assert float(earlier.improvement[0]) == pytest.approx(records[1]["promised_improvement"])


@pytest.mark.long
@pytest.mark.slow
def test_temperatures_are_swept_in_one_program() -> None:
    """Of rules that plan: guides of a high temperature scatter more, and get less."""
    temperatures = [0.001, 0.01, 1.0]
    options = {**SMALL, "env_steps": 3 * 48 * traits_of(SAMPLED).env_steps_per_row}
    runs = klimb.sweep("Pendulum-v1", SAMPLED, {"temperature": temperatures}, **options)
    assert [run.config.rule.temperature for run in runs] == temperatures
    assert all(len(run.history) == 3 for run in runs)
    for record in runs[1].history:
        assert all(np.isfinite(record[name]) for name in ("phi", "guide_return", "kl_old_new"))
    first = [run.history[0] for run in runs]
    assert first[0]["policy_return"] == first[1]["policy_return"] == first[2]["policy_return"]
    assert first[0]["guide_return"] > first[2]["guide_return"]
    alone = klimb.train("Pendulum-v1", runs[1].config.rule, **options)
    for name in ("phi", "guide_return", "kl_old_new"):
        np.testing.assert_allclose(runs[1].history[0][name], alone.history[0][name], rtol=1e-2, err_msg=name)


@pytest.mark.slow
def test_a_sweep_of_mirror_descent(tmp_path) -> None:
    runs = klimb.sweep(
        "Pendulum-v1", MIRROR, {"initial_epsilon": [0.02, 0.5]}, run_dir=tmp_path / "all", env_steps=96, **SMALL
    )
    assert [run.history[0]["epsilon"] for run in runs] == pytest.approx([0.02, 0.5])
    assert runs[0].history[0]["kl_old_new"] < runs[1].history[0]["kl_old_new"]


def test_what_is_remembered_has_a_bound() -> None:
    rule = GuidedPolicySearch(kept_iterations=1024, guiding_samples=1024)
    with pytest.raises(
        ConfigError, match=r"times 1050624 kept by guided for each, are \d+ rows; there have to be fewer than \d+"
    ):
        RunConfig("Pendulum-v1", rule, TrainOptions(num_envs=1024, num_steps=200))


@pytest.mark.parametrize("method", ["mirror_descent", "constrained"])
def test_derivatives_are_asked_of_environments_that_have_them(method: str) -> None:
    rule = GuidedPolicySearch(method=method, dynamics="simulator")
    setting = Setting(2, 8, True, True, False)
    compiled = rule.bind(klimb.make("Pendulum-v1"), setting).traits
    assert (compiled.records_env_state, compiled.records_derivatives, compiled.binds) == (True, False, False)
    with pytest.raises(ConfigError, match=r"gymnasium:Pendulum-v1 has no derivatives .*use --dynamics fitted"):
        rule.bind(klimb.make("gymnasium:Pendulum-v1"), setting)


@pytest.mark.slow
def test_no_critic_is_waited_for(tmp_path) -> None:
    """A run that starts from another's policy takes its first step at once."""
    tiny = {"env_steps": 32, "num_envs": 2, "num_steps": 16, "hidden": (4,), "critic_epochs": 1}
    rule = GuidedPolicySearch(method="mirror_descent", projection_epochs=1)
    klimb.train("Pendulum-v1", rule, run_dir=tmp_path / "first", **tiny)
    run = klimb.train("Pendulum-v1", rule, init_from=str(tmp_path / "first"), **tiny)
    assert run.history[0]["status"] != "CRITIC_WARMUP"
    assert run.history[0]["kl_old_new"] > 0
