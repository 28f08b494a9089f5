"""Training runs: what they leave, that they resume bit for bit, and how they stop."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
from klimb import PPO, TRPO, Categorical, ConfigError, Reinforce, RunConfig, RunError, TrainOptions
from klimb.training.program import Program
from problems import Stopper, same_bits, without_timing

SMALL = {"num_envs": 4, "num_steps": 32, "hidden": (8,), "critic_epochs": 2, "critic_num_minibatches": 2}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of 12 iterations, two seeds, with checkpoints at 5, 10 and 12."""
    path = tmp_path_factory.mktemp("runs") / "whole"
    options = {**SMALL, "env_steps": 12 * 128, "num_seeds": 2, "checkpoint_every": 5}
    return klimb.train("CartPole-v1", PPO(epochs=2, num_minibatches=2), run_dir=path, **options)


def test_a_run_leaves_everything(whole_run):
    path = whole_run.directory
    names = {item.name for item in path.iterdir()}
    seeds = {f"policy_seed{seed}.{kind}" for seed in (0, 1) for kind in ("json", "safetensors")} | {"seed_0", "seed_1"}
    files = {"config.toml", "provenance.json", "metrics.jsonl", "ended.json", "checkpoints", "best", ".lock"}
    assert names == files | seeds
    assert [item.stem for item in sorted((path / "checkpoints").iterdir())] == ["000000005", "000000010", "000000012"]
    assert [record["iteration"] for record in whole_run.history] == list(range(1, 13))
    assert whole_run.history[-1]["env_steps"] == (12 + 1) * 128
    for seed, policy in enumerate(whole_run.policies):
        assert eqx.tree_equal(klimb.load_policy(path, seed=seed), policy)
    assert not eqx.tree_equal(*whole_run.policies)


def test_resume_gives_the_same_bytes(whole_run, tmp_path):
    """Stopped after 7 of 12 iterations, by a signal in the middle of a call, and resumed."""
    stopper = Stopper(after=7)
    with pytest.raises(klimb.Interrupted, match="klimb resume"):
        klimb.train(
            "CartPole-v1",
            whole_run.config.rule,
            run_dir=tmp_path / "run",
            callback=stopper,
            **{**SMALL, "env_steps": 12 * 128, "num_seeds": 2, "checkpoint_every": 5},
        )
    resumed = klimb.resume(tmp_path / "run")
    assert without_timing(resumed.history) == without_timing(whole_run.history)
    assert same_bits(resumed.state, whole_run.state)
    best = ("best/policy_seed0.safetensors", "best/score.json")
    for name in ("policy_seed0.safetensors", "policy_seed1.safetensors", *best):
        assert (tmp_path / "run" / name).read_bytes() == (whole_run.directory / name).read_bytes()


def test_a_run_prints_in_a_line(whole_run, tmp_path):
    """Rule, environment, length, the last return of all seeds, and where it is; also when that is gone."""
    ended = [record for record in whole_run.history if None not in record["episode_return"]]
    mean = np.mean(ended[-1]["episode_return"])
    steps = whole_run.history[-1]["env_steps"]
    assert repr(whole_run) == (
        f"<Run: PPO on CartPole-v1, {steps:,} environment steps × 2 seeds, mean return {mean:.4g} in iteration "
        f"{ended[-1]['iteration']}, in {whole_run.directory}>"
    )
    gone = dataclasses.replace(whole_run, directory=tmp_path / "gone")
    assert repr(gone) == f"<Run: PPO on CartPole-v1, {steps:,} environment steps × 2 seeds, in {tmp_path / 'gone'}>"
    alone = dataclasses.replace(whole_run, directory=None, records=[])
    assert repr(alone).endswith("× 2 seeds, in memory>")


def test_results_do_not_depend_on_how_a_run_is_cut_into_calls(whole_run):
    program = Program(whole_run.config, klimb.make("CartPole-v1"))
    state = program.initial_state()
    for count in (1, 4, 2, 5):
        state, metrics = program.advance(state, count)
        assert metrics["iteration"].shape == (count, 2)
    assert same_bits(state, whole_run.state)


def test_a_damaged_newest_checkpoint_costs_only_the_time_since_the_one_before(whole_run, tmp_path):
    import shutil

    path = shutil.copytree(whole_run.directory, tmp_path / "copy")
    newest = path / "checkpoints" / "000000012.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = klimb.resume(path)
    assert without_timing(resumed.history) == without_timing(whole_run.history)
    assert same_bits(resumed.state, whole_run.state)


