"""The whole configuration of a run: checked when it is made, and written so that the run can be repeated."""

from __future__ import annotations

import dataclasses
import itertools
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field
from tyro.conf import UseAppendAction, arg

from klimb.collect.options import Collection
from klimb.environments.registry import imported_module
from klimb.errors import ConfigError, one_line, shown
from klimb.estimate.advantages import ADVANTAGES
from klimb.estimate.estimator import Estimator
from klimb.fields import MAX_NAME, Count, Iterations, Name, build, checked
from klimb.improve.critic_fit import CriticFit
from klimb.improve.minibatches import require_divisible, require_sequences
from klimb.improve.rule import Rule, Traits, is_offline, traits_of
from klimb.modules import module_of, require_trust
from klimb.policies.network_options import NetworkOptions
from klimb.precision import Precision
from klimb.rules import RULES, UnknownRule, rule_class, rule_name
from klimb.runs.toml import parse_toml, read_toml, toml_value
from klimb.runs.tracker_name import needs_trust, require_tracker, require_trusted_tracker

# A configuration may be a stranger's: no size in it may ask for more than a large machine has.
Part = TypeVar("Part")

_RENAMED = {
    ("dual-descent", "enough"): "max_overshoot",
    ("behaviour-cloning", "patience"): "holdout_patience",
    ("guided", "memory"): "kept_iterations",
}
"""(rule, field) in files of klimb 0.1.0, and what the field is called since."""

_ANNEALED = {True: "linear", False: "constant"}
"""The values of `anneal_learning_rate` in files of klimb 0.1.0 as those of `learning_rate_schedule`."""

MAX_ROWS = 2**31
MAX_WEIGHTS = 2**30


@checked
class Budget:
    """The length of a training, and its seeds."""

    # The upper limit is what the counter of environment steps holds.
    env_steps: Annotated[int, Field(ge=1, lt=2**32)] = 200_000
    """Environment steps to train for, per seed."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Seed of all random numbers; with several seeds the first of them."""
    num_seeds: Annotated[int, Field(ge=1, le=2**16)] = 1
    """Number of seeds to train together: seed, seed + 1, …"""


@checked
class Starting:
    """What a training starts from, instead of random parameters, and recorded episodes."""

    init_from: Name | None = None
    """Run (or policy directory) whose policy this training starts from; its observation statistics stay fixed."""
    critic_warmup: Annotated[int, Field(ge=0, lt=2**32)] = 20
    """Iterations at the start in which only the critic is trained; used with init_from only."""
    demonstrations: Name | None = None
    """Episodes to learn from: a run whose episodes `klimb record` has written, a file, or minari:DATASET."""
    demonstrator: Literal["recorded", "cloned"] = "recorded"
    """Its action probabilities, for importance weights. recorded: with the episodes; cloned: by behaviour cloning."""


