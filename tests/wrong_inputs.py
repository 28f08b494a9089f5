"""Wrong inputs by topic, on the command line and in Python, tried for the tables of docs/errors.md.

    python tests/wrong_inputs.py

writes the tables again; tests/cli/test_errors_page.py tries the same inputs, and compares.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import json
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from jaxtyping import config as jaxtyping_config

import klimb
from klimb import errors
from klimb.cli.main import EXIT_STATUS, main

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"

TYPED: dict[str, list[str]] = {
    "Names": [
        "klimb trian trpo CartPole-v1",
        "klimb train trppo CartPole-v1",
        "klimb train trpo CartPole-v1 --log wanbd",
        "klimb train npg CartPole-v1",
        "klimb train sac Pendulum-v1",
        "klimb train CartPole-v1 trpo",
        "klimb train CartPole-v1",
        "klimb train trpo CartPol-v1",
        "klimb train trpo ALE/Pong-v5",
        "klimb train trpo gymnasum:CartPole-v1",
        "klimb train my_rules:Mine CartPole-v1",
        "klimb train trpo",
        "klimb train trpo CartPole-v1 Acrobot-v1",
        "klimb sweep",
        "klimb figure fieldz",
        "klimb list rulez",
        "klimb train trpo gymnasium:Swimmer-v5 --preset swimer",
        "klimb train awr gymnasium:Swimmer-v5 --preset swimmer",
    ],
    "Flags": [
        "klimb train trpo CartPole-v1 --max-kll 0.02",
        "klimb train trpo CartPole-v1 --total-timesteps 1e6",
        "klimb train trpo CartPole-v1 --n-steps 2048",
        "klimb train trpo CartPole-v1 --target-kl 0.02",
        "klimb train ppo CartPole-v1 --lr 3e-4",
        "klimb train ppo CartPole-v1 --clip-range 0.2",
        "klimb train ppo CartPole-v1 --batch-size 64",
        "klimb train ppo CartPole-v1 --vf-coef 0.5",
        "klimb train trpo CartPole-v1 --max-kl",
        "klimb evaluate runs/mine --episodez 3",
    ],
    "Values": [
        "klimb train trpo CartPole-v1 --env-steps 1.5",
        "klimb train trpo CartPole-v1 --env-steps many",
        "klimb train trpo CartPole-v1 --max-kl -3",
        "klimb train trpo CartPole-v1 --max-kl small",
        "klimb train trpo CartPole-v1 --gamma 1.5",
        "klimb train trpo CartPole-v1 --gae-lambda nan",
        "klimb train trpo CartPole-v1 --seed -1",
        "klimb train trpo CartPole-v1 --advantage gaee",
        "klimb train trpo CartPole-v1 --hidden 64,abc",
        "klimb train trpo CartPole-v1 --log mlflow:https://me:mine@host",
        "klimb train trpo CartPole-v1 --workers many",
        "klimb train ppo CartPole-v1 --penalty l2",
    ],
    "Options that do not fit together": [
        "klimb train ppo CartPole-v1 --num-minibatches 3",
        "klimb train ppo gymnasium:Hopper-v5 --num-envs 1 --num-steps 16",
        "klimb train natural-gradient CartPole-v1 --solver dense --damping 0",
        "klimb train trpo CartPole-v1 --tanh-squash",
        "klimb train trpo CartPole-v1 --overlap",
        "klimb train trpo CartPole-v1 --straggler-timeout 2",
        "klimb train trpo gymnasium:CartPole-v1 --workers 0 --straggler-timeout 2",
        "klimb train trpo gymnasium:CartPole-v1 --batch episodes --straggler-timeout 2",
        "klimb train trpo CartPole-v1 --advantage time_baseline",
        "klimb train behaviour-cloning CartPole-v1",
        "klimb train trpo CartPole-v1 --demonstrations runs/mine",
        "klimb sweep trpo CartPole-v1",
        "klimb sweep ppo CartPole-v1 --over max_kl 0.01 0.02",
        "klimb sweep trpo CartPole-v1 --over max_kl 0.01 --over max_kl 0.02",
        "klimb tune trpo CartPole-v1",
        "klimb tune trpo CartPole-v1 --over max_kl:0.1:0.001",
        "klimb tune trpo CartPole-v1 --over max_kl:log:0:0.1",
        "klimb tune trpo CartPole-v1 --over hidden:32:64",
        "klimb tune trpo CartPole-v1 --over max_kl 0.01",
    ],
    "Runs and files": [
        "klimb resume runs/nowhere",
        "klimb evaluate .",
        "klimb train trpo CartPole-v1 --run-dir 'my runs'",
        "klimb train --config nowhere.toml",
        "klimb train --config broken.toml",
        "klimb train trpo CartPole-v1 --preset nowhere.toml",
        "klimb train trpo CartPole-v1 --preset wrong-preset.toml",
        "klimb train trpo CartPole-v1 --init-from runs/nowhere",
        "klimb evaluate runs/mine",
        "klimb estimate runs/mine",
        "klimb record runs/mine --to runs/demonstrations",
        "klimb compare",
        "klimb verify --mdp CartPole-v1",
    ],
}
"""Topic -> what is typed, in a folder that `prepare` has filled."""

CALLED: dict[str, list[str]] = {
    "Rules and environments": [
        'klimb.train("CartPole-v1", klimb.TRPO)',
        'klimb.train("CartPole-v1", "trpo")',
        'klimb.train("CartPole-v1", "trppo")',
        'klimb.train(klimb.TRPO(), "CartPole-v1")',
        'klimb.train("CartPole-v1", 0.01)',
        'klimb.train(gymnasium.make("CartPole-v1"), klimb.TRPO())',
        'klimb.make("CartPol-v1")',
        'klimb.preset(klimb.TRPO(), "gymnasium:Swimmer-v5")',
        'klimb.load_preset("trpo", "swimer")',
        "klimb.TRPO(max_kl=-1)",
        "klimb.TRPO(maxkl=0.02)",
        "klimb.PPO(clip_range=0.1)",
        "dataclasses.replace(klimb.TRPO(), max_kl=0)",
    ],
    "Options": [
        'klimb.train("CartPole-v1", klimb.TRPO(), total_timesteps=100_000)',
        'klimb.train("CartPole-v1", klimb.TRPO(), env_stepz=100_000)',
        'klimb.train("CartPole-v1", klimb.PPO(), lr=3e-4)',
        'klimb.train("CartPole-v1", klimb.PPO(), clip_eps=0.1)',
        'klimb.train("CartPole-v1", klimb.TRPO(), env_steps=1.5)',
        'klimb.sweep("CartPole-v1", klimb.TRPO(), {"max_kl": [0.01, 0.01]})',
        'klimb.tune("CartPole-v1", klimb.TRPO(), {"max_kl": 0.01}, run_dir="tune")',
    ],
    "Policies and observations": [
        'klimb.train("Pendulum-v1", klimb.TRPO(), policy=policy)',
        'klimb.train("CartPole-v1", klimb.TRPO(), policy="runs/mine")',
        'klimb.evaluate(policy, "Pendulum-v1", episodes=10)',
        'klimb.evaluate("CartPole-v1", policy, episodes=10)',
        'klimb.evaluate("runs/mine", "CartPole-v1", episodes=10)',
        'klimb.evaluate(klimb.TRPO(), "CartPole-v1", episodes=10)',
        'klimb.evaluate(policy, "CartPole-v1", episodes=0)',
        'klimb.load_policy("runs/mine")',
        "klimb.load_policy(policy)",
        "policy(jnp.zeros(3))",
        "policy.act([0.0, 0.1])",
        "policy.act(env.reset())",
    ],
}
"""Topic -> what is written in Python; `policy` is of CartPole-v1, and `env` is Gymnasium's."""