def test_seeds_of_one_program_are_the_runs_they_would_be_alone(whole_run):
    alone = klimb.train("CartPole-v1", whole_run.config.rule, **SMALL, env_steps=128, seed=1)
    together = [record["episode_return"][1] for record in whole_run.history[:1]]
    assert [record["episode_return"] for record in alone.history] == pytest.approx(together)
    np.testing.assert_allclose(alone.history[0]["kl_old_new"], whole_run.history[0]["kl_old_new"][1], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_seeds_of_a_host_training_are_the_runs_they_would_be_alone(workers):
    """The same episodes, whatever the number of worker processes; the update to rounding."""
    options = {**SMALL, "env_steps": 256, "workers": workers}
    together = klimb.train("gymnasium:CartPole-v1", TRPO(), **options, num_seeds=2).history
    alone = klimb.train("gymnasium:CartPole-v1", TRPO(), **options, seed=1).history
    for name in ("episodes", "episode_length", "episode_return"):
        assert [record[name][1] for record in together] == [record[name] for record in alone]
    assert len(set(together[0]["episode_return"])) == 2
    np.testing.assert_allclose(alone[0]["kl_old_new"], together[0]["kl_old_new"][1], rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "advantage",
    [
        "total_return",
        pytest.param("reward_to_go", marks=pytest.mark.slow),
        pytest.param("reward_to_go_average", marks=pytest.mark.slow),
        pytest.param("n_step", marks=pytest.mark.slow),
    ],
)
def test_every_advantage_choice_trains(advantage):
    run = klimb.train("CartPole-v1", Reinforce(), **SMALL, env_steps=256, advantage=advantage, discount_states=True)
    assert run.history[-1]["status"] == "ACCEPTED"
    assert np.isfinite(run.history[-1]["kl_old_new"])


@pytest.mark.slow
def test_host_environments_train_resume_and_take_several_seeds(tmp_path):
    options = {**SMALL, "env_steps": 4 * 128, "num_seeds": 2, "checkpoint_every": 2}
    run = klimb.train("gymnasium:Pendulum-v1", TRPO(), run_dir=tmp_path / "run", **options)
    last = run.history[-1]
    assert last["iteration"] == 4
    assert all(kl <= 0.01 for kl in last["kl_old_new"])
    (tmp_path / "run" / "checkpoints" / "000000004.safetensors").unlink()
    resumed = klimb.resume(tmp_path / "run")
    assert [record["iteration"] for record in resumed.history] == [1, 2, 3, 4]
    assert without_timing(resumed.history[:2]) == without_timing(run.history[:2])


@pytest.mark.slow
def test_a_policy_of_ones_own_trains():
    class Linear(eqx.Module):
        """No klimb class, one function among its leaves, one observation at a time."""

        weight: jax.Array
        squash: object = jnp.tanh

        def __call__(self, obs):
            return Categorical(logits=self.weight @ self.squash(obs))

    run = klimb.train("CartPole-v1", TRPO(), policy=Linear(jnp.zeros((2, 4))), **SMALL, env_steps=256)
    assert run.policy.squash is jnp.tanh
    assert float(jnp.abs(run.policy.weight).max()) > 0


@pytest.mark.slow
def test_a_rule_of_ones_own_trains():
    class DoNothing:
        """The least a rule has to be."""

        def init(self, policy):
            return ()

        def step(self, key, policy, state, batch):
            from klimb.improve.acceptance import update_info
            from klimb.policies.policy import action_distribution

            old = action_distribution(policy, batch.obs)
            return policy, state, update_info(old, old, batch, klimb.Status.ACCEPTED)

    run = klimb.train("CartPole-v1", DoNothing(), **SMALL, env_steps=256)
    assert run.history[-1]["kl_old_new"] == 0


def test_bad_input_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match="no option 'env_step'; did you mean 'env_steps'"):
        klimb.train("CartPole-v1", TRPO(), env_step=100)
    with pytest.raises(klimb.EnvironmentNotFound, match="did you mean 'CartPole-v1'"):
        klimb.train("CartPol-v1", TRPO())
    with pytest.raises(RunError, match="exists already"):
        klimb.train("CartPole-v1", TRPO(), run_dir=tmp_path, **SMALL)
    with pytest.raises(RunError, match="is not a run: there is no such directory"):
        klimb.resume(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"is not a run: it has no config\.toml"):
        klimb.resume(tmp_path)


class Talk(gym.Env):
    """An action space that klimb has no distribution for."""

    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Text(3)


def test_unsupported_action_spaces_are_named():
    environment = klimb.GymnasiumEnvironment.from_maker("talk", Talk)
    with pytest.raises(klimb.UnsupportedSpace, match=r"Text.*is not supported"):
        klimb.train(environment, TRPO(), **SMALL)


def test_program_has_one_trace_for_any_number_of_iterations():
    config = RunConfig("CartPole-v1", TRPO(), TrainOptions(**SMALL, env_steps=128 * 20))
    program = Program(config, klimb.make("CartPole-v1"))
    state = program.initial_state()
    for count in (1, 2, 3):
        state, _ = program.advance(state, count)
    assert program.source._run._cache_size() == 1
