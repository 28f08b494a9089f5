"""What `klimb.train` and its like are given from Python: what is accepted, and what is refused before it costs time."""

from __future__ import annotations

import dataclasses
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import config as jaxtyping_config

import klimb
import typed_options
from klimb.improve.returned import require_state, require_step
from klimb.improve.warm_up import take_step
from klimb.policies.policy import policy_of
from klimb.runs.typed_options import SweepOptionsDict, TrainOptionsDict
from klimb.training.given import given_policy, options_of, require_rule
from klimb.training.stop_signals import APART
from problems import assert_same_bits, batch_on_table, make_mdp, make_table

SMALL = {"num_envs": 2, "num_steps": 8, "hidden": (4,), "critic_epochs": 1, "critic_num_minibatches": 1}
ENV = "CartPole-v1"


@pytest.fixture
def untyped():
    """As for a user: without the types that are checked in tests."""
    jaxtyping_config.update("jaxtyping_disable", True)
    yield
    jaxtyping_config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def run():
    return klimb.train(ENV, klimb.Reinforce(), env_steps=16, **SMALL)


def test_a_run_stands_for_its_policy(run):
    """In `evaluate`, `record` and `train`."""
    assert policy_of(run) is run.policy
    assert policy_of(run.policy) is run.policy
    of_run, of_policy = (klimb.evaluate(policy, ENV, episodes=2, seed=3) for policy in (run, run.policy))
    assert of_run.returns.tolist() == of_policy.returns.tolist()
    assert given_policy(run, klimb.make(ENV)) is run.policy


def test_a_run_of_several_seeds_does_not(run):
    two = dataclasses.replace(run, policies=[run.policy, run.policy])
    for use in (lambda: klimb.evaluate(two, ENV, episodes=1), lambda: klimb.train(ENV, klimb.TRPO(), policy=two)):
        with pytest.raises(klimb.WrongObject, match=r"of 2 seeds: .* run\.policies\[0\] to run\.policies\[1\]"):
            use()


def test_a_run_is_no_path(run, tmp_path, untyped):
    """Of a run in memory there is none; and where there is one, what is meant is not guessed."""
    for use in (klimb.resume, klimb.load_policy, klimb.write_report, lambda given: klimb.save_policy(run, given)):
        with pytest.raises(klimb.WrongObject, match=r"a Run is not a path; the directory of a run is run\.directory"):
            use(run)
    saved = klimb.load_policy(klimb.save_policy(run, tmp_path))
    assert_same_bits(saved, run.policy)


def test_a_policy_of_another_environment_is_refused_before_anything_is_made(run, tmp_path):
    for directory in (None, tmp_path / "new"):
        with pytest.raises(klimb.PolicyFileError, match=r"reads observations of shape \(4,\), .* gives \(3,\)"):
            klimb.train("Pendulum-v1", klimb.TRPO(), policy=run.policy, run_dir=directory)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("shape", [(3,), (5,), (), (4, 1), (4, 3)])
def test_a_policy_says_which_observations_it_reads(run, shape):
    with pytest.raises(klimb.ConfigError, match=r"the policy reads the shape \(4,\)"):
        run.policy(jnp.zeros(shape))
    with pytest.raises(klimb.ConfigError, match=r"the policy reads the shape \(4,\)"):
        jax.vmap(run.policy)(jnp.zeros((2, *shape)))


def test_a_policy_reads_any_leading_axes(run):
    assert run.policy(jnp.zeros((2, 3, 4))).mode().shape == (2, 3)


def test_options_of_the_rule_are_told_from_options_of_the_training():
    rule = klimb.PPO()
    assert options_of(rule, {"gamma": 0.5, "hidden": 8}) == klimb.TrainOptions(gamma=0.5, hidden=(8,))
    for name, said in {
        "clip_eps": r"^clip_eps is a hyperparameter of the rule: klimb\.PPO\(clip_eps=…\)",
        "clip_range": r"^clip_range is clip_eps here; clip_eps is a hyperparameter of the rule",
        "n_envs": r"klimb\.train has no option 'n_envs'; n_envs is num_envs here",
        "rundir": r"did you mean 'run_dir'",
        "verbose": r"no option 'verbose' \(see help\(klimb\.TrainOptions\)\)",
    }.items():
        with pytest.raises(klimb.ConfigError, match=said):
            options_of(rule, {name: 1})


