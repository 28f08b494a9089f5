"""Policies as two files: `policy.safetensors` holds the numbers, `policy.json` says how to build the network.

Together they say everything that the forward pass needs: docs/use-a-policy.md has the format, and the pass in NumPy.
Both are data only: reading them runs no code, so a policy from a stranger can be opened.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError

from klimb._version import __version__
from klimb.errors import PolicyFileError, one_line, shown
from klimb.fields import STRICT, NonNegative, Positive, Width, explain
from klimb.files import TooLarge, as_path, is_file, make_directory, open_arrays, read_limited, write_text
from klimb.policies.action_spec import Exploration, GaussianStyle
from klimb.policies.actions import actions_from_json
from klimb.policies.architectures import encoder_of
from klimb.policies.encoders import Encoder, FlatEncoder
from klimb.policies.layers import MemoryKind
from klimb.policies.mlp import Activation
from klimb.policies.networks import NetworkPolicy
from klimb.policies.normalizer import Normalizer
from klimb.policies.observations import BoxObservations, ObservationSpec, observations_from_json
from klimb.policies.parts_encoder import PartsEncoder
from klimb.policies.pictures import NETWORKS, PictureEncoder
from klimb.policies.policy import policy_of
from klimb.policies.recurrent import RECURRENT_LAYERS, kind_of
from klimb.runs.arrays import current_name, load_arrays, save_arrays
from klimb.runs.config import MAX_WEIGHTS, num_weights
from klimb.runs.located import located

Like = TypeVar("Like")

FORMAT_VERSION = 4
EARLIER_VERSION = 3
"""Of policies that have nothing which version 4 has added: an earlier klimb reads them."""
Size = Annotated[int, Field(ge=1, le=2**20)]
MAX_FILE = 2**22
MAX_HEADER = 2**20


class ForeignPolicy(PolicyFileError):
    """A policy file that holds the arrays of a class of the user's own, and not how it is built."""


@dataclass(frozen=True, config=STRICT)
class NormalizerLimits:
    """The numbers of a `Normalizer` that are no arrays. clip: None where nothing is clipped."""

    clip: Positive | None
    variance_floor: NonNegative

    @classmethod
    def of(cls, normalizer: Normalizer) -> NormalizerLimits:
        """Those of a normaliser."""
        # JSON has no infinity.
        clip = float(normalizer.clip) if math.isfinite(normalizer.clip) else None
        return cls(clip, float(normalizer.variance_floor))

    def applied(self, normalizer: Normalizer) -> Normalizer:
        """A normaliser with these limits and its own statistics."""
        clip = math.inf if self.clip is None else self.clip
        return dataclasses.replace(normalizer, clip=clip, variance_floor=self.variance_floor)


UNWRITTEN_LIMITS = NormalizerLimits(clip=10.0, variance_floor=1e-8)
"""Of policies in files of versions 1 and 2. Later defaults must not change what these policies compute."""


