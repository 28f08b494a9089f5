"""How a policy decides in a worker process: in NumPy, or by a program of its own. Imports no JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from klimb.collect.host.exported_policy import ExportedPolicySpec
from klimb.collect.host.numpy_policy import NumpyPolicySpec

Decide = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray, np.ndarray]]
"""(observations `[K, n, …]`, noise `[K, n, …]`, what is remembered `[K, n, C]`) ↦ actions, as the policy has them and
as the environment gets them, and what is remembered after the step. C is 0 for a policy without memory."""

PolicySpec = NumpyPolicySpec | ExportedPolicySpec
KINDS: dict[str, type[NumpyPolicySpec] | type[ExportedPolicySpec]] = {
    "numpy": NumpyPolicySpec,
    "exported": ExportedPolicySpec,
}


def to_dict(spec: PolicySpec) -> dict[str, Any]:
    """For JSON."""
    (kind,) = (name for name, cls in KINDS.items() if type(spec) is cls)
    return {"kind": kind, **spec.to_dict()}


def from_dict(fields: dict[str, Any]) -> PolicySpec:
    """The inverse of `to_dict`."""
    return KINDS[fields["kind"]].from_dict(fields)
