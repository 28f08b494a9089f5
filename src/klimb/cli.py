"""The command line. Nothing heavy is imported before it is known what is wanted: `klimb --help` answers at once."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import klimb
from klimb.errors import ConfigError, KlimbError

if TYPE_CHECKING:
    from rich.console import Console

    from klimb.runs.config import RunConfig

HELP = """\
klimb: policy gradients that climb inside a trust region

usage:
  klimb train RULE ENV [--flags]     train, evaluate, and leave a report     (klimb train RULE --help)
  klimb resume RUN                   go on with a run from its newest checkpoint
  klimb evaluate RUN [--flags]       returns of whole episodes under a run's policy
  klimb report RUN [-o FILE]         write the report of a run again
  klimb list [rules|environments]    what there is
  klimb --version

examples:
  klimb train trpo CartPole-v1
  klimb train ppo gymnasium:HalfCheetah-v5 --env-steps 1000000 --num-envs 8
  klimb train trpo CartPole-v1 --num-seeds 10 --max-kl 0.02
  klimb train --config runs/trpo-CartPole-v1/config.toml --seed 1
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 failed, 2 the user's mistake (one line on standard error), 128 + n stopped by signal n."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if command in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(klimb.__version__)
        return 0
    if command not in COMMANDS:
        import difflib

        match = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"; did you mean {match[0]!r}?" if match else ""
        print(f"klimb: there is no command {command!r}{hint} (see klimb --help)", file=sys.stderr)
        return 2
    asks_for_help = any(word in ("--help", "-h") for word in rest)
    if asks_for_help and (command in ("resume", "report", "list") or (command == "train" and rest[0].startswith("-"))):
        print(HELP, end="")
        return 0
    return _run(command, rest)


def _run(command: str, rest: list[str]) -> int:
    try:
        COMMANDS[command](rest)
    except KlimbError as error:
        print(f"klimb: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # The reader of our output went away: nothing to say, and nobody to say it to.
        sys.stderr.close()
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"\nklimb: {interrupt if interrupt.args else 'stopped'}", file=sys.stderr)
        return 128 + getattr(interrupt, "signal", 2)
    return 0


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
    from klimb import compilation_cache
    from klimb.runs.config import RunConfig
    from klimb.runs.directory import unused_directory
    from klimb.runs.driver import train as run_training

    base, words = _named_run(arguments)
    rule, options, flags = _parse_flags(base, words)
    config = RunConfig(base.env, rule, options)
    console, environment = _announce(config)
    compilation_cache.enable()
    name = f"{words_name(base)}-{base.env.replace(':', '-').replace('/', '-')}"
    run_dir = flags.run_dir or unused_directory(Path("runs"), name)
    with _progress(config, console) as progress:
        run = run_training(config.env, rule, run_dir=run_dir, on_records=progress.update, **asdict(options))
    _finish(run_dir, run.policies, config, environment, flags.eval_episodes, console)


def resume(arguments: list[str]) -> None:
    """klimb resume RUN"""
    from klimb import compilation_cache
    from klimb.runs.directory import RunDirectory
    from klimb.runs.driver import resume as resume_training

    run_dir = _one_path("resume", arguments)
    config = RunDirectory.open(run_dir).config
    console, environment = _announce(config)
    compilation_cache.enable()
    with _progress(config, console) as progress:
        run = resume_training(run_dir, env=environment, on_records=progress.update)
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
    import json

    from klimb import compilation_cache
    from klimb.environments.registry import make
    from klimb.flags import parse
    from klimb.runs.directory import RunDirectory

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


def report(arguments: list[str]) -> None:
    """klimb report RUN [-o FILE]"""
    from klimb.runs.directory import RunDirectory
    from klimb.runs.report import write_report

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
    from klimb.runs.config import nearest

    sections = {"rules": _list_rules, "environments": _list_environments}
    wanted = arguments[0] if arguments else None
    if wanted is not None and wanted not in sections:
        raise ConfigError(f"klimb lists {' or '.join(sections)}, not {wanted!r}{nearest(wanted, sections)}")
    for name, show in sections.items():
        if wanted in (None, name):
            show()


def _list_rules() -> None:
    from klimb.improve.registry import RULES

    print("rules (klimb train RULE ENV):")
    for name, rule in RULES.items():
        summary = sys.modules[rule.__module__].__doc__ or ""
        print(f"  {name:<10} {summary.splitlines()[0]}")


def _list_environments() -> None:
    from klimb.environments.registry import BUILT_IN

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
    from klimb.improve.registry import RULES
    from klimb.runs.config import RunConfig, TrainOptions, nearest

    words, rest = _split(arguments)
    if "--config" in rest[:-1]:
        base = RunConfig.read(Path(rest[rest.index("--config") + 1]))
        words = words or [words_name(base), base.env]
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


def words_name(config: RunConfig) -> str:
    """The rule's name on the command line."""
    from klimb.improve.registry import rule_name

    return rule_name(config.rule)


def _parse_flags(base: RunConfig, words: list[str]) -> tuple[Any, Any, RunFlags]:
    """Rule, options and run flags, from flags on top of `base`."""
    from dataclasses import make_dataclass

    from tyro.conf import OmitArgPrefixes

    from klimb.flags import parse

    command = make_dataclass(
        "Train",
        [
            ("rule", Annotated[type(base.rule), OmitArgPrefixes], field(default=base.rule)),
            ("training", Annotated[type(base.options), OmitArgPrefixes], field(default=base.options)),
            ("run", Annotated[RunFlags, OmitArgPrefixes], field(default_factory=RunFlags)),
        ],
        frozen=True,
    )
    program = f"klimb train {words_name(base)} {base.env}"
    parsed: Any = parse(command, words, default=command(), program=program)
    return parsed.rule, parsed.training, parsed.run


def _announce(config: RunConfig) -> tuple[Console, Any]:
    """Make the environment, and say which one it is."""
    from rich.console import Console

    from klimb.environments.base import CompiledEnvironment
    from klimb.environments.registry import make

    console = Console(stderr=False)
    environment = make(config.env)
    kind = "compiled" if isinstance(environment, CompiledEnvironment) else "stepped in Python"
    console.print(f"environment  {environment.id} ({kind})", highlight=False, markup=False)
    console.print(f"rule         {config.rule}", highlight=False, markup=False, soft_wrap=True)
    return console, environment


def _progress(config: RunConfig, console: Console) -> Any:
    from klimb.progress import Progress

    return Progress(config, console)


def _load_policies(run_dir: Path, config: RunConfig) -> list[Any]:
    from klimb.runs.policy_file import load_policy

    options = config.options
    if options.num_seeds == 1:
        return [load_policy(run_dir)]
    return [load_policy(run_dir, seed=options.seed + k) for k in range(options.num_seeds)]


def _evaluate_seeds(
    policies: list[Any], config: RunConfig, environment: Any, episodes: int, seed: int, deterministic: bool
) -> dict[str, Any]:
    """One entry a seed, and the mean over seeds, as plain values."""
    from klimb.runs.evaluate import evaluate as evaluate_policy

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
    from klimb.runs.directory import RunDirectory
    from klimb.runs.report import write_report

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
