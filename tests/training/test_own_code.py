"""Rules, networks and environments of the user's own: given as objects, and by name."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import klimb
import own_code
from klimb.environments.control.cartpole import CartPole
from klimb.environments.registry import recorded_name
from klimb.errors import ConfigError, EnvironmentNotFound, UntrustedEnvironment
from klimb.improve.rule import Traits, traits_of
from klimb.policies.critic import as_critic
from klimb.rules import UnknownRule, rule_class, rule_name
from klimb.runs.directory import RunDirectory
from klimb.runs.policy_file import policy_name
from klimb.training.networks import load_policies
from problems import Stopper, assert_same_bits

SMALL = dict(env_steps=128, num_envs=2, num_steps=32, hidden=(4,), critic_epochs=1, critic_num_minibatches=2)
RULE = own_code.GradientStep()


@dataclasses.dataclass(frozen=True)
class Unnamed:
    """A rule that no file can name: its module is this test."""

    size: float = 0.0

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        return klimb.accept_or_reject(policy, state, policy, state, batch)


@pytest.fixture(scope="module")
def everything_own(tmp_path_factory):
    """A run whose environment, rule, policy and critic are all named in a module."""
    run_dir = tmp_path_factory.mktemp("own") / "run"
    names = {"policy": "own_code:picture_network", "critic": "own_code:picture_critic"}
    klimb.train("own_code:Spot", RULE, run_dir=run_dir, **names, **SMALL)
    return run_dir


@pytest.mark.slow
def test_a_run_made_of_names_is_resumed_evaluated_and_reported(everything_own):
    config = RunDirectory.open(everything_own).config
    assert isinstance(config.rule, UnknownRule)
    for named in ("rule", "policy", "critic"):
        known = dataclasses.replace(config, rule=RULE) if named != "rule" else config
        options = dataclasses.replace(known.options, policy=None, critic=None)
        if named != "rule":
            options = dataclasses.replace(options, **{named: getattr(config.options, named)})
        with pytest.raises(UntrustedEnvironment, match=f"names the {named} 'own_code:"):
            dataclasses.replace(known, options=options).require_modules("config.toml", trust=False)
    run = klimb.resume(everything_own, trust_environment=True)
    assert run.config.rule == RULE
    environment = klimb.make(config.env)
    (policy,) = load_policies(everything_own, config, environment)
    assert klimb.evaluate(policy, environment, episodes=2).lengths.tolist() == [20, 20]
    page = klimb.write_report(everything_own).read_text()
    assert "GradientStep on own_code:Spot" in page


@pytest.mark.slow
def test_a_run_of_a_rule_without_a_name_is_resumed_with_the_object(tmp_path):
    """docs/own-rule.md promises it; the configuration is read before it is known which rule it means."""
    rule = Unnamed()
    assert rule_name(rule).endswith("Unnamed")
    klimb.train("CartPole-v1", rule, run_dir=tmp_path / "run", **SMALL)
    with pytest.raises((ConfigError, UntrustedEnvironment), match="Unnamed"):
        klimb.resume(tmp_path / "run")
    assert klimb.resume(tmp_path / "run", rule=rule).config.rule == rule
    assert "Unnamed" in klimb.write_report(tmp_path / "run").read_text()


@dataclasses.dataclass(frozen=True)
class KeepsTheFirst:
    """A rule whose steps lead away from the first policy, which is the best."""

    traits = Traits(keeps_best=True)

    def init(self, policy):
        return eqx.filter(policy, eqx.is_array)

    def step(self, key, policy, state, batch):
        theta, rebuild = klimb.flatten(policy)
        return klimb.accept_or_reject(policy, state, rebuild(theta + 0.01), state, batch)

    def best_policy(self, policy, state):
        return eqx.combine(state, eqx.filter(policy, eqx.is_array, inverse=True))


@pytest.mark.slow
def test_a_training_results_in_the_policy_that_the_rule_keeps(tmp_path):
    """Of every seed, with its own statistics of observations, in memory and in all files; resumed to the same bytes."""
    rule, options = KeepsTheFirst(), {**SMALL, "env_steps": 4 * 64, "num_seeds": 2, "checkpoint_every": 1}
    run = klimb.train("CartPole-v1", rule, run_dir=tmp_path / "run", **options)
    for k, policy in enumerate(run.policies):
        kept, last = (jax.tree.map(lambda x, k=k: x[k], tree) for tree in (run.state.rule_state, run.state.policy))
        assert not np.array_equal(last.encoder.normalizer.mean, policy.encoder.normalizer.mean)
        assert not np.array_equal(last.network.biases[0], policy.network.biases[0])
        files = [klimb.load_policy(folder, seed=k) for folder in (tmp_path / "run", tmp_path / "run" / "best")]
        for result in (policy, *files):
            assert_same_bits(eqx.filter(result, eqx.is_array), kept)
    with pytest.raises(klimb.Interrupted):
        klimb.train("CartPole-v1", rule, run_dir=tmp_path / "cut", callback=Stopper(2), **options)
    resumed = klimb.resume(tmp_path / "cut", rule=rule)
    assert_same_bits(resumed.state, run.state)
    for name in (f"{policy_name(k)}.safetensors" for k in range(2)):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.slow
def test_fields_called_like_capabilities_change_nothing():
    """`history` and `offline` are hyperparameters of this rule; only its traits speak to the loop."""
    assert traits_of(RULE).history == 1
    assert traits_of(RULE).learns_from == "environment"
    assert traits_of(RULE).kl.limit is None  # its epsilon is no KL
    run = klimb.train("CartPole-v1", RULE, **SMALL)
    assert run.history[-1]["length"] == pytest.approx(RULE.epsilon**0.5, rel=1e-5)


def test_traits_that_are_none_are_refused():
    @dataclasses.dataclass(frozen=True)
    class Odd(Unnamed):
        traits: str = "friendly"

    with pytest.raises(ConfigError, match=r"Odd\.traits is of type str.*another name"):
        klimb.train("CartPole-v1", Odd(), **SMALL)
    assert traits_of(Unnamed()) == Traits()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_code:Missing", "own_code has no 'Missing'"),
        ("own_code:GradientStp", "did you mean 'GradientStep'"),
        ("no_such_module:Rule", "there is no module 'no_such_module'"),
        ("own_code:NOT_A_RULE", "is not a rule: it has no init and no step"),
        ("trpoo", "did you mean 'trpo'"),
    ],
)
def test_rules_that_are_none(name, message):
    with pytest.raises(ConfigError, match=message):
        rule_class(name)


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (
            {"broken.py": "import no_such_package"},
            "broken",
            r"ModuleNotFoundError: No module named 'no_such_package' \(.*broken\.py, line 1\)$",
        ),
        ({"broken.py": "x = 1\n1 / 0"}, "broken", r"ZeroDivisionError: division by zero \(.*broken\.py, line 2\)$"),
        ({"broken.py": "def f(:"}, "broken", r"SyntaxError: .*\(.*broken\.py, line 1\)$"),
        ({"broken/__init__.py": "1 / 0", "broken/inner.py": ""}, "broken.inner", r"ZeroDivisionError: .*, line 1\)$"),
    ],
    ids=["missing package", "error", "syntax", "package"],
)
@pytest.mark.parametrize("load", [rule_class, klimb.make])
def test_a_module_that_fails_says_where_in_one_line(load, files, name, message, tmp_path, monkeypatch):
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=f"^importing {name.split('.')[0]} failed: {message}") as raised:
        load(f"{name}:Thing")
    assert "\n" not in str(raised.value)


def test_an_own_environment_has_a_name():
    assert klimb.make("own_code:Spot") == own_code.Spot()
    assert recorded_name(own_code.Spot()) == "own_code:Spot"
    with pytest.raises(EnvironmentNotFound, match="makes int, which is not a klimb environment"):
        klimb.make("own_code:NOT_A_RULE")


@pytest.mark.slow
def test_an_environment_object_is_never_mistaken_for_its_default(tmp_path):
    """The moon's cart-pole has the id of the earth's; a run in it must not be resumed on earth."""
    moon = CartPole(gravity=1.62)
    assert recorded_name(CartPole()) == "jax:CartPole-v1"
    klimb.train(moon, klimb.TRPO(), run_dir=tmp_path / "run", **SMALL)
    assert RunDirectory.open(tmp_path / "run").config.env == "object:jax:CartPole-v1(gravity=1.62)"
    with pytest.raises(EnvironmentNotFound, match=r"gravity=1\.62.*env="):
        klimb.resume(tmp_path / "run")
    assert klimb.resume(tmp_path / "run", env=moon).config.env.startswith("object:")
    assert recorded_name(own_code.Spot(reward=2.0)) == "object:own_code:Spot(reward=2.0)"


def test_pictures_need_a_network_of_their_own():
    with pytest.raises(klimb.UnsupportedSpace, match=r"shape \[5, 5\] need a network of their own.*--network"):
        klimb.train(own_code.Spot(), klimb.TRPO(), **SMALL)


@pytest.mark.slow
def test_networks_of_ones_own_learn():
    options = dict(env_steps=12_000, num_envs=8, num_steps=40, critic_epochs=4)
    names = {"policy": "own_code:picture_network", "critic": "own_code:picture_critic"}
    run = klimb.train("own_code:Spot", klimb.TRPO(max_kl=0.05), **names, **options)
    untrained = own_code.picture_network(own_code.Spot().observations, own_code.Spot().actions, jax.random.key(0))
    assert klimb.evaluate(untrained, own_code.Spot(), episodes=20, deterministic=False).mean < 12
    assert klimb.evaluate(run.policy, own_code.Spot(), episodes=20, deterministic=False).mean > 16


@pytest.mark.slow
def test_a_value_function_of_any_class_is_a_critic():
    """Its value follows the scale of the targets without a jump (PopArt), and it is fitted."""
    observations = klimb.observation_spec(own_code.Spot().observation_space)
    critic = as_critic(own_code.value(observations, jax.random.key(0)))
    obs = jnp.ones((5, 5))
    np.testing.assert_allclose(critic(obs), own_code.value(observations, jax.random.key(0))(obs), rtol=1e-6)
    run = klimb.train("own_code:Spot", klimb.TRPO(), policy="own_code:network", critic="own_code:value", **SMALL)
    assert np.isfinite(run.history[-1]["value_loss"])
    own = own_code.value(klimb.make("CartPole-v1").observations, jax.random.key(0))
    given = klimb.train("CartPole-v1", klimb.TRPO(), critic=own, **SMALL)
    assert given.history[-1]["explained_variance"] is not None


@pytest.mark.slow
def test_policy_and_critic_have_sizes_of_their_own():
    state = klimb.train("CartPole-v1", klimb.TRPO(), critic_hidden=(6, 5), **SMALL).state
    assert [w.shape[1:] for w in state.policy.network.weights] == [(4, 4), (4, 2)]
    assert [w.shape[1:] for w in state.critic.network.weights] == [(4, 6), (6, 5), (5, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "env", ["gymnasium:CartPole-v1", pytest.param("gymnasium:Pendulum-v1", marks=pytest.mark.slow)]
)
def test_a_policy_of_any_class_is_stepped_by_workers(env):
    """Five environments on two workers: the programs have two sizes. The same rollouts as in one process."""
    options = dict(SMALL, num_envs=5, num_steps=24, env_steps=240)
    runs = [klimb.train(env, klimb.TRPO(), policy="own_code:network", workers=workers, **options) for workers in (0, 2)]
    for alone, shared in zip(*(run.history for run in runs), strict=True):
        assert shared["episode_length"] == alone["episode_length"]
        assert shared["kl_old_new"] == pytest.approx(alone["kl_old_new"], rel=1e-3)


def test_a_policy_that_is_none_is_refused():
    for bad, message in (
        (lambda obs: obs, "returns an array .* has to return a klimb.Distribution"),
        (3, "is not a policy: .* that is called"),
    ):
        with pytest.raises(klimb.KlimbError, match=message):
            klimb.train("CartPole-v1", klimb.TRPO(), policy=bad, **SMALL)
