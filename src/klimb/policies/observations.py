"""The registry of kinds of observation spaces. Imports no JAX, because worker processes import it."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import gymnasium.spaces
import numpy as np

from klimb.errors import UnsupportedSpace, one_line
from klimb.policies.observation_kinds import BoxObservations, MultiOneHotObservations, OneHotObservations
from klimb.policies.observation_parts import MaskedObservations, PartsObservations
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.picture_observations import PictureObservations

KINDS: tuple[type[ObservationSpec], ...] = (
    BoxObservations,
    OneHotObservations,
    MultiOneHotObservations,
    PartsObservations,
    MaskedObservations,
    PictureObservations,
)
MAX_DEPTH = 8
"""Of observations within observations, in a file."""


def observation_spec(
    space: gymnasium.spaces.Space, *, one_hot: bool = False, choices: int = 0, flat: bool = False
) -> ObservationSpec:
    """The spec of a Gymnasium observation space.

    space: of the environment's observations. A Box keeps its shape, and pictures their dtype too; all other spaces
    become vectors. one_hot: whether
    a box holds one-hot vectors of a discrete space. choices: how many numbers at the end of a box are an action mask.
    flat: whether a Box of several dimensions that holds no pictures becomes a vector, too. Raises UnsupportedSpace if
    no kind of klimb's supports it.
    """
    if choices:
        if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
            raise UnsupportedSpace(f"observations with an action mask at their end are vectors, and these are {space}")
        inner = gymnasium.spaces.Box(-np.inf, np.inf, (space.shape[0] - choices,))
        return MaskedObservations(observation_spec(inner, one_hot=one_hot), choices)
    picture = PictureObservations.from_space(space)
    if picture is not None:
        return picture
    vector = isinstance(space, gymnasium.spaces.Box) and len(space.shape) == 1
    if isinstance(space, gymnasium.spaces.Box) and space.shape and 0 not in space.shape and (vector or not flat):
        return OneHotObservations(space.shape[0]) if one_hot else BoxObservations(space.shape)
    return flat_observations(space)


def flat_observations(space: gymnasium.spaces.Space) -> ObservationSpec:
    """The spec of observations that are flattened as `gymnasium.spaces.flatten` does it. Pictures are left as they are.

    space: of observations as the environment gives them. Raises UnsupportedSpace for those without a fixed size.
    """
    picture = PictureObservations.from_space(space)
    if picture is not None:
        return picture
    match space:
        case gymnasium.spaces.Discrete():
            return OneHotObservations(int(space.n), int(space.start))
        case gymnasium.spaces.MultiDiscrete():
            n, start = (tuple(int(x) for x in np.ravel(array)) for array in (space.nvec, space.start))
            return MultiOneHotObservations(n, start, space.nvec.shape)
        case gymnasium.spaces.Box() | gymnasium.spaces.MultiBinary() if 0 not in space.shape:
            shape = tuple(map(int, space.shape))
            return BoxObservations((math.prod(shape),), None if len(shape) == 1 else shape)
        case gymnasium.spaces.Dict() if space.spaces:
            return PartsObservations(tuple(map(flat_observations, space.spaces.values())), tuple(space.spaces))
        case gymnasium.spaces.Tuple() if space.spaces:
            return PartsObservations(tuple(map(flat_observations, space.spaces)), None)
        case gymnasium.spaces.Text():
            return BoxObservations((gymnasium.spaces.flatdim(space),))
    raise UnsupportedSpace(
        f"the observation space {one_line(space, 200)} is not supported, because its observations have no fixed "
        "size: klimb reads Box, Discrete, MultiDiscrete, MultiBinary and Text, and Dict and Tuple of these; return "
        "a Box from a gymnasium.ObservationWrapper, a Graph or Sequence padded to its maximum size"
    )


def observations_from_json(fields: Any, depth: int = 0) -> ObservationSpec:
    """The inverse of `ObservationSpec.to_json`.

    fields: as read from a file. depth: of the observations that these are part of. Raises ValueError, which says what
    is wrong, for anything else.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"its observations have parts within parts of more than {MAX_DEPTH} levels")
    if isinstance(fields, dict):
        for kind in KINDS:
            if kind.kind == fields.get("kind"):
                return kind.from_json(fields, partial(observations_from_json, depth=depth + 1))
    raise ValueError(f"it has no kind of observations that klimb knows ({', '.join(kind.kind for kind in KINDS)})")
