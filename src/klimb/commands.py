"""What each command does. `klimb.cli` chooses the command and words its errors."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from rich.console import Console
from tyro.conf import OmitArgPrefixes

from klimb import compilation_cache
from klimb.collect.recording import record as record_episodes
from klimb.environments.base import CompiledEnvironment
from klimb.environments.registry import BUILT_IN, make
from klimb.errors import ConfigError, RunError, nearest
from klimb.flags import parse
from klimb.improve.registry import RULES, rule_name
from klimb.progress import Progress
from klimb.runs import driver
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.demonstration_file import FILE_NAME, save_demonstrations
from klimb.runs.directory import RunDirectory, unused_directory
from klimb.runs.evaluate import evaluate as evaluate_policy
from klimb.runs.policy_file import load_policy
from klimb.runs.report import write_report


@dataclass(frozen=True)
class RunFlags:
    """Where the run goes, and what is done when it has been trained."""

    run_dir: Path | None = None
    """Directory to make for the run; by default runs/RULE-ENV."""
    eval_episodes: int = 100
    """Episodes of the final evaluation, each seed; 0 for none."""
    config: Path | None = None
    """A config.toml to start from; flags go on top of it."""


def train(arguments: list[str]) -> None:
    """klimb train RULE ENV [--flags]"""
    base, words = _named_run(arguments)
    rule, options, flags = _parse_flags(base, words)
    config = RunConfig(base.env, rule, options)
    config.check_demonstrations()
    console, environment = _announce(config)
    compilation_cache.enable()
    name = f"{rule_name(base.rule)}-{base.env.replace(':', '-').replace('/', '-')}"
    run_dir = flags.run_dir or unused_directory(Path("runs"), name)
    with Progress(config, console) as progress:
        run = driver.train(config.env, rule, run_dir=run_dir, on_records=progress.update, **asdict(options))
    _finish(run_dir, run.policies, config, environment, flags.eval_episodes, console)


def resume(arguments: list[str]) -> None:
    """klimb resume RUN"""
    run_dir = _one_path("resume", arguments)
    config = RunDirectory.open(run_dir).config
    console, environment = _announce(config)
    compilation_cache.enable()
    with Progress(config, console) as progress:
        run = driver.resume(run_dir, env=environment, on_records=progress.update)
    _finish(run_dir, run.policies, config, environment, RunFlags().eval_episodes, console)


@dataclass(frozen=True)
class EvaluateFlags:
    """How a run's policy is evaluated."""

    episodes: int = 100
    """Whole episodes, each seed's policy."""
    seed: int = 0
    """Seed of the evaluation's episodes."""
    stochastic: bool = False
    """Sample actions instead of taking the mode."""
    env: str | None = None
    """Another environment than the run's own."""
    json: bool = False
    """Print one JSON object, for programs."""


def evaluate(arguments: list[str]) -> None:
    """klimb evaluate RUN [--flags]"""
    words, rest = _split(arguments)
    program = "klimb evaluate" + (f" {words[0]}" if words else " RUN")
    flags = parse(EvaluateFlags, rest, default=EvaluateFlags(), program=program)
    run_dir = _one_path("evaluate", words)
    config = RunDirectory.open(run_dir).config
    compilation_cache.enable()
    environment = make(flags.env or config.env)
    result = _evaluate_seeds(
        _load_policies(run_dir, config), config, environment, flags.episodes, flags.seed, not flags.stochastic
    )
    if flags.json:
        print(json.dumps({"run": str(run_dir), "env": environment.id, **result}))
        return
    for line in _evaluation_lines(result):
        print(line)


@dataclass(frozen=True)
class RecordFlags:
    """Which episodes are recorded, and where they go."""

    episodes: int = 20
    """Whole episodes."""
    seed: int = 0
    """Seed of the episodes."""
    deterministic: bool = False
    """Take the mode instead of sampling; nothing is then known of probabilities, so this can only be cloned."""
    policy_seed: int | None = None
    """Whose policy, in a run of several seeds; by default the first."""
    env: str | None = None
    """Another environment than the run's own."""
    output: Path | None = None
    """File to write, also -o FILE; by default demonstrations.safetensors in the run."""
    overwrite: bool = False
    """Write over a file that exists."""


