"""The registry of kinds of action spaces. Imports no JAX, because worker processes import it."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium.spaces

from klimb.errors import UnsupportedSpace, one_line
from klimb.policies.action_spec import ActionSpec
from klimb.policies.box_actions import Box
from klimb.policies.discrete_actions import Discrete
from klimb.policies.multi_binary_actions import MultiBinary
from klimb.policies.multi_discrete_actions import MultiDiscrete
from klimb.policies.product_actions import ProductActions

KINDS: tuple[type[ActionSpec], ...] = (Discrete, Box, MultiDiscrete, MultiBinary, ProductActions)
MAX_DEPTH = 8
"""Of actions within actions, in a file."""


def action_spec(space: gymnasium.spaces.Space) -> ActionSpec:
    """The spec of a Gymnasium action space.

    space: of the environment's actions. Raises UnsupportedSpace if no kind of klimb's supports it.
    """
    for kind in KINDS:
        spec = kind.from_space(space, action_spec)
        if spec is not None:
            return spec
    raise UnsupportedSpace(
        f"the action space {one_line(space, 200)} is not supported; klimb supports Discrete, MultiDiscrete, "
        "MultiBinary and Box, and Dict and Tuple of these: give the environment one of them, and convert it to its own "
        "actions in a gymnasium.ActionWrapper"
    )


def remarks(space: gymnasium.spaces.Space) -> list[str]:
    """What about the actions of an environment can't be learned, or is taken otherwise than it says: one line each.

    space: of the environment's actions. None of them for a space that klimb does not support.
    """
    for kind in KINDS:
        try:
            if kind.from_space(space, action_spec) is not None:
                return kind.remarks(space, remarks)
        except UnsupportedSpace:
            return []
    return []


def actions_from_json(fields: Any, depth: int = 0) -> ActionSpec:
    """The inverse of `ActionSpec.to_json`.

    fields: as read from a file. depth: of the actions that these are part of. Raises ValueError, which says what is
    wrong, for anything else.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"its actions have parts within parts of more than {MAX_DEPTH} levels")
    if isinstance(fields, dict):
        # Files of klimb 0.1.0 tell the kinds apart by their fields.
        name = fields.get("kind", "discrete" if "n" in fields else "box")
        for kind in KINDS:
            if kind.kind == name:
                return kind.from_json(fields, partial(actions_from_json, depth=depth + 1))
    raise ValueError(f"it has no kind of actions that klimb knows ({', '.join(kind.kind for kind in KINDS)})")
