"""Policies as two files: `policy.safetensors` holds the numbers, `policy.json` says how to build the network.

Both are data only: reading them runs no code, so a policy from a stranger can be opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import equinox as eqx
import jax
from jaxtyping import PyTree
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from klimb._version import __version__
from klimb.errors import PolicyFileError, one_line, shown
from klimb.fields import STRICT, Width, explain
from klimb.policies.actions import Box, Discrete
from klimb.policies.networks import Activation, NetworkPolicy
from klimb.runs.arrays import load_arrays, save_arrays
from klimb.runs.config import MAX_WEIGHTS, num_weights
from klimb.runs.files import write_text

FORMAT_VERSION = 1
Size = Annotated[int, Field(ge=1, le=2**20)]
MAX_FILE = 2**22
MAX_HEADER = 2**20


@dataclass(frozen=True, config=STRICT)
class DiscreteActions:
    """Actions 0 … n−1."""

    kind: Literal["discrete"]
    n: Size

    def spec(self) -> Discrete:
        """The action space."""
        return Discrete(self.n)


@dataclass(frozen=True, config=STRICT)
class BoxActions:
    """Bounds a dimension; null where unbounded (JSON has no infinity)."""

    kind: Literal["box"]
    low: Annotated[list[float | None], Field(min_length=1, max_length=2**16)]
    high: Annotated[list[float | None], Field(min_length=1, max_length=2**16)]

    def spec(self) -> Box:
        """The action space. ValueError when the bounds are none."""
        if len(self.low) != len(self.high):
            raise ValueError(f"{len(self.low)} lower and {len(self.high)} upper action bounds")
        low = tuple(-float("inf") if x is None else x for x in self.low)
        high = tuple(float("inf") if x is None else x for x in self.high)
        for dimension, (below, above) in enumerate(zip(low, high, strict=True)):
            if below > above:
                raise ValueError(f"action dimension {dimension} is from {below} to {above}")
        return Box(low, high)


@dataclass(frozen=True, config=STRICT)
class PolicyDescription:
    """What `policy.json` holds: all that has to be known to build the network before its numbers are read."""

    format: Literal["klimb-policy"]
    version: Literal[1]
    klimb: str
    observation_size: Size
    actions: Annotated[DiscreteActions | BoxActions, Field(discriminator="kind")]
    hidden: Annotated[list[Width], Field(max_length=16)]
    activation: Activation
    state_dependent_std: bool = False
    tanh_squash: bool = False

    def template(self) -> PyTree:
        """The policy's structure with shapes in place of arrays; nothing is allocated."""
        spec = self.actions.spec()
        outputs = (2 if self.state_dependent_std else 1) * (spec.n if isinstance(spec, Discrete) else len(spec.low))
        weights = num_weights([self.observation_size, *self.hidden, outputs])
        if weights > MAX_WEIGHTS:
            raise ValueError(f"its network has {weights} weights; klimb reads at most {MAX_WEIGHTS}")
        return eqx.filter_eval_shape(
            lambda: NetworkPolicy(
                self.observation_size,
                spec,
                hidden=self.hidden,
                activation=self.activation,
                state_dependent_std=self.state_dependent_std,
                tanh_squash=self.tanh_squash,
                key=jax.random.key(0),
            )
        )


def describe(policy: NetworkPolicy) -> dict[str, Any]:
    """The content of `policy.json` for a policy, as plain values."""
    actions = policy.actions
    if isinstance(actions, Discrete):
        spec: dict[str, Any] = {"kind": "discrete", "n": actions.n}
    else:
        bounds = {"low": actions.low, "high": actions.high}
        spec = {
            "kind": "box",
            **{name: [x if abs(x) < float("inf") else None for x in bound] for name, bound in bounds.items()},
        }
    weights = policy.network.weights
    return {
        "format": "klimb-policy",
        "version": FORMAT_VERSION,
        "klimb": __version__,
        "observation_size": weights[0].shape[-2],
        "actions": spec,
        "hidden": [weight.shape[-1] for weight in weights[:-1]],
        "activation": policy.network.activation,
        "state_dependent_std": policy.state_dependent_std,
        "tanh_squash": policy.tanh_squash,
    }