def record(arguments: list[str]) -> None:
    """klimb record RUN [--flags]"""
    words, rest = _split(arguments)
    program = "klimb record" + (f" {words[0]}" if words else " RUN")
    rest = ["--output" if word == "-o" else word for word in rest]
    flags = parse(RecordFlags, rest, default=RecordFlags(), program=program)
    run_dir = _one_path("record", words)
    config = RunDirectory.open(run_dir).config
    output = flags.output or run_dir
    path = output / FILE_NAME if output.is_dir() else output
    if flags.episodes < 1:
        raise ConfigError(f"episodes = {flags.episodes}; demonstrations need at least 1")
    if path.exists() and not flags.overwrite:
        raise RunError(f"{path} exists already; give --overwrite, or another file with -o FILE")
    compilation_cache.enable()
    env = flags.env or config.env
    environment = make(env)
    several = config.options.num_seeds > 1
    seed = flags.policy_seed if flags.policy_seed is not None else config.options.seed if several else None
    demonstrations = record_episodes(
        load_policy(run_dir, seed=seed),
        environment,
        episodes=flags.episodes,
        seed=flags.seed,
        deterministic=flags.deterministic,
    )
    save_demonstrations(demonstrations, path)
    rows, returns = len(demonstrations.reward), demonstrations.returns
    kind = "modes, without log-probs" if flags.deterministic else "samples, with their log-probs"
    print(f"recorded     {demonstrations.num_episodes} episodes, {rows} steps ({kind})")
    print(f"return       mean {returns.mean():.2f} (lowest {returns.min():.1f}, highest {returns.max():.1f})")
    print(f"file         {path}")
    print(f"clone        klimb train behaviour-cloning {env} --demonstrations {output}")


def report(arguments: list[str]) -> None:
    """klimb report RUN [-o FILE]"""
    output = None
    if "-o" in arguments:
        at = arguments.index("-o")
        if at + 1 == len(arguments):
            raise ConfigError("-o needs a file name")
        output = Path(arguments[at + 1])
        arguments = arguments[:at] + arguments[at + 2 :]
    run_dir = RunDirectory.open(_one_path("report", arguments)).path
    print(write_report(run_dir, output))


def list_(arguments: list[str]) -> None:
    """klimb list [rules|environments]"""
    sections = {"rules": _list_rules, "environments": _list_environments}
    wanted = arguments[0] if arguments else None
    if wanted is not None and wanted not in sections:
        raise ConfigError(f"klimb lists {' or '.join(sections)}, not {wanted!r}{nearest(wanted, sections)}")
    for name, show in sections.items():
        if wanted in (None, name):
            show()


def _list_rules() -> None:
    print("rules (klimb train RULE ENV):")
    for name, rule in RULES.items():
        summary = sys.modules[rule.__module__].__doc__ or ""
        print(f"  {name:<20} {summary.splitlines()[0]}")


def _list_environments() -> None:
    print("environments, compiled and built in:")
    for name in BUILT_IN:
        print(f"  {name}")
    print("others, by prefix:")
    print("  gymnasium:ID   any environment registered with Gymnasium, stepped in Python")
    print("  gymnax:ID      compiled, from gymnax (pip install 'klimb[gymnax]')")
    print("  envpool:ID     stepped in EnvPool's threads (pip install 'klimb[envpool]')")
    print("  MODULE:ID      imports MODULE, which registers ID with Gymnasium")


