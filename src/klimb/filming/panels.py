"""What is drawn below pictures: rewards, and actions by component."""

from __future__ import annotations

from typing import Any

import numpy as np

from klimb.policies.action_spec import ActionSpec

MOST_LINES = 8
"""Components of an action that are drawn; more could not be told apart."""


def action_rows(action: np.ndarray) -> np.ndarray:
    """Actions as rows of numbers, `[T, A]`. action: `[T, *act]`."""
    return action.reshape(len(action), -1)[:, :MOST_LINES].astype(np.float32)


def action_title(actions: ActionSpec) -> str:
    """What the chart of actions is called: with how many of its components it shows, if not all."""
    size = int(np.prod(actions.shape)) if actions.shape else 1
    kind = "action" if size == 1 else f"action, {size} components"
    return kind if size <= MOST_LINES else f"action, the first {MOST_LINES} of {size} components"


def plain(numbers: np.ndarray) -> list[Any]:
    """Numbers for JSON, to six digits; what is not finite counts as 0."""
    rounded = np.nan_to_num(numbers.astype(np.float64), posinf=0.0, neginf=0.0)
    return [float(f"{x:.6g}") for x in rounded] if rounded.ndim == 1 else [plain(row) for row in rounded]