def test_a_rule_is_required_of_resume_and_sweep_too(tmp_path, untyped):
    with pytest.raises(klimb.WrongObject, match=r"klimb\.sweep takes the rule itself; write klimb\.TRPO\(\)"):
        klimb.sweep(ENV, "trpo", {"max_kl": [0.1, 0.2]})
    for rule in (klimb.TRPO(), Own(), klimb.GuidedPolicySearch()):
        require_rule(rule, ENV)
    with pytest.raises(klimb.WrongObject, match=r"the class Own itself, not an instance of it; write Own\(\)"):
        require_rule(Own, ENV)
    with pytest.raises(klimb.WrongObject, match="is not a rule: it has no init and no step"):
        require_rule(object(), ENV)


def test_the_error_of_a_rule_survives_a_process():
    """Worker processes and process pools send exceptions."""
    with pytest.raises(klimb.ConfigError) as caught:
        klimb.TRPO(max_kl=-1)
    assert str(pickle.loads(pickle.dumps(caught.value))) == "max_kl = -1: input should be greater than 0"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: klimb.TRPO(0.01, -1), "damping = -1: input should be greater than or equal to 0"),
        (
            lambda: klimb.Reinforce(0.1, "adam", 0, 1, "linear", "linear", 7),
            r"^Reinforce\(learning_rate, .*\): unexpected positional",
        ),
        (lambda: klimb.TRPO(gamma=0.9), r"\(it has max_kl, .*; what is no hyperparameter is given to klimb\.train\)"),
        (lambda: klimb.TrainOptions(env_stepz=1), "TrainOptions has no option 'env_stepz'; did you mean 'env_steps'"),
        (lambda: klimb.NaturalGradient(solver="dense", damping=0), "^solver = dense needs damping > 0: "),
    ],
)
def test_constructors_say_in_one_line_which_field_is_wrong(make, said):
    with pytest.raises(klimb.ConfigError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__


@dataclasses.dataclass(frozen=True)
class Own:
    """A rule that leaves the policy as it is."""

    def init(self, policy):
        return ()

    def step(self, key, policy, state, batch):
        return klimb.accept_or_reject(policy, state, policy, state, batch)


@pytest.fixture(scope="module")
def step():
    """A policy on a table, and what the step of `Own` returns of it."""
    policy = make_table(0)
    return policy, take_step(Own(), jax.random.key(0), policy, (), batch_on_table(make_mdp(), policy))


def test_what_a_step_returns_is_let_through_as_it_is(step):
    policy, returned = step
    assert all(a is b for a, b in zip(require_step(Own(), policy, (), returned), returned, strict=True))
    assert require_state(Own(), (0.0, jnp.ones(3))) is not None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda policy, state, info: None, "returned None; it has to return"),
        (lambda policy, state, info: [policy, state, info], "returned a list; it has to return"),
        (lambda policy, state, info: (policy, state), "returned a tuple of 2 values"),
        (lambda policy, state, info: (policy, state, info, 1), "returned a tuple of 4 values"),
        (lambda policy, state, info: (policy, state, {}), "returned a dict as info, which is a klimb.UpdateInfo"),
        (lambda policy, state, info: (info, state, policy), "as info, which is a klimb.UpdateInfo"),
        (lambda policy, state, info: (policy, 1.0, info), "returned a state of another structure"),
        (lambda policy, state, info: (None, state, info), r"a policy of another structure \(None\)"),
        (
            lambda policy, state, info: (jax.tree.map(lambda x: x[None], policy), state, info),
            r"a policy whose leaf at \..* is float\d+\[1, 5, 3\], and was float\d+\[5, 3\]",
        ),
        (
            lambda policy, state, info: (policy, state, dataclasses.replace(info, extra={"x": jnp.ones(3)})),
            r"an array of shape \(3,\) as the metric 'x'; a metric is one number",
        ),
        (
            lambda policy, state, info: (policy, state, dataclasses.replace(info, extra={"x": "much"})),
            "a str as the metric 'x'",
        ),
        (
            lambda policy, state, info: (policy, state, dataclasses.replace(info, kl_max=jnp.ones(2))),
            r"an array of shape \(2,\) as the metric 'kl_max'",
        ),
        (
            lambda policy, state, info: (policy, state, dataclasses.replace(info, extra=None)),
            "None as info.extra, which is a dict",
        ),
        (lambda policy, state, info: (policy, state, dataclasses.replace(info, errors=0.0)), "as info.errors"),
    ],
)
def test_what_a_step_may_not_return(change, said, step, untyped):
    policy, returned = step
    with pytest.raises(klimb.WrongObject, match=said) as caught:
        require_step(Own(), policy, (), change(*returned))
    assert str(caught.value).startswith("Own.step returned ")
    assert str(caught.value).endswith("(policy, state, info), and klimb.accept_or_reject makes all three")


