"""Whether a rule's `init` and `step` return what the training loop can go on with; checked while the step is traced."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import equinox as eqx
import jax
import numpy as np
from jaxtyping import PyTree

from klimb.errors import WrongObject, one_line, shown
from klimb.improve.rule import Rule
from klimb.types import StepErrors, UpdateInfo

CONTRACT = "(policy, state, info), and klimb.accept_or_reject makes all three"
_SCALARS = tuple(field.name for field in dataclasses.fields(UpdateInfo) if field.name not in ("errors", "extra"))


def require_state(rule: Rule, state: PyTree) -> PyTree:
    """The state that `rule.init` returned. WrongObject when a leaf of it is neither an array nor a number.

    rule: of any class. state: what it returned.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not eqx.is_array_like(leaf):
            raise WrongObject(
                f"{type(rule).__name__}.init returned a state with {shown(leaf)} in it{_at(path)}; a state is a pytree "
                "of arrays and numbers, and () for a rule that keeps none"
            )
    return state


def require_step(rule: Rule, policy: PyTree, state: PyTree, returned: Any) -> tuple[PyTree, PyTree, UpdateInfo]:
    """What `rule.step` returned: (policy, state, info). WrongObject, with what it has to return, when it is no such.

    rule: of any class. policy, state: what the step was given. returned: what it returned.
    """
    if not isinstance(returned, tuple) or len(returned) != 3:
        _refuse(rule, _kind(returned))
    new_policy, new_state, info = returned
    if not isinstance(info, UpdateInfo):
        _refuse(rule, f"{_kind(info)} as info, which is a klimb.UpdateInfo", "klimb.update_info makes one")
    _require_same(rule, "policy", policy, new_policy)
    _require_same(rule, "state", state, new_state)
    _require_scalars(rule, info)
    return new_policy, new_state, info


def _require_scalars(rule: Rule, info: UpdateInfo) -> None:
    if not isinstance(info.errors, StepErrors | None):
        _refuse(rule, f"{_kind(info.errors)} as info.errors, which is a klimb.StepErrors or None")
    if not isinstance(info.extra, dict):
        _refuse(rule, f"{_kind(info.extra)} as info.extra, which is a dict of metrics by name")
    fields = {name: getattr(info, name) for name in _SCALARS}
    for name, value in (fields | info.extra).items():
        if np.shape(value) != () or not eqx.is_array_like(value):
            kind = f"an array of shape {np.shape(value)}" if eqx.is_array(value) else _kind(value)
            _refuse(rule, f"{kind} as the metric {name!r}", "a metric is one number, for example jnp.mean of the array")


def _require_same(rule: Rule, what: str, given: PyTree, returned: PyTree) -> None:
    """The same structure, shapes and dtypes, which is what a compiled loop can go on with."""
    structures = [str(jax.tree.structure(tree)) for tree in (given, returned)]
    if structures[0] != structures[1]:
        _refuse(rule, f"a {what} of another structure ({_kind(returned)}) than it was given ({_kind(given)})")
    leaves = zip(jax.tree_util.tree_leaves_with_path(given), jax.tree.leaves(returned), strict=True)
    for (path, old), new in leaves:
        if eqx.is_array_like(old) and (not eqx.is_array_like(new) or _type(old) != _type(new)):
            found = _type(new) if eqx.is_array_like(new) else _kind(new)
            _refuse(rule, f"a {what} whose leaf{_at(path)} is {found}, and was {_type(old)}")


def _type(leaf: Any) -> str:
    """Shape and dtype, as `float32[4, 2]`."""
    shape = ", ".join(map(str, np.shape(leaf)))
    return f"{jax.dtypes.result_type(leaf)}[{shape}]"


def _at(path: tuple[Any, ...]) -> str:
    where = jax.tree_util.keystr(path)
    return f" at {one_line(where, 80)}" if where else ""


def _kind(value: Any) -> str:
    if value is None or isinstance(value, tuple):
        return "None" if value is None else f"a tuple of {len(value)} values"
    return "an array" if eqx.is_array(value) else f"a {type(value).__name__}"


def _refuse(rule: Rule, found: str, remedy: str = "") -> NoReturn:
    hint = f"; {remedy}" if remedy else ""
    raise WrongObject(f"{type(rule).__name__}.step returned {found}{hint}; it has to return {CONTRACT}")
