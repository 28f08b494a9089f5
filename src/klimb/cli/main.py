"""The command line. Nothing heavy is imported before it is known what is wanted: `klimb --help` answers at once."""

from __future__ import annotations

import signal
import sys

from klimb._version import __version__
from klimb.cli.commands import COMMANDS, load, usage
from klimb.errors import CheckFailed, KlimbError, TrainingFailed, environment_traceback, one_line
from klimb.terminal import OutputLost, discard, flush, prepare, write_error, write_line
from klimb.training.typed_command import running

DONE, FAILED, MISTAKE, STOPPED = 0, 1, 2, 128
EXIT_STATUS = {
    DONE: "done",
    FAILED: "failed: a training that can't continue, a false statement of the theory, or a result that is lost",
    MISTAKE: "a mistake on the command line or in a file; one line on standard error names it",
    STOPPED + 1: "stopped because the terminal was closed (SIGHUP); a training saves a checkpoint first",
    STOPPED + signal.SIGINT: "stopped by Ctrl-C (SIGINT); a training saves a checkpoint first",
    STOPPED + signal.SIGTERM: "stopped by SIGTERM; a training saves a checkpoint first",
}
"""What the exit status means."""

SMALLER = "use fewer environments (--num-envs), seeds or steps per iteration (--num-steps), or a smaller network"

TRAINING = ("train", "sweep", "tune", "resume")
"""Commands that are done when nobody reads their output any more, or it can't be written."""

NOTES = """\
`klimb COMMAND --help` shows the arguments of a command; `klimb train RULE --help` also shows the options of a rule.
For some tasks `klimb train`, `sweep` and `tune` take other settings than the defaults from a preset, and say so: see
`klimb list presets`. With --preset none they do not.

Reading the run of somebody else executes no code of theirs, with one exception: its config.toml may name a rule, an
environment or a network as MODULE:NAME. The commands evaluate, record, watch, resume, report with --video, and train,
sweep and tune with --config import MODULE only with --trust-environment.

examples:
  klimb train trpo CartPole-v1
  klimb train ppo gymnasium:HalfCheetah-v5 --env-steps 1000000 --num-envs 8
  klimb train trpo CartPole-v1 --num-seeds 10 --max-kl 0.02
  klimb train my_package:MyRule my_package:MyEnvironment --policy my_package:my_network
  klimb resume runs/trpo-CartPole-v1 --env-steps 400000
  klimb sweep trpo CartPole-v1 --over max_kl 0.003 0.01 0.03 --num-seeds 5
  klimb tune trpo CartPole-v1 --over max_kl:log:1e-3:1e-1 --over gamma:0.95:0.999 --trials 32
  klimb train behaviour-cloning CartPole-v1 --demonstrations runs/trpo-CartPole-v1
  klimb train ppo CartPole-v1 --init-from runs/behaviour-cloning-CartPole-v1
  klimb compare runs/trpo-CartPole-v1 runs/ppo-CartPole-v1 -o compare.png
  klimb verify --mdp FrozenLake-v1
  klimb train --config runs/trpo-CartPole-v1/config.toml --seed 1
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command.

    arguments: what is typed after `klimb`; by default that of this process.

    Returns the exit status: a key of `EXIT_STATUS`.
    """
    words = sys.argv[1:] if arguments is None else arguments
    prepare()
    status = _status_of(words)
    try:
        flush()
    except (OutputLost, BrokenPipeError) as error:
        discard()
        # What a training has printed is not what it results in.
        if status == DONE and words[:1] and words[0] not in TRAINING:
            return _lost(error)
    return status


def _status_of(words: list[str]) -> int:
    """Run one command, and print what is wrong. The exit status."""
    try:
        execute(words)
    except KlimbError as error:
        # Of an environment of the user's own that failed: where, in their code.
        write_error(environment_traceback(error) or "", end="")
        write_error(f"klimb: {error}")
        return FAILED if isinstance(error, TrainingFailed) else MISTAKE
    except CheckFailed as failure:
        write_error(f"klimb: {failure}")
        return FAILED
    except (OutputLost, BrokenPipeError) as error:
        discard()
        return _lost(error)
    except MemoryError as error:
        write_error(f"klimb: the memory is used up{f' ({one_line(error)})' if error.args else ''}: {SMALLER}")
        return FAILED
    except OSError as error:
        write_error(f"klimb: {one_line(error)}")
        return FAILED
    except KeyboardInterrupt as interrupt:
        write_error(f"\nklimb: {interrupt if interrupt.args else 'stopped'}")
        return STOPPED + getattr(interrupt, "signal", signal.SIGINT)
    return DONE


def _lost(error: OutputLost | BrokenPipeError) -> int:
    """The exit status of a command whose result can't be printed."""
    if isinstance(error, BrokenPipeError):  # the reader went away, as `head` does when it has enough
        return DONE
    write_error(f"klimb: {error}")
    return FAILED


def execute(words: list[str]) -> None:
    """Run one command, with its errors raised.

    words: what is typed after `klimb`.

    Raises KlimbError for the user's mistakes, CheckFailed for a statement that does not hold.
    """
    if words[:1] == ["help"] and len(words) > 1:
        words = [words[1], "--help"]
    name, rest = (words[0], words[1:]) if words else ("--help", [])
    if name in ("--help", "-h", "help"):
        write_line(overview(), end="")
    elif name == "--version":
        write_line(__version__)
    else:
        command = load(name)
        arguments = command.parse(rest)
        if arguments is not None:
            with running(words):
                command.run(arguments)


def overview() -> str:
    """The page of `klimb --help`: every command with its usage and summary, and examples."""
    usages = {usage(name): entry.summary for name, entry in COMMANDS.items()} | {"klimb --version": "print the version"}
    width = max(map(len, usages))
    lines = [f"  {words:<{width}}  {summary}" for words, summary in usages.items()]
    statuses = "\n".join(f"  {number:<4} {meaning}" for number, meaning in EXIT_STATUS.items())
    return (
        "klimb: policy gradients that climb inside a trust region\n\nusage:\n"
        + "\n".join(lines)
        + f"\n\nexit status:\n{statuses}\n\n{NOTES}"
    )
