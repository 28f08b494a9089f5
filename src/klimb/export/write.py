"""Policies as files of other formats. The ending says which, and every file is compared with its policy first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from klimb._version import __version__
from klimb.errors import ConfigError, RunError, one_line
from klimb.export.interface import OBS, Inputs, require_names
from klimb.export.network import OwnNetwork, require_own
from klimb.export.onnx_converted import converted_file
from klimb.export.onnx_file import load_onnx_file, onnx_file
from klimb.export.program import program
from klimb.export.python_file import load_python_file, python_file
from klimb.export.stablehlo import load_stablehlo_file, stablehlo_file
from klimb.export.trial import Agreement, Arrays, compare, rounding_of, trial
from klimb.files import as_path, is_directory, write_output
from klimb.policies.acting import spaces_of
from klimb.policies.action_spec import ActionSpec
from klimb.policies.memory import carry_size
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.policy import Policy, policy_of

SEED = 0
"""Of the observations for which a file is compared with its policy."""
AT_ONCE = 100
"""Observations that are computed at once."""


class Exported(NamedTuple):
    """A policy that was written.

    path: the file. size: of it, in bytes. inputs, outputs: names of the arrays that it reads and returns, with their
    shapes; B is the number of observations. agreement: with the policy.
    """

    path: Path
    size: int
    inputs: dict[str, tuple[str | int, ...]]
    outputs: dict[str, tuple[str | int, ...]]
    agreement: Agreement


def export_policy(
    policy: Policy,
    path: str | Path,
    *,
    observations: ObservationSpec | None = None,
    actions: ActionSpec | None = None,
    about: dict[str, str] | None = None,
) -> Exported:
    """Write a policy for programs without klimb, after it was compared with the policy for 1,000 observations.

    policy: a `klimb.NetworkPolicy`, a `klimb.Run` of one seed, or any callable pytree.
    path: `.onnx` (needs the extra `onnx`), `.stablehlo`, or `.py`, a file of Python that needs NumPy alone. An existing
    file is overwritten.
    observations, actions: the spaces that the policy is for. None: those in the policy's own fields of these names.
    about: what else the file says of the policy, such as {"env": "Hopper-v5"}. ONNX keeps it as metadata, and Python in
    the docstring.

    Returns what was written, and the largest difference. Raises ConfigError for another ending, and for `.py` of a
    class that is not klimb's own; MissingExtra where the package is not installed; ExportError when the file computes
    something else than the policy; RunError when it can't be written.
    """
    path, policy = as_path(path), policy_of(policy)
    require_export(path)
    observations, actions = spaces_of(policy, observations, actions)
    require_names(actions)
    inputs = Inputs(observations, carry_size(policy))
    arrays = trial(policy, inputs, actions, np.random.default_rng(SEED))
    expected = _few_at_once(eqx.filter_jit(program(policy, inputs, actions)), arrays)
    rounding = rounding_of(expected, _exactly(policy, inputs, actions, arrays), actions)
    source = Source(policy, inputs, actions, {**_known(inputs, actions), **(about or {})}, {**arrays, **expected})
    kind = FORMATS[path.suffix.lower()]
    content = kind.write(source)
    computed = _few_at_once(kind.load(content), arrays)
    agreement = compare(computed, expected, actions, path.name, rounding=rounding)
    try:
        write_output(path, content)
    except OSError as error:
        raise RunError(f"cannot write {one_line(path)}: {error.strerror or error}") from None
    return Exported(path, len(content), _shapes(arrays), _shapes(computed), agreement)


def require_export(path: Path) -> None:
    """ConfigError when no policy can be written to a file of this name, RunError when there is no such directory.

    path: the file.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"{one_line(path)}: a policy is written as .onnx, .stablehlo or .py (Python and NumPy alone); give one of "
            "these endings"
        )
    if not is_directory(path.absolute().parent):
        raise RunError(f"cannot write {one_line(path)}: there is no such directory")


def _known(inputs: Inputs, actions: ActionSpec) -> dict[str, str]:
    """What every file says of its policy."""
    return {
        "klimb": __version__,
        "observations": json.dumps(inputs.seen.to_json()),
        "actions": json.dumps(actions.to_json()),
    }


def _shapes(arrays: dict[str, Any]) -> dict[str, tuple[str | int, ...]]:
    return {name: ("B", *np.shape(array)[1:]) for name, array in arrays.items()}


def _few_at_once(function: Callable[[Arrays], Arrays], arrays: Arrays) -> Arrays:
    """What a function computes from arrays: of a thousand pictures, what is between the layers takes gigabytes."""
    starts = range(0, len(arrays[OBS]), AT_ONCE)
    parts = [function({name: x[start : start + AT_ONCE] for name, x in arrays.items()}) for start in starts]
    return {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}


def _exactly(policy: Policy, inputs: Inputs, actions: ActionSpec, arrays: Arrays) -> Arrays:
    """What the policy makes of arrays in float64."""
    with jax.enable_x64(True):
        doubled = jax.tree.map(lambda x: x.astype(float) if eqx.is_inexact_array(x) else x, policy)
        return _few_at_once(eqx.filter_jit(program(doubled, inputs, actions)), arrays)


class Source(NamedTuple):
    """What a file is made of.

    policy: the policy. inputs: that it reads. actions: that it returns. about: what is known of it. recorded: by name,
    arrays that it reads and what it makes of them, `[B, …]`.
    """

    policy: Policy
    inputs: Inputs
    actions: ActionSpec
    about: dict[str, str]
    recorded: Arrays


class Format(NamedTuple):
    """A format of files. write: the content of a file. load: what a file computes, as a function of arrays by name."""

    write: Callable[[Source], bytes]
    load: Callable[[bytes], Callable[[Arrays], Arrays]]


def _onnx(source: Source) -> bytes:
    own = OwnNetwork.of(source.policy, source.inputs)
    if own is None:
        return converted_file(source.policy, source.inputs, source.actions, source.about)
    return onnx_file(own, source.about)


def _stablehlo(source: Source) -> bytes:
    return stablehlo_file(source.policy, source.inputs, source.actions)


def _python(source: Source) -> bytes:
    return python_file(require_own(source.policy, source.inputs), source.about, source.recorded)


FORMATS = {
    ".onnx": Format(_onnx, load_onnx_file),
    ".stablehlo": Format(_stablehlo, load_stablehlo_file),
    ".py": Format(_python, load_python_file),
}
"""By the endings of files."""
