"""The whole configuration of a run: checked when it is made, and written so that the run can be repeated."""

from __future__ import annotations

import dataclasses
import itertools
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from klimb.errors import ConfigError, nearest, one_line, shown
from klimb.estimate.advantages import AdvantageKind
from klimb.improve.off_policy import OffPolicyGradient
from klimb.improve.registry import RULES, rule_name
from klimb.improve.rule import Count, Rule, is_offline, rows_remembered, steps_a_row
from klimb.minibatches import require_divisible
from klimb.policies.networks import Activation
from klimb.runs.files import require_regular

STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
# A configuration may be a stranger's: no size in it may ask for more than a large machine has.
Iterations = Annotated[int, Field(ge=1, lt=2**32)]
Width = Annotated[int, Field(ge=1, le=2**16)]
Place = Annotated[str, Field(min_length=1, max_length=4096)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
MAX_ROWS = 2**31
MAX_WEIGHTS = 2**30
MAX_FILE = 2**20
MAX_DOTS = 2000
MAX_NAME = 200


@dataclass(frozen=True, config=STRICT)
class TrainOptions:
    """Everything about a training except the environment and the rule."""

    # The upper limit is what the counter of environment steps holds.
    env_steps: Annotated[int, Field(ge=1, lt=2**32)] = 200_000
    """Environment steps to train for, each seed."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all randomness; with several seeds the first of them."""
    num_seeds: Annotated[int, Field(ge=1, le=2**16)] = 1
    """Seeds to train together: seed, seed + 1, …"""
    num_envs: Count = 16
    """Copies of the environment stepped together, each seed."""
    num_steps: Annotated[int, Field(ge=1, le=2**24)] = 128
    """Steps of each copy in one iteration: the batch is num_steps × num_envs rows."""
    gamma: UnitInterval = 0.99
    """Discount of rewards, a step."""
    gae_lambda: UnitInterval = 0.95
    """λ of generalised advantage estimation: 1 is Monte Carlo, 0 one-step."""
    advantage: AdvantageKind = "gae"
    """How advantages are estimated."""
    n_step: Annotated[int, Field(ge=1, le=2**24)] = 5
    """Rewards summed before the value takes over, for advantage = n_step."""
    discount_states: bool = False
    """Keep the leading γᵗ of the exact policy gradient, which practice drops."""
    normalize_advantage: bool = True
    """Scale each batch's advantages to mean 0 and deviation 1."""
    normalize_observations: bool = True
    """Scale observations by their running mean and deviation, kept inside the policy."""
    hidden: Annotated[tuple[Width, ...], Field(max_length=16)] = (64, 64)
    """Hidden layer sizes of the policy and of the critic."""
    activation: Activation = "tanh"
    """Activation of the hidden layers."""
    initial_log_std: float = 0.0
    """Log standard deviation of the first Gaussian policy, in half-widths of the action box."""
    state_dependent_std: bool = False
    """Let the network say the standard deviation in each state; continuous actions only."""
    tanh_squash: bool = False
    """Squash the Gaussian by tanh into the action box instead of clipping what is outside; bounded boxes only."""
    critic_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """Adam's step size for the critic."""
    critic_epochs: Count = 10
    """Passes over the batch in one fit of the critic."""
    critic_num_minibatches: Count = 8
    """Minibatches a pass; has to divide num_steps × num_envs."""
    init_from: Place | None = None
    """A run (or policy directory) whose policy, with its observation normaliser as it is, this one starts from."""
    critic_warmup: Annotated[int, Field(ge=0, lt=2**32)] = 20
    """Iterations in which only the critic learns, in a run that starts from another's policy."""
    demonstrations: Place | None = None
    """Recorded episodes to learn from: a run that `klimb record` has recorded, a file, or minari:DATASET."""
    certificate: bool = True
    """Record what every step promised, was guaranteed to bring, and has brought (see docs/theory/certificate.md)."""
    cores: Count | None = None
    """CPU cores (or accelerators) to lay the training over; none for all. See docs/performance.md."""
    workers: Annotated[int, Field(ge=0, le=2**12)] | None = None
    """Processes that step a Gymnasium environment; none for one a core, 0 to step it in this process."""
    overlap: bool = False
    """Step host environments while the last rollout is learned from: faster, from data that is one policy old."""
    max_rejections: Iterations = 50
    """Numerically failed steps in a row, of every seed, after which the training stops."""
    check_finite: bool = False
    """After the first step that is not finite, find the operation that made the first NaN, and stop. Slower."""
    env_fault: Literal["restart", "stop"] = "restart"
    """What follows when a Gymnasium environment raises, hangs or ends its process: start it anew, or stop the run."""
    env_timeout: Annotated[float, Field(gt=0)] = 300.0
    """Seconds that a worker process may take for a rollout before it counts as hanging."""
    checkpoint_every: Iterations = 25
    """Iterations between checkpoints. The last iteration is always saved."""
    keep_checkpoints: Iterations = 3
    """Newest checkpoints kept."""

    @property
    def batch_size(self) -> int:
        """Environment steps in one iteration, each seed."""
        return self.num_envs * self.num_steps

    @property
    def warmup(self) -> int:
        """Iterations in which only the critic learns."""
        return 0 if self.init_from is None else self.critic_warmup


def num_iterations(rule: Rule, options: TrainOptions) -> int:
    """Iterations that reach `env_steps`, the last of which may go past it; of an offline rule, its epochs."""
    return rule.max_epochs if is_offline(rule) else -(-options.env_steps // (steps_a_row(rule) * options.batch_size))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training: the environment's name, the rule and the options."""

    env: str
    rule: Rule
    options: TrainOptions

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run."""
        return num_iterations(self.rule, self.options)

    def __post_init__(self) -> None:
        options = self.options
        if len(self.env) > MAX_NAME:
            raise ConfigError(f"env = {shown(self.env)} has {len(self.env)} characters; a name has at most {MAX_NAME}")
        check_sizes(options)
        rows = options.num_seeds * options.batch_size * rows_remembered(self.rule)
        if rows >= MAX_ROWS:
            raise ConfigError(
                f"num_seeds × num_envs × num_steps × (2 + guiding_samples) × memory are {rows} rows to remember; there "
                f"can be less than {MAX_ROWS}: choose fewer of one of them"
            )
        for owner, name in ((self.rule, "num_minibatches"), (options, "critic_num_minibatches")):
            parts = getattr(owner, name, 1)
            if parts > options.batch_size:
                raise ConfigError(
                    f"{name} = {shown(parts)} is more than the batch has rows: num_steps × num_envs = "
                    f"{options.batch_size}"
                )
            try:
                require_divisible(options.batch_size, parts, what=name, num_envs=options.num_envs)
            except ValueError as error:
                raise ConfigError(str(error)) from None

    def check_demonstrations(self) -> None:
        """ConfigError when a rule that learns from demonstrations has none, or another one has some."""
        name, given = rule_name(self.rule), self.options.demonstrations is not None
        if is_offline(self.rule) and not given:
            raise ConfigError(
                f"{name} learns from demonstrations and there are none: record some with klimb record RUN, then give "
                "--demonstrations RUN"
            )
        if given and not is_offline(self.rule) and not isinstance(self.rule, OffPolicyGradient):
            raise ConfigError(
                f"{name} can't learn from demonstrations: clone them first (klimb train behaviour-cloning "
                f"{one_line(self.env)} --demonstrations {one_line(self.options.demonstrations)}), then go on with "
                "--init-from"
            )
        if given and getattr(self.rule, "keeps_policies", False):
            raise ConfigError(
                "behaviour = mixture needs the policy that made the demonstrations, which is not known: "
                "use behaviour = recorded"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists: what goes to TOML and JSON."""
        rule = {"name": rule_name(self.rule), **dataclasses.asdict(self.rule)}  # type: ignore[call-overload]
        return {
            "env": self.env,
            "rule": rule,
            "options": dataclasses.asdict(self.options),
        }

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`. ConfigError names the first field that is unknown or wrong."""
        unknown = set(tree) - {"env", "rule", "options", "klimb"}
        options = tree.get("options", {})
        kinds = ((tree.get("env"), str), (tree.get("rule"), dict), (options, dict))
        if unknown or not all(isinstance(value, kind) for value, kind in kinds):
            raise ConfigError(
                "a run configuration has env, [rule] with a name, and [options]; this one has "
                f"{shown(sorted(map(str, tree)))}"
            )
        fields = dict(tree["rule"])
        name = fields.pop("name", None)
        if not isinstance(name, str) or name not in RULES:
            known = nearest(name[:MAX_NAME], RULES) if isinstance(name, str) else ""
            raise ConfigError(f"there is no rule {shown(name)}{known}; there are {', '.join(RULES)}")
        return cls(tree["env"], build(RULES[name], fields), build(TrainOptions, options))

    def to_toml(self) -> str:
        """TOML text that `from_toml` reads back to an equal configuration."""
        tree = self.to_dict()
        lines = [f"env = {_toml(tree['env'])}"]
        for section in ("rule", "options"):
            lines += ["", f"[{section}]"]
            lines += [f"{key} = {_toml(value)}" for key, value in tree[section].items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> RunConfig:
        """ConfigError when the text is not TOML or not a run."""
        return cls.from_dict(parse_toml(text))

    @classmethod
    def read(cls, path: Path) -> RunConfig:
        """From a file. ConfigError when it is missing or wrong, with the file's name."""
        tree = read_toml(path)
        try:
            return cls.from_dict(tree)
        except ConfigError as error:
            raise ConfigError(f"{one_line(path)}: {error}") from None


def check_sizes(options: TrainOptions) -> None:
    """ConfigError when options that are sensible one by one ask for too much together."""
    rows = options.num_seeds * options.batch_size
    if rows >= MAX_ROWS:
        raise ConfigError(
            f"num_seeds × num_envs × num_steps = {options.num_seeds} × {options.num_envs} × {options.num_steps} are "
            f"{rows} rows in one iteration; there can be less than {MAX_ROWS}: choose fewer of one of them"
        )
    weights = options.num_seeds * num_weights(options.hidden)
    if weights > MAX_WEIGHTS:
        raise ConfigError(
            f"hidden = {list(options.hidden)} with num_seeds = {options.num_seeds} makes {weights} weights between "
            f"hidden layers; there can be at most {MAX_WEIGHTS}: choose smaller layers"
        )


def num_weights(sizes: Sequence[int]) -> int:
    """Weights between layers of these sizes."""
    return sum(a * b for a, b in itertools.pairwise(sizes))


def read_toml(path: Path) -> dict[str, Any]:
    """The tree of a configuration file. ConfigError, with the file's name, when it can't be read or is not TOML."""
    try:
        require_regular(path)
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
        if len(content) > MAX_FILE:
            raise ConfigError(f"it is larger than any run configuration ({MAX_FILE} bytes)")
        return parse_toml(content.decode("utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {one_line(path)}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{one_line(path)} is not a text file") from None
    except ConfigError as error:
        raise ConfigError(f"{one_line(path)}: {error}") from None
    except ValueError:  # a NUL in the path
        raise ConfigError(f"cannot read {one_line(path)}: it is not the name of a file") from None


def parse_toml(text: str) -> dict[str, Any]:
    """The tree of a configuration. ConfigError when the text is not TOML."""
    # tomllib takes time and memory in the square of the number of dots in a key.
    if text.count(".") > MAX_DOTS:
        raise ConfigError(f"it has {text.count('.')} dots, and no run configuration has more than {MAX_DOTS}")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply for TOML of a run") from None
    except ValueError as error:  # also an integer of thousands of digits, which is no TOMLDecodeError
        raise ConfigError(f"the configuration is not valid TOML: {one_line(error)}") from None


def build(cls: type, fields: dict[str, Any]) -> Any:
    """An instance of a configuration class from plain values; ConfigError names the first field that is wrong."""
    fields = {key: (None if value == "none" else value) for key, value in fields.items()}
    known = [field.name for field in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            raise ConfigError(f"{cls.__name__} has no option {shown(name)}{nearest(name[:MAX_NAME], known)}")
    try:
        return TypeAdapter(cls).validate_python(fields)
    except ValidationError as error:
        raise ConfigError(explain(error)) from None


def explain(error: ValidationError) -> str:
    """The first thing pydantic found wrong, in one line: which option, what it was, what it should be."""
    first = error.errors(include_url=False, include_context=False)[0]
    name = one_line(".".join(str(part) for part in first["loc"]), 80)
    message = one_line(first["msg"])
    if not name:  # about several fields together: our own words
        return message.removeprefix("Value error, ")
    return f"{name} = {shown(first['input'])}: {message[0].lower()}{message[1:]}"


def _toml(value: Any) -> str:
    """A TOML value. TOML has no null: `none` stands for it, as on the command line."""
    match value:
        case None:
            return '"none"'
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case tuple() | list():
            return "[" + ", ".join(_toml(item) for item in value) + "]"
    raise TypeError(f"{value!r} can't be written to a configuration file")