def test_a_rule_is_tried_before_a_run_is_written(tmp_path, untyped):
    class Forgetful(Own):
        def step(self, key, policy, state, batch):
            return super().step(key, policy, state, batch)[:2]

    with pytest.raises(klimb.WrongObject, match=r"Forgetful\.step returned a tuple of 2 values"):
        klimb.train(ENV, Forgetful(), run_dir=tmp_path / "new", env_steps=16, **SMALL)
    with pytest.raises(klimb.ConfigError, match=r"can't be written to config\.toml"):
        klimb.train(ENV, WithFunction(), run_dir=tmp_path / "new", env_steps=16, **SMALL)
    assert not (tmp_path / "new").exists()


@dataclasses.dataclass(frozen=True)
class WithFunction(Own):
    schedule: object = max


class TwoInterrupts:
    """Ctrl-C twice, a second apart, once an iteration is recorded: the second does not wait for the end of the call."""

    def __call__(self, run: klimb.OngoingRun) -> None:
        if run.iteration >= 2:
            signal.raise_signal(signal.SIGINT)
            time.sleep(APART)
            signal.raise_signal(signal.SIGINT)


@pytest.fixture
def interruptible():
    """Ctrl-C raises KeyboardInterrupt, also where the tests run in the background, whose processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.slow
@pytest.mark.usefixtures("interruptible")
def test_a_second_interrupt_says_how_to_go_on_too(tmp_path):
    directory = tmp_path / "my runs" / "one"
    with pytest.raises(klimb.Interrupted) as caught:
        klimb.train(ENV, klimb.Reinforce(), run_dir=directory, callback=TwoInterrupts(), env_steps=1000, **SMALL)
    said = f"stopped at once; from the last checkpoint go on with: klimb resume '{directory}'"
    assert (str(caught.value), caught.value.signal) == (said, signal.SIGINT)
    assert len(list((directory / "checkpoints").glob("*.safetensors"))) == 1
    with pytest.raises(klimb.Interrupted, match="nothing was saved"):
        klimb.train(ENV, klimb.Reinforce(), callback=TwoInterrupts(), env_steps=1000, **SMALL)


def test_the_typed_options_are_those_of_the_training():
    assert typed_options.FILE.read_text(encoding="utf-8") == typed_options.text(), "make errors writes them again"
    names = {field.name for field in dataclasses.fields(klimb.TrainOptions)}
    assert set(SweepOptionsDict.__annotations__) == names
    assert set(TrainOptionsDict.__annotations__) == names - {"policy", "critic", "demonstrations"}


SNIPPET = """
import klimb
from klimb import NetworkPolicy, Policy, TrainOptionsDict

class Mine:
    pass

options: TrainOptionsDict = {"env_steps": 1000, "gamma": 0.9, "hidden": [8, 8]}
run = klimb.train("CartPole-v1", klimb.TRPO(max_kl=0.02), policy=None, **options)
policy: Policy = run.policy
loaded: NetworkPolicy = klimb.load_policy("run")
mine: Mine = klimb.load_policy("run", like=Mine())
klimb.sweep("CartPole-v1", klimb.TRPO(), {"max_kl": [0.1, 0.2]}, num_seeds=2)
klimb.train("CartPole-v1", klimb.TRPO(), env_stepz=1000)  # wrong
klimb.train("CartPole-v1", klimb.TRPO(), gamma="high")  # wrong
klimb.train("CartPole-v1", klimb.TRPO(maxkl=0.02))  # wrong
klimb.train("CartPole-v1", klimb.TRPO)  # wrong
klimb.train("CartPole-v1", "trpo")  # wrong
klimb.sweep("CartPole-v1", klimb.TRPO(), {"max_kl": [0.1, 0.2]}, num_seedz=2)  # wrong
number: int = run.policy  # wrong
other: Mine = klimb.load_policy("run")  # wrong
"""


@pytest.mark.slow
def test_a_type_checker_finds_what_is_wrong_and_nothing_else(tmp_path):
    """With mypy, of which pyright and editors read the same types."""
    (tmp_path / "snippet.py").write_text(SNIPPET)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent", "snippet.py"]
    source = Path(klimb.__file__).parent.parent
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=170, cwd=tmp_path, env={"MYPYPATH": str(source)}
    )
    found = {int(line.split(":")[1]) for line in done.stdout.splitlines() if ": error:" in line}
    wrong = {i for i, line in enumerate(SNIPPET.splitlines(), 1) if line.endswith("# wrong")}
    assert found == wrong, done.stdout + done.stderr
