"""klimb's own network as plain data: what the formats that write its arithmetic out themselves need to know of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import equinox as eqx
import numpy as np

from klimb.errors import ConfigError
from klimb.export.interface import Inputs
from klimb.policies.networks import NetworkPolicy
from klimb.policies.picture_observations import PictureObservations, pictures_in
from klimb.policies.pictures import Convolution, PictureEncoder
from klimb.policies.policy import Policy
from klimb.runs.arrays import named_arrays
from klimb.runs.policy_file import describe, is_described, numbers_of, pictures_of


@dataclass(frozen=True)
class Picture:
    """A picture in an observation, and the network that reads it.

    encoder: the network. name: what stands before the names of its arrays. start: where it begins in the vector of what
    is seen; None where it is all that is seen.
    """

    encoder: PictureEncoder
    name: str
    start: int | None

    @property
    def strides(self) -> list[int]:
        """Of the stages, one after the other."""
        return [stage.stride if isinstance(stage, Convolution) else 1 for stage in self.encoder.stages]

    def to_json(self) -> dict[str, Any]:
        """For `klimb.export.standalone`."""
        observed = self.encoder.observed
        return {
            "name": self.name,
            "start": self.start,
            "network": self.encoder.network,
            "shape": list(observed.shape),
            "channels_first": observed.channels_first,
            "brightest": observed.brightest,
            "strides": self.strides,
        }


@dataclass(frozen=True)
class OwnNetwork:
    """A policy with a network of klimb's own.

    policy: the policy. inputs: that its export reads.
    """

    policy: NetworkPolicy
    inputs: Inputs

    @classmethod
    def of(cls, policy: Policy, inputs: Inputs) -> OwnNetwork | None:
        """The network of a policy; None of one of another class, or with an encoder of the user's own.

        policy: any. inputs: that its export reads.
        """
        return cls(policy, inputs) if isinstance(policy, NetworkPolicy) and is_described(policy) else None

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """By the names that they have in policy.safetensors."""
        return named_arrays(eqx.filter(self.policy, eqx.is_array))

    @property
    def columns(self) -> np.ndarray | None:
        """Which numbers of what is seen are normalised, `[F]`; None for all of them."""
        numbers = numbers_of(self.policy.encoder)
        if numbers is None:
            return None
        own = np.arange(numbers.num_features) if numbers.columns is None else np.array(numbers.columns)
        columns = own if self.inputs.columns is None else np.searchsorted(self.inputs.columns, own)
        return None if len(columns) == self.inputs.seen.size else columns.astype(np.int64)

    @property
    def normalizer_name(self) -> str:
        """What stands before the names of the normaliser's arrays."""
        return f"encoder.{'' if self.policy.encoder is numbers_of(self.policy.encoder) else 'numbers.'}normalizer."

    @property
    def pictures(self) -> list[Picture]:
        """The pictures in what is seen."""
        encoders, alone = pictures_of(self.policy.encoder), isinstance(self.inputs.seen, PictureObservations)
        inner = isinstance(self.policy.encoder, PictureEncoder)
        return [
            Picture(encoder, "encoder." if inner else f"encoder.pictures[{i}].", None if alone else start)
            for i, (encoder, (start, _)) in enumerate(zip(encoders, pictures_in(self.inputs.seen), strict=True))
        ]

    def to_json(self) -> dict[str, Any]:
        """For `klimb.export.standalone`."""
        about = describe(self.policy)
        limits, columns = about["normalizer"], self.columns
        style = self.policy.style
        return {
            "klimb": about["klimb"],
            "observations": self.inputs.seen.to_json(),
            "actions": about["actions"],
            "axes": len(self.inputs.seen.shape),
            "num_choices": self.inputs.num_choices,
            "columns": None if columns is None else columns.tolist(),
            "normalizer": None if limits is None else {"name": self.normalizer_name, **limits},
            "pictures": [picture.to_json() for picture in self.pictures],
            "memory": about.get("memory"),
            "memory_size": about.get("memory_size"),
            "carry_size": self.inputs.remembered,
            "hidden": about["hidden"],
            "activation": about["activation"],
            "layer_norm": about.get("layer_norm", False),
            "residual": about.get("residual", False),
            "state_dependent_std": style.state_dependent_std,
            "tanh_squash": style.tanh_squash,
            # Far beyond any logarithm, where there is no bound: infinity can't be written.
            "log_std_bounds": None
            if style.log_std_bounds is None
            else np.clip(style.log_std_bounds, -1e30, 1e30).tolist(),
            "exploration": style.exploration,
        }


def require_own(policy: Policy, inputs: Inputs) -> OwnNetwork:
    """The network of a policy. ConfigError for one whose layers klimb does not know.

    policy, inputs: as for `OwnNetwork.of`.
    """
    own = OwnNetwork.of(policy, inputs)
    if own is None:
        raise ConfigError(
            f"a .py file has the arithmetic of klimb's own networks, and {type(policy).__name__} has layers of your "
            "own: write it as .stablehlo, which takes policies of any class"
        )
    return own