@dataclass(frozen=True, config=STRICT)
class PolicyDescription:
    """What `policy.json` holds: all that has to be known to build the network before its parameters are read.

    Version 4 may have `log_std_bounds`, `exploration`, `layer_norm`, `residual` and `memory` with `memory_size`, and of
    pictures `network`; a policy with none of them is written as version 3. A policy that only reads pictures has no
    `normalizer`.
    Version 2 has no `normalizer`. Version 1, of klimb 0.1.0, has `observation_size` in place of `observations` as
    well, and other names for some arrays.
    """

    format: Literal["klimb-policy"]
    version: Literal[1, 2, 3, 4]
    klimb: str
    actions: dict[str, Any]
    hidden: Annotated[list[Width], Field(max_length=16)]
    activation: Activation
    observations: dict[str, Any] | None = None
    observation_size: Size | None = None
    normalizer: NormalizerLimits | None = None
    state_dependent_std: bool = False
    tanh_squash: bool = False
    log_std_bounds: tuple[float, float] | None = None
    exploration: Exploration = "independent"
    layer_norm: bool = False
    residual: bool = False
    network: str | None = None
    memory: MemoryKind | None = None
    memory_size: Width | None = None

    @property
    def style(self) -> GaussianStyle:
        """How the network's outputs become a Gaussian."""
        return GaussianStyle(self.state_dependent_std, self.tanh_squash, self.log_std_bounds, self.exploration)

    def template(self) -> PyTree:
        """The policy's structure with shapes in place of arrays; nothing is allocated. ValueError when it is none."""
        actions = actions_from_json(self.actions)
        observations = self._observations()
        if self.network is not None and self.network not in NETWORKS:
            raise ValueError(f"its network is {shown(self.network, 40)}; klimb knows {', '.join(NETWORKS)}")
        outputs = actions.num_outputs(self.style)

        def encoder() -> Encoder:
            fresh = encoder_of(observations, jax.random.key(0), network=self.network)
            match fresh:
                case FlatEncoder():
                    return self._limited(fresh)
                case PartsEncoder(numbers=FlatEncoder() as numbers):
                    return dataclasses.replace(fresh, numbers=self._limited(numbers))
            return fresh

        # Shapes alone: what a file asks for may be too large for any memory.
        shapes = eqx.filter_eval_shape(encoder)
        of_pictures = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(pictures_of(shapes)))
        if (self.memory is None) != (self.memory_size is None):
            raise ValueError("it has one of memory and memory_size, and needs both or none")
        features, of_memory = shapes.num_features, 0
        if self.memory is not None and self.memory_size is not None:
            of_memory = RECURRENT_LAYERS[self.memory].gates * self.memory_size * (features + self.memory_size)
            features = self.memory_size
        weights = of_pictures + of_memory + num_weights([features, *self.hidden, outputs])
        if weights > MAX_WEIGHTS:
            raise ValueError(f"its network has {weights} weights; klimb reads at most {MAX_WEIGHTS}")

        return eqx.filter_eval_shape(
            lambda: NetworkPolicy(
                observations,
                actions,
                hidden=self.hidden,
                activation=self.activation,
                layer_norm=self.layer_norm,
                residual=self.residual,
                **self.style._asdict(),
                initial_log_std=0.0 if self.log_std_bounds is None else self.log_std_bounds[0],
                encoder=encoder(),
                memory=self.memory,
                memory_size=self.memory_size or 1,
                key=jax.random.key(0),
            )
        )

    def _limited(self, numbers: FlatEncoder) -> FlatEncoder:
        return dataclasses.replace(numbers, normalizer=self._limits().applied(numbers.normalizer))

    def _limits(self) -> NormalizerLimits:
        if self.normalizer is not None:
            return self.normalizer
        if self.version >= 3:
            raise ValueError("its description has no normalizer, which holds clip and variance_floor since version 3")
        return UNWRITTEN_LIMITS

    def _observations(self) -> ObservationSpec:
        if self.version == 1 and self.observation_size is not None:
            return BoxObservations((self.observation_size,))
        return observations_from_json(self.observations)


def describe(policy: NetworkPolicy) -> dict[str, Any]:
    """The content of `policy.json` for a policy with an encoder of klimb's own, as plain values."""
    numbers, pictures = numbers_of(policy.encoder), pictures_of(policy.encoder)
    weights = policy.network.weights
    layers = {"layer_norm": bool(policy.network.norms), "residual": policy.network.residual}
    added: dict[str, Any] = {name: True for name, used in layers.items() if used}
    added |= {"network": pictures[0].network} if pictures else {}
    if policy.memory is not None:
        added |= {"memory": kind_of(policy.memory), "memory_size": policy.memory.size}
    limits = None if numbers is None else dataclasses.asdict(NormalizerLimits.of(numbers.normalizer))
    return {
        "format": "klimb-policy",
        "version": FORMAT_VERSION if policy.style.added or added else EARLIER_VERSION,
        "klimb": __version__,
        "observations": policy.observations.to_json(),
        "normalizer": limits,
        "actions": policy.actions.to_json(),
        "hidden": [weight.shape[-1] for weight in weights[:-1]],
        "activation": policy.network.activation,
        **policy.style.to_json(),
        **added,
    }


def numbers_of(encoder: Encoder) -> FlatEncoder | None:
    """What reads the numbers that are no pictures in an encoder of klimb's own; None where there are none."""
    match encoder:
        case PartsEncoder():
            return encoder.numbers
        case FlatEncoder():
            return encoder
    return None


def pictures_of(encoder: Encoder) -> tuple[PictureEncoder, ...]:
    """What reads pictures in an encoder of klimb's own."""
    match encoder:
        case PartsEncoder():
            return encoder.pictures
        case PictureEncoder():
            return (encoder,)
    return ()


def save_policy(policy: PyTree, directory: str | Path, *, name: str = "policy", iteration: int | None = None) -> Path:
    """Write `<name>.safetensors` and `<name>.json` into a directory; returns the directory.

    policy: of klimb's own network, a `klimb.Run` of one seed, or any pytree that is called; that one is saved by its
    arrays alone, and is read back with `load_policy(directory, like=policy)`. directory: made where it does not exist.
    name: of both files. iteration: of the training, that the policy is after; None where it is not known.
    """
    directory, policy = as_path(directory), policy_of(policy)
    make_directory(directory)
    if is_described(policy):
        description = describe(policy)
    else:
        description = {"format": "klimb-policy-arrays", "version": EARLIER_VERSION, "class": type(policy).__name__}
    metadata = {"format": "klimb-policy"} | ({} if iteration is None else {"iteration": str(iteration)})
    save_arrays(directory / f"{name}.safetensors", eqx.filter(policy, eqx.is_array), metadata)
    write_text(directory / f"{name}.json", json.dumps(description, indent=2) + "\n")
    return directory