def save_policy(policy: PyTree, directory: str | Path, *, name: str = "policy") -> Path:
    """Write `<name>.safetensors` and `<name>.json` into a directory; returns the directory.

    A policy that is not klimb's own network is saved by its arrays alone and is read back with
    `load_policy(directory, like=policy)`.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    if isinstance(policy, NetworkPolicy):
        description = describe(policy)
    else:
        description = {"format": "klimb-policy-arrays", "version": FORMAT_VERSION, "class": type(policy).__name__}
    save_arrays(directory / f"{name}.safetensors", eqx.filter(policy, eqx.is_array), {"format": "klimb-policy"})
    write_text(directory / f"{name}.json", json.dumps(description, indent=2) + "\n")
    return directory


def load_policy(path: str | Path, *, seed: int | None = None, like: PyTree | None = None) -> Any:
    """The policy of a run or of a policy directory (or of one of its two files).

    `seed` chooses among the policies of a run of several seeds; `like` gives the structure for a policy that
    is not klimb's own network. Raises PolicyFileError, naming the file and what is wrong with it, when it is
    missing, damaged or of another format.
    """
    directory, name = _locate(Path(path), seed)
    arrays, description = directory / f"{name}.safetensors", directory / f"{name}.json"
    try:
        for file in (arrays, description):
            if not file.is_file():
                raise PolicyFileError(f"there is no policy file {one_line(file)}{_seeds_hint(directory)}")
        template = like if like is not None else _read_description(description).template()
        dynamic, static = eqx.partition(template, lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct))
        loaded, _ = load_arrays(arrays, dynamic, max_header=MAX_HEADER)
    except OSError as error:
        raise PolicyFileError(f"cannot read {one_line(arrays)}: {error.strerror}") from None
    except ValueError as error:
        raise PolicyFileError(f"{one_line(arrays)} can't be used: {one_line(error)}") from None
    return eqx.combine(loaded, static)


def _seeds_hint(directory: Path) -> str:
    """The seeds whose policies are there."""
    found = [path.stem.removeprefix("policy_seed") for path in directory.glob("policy_seed*.json")]
    seeds = sorted(int(number) for number in found if number.isdecimal() and len(number) < 12)
    return f"; this run has the seeds {one_line(seeds)}: give seed=" if seeds else ""


def policy_name(seed: int | None) -> str:
    """`policy` for a run of one seed, `policy_seed3` for seed 3 of several."""
    return "policy" if seed is None else f"policy_seed{seed}"


def _locate(path: Path, seed: int | None) -> tuple[Path, str]:
    if path.suffix in (".safetensors", ".json"):
        return path.parent, path.stem
    return path, policy_name(seed)


def _read_description(path: Path) -> PolicyDescription:
    where = one_line(path)
    with path.open("rb") as file:
        content = file.read(MAX_FILE + 1)
    if len(content) > MAX_FILE:
        raise PolicyFileError(f"{where} is larger than any policy description ({MAX_FILE} bytes)")
    try:
        tree = json.loads(content.decode("utf-8"))
        match tree:
            case {"format": "klimb-policy", "version": int(version)} if version > FORMAT_VERSION:
                raise PolicyFileError(
                    f"{where} was written by a newer klimb: its version is {shown(version)}, this one reads "
                    f"{FORMAT_VERSION}; install a newer klimb"
                )
        return TypeAdapter(PolicyDescription).validate_python(tree)
    except ValidationError as error:
        raise PolicyFileError(f"{where} is not a klimb policy description: {explain(error)}") from None
    except RecursionError:
        raise PolicyFileError(f"{where} is not a klimb policy description: it is nested too deeply") from None
    except ValueError as error:
        raise PolicyFileError(f"{where} is not JSON ({one_line(error)})") from None