COMMANDS: dict[str, Any] = {
    "train": train,
    "resume": resume,
    "evaluate": evaluate,
    "record": record,
    "report": report,
    "list": list_,
}


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The words before the first flag, and the rest."""
    at = next((i for i, word in enumerate(arguments) if word.startswith("-")), len(arguments))
    return arguments[:at], arguments[at:]


def _one_path(command: str, words: list[str]) -> Path:
    if len(words) != 1 or words[0].startswith("-"):
        raise ConfigError(f"klimb {command} takes one run directory, not {len(words)}: klimb {command} RUN")
    return Path(words[0])


def _named_run(arguments: list[str]) -> tuple[RunConfig, list[str]]:
    """The run that RULE and ENV (or --config) name, with every option at its default, and the flags."""
    words, rest = _split(arguments)
    if "--config" in rest[:-1]:
        base = RunConfig.read(Path(rest[rest.index("--config") + 1]))
        words = words or [rule_name(base.rule), base.env]
    else:
        base = None
    if len(words) == 1 and words[0] in RULES and ("--help" in rest or "-h" in rest):
        words.append("ENV")
    if len(words) != 2:
        raise ConfigError("klimb train takes a rule and an environment: klimb train trpo CartPole-v1")
    name, env = words
    if name not in RULES:
        raise ConfigError(f"there is no rule {name!r}{nearest(name, RULES)}; there are {', '.join(RULES)}")
    if base is None:
        return RunConfig(env, RULES[name](), TrainOptions()), rest
    rule = base.rule if type(base.rule) is RULES[name] else RULES[name]()
    return RunConfig(env, rule, base.options), rest


def _parse_flags(base: RunConfig, words: list[str]) -> tuple[Any, Any, RunFlags]:
    """Rule, options and run flags, from flags on top of `base`."""
    command = make_dataclass(
        "Train",
        [
            ("rule", Annotated[type(base.rule), OmitArgPrefixes], field(default=base.rule)),
            ("training", Annotated[type(base.options), OmitArgPrefixes], field(default=base.options)),
            ("run", Annotated[RunFlags, OmitArgPrefixes], field(default_factory=RunFlags)),
        ],
        frozen=True,
    )
    program = f"klimb train {rule_name(base.rule)} {base.env}"
    parsed: Any = parse(command, words, default=command(), program=program)
    return parsed.rule, parsed.training, parsed.run


def _announce(config: RunConfig) -> tuple[Console, Any]:
    """Make the environment, and say which one it is."""
    console = Console(stderr=False)
    environment = make(config.env)
    kind = "compiled" if isinstance(environment, CompiledEnvironment) else "stepped in Python"
    console.print(f"environment  {environment.id} ({kind})", highlight=False, markup=False)
    console.print(f"rule         {config.rule}", highlight=False, markup=False, soft_wrap=True)
    return console, environment


def _load_policies(run_dir: Path, config: RunConfig) -> list[Any]:
    options = config.options
    if options.num_seeds == 1:
        return [load_policy(run_dir)]
    return [load_policy(run_dir, seed=options.seed + k) for k in range(options.num_seeds)]


def _evaluate_seeds(
    policies: list[Any], config: RunConfig, environment: Any, episodes: int, seed: int, deterministic: bool
) -> dict[str, Any]:
    """One entry a seed, and the mean over seeds, as plain values."""
    if episodes < 1:
        raise ConfigError(f"episodes = {episodes}; an evaluation needs at least 1")
    seeds = []
    for k, policy in enumerate(policies):
        result = evaluate_policy(policy, environment, episodes=episodes, seed=seed, deterministic=deterministic)
        seeds.append(
            {
                "seed": config.options.seed + k,
                "mean": result.mean,
                "standard_error": result.standard_error if episodes > 1 else None,
                "returns": result.returns.tolist(),
                "lengths": result.lengths.tolist(),
            }
        )
    mean = sum(entry["mean"] for entry in seeds) / len(seeds)
    return {"episodes": episodes, "deterministic": deterministic, "mean": mean, "seeds": seeds}


def _evaluation_lines(result: dict[str, Any]) -> list[str]:
    lines = []
    for entry in result["seeds"]:
        error = "" if entry["standard_error"] is None else f" ± {entry['standard_error']:.2f}"
        lowest, highest = min(entry["returns"]), max(entry["returns"])
        lines.append(
            f"evaluation   seed {entry['seed']}: mean return {entry['mean']:.2f}{error} over {result['episodes']} "
            f"episodes (lowest {lowest:.1f}, highest {highest:.1f})"
        )
    if len(result["seeds"]) > 1:
        lines.append(f"             mean over {len(result['seeds'])} seeds {result['mean']:.2f}")
    return lines


def _finish(
    run_dir: Path, policies: list[Any], config: RunConfig, environment: Any, episodes: int, console: Console
) -> None:
    """The final evaluation, the report, and where everything is."""
    directory = RunDirectory(Path(run_dir), config)
    if episodes > 0:
        # Another seed than the training's, so that no episode is one that was trained on.
        result = _evaluate_seeds(policies, config, environment, episodes, config.options.seed + 10_000, True)
        directory.write_evaluation(result)
        for line in _evaluation_lines(result):
            console.print(line, highlight=False)
    page = write_report(directory.path)
    for name, where in (
        ("report", page),
        ("policy", directory.path / ("policy*.safetensors" if len(policies) > 1 else "policy.safetensors")),
        ("metrics", directory.path / "metrics.jsonl"),
    ):
        console.print(f"{name:<12} {where}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"again        klimb evaluate {directory.path}", highlight=False, markup=False, soft_wrap=True)