RETURNED = {
    "`init` returns a text": ("policy, state, info", '"none yet"'),
    "`step` returns `None`": ("None", "()"),
    "`step` returns `policy, state`": ("policy, state", "()"),
    "`step` returns a dictionary as `info`": ('policy, state, {"loss": 0.0}', "()"),
    "`step` returns a metric of every row": ("policy, state, info.with_metrics(gain=batch.advantage)", "()"),
    "`step` returns the parameters as one vector": ("klimb.flatten(policy).theta, state, info", "()"),
    "`step` returns a state of another shape": ("policy, jnp.ones(2), info", "jnp.zeros(3)"),
}
"""What a rule of one's own does -> what its `step` returns, and its `init`."""

SMALL = "env_steps=16, num_envs=2, num_steps=8, hidden=(4,), critic_epochs=1, critic_num_minibatches=1"
RULE = """
@dataclass(frozen=True)
class MyRule:
    def init(self, policy):
        return {state}
    def step(self, key, policy, state, batch):
        policy, state, info = klimb.accept_or_reject(policy, state, policy, state, batch)
        return {returned}
"""


class Outcome(NamedTuple):
    """What became of an input. kind: the exit status, or the name of the error. line: all that was said."""

    kind: str
    line: str


def prepare(folder: Path) -> None:
    """Fill the folder that the inputs are tried in: a run of a policy class of the user's own, and two things more."""
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    (run / "config.toml").write_text(klimb.RunConfig("CartPole-v1", klimb.TRPO(), klimb.TrainOptions()).to_toml())
    description = {"format": "klimb-policy-arrays", "version": 3, "class": "MyNetwork"}
    (run / "policy.json").write_text(json.dumps(description))
    (run / "policy.safetensors").write_bytes(b"")
    (folder / "my runs").mkdir()
    (folder / "wrong-preset.toml").write_text("[rule]\ngamma = 0.9\n")
    (folder / "broken.toml").write_text('env = "CartPole-v1"\n[rule]\nname = "trpo"\nmax_kll = 0.02\n')