@checked
class Evaluating:
    """Evaluations of the policy in separate environments: they do not affect the training."""

    eval_every: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Environment steps, per seed, between evaluations during the training; 0 for none. They choose `best/`."""
    eval_episodes: Annotated[int, Field(ge=0, le=2**20)] = 100
    """Episodes per evaluation and seed, during the training and after it; 0 for no evaluation after it."""


@checked
class EarlyStopping:
    """What ends a training before `env_steps`. Every seed has to meet the condition.

    The return that counts is the mean of the deterministic evaluation with `eval_every`; without it the mean of the
    last 100 training episodes.
    """

    until_return: float | None = None
    """Stop once the mean return reaches this: in an evaluation (--eval-every), else over 100 training episodes."""
    patience: Iterations | None = None
    """Stop after this many evaluations (--eval-every), else iterations, in a row without a higher return."""


def _listed(names: Any) -> Any:
    """Names of trackers as a tuple: one may be given as a text, and `none` withdraws all before it."""
    names = [names] if names is None or isinstance(names, str) else names
    if not isinstance(names, list | tuple) or not all(name is None or isinstance(name, str) for name in names):
        return names
    last = max((i for i, name in enumerate(names) if name in (None, "none")), default=-1)
    return tuple(dict.fromkeys(names[last + 1 :]))


@checked
class Logging:
    """What is recorded, checked and saved during the training, and on how many cores it runs."""

    log: Annotated[
        tuple[Name, ...], UseAppendAction, arg(metavar="TRACKER"), Field(max_length=8), BeforeValidator(_listed)
    ] = ()
    """Where the run is logged to: wandb, mlflow, mlflow:URI or module:Class; repeat it for several; none for none."""
    certificate: bool = True
    """Record each step's predicted and realised improvement, and bounds (see docs/theory/certificate.md)."""
    cores: Count | None = None
    """Number of CPU cores (or accelerators) to use; none for all. See docs/performance.md."""
    learn_on: Count | None = None
    """Devices that each seed's environments and batches are spread over; none: one, or all of several processes'."""
    spread: Literal["auto", "rows", "environments"] = "auto"
    """With learn_on. rows: every device learns from its share of a batch; environments: from all; auto: by size."""
    precision: Precision = "float32"
    """Of products on an accelerator; tensorfloat32 rounds factors to ten bits, for speed: see docs/gpu.md."""
    max_rejections: Iterations = 50
    """Stop after this many numerical failures in a row, in every seed; warn if none of as many first steps is taken."""
    check_finite: bool = False
    """At the first step that is not finite, find the operation that produced the first NaN, and stop. Slower."""
    checkpoint_every: Iterations = 25
    """Iterations between checkpoints. The last iteration is always saved."""
    keep_checkpoints: Iterations = 3
    """Number of checkpoints that are kept: the newest ones."""


@checked
class TrainOptions(
    Logging, EarlyStopping, Evaluating, CriticFit, Starting, NetworkOptions, Estimator, Collection, Budget
):
    """Everything about a training except the environment and the rule: the options of all packages together.

    Each option is declared in the package that reads it; the command line, `klimb.train` and config.toml know them by
    their names alone.
    """

    def part(self, room: type[Part]) -> Part:
        """The options of one room alone. room: the class in which that room declares them."""
        return room(**{field.name: getattr(self, field.name) for field in dataclasses.fields(room)})  # type: ignore[arg-type]

    @property
    def warmup(self) -> int:
        """Iterations in which only the critic learns."""
        return 0 if self.init_from is None else self.critic_warmup