@overload
def load_policy(path: str | Path, *, seed: int | None = None, like: None = None) -> NetworkPolicy: ...


@overload
def load_policy(path: str | Path, *, seed: int | None = None, like: Like) -> Like: ...


def load_policy(path: str | Path, *, seed: int | None = None, like: Any = None) -> Any:
    """The policy of a run or of a policy directory (or of one of its two files).

    path: of the run, the directory or the file, or zoo:NAME for one that comes with klimb.
    seed: chooses among the policies of a run of several seeds.
    like: a policy of the same structure, for a class that is not klimb's own.

    Raises PolicyFileError, naming the file and what is wrong with it, when it is missing, damaged or of another format,
    and when the numbers of klimb's own network are not finite. The arrays of other classes may hold anything.
    """
    directory, name = _locate(located(path), seed)
    arrays, description = directory / f"{name}.safetensors", directory / f"{name}.json"
    try:
        for file in (arrays, description):
            if not is_file(file):
                raise PolicyFileError(f"there is no policy file {one_line(file)}{_seeds_hint(directory)}")
        template = like if like is not None else _read_description(description).template()
        dynamic, static = eqx.partition(template, lambda x: eqx.is_array(x) or isinstance(x, jax.ShapeDtypeStruct))
        loaded, _ = load_arrays(arrays, dynamic, max_header=MAX_HEADER, renamed=current_name)
        policy = eqx.combine(loaded, static)
        if is_described(policy):
            _require_numbers(policy)
    except OSError as error:
        raise PolicyFileError(f"cannot read {one_line(arrays)}: {error.strerror}") from None
    except ValueError as error:
        raise PolicyFileError(f"{one_line(arrays)} can't be used: {one_line(error)}") from None
    return policy


def policy_iteration(path: str | Path, *, seed: int | None = None) -> int | None:
    """The iteration of the training that the policy in a file is after; None where the file does not say.

    path, seed: as for `load_policy`.
    """
    directory, name = _locate(Path(path), seed)
    try:
        with open_arrays(directory / f"{name}.safetensors") as file:
            text = (file.metadata() or {}).get("iteration", "")
    except (SafetensorError, OSError):
        return None
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def is_described(policy: PyTree) -> bool:
    """Whether `policy.json` says all that has to be known: klimb's own network with klimb's own encoder.

    policy: of any class.
    """
    own_encoder = (FlatEncoder, PictureEncoder, PartsEncoder)
    own_memory = (type(None), *RECURRENT_LAYERS.values())
    return type(policy) is NetworkPolicy and type(policy.encoder) in own_encoder and type(policy.memory) in own_memory


def _require_numbers(policy: NetworkPolicy) -> None:
    """ValueError for numbers that no training of klimb's leaves in its own network: it would act all the same."""
    arrays = eqx.filter(policy, eqx.is_array)
    for path, leaf in jax.tree_util.tree_leaves_with_path(arrays):
        numbers, name = np.atleast_1d(leaf), jax.tree_util.keystr(path).lstrip(".")
        _require_none(name, ~np.isfinite(numbers), "not finite")
        if name.endswith(("normalizer.variance", "normalizer.count")):
            _require_none(name, numbers < 0, "negative")


def _require_none(name: str, wrong: np.ndarray, what: str) -> None:
    """ValueError where numbers are wrong. name: of their array. wrong: which are. what: they are then."""
    count = int(wrong.sum())
    if count:
        numbers = "number" if count == 1 else "numbers"
        raise ValueError(
            f"array {name} holds {count} {numbers} of {wrong.size} that {'is' if count == 1 else 'are'} {what}"
        )


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
    try:
        content = read_limited(path, MAX_FILE)
    except TooLarge:
        raise PolicyFileError(f"{where} is larger than any policy description ({MAX_FILE} bytes)") from None
    try:
        tree = json.loads(content.decode("utf-8"))
        match tree:
            case {"format": "klimb-policy", "version": int(version)} if version > FORMAT_VERSION:
                raise PolicyFileError(
                    f"{where} was written by a newer klimb: its version is {shown(version)}, this one reads "
                    f"{FORMAT_VERSION}; install a newer klimb"
                )
            case {"format": "klimb-policy-arrays", "class": str(name)}:
                raise ForeignPolicy(
                    f"{where} is of a policy of the class {shown(name)}, which is not klimb's own: load it with "
                    "klimb.load_policy(directory, like=policy), or train with --policy module:name, which names the "
                    "function that makes it"
                )
        return TypeAdapter(PolicyDescription).validate_python(tree)
    except ValidationError as error:
        raise PolicyFileError(f"{where} is not a klimb policy description: {explain(error)}") from None
    except RecursionError:
        raise PolicyFileError(f"{where} is not a klimb policy description: it is nested too deeply") from None
    except ValueError as error:
        raise PolicyFileError(f"{where} is not JSON ({one_line(error)})") from None