@contextlib.contextmanager
def as_a_user(folder: Path) -> Iterator[None]:
    """Inside of the folder, with no file outside of it, and without the checks of shapes that only tests have."""
    disabled, before = jaxtyping_config.jaxtyping_disable, dict(os.environ)
    os.environ["KLIMB_COMPILATION_CACHE"] = "off"
    jaxtyping_config.update("jaxtyping_disable", True)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        jaxtyping_config.update("jaxtyping_disable", disabled)
        os.environ.clear()
        os.environ.update(before)


def typed(line: str) -> Outcome:
    """The outcome of a command."""
    said = io.StringIO()
    path = list(sys.path)
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        status = main(shlex.split(line)[1:])
    sys.path[:] = path
    return Outcome(str(status), said.getvalue().removesuffix("\n"))


@functools.cache
def names() -> dict[str, Any]:
    """What Python code is written with."""
    env = gymnasium.make("CartPole-v1")
    policy = klimb.NetworkPolicy(4, klimb.action_spec(env.action_space), hidden=(4,), key=jax.random.key(0))
    return {
        "klimb": klimb, "gymnasium": gymnasium, "dataclasses": dataclasses, "jnp": jnp, "policy": policy, "env": env,
    }  # fmt: skip


def called(code: str) -> Outcome:
    """The outcome of Python code, which is to raise an error of klimb's."""
    try:
        exec("from dataclasses import dataclass\n" + code, dict(names()))
    except klimb.KlimbError as error:
        public = next(cls.__name__ for cls in type(error).__mro__ if hasattr(klimb, cls.__name__))
        return Outcome(public, str(error))
    return Outcome("nothing", "")


def returned(what: str) -> Outcome:
    """The outcome of a training by a rule of one's own. what: a key of `RETURNED`."""
    step, state = RETURNED[what]
    return called(RULE.format(state=state, returned=step) + f'klimb.train("CartPole-v1", MyRule(), {SMALL})')


def plain_class() -> Outcome:
    """The outcome of a training, with a run directory, by a rule that is no dataclass."""
    code = RULE.format(state="()", returned="policy, state, info").replace("@dataclass(frozen=True)\n", "")
    return called(f'{code}klimb.train("CartPole-v1", MyRule(), run_dir="new", {SMALL})')


PLAIN = "the class is not a dataclass, and a `run_dir` is given"


@dataclass(frozen=True)
class Tried:
    """All inputs and their outcomes, by topic."""

    typed: dict[str, dict[str, Outcome]]
    called: dict[str, dict[str, Outcome]]


def try_all(folder: Path) -> Tried:
    """Try every input in an empty folder."""
    prepare(folder)
    with as_a_user(folder):
        on_the_command_line = {topic: {line: typed(line) for line in lines} for topic, lines in TYPED.items()}
        in_python = {topic: {f"`{code}`": called(code) for code in codes} for topic, codes in CALLED.items()}
        in_python["Rules of one's own"] = {what: returned(what) for what in RETURNED} | {PLAIN: plain_class()}
    return Tried(on_the_command_line, in_python)


def error_classes() -> dict[str, type[klimb.KlimbError]]:
    """Every class of the family, the general one first."""
    found = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
    return {name: value for name, value in found.items() if issubclass(value, klimb.KlimbError)}


def tables(tried: Tried) -> dict[str, str]:
    """The tables of the page, by their names in its marks."""
    statuses = ["| exit status | meaning |", "|---|---|"]
    statuses += [f"| {number} | {meaning} |" for number, meaning in EXIT_STATUS.items()]
    classes = ["| error | also a | meaning |", "|---|---|---|"]
    for name, cls in error_classes().items():
        also = ", ".join(f"`{base.__name__}`" for base in cls.__bases__ if base is not Exception)
        meaning = " ".join((cls.__doc__ or "").partition("\n\n")[0].split())
        classes.append(f"| `{name}` | {also} | {meaning} |")
    lines: list[str] = []
    for topic, outcomes in tried.typed.items():
        lines += [f"### {topic}", "", "| typed | answer |", "|---|---|"]
        lines += [f"| `{line}` | {_cell(outcome.line)} |" for line, outcome in outcomes.items()] + [""]
    objects: list[str] = []
    for topic, outcomes in tried.called.items():
        objects += [f"### {topic}", "", "| written | error | message |", "|---|---|---|"]
        rows = outcomes.items()
        objects += [f"| {code} | `{outcome.kind}` | {_cell(outcome.line)} |" for code, outcome in rows] + [""]
    named = {"exit status": statuses, "classes": classes, "typed": lines, "called": objects}
    return {name: "\n".join(part).strip() for name, part in named.items()}


def _cell(line: str) -> str:
    """Text in a cell of a table: nothing in it is markup."""
    return re.sub(r"([|*<`])", r"\\\1", line.removeprefix("klimb: "))


def page(text: str, tried: Tried) -> str:
    """The page with its tables written again."""
    for name, table in tables(tried).items():
        begin, end = f"<!-- {name}: written by make errors -->\n", f"<!-- end of {name} -->\n"
        before, rest = text.split(begin)
        text = f"{before}{begin}\n{table}\n\n{end}{rest.split(end)[1]}"
    return text


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        everything = try_all(Path(directory))
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), everything), encoding="utf-8")