def num_iterations(rule: Rule, options: TrainOptions) -> int:
    """Iterations that reach `env_steps`, the last of which may go past it; for an offline rule, its epochs.

    With whole episodes, or late workers, which make at least one step, it is the largest possible number.

    rule, options: of the run.
    """
    if is_offline(rule):
        return rule.max_epochs
    rows = options.batch_size if options.rows_are_known else options.num_envs
    return -(-options.env_steps // (traits_of(rule).env_steps_per_row * rows))


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training, as `config.toml` holds it.

    env: the environment's name. rule: the rule with its fields. options: everything else.
    """

    env: str
    rule: Rule
    options: TrainOptions

    @property
    def num_iterations(self) -> int:
        """Iterations of the whole run."""
        return num_iterations(self.rule, self.options)

    def __post_init__(self) -> None:
        options = self.options
        for name in options.log:
            require_tracker(name)
        if len(self.env) > MAX_NAME:
            raise ConfigError(f"env = {shown(self.env)} has {len(self.env)} characters; a name has at most {MAX_NAME}")
        check_sizes(options)
        self._check_evaluations()
        self._check_stragglers()
        if ADVANTAGES[options.advantage].whole_episodes and options.batch != "episodes":
            raise ConfigError(
                f"advantage = {options.advantage} compares step t of several episodes: it needs batch = episodes"
            )
        if (options.exploration_steps or 0) > options.num_steps:
            raise ConfigError(
                f"exploration_steps = {options.exploration_steps} is more than num_steps = {options.num_steps}: noise "
                "is drawn again at the start of every rollout, so give at most num_steps"
            )
        traits = traits_of(self.rule)
        rows = options.num_seeds * options.batch_size * traits.rows_kept
        if rows >= MAX_ROWS:
            raise ConfigError(
                f"num_seeds × num_envs × num_steps = {options.num_seeds} × {options.num_envs} × {options.num_steps}, "
                f"times {traits.rows_kept} kept by {rule_name(self.rule)} for each, are {rows} rows; there have to be "
                f"fewer than {MAX_ROWS}: reduce one of them, or let the rule keep fewer"
            )
        counts = {"num_minibatches": traits.num_minibatches}
        if options.uses_critic:
            counts["critic_num_minibatches"] = options.critic_num_minibatches
        for name, parts in counts.items():
            if parts > options.batch_size:
                raise ConfigError(
                    f"{name} = {shown(parts)} is more than the batch has rows: num_steps × num_envs = "
                    f"{options.batch_size}"
                )
            try:
                require_divisible(options.batch_size, parts, what=name, num_envs=options.num_envs)
            except ValueError as error:
                raise ConfigError(str(error)) from None
        if options.memory is not None and not is_offline(self.rule):
            self.check_sequences(critic=options.critic_memory and options.critic is None)
        if traits.advantage_epochs > 0:
            self._check_recomputed(traits)

    def check_sequences(self, *, critic: bool) -> None:
        """ConfigError unless rollouts of a policy with memory can be cut into parts, and their sequences shared out.

        critic: whether the critic has memory too.
        """
        options, chunk = self.options, self.options.chunk_steps
        if chunk is not None and options.num_steps % chunk:
            raise ConfigError(
                f"num_steps = {options.num_steps} is not divisible by chunk_steps = {chunk}: choose chunk_steps = "
                f"{max(d for d in range(1, min(chunk, options.num_steps) + 1) if options.num_steps % d == 0)}, or "
                f"num_steps = {-(-options.num_steps // chunk) * chunk}"
            )
        counts = {"num_minibatches": traits_of(self.rule).num_minibatches}
        if critic and options.uses_critic:
            counts["critic_num_minibatches"] = options.critic_num_minibatches
        for name, parts in counts.items():
            try:
                require_sequences(
                    options.num_envs * options.num_steps // (chunk or options.num_steps), parts, what=name
                )
            except ValueError as error:
                raise ConfigError(str(error)) from None

    def _check_stragglers(self) -> None:
        options, seconds = self.options, self.options.straggler_timeout
        if seconds is None:
            return
        if options.batch == "episodes":
            raise ConfigError(
                "straggler_timeout cuts rollouts off, and batch = episodes needs whole episodes: long ones would be "
                "cut off most often; use batch = steps"
            )
        if seconds >= options.env_timeout:
            raise ConfigError(
                f"straggler_timeout = {seconds:g} is not less than env_timeout = {options.env_timeout:g}, after which "
                "a worker counts as hanging: choose a smaller one"
            )

    def _check_recomputed(self, traits: Traits) -> None:
        options, epochs = self.options, traits.advantage_epochs
        if not options.uses_critic:
            raise ConfigError(
                f"the advantages of {rule_name(self.rule)} are to be computed anew with the critic before each epoch, "
                f"but with advantage = {options.advantage} they don't depend on it: use advantage = gae, or leave "
                "recompute_advantages out"
            )
        if traits.history > 1 or traits.learns_from != "environment":
            raise ConfigError(
                f"advantage_epochs = {epochs} in the traits of {rule_name(self.rule)}: advantages per epoch are for "
                "rules that learn from one rollout, without demonstrations"
            )
        if options.critic_epochs % epochs != 0:
            raise ConfigError(
                f"critic_epochs = {options.critic_epochs} is not divisible by epochs = {epochs}, between which the "
                f"critic is fitted with recompute_advantages: choose critic_epochs = "
                f"{-(-options.critic_epochs // epochs) * epochs}"
            )

    def _check_evaluations(self) -> None:
        options = self.options
        if options.eval_every > 0 and options.eval_episodes == 0:
            raise ConfigError(
                f"eval_every = {options.eval_every} evaluates during the training, and eval_episodes = 0: choose "
                "eval_episodes = 1 or more"
            )
        needing = {"eval_every": options.eval_every > 0, "until_return": options.until_return is not None}
        for name, given in (needing | {"patience": options.patience is not None}).items():
            if given and is_offline(self.rule):
                raise ConfigError(
                    f"{name} = {shown(getattr(options, name))}, but {rule_name(self.rule)} learns from demonstrations "
                    f"alone, without environment steps or returns: leave {name} out"
                )

    def check_demonstrations(self) -> None:
        """ConfigError when a rule that learns from demonstrations has none, or another one has some."""
        name, given = rule_name(self.rule), self.options.demonstrations is not None
        traits, cloned = traits_of(self.rule), self.options.demonstrator == "cloned"
        if is_offline(self.rule) and not given:
            raise ConfigError(
                f"{name} learns from demonstrations and there are none: record some with klimb record RUN, then give "
                "--demonstrations RUN"
            )
        if given and traits.learns_from == "environment":
            raise ConfigError(
                f"{name} can't learn from demonstrations: clone them first (klimb train behaviour-cloning "
                f"{shlex.quote(one_line(self.env))} --demonstrations "
                f"{shlex.quote(one_line(self.options.demonstrations))}), then go on with "
                "--init-from"
            )
        if cloned and not given:
            raise ConfigError("demonstrator = cloned is estimated from demonstrations, and there are none")
        if cloned and (is_offline(self.rule) or not traits.demonstrations_in_batch):
            raise ConfigError(
                f"{name} does not use demonstrator, because it computes no importance weights of demonstrations: leave "
                "demonstrator = recorded"
            )
        if given and traits.keeps_policies and not cloned:
            raise ConfigError(
                "behaviour = mixture needs the policy that made the demonstrations, which is not known: estimate it "
                "with demonstrator = cloned, or use behaviour = recorded"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists: what goes to TOML and JSON."""
        rule = {"name": rule_name(self.rule), **settings_of(self.rule)}
        return {
            "env": self.env,
            "rule": rule,
            "options": dataclasses.asdict(self.options),
        }

    @classmethod
    def from_dict(cls, tree: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`.

        tree: as a file holds it. Raises ConfigError, which names the first field that is unknown or wrong.
        """
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
        if not isinstance(name, str):
            raise ConfigError(f"[rule] of a run configuration has a name; this one has {shown(name)}")
        if name in RULES:
            fields = _present_fields(name, fields)
        rule = build(RULES[name], fields) if name in RULES else UnknownRule(name, fields)
        return cls(tree["env"], rule, build(TrainOptions, options))

    @property
    def resumed_with_trust(self) -> bool:
        """Whether resuming it needs `--trust-environment`: for modules, or for trackers at an address."""
        return self.names_modules or any(map(needs_trust, self.options.log))

    @property
    def names_modules(self) -> bool:
        """Whether it names a module of the user's own, which is imported where this is trained with again."""
        options, rule = self.options, rule_name(self.rule)
        named = [*options.own.values(), rule]
        return imported_module(self.env) is not None or any(module_of(name) is not None for name in named)

    def require_modules(self, source: str | Path, *, trust: bool) -> RunConfig:
        """The same, ready to be trained with: with its rule, which may have to be imported.

        source: the file that the configuration stands in. trust: whether modules that it names may be imported.
        Raises ConfigError when there is no such rule, UntrustedEnvironment when a module may not be imported.
        """
        rule = self.rule
        named = self.options.own
        if isinstance(rule, UnknownRule):
            named["rule"] = rule.name
        for what, name in named.items():
            if not trust:
                require_trust(name, source, what)
        for name in () if trust else self.options.log:
            require_trusted_tracker(name, source)
        if not isinstance(rule, UnknownRule):
            return self
        return dataclasses.replace(self, rule=build(rule_class(rule.name), dict(rule.settings)))

    def to_toml(self) -> str:
        """TOML text that `from_toml` reads back to an equal configuration.

        ConfigError for a rule of the user's own that can't be written: no dataclass, or with other values than numbers,
        text and lists of them.
        """
        tree = self.to_dict()
        lines = [f"env = {toml_value(tree['env'])}"]
        for section in ("rule", "options"):
            lines += ["", f"[{section}]"]
            lines += [f"{key} = {toml_value(value)}" for key, value in tree[section].items()]
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> RunConfig:
        """The inverse of `to_toml`. text: of a file. Raises ConfigError when it is not TOML or not a run."""
        return cls.from_dict(parse_toml(text))

    @classmethod
    def read(
        cls, path: Path, *, rule: Mapping[str, Any] | None = None, options: Mapping[str, Any] | None = None
    ) -> RunConfig:
        """From a file. ConfigError when it is missing or wrong, with the file's name.

        path: of the file. rule, options: settings by name, which hold where the file has none of that name.
        """
        tree = read_toml(path)
        for section, settings in (("rule", rule), ("options", options)):
            if settings and isinstance(tree.get(section, {}), dict):
                tree[section] = {**settings, **tree.get(section, {})}
        try:
            return cls.from_dict(tree)
        except ConfigError as error:
            raise ConfigError(f"{one_line(path)}: {error}") from None


def _present_fields(name: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a rule of klimb's own by their present names, from a file that may be older. name: of the rule."""
    fields = {_RENAMED.get((name, key), key): value for key, value in fields.items()}
    anneal = fields.get("anneal_learning_rate")
    if isinstance(anneal, bool) and "learning_rate_schedule" not in fields:
        del fields["anneal_learning_rate"]
        fields["learning_rate_schedule"] = _ANNEALED[anneal]
    return fields


def settings_of(rule: Rule) -> dict[str, Any]:
    """The hyperparameters of a rule by name, as plain values. ConfigError for one that is no dataclass.

    rule: of any class.
    """
    if isinstance(rule, UnknownRule):
        return dict(rule.settings)
    if not dataclasses.is_dataclass(rule):
        raise ConfigError(
            f"the rule {type(rule).__name__} is not a dataclass, and a run directory holds the fields of one: "
            "write @dataclass(frozen=True) above the class, or train without run_dir"
        )
    return dataclasses.asdict(rule)


def check_sizes(options: TrainOptions) -> None:
    """ConfigError when options that are sensible one by one ask for too much together."""
    rows = options.num_seeds * options.batch_size
    if rows >= MAX_ROWS:
        raise ConfigError(
            f"num_seeds × num_envs × num_steps = {options.num_seeds} × {options.num_envs} × {options.num_steps} are "
            f"{rows} rows per iteration; there have to be fewer than {MAX_ROWS}: reduce one of them"
        )
    if options.memory is not None:
        weights = options.num_seeds * 4 * options.memory_size**2
        if weights > MAX_WEIGHTS:
            raise ConfigError(
                f"memory_size = {options.memory_size} with num_seeds = {options.num_seeds} makes up to {weights} "
                f"weights; there can be at most {MAX_WEIGHTS}: choose a smaller one"
            )
    for name in ("hidden", "critic_hidden"):
        sizes = getattr(options, name) or ()
        weights = options.num_seeds * num_weights(sizes)
        if weights <= MAX_WEIGHTS:
            continue
        raise ConfigError(
            f"{name} = {list(sizes)} with num_seeds = {options.num_seeds} makes {weights} weights between "
            f"hidden layers; there can be at most {MAX_WEIGHTS}: choose smaller layers"
        )


def num_weights(sizes: Sequence[int]) -> int:
    """Weights between layers of these sizes."""
    return sum(a * b for a, b in itertools.pairwise(sizes))
