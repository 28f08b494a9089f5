"""An exported policy as a function of arrays in JAX: what StableHLO holds, and what all formats are compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from klimb.export.interface import CARRY, MASK, NEXT_CARRY, OBS, Head, Inputs, flat_actions, heads_of
from klimb.policies.action_spec import ActionSpec
from klimb.policies.distributions import Categorical, DiagGaussian, Distribution, TanhGaussian
from klimb.policies.multi_binary_actions import MultiBinary
from klimb.policies.multi_discrete_actions import MultiDiscrete
from klimb.policies.policy import Policy
from klimb.policies.products import MultiCategorical, Product
from klimb.precision import full_precision

Arrays = dict[str, Any]


def program(policy: Policy, inputs: Inputs, actions: ActionSpec) -> Callable[[Arrays], Arrays]:
    """The policy as a function from arrays `[B, …]` to arrays `[B, …]`, by name.

    It returns `action` (the distribution's mode, as the environment has it), the distribution's parameters, and with
    memory `next_carry`. The parameters are `logits` of the choices that are allowed, −∞ for others, of switches the log
    odds of 1, or `mean` and `log_std`: of the Gaussian in the environment's units, or before the tanh. Of an action
    with parts all names have the part's behind them, "action.gripper". Distributions that klimb does not know give no
    parameters.

    policy: any. inputs: that it reads. actions: that it returns.
    """

    def one(arrays: Arrays) -> Arrays:
        """arrays: of one observation."""
        obs = _row(inputs, arrays)
        if inputs.remembered is None:
            distribution, carry = policy(obs), {}
        else:
            distribution, carry_after = policy.step(obs, arrays[CARRY])  # type: ignore[attr-defined]
            carry = {NEXT_CARRY: carry_after}
        action = actions.unflatten(actions.clip(distribution.to_environment(distribution.mode())))
        taken = flat_actions(action, actions)
        for head in heads_of(actions):
            taken[head.named("action")] = _as_in_space(taken[head.named("action")], head)
        return {**taken, **_parameters(distribution, actions), **carry}

    return full_precision(jax.vmap(one))


def _as_in_space(action: Array, head: Head) -> Array:
    """Integers of the space's type, as far as JAX has it: of 32 bits where the space has 64."""
    match head.actions:
        case MultiDiscrete(space_dtype=name):
            return action.astype(name.replace("64", "32"))
        case MultiBinary():
            return action.astype("int8")
    return action


def _row(inputs: Inputs, arrays: Arrays) -> Array:
    """An observation as the policy reads it. arrays: of one observation."""
    seen, whole = arrays[OBS], inputs.observations
    if inputs.columns is not None:
        seen = jnp.zeros(whole.encoded.size, whole.dtype).at[inputs.columns].set(seen)
    if MASK not in arrays:
        return seen
    return jnp.concatenate([jnp.ravel(seen).astype(whole.dtype), arrays[MASK].astype(whole.dtype)])


def _parameters(distribution: Distribution, actions: ActionSpec) -> Arrays:
    found: Arrays = {}
    own = list(_parts(distribution))
    heads = list(heads_of(actions))
    if len(own) != len(heads):
        return found
    for head, part in zip(heads, own, strict=True):
        found |= {head.named(what): value for what, value in _of_head(part, head).items()}
    return found


def _parts(distribution: Distribution) -> Iterator[Distribution]:
    """Those of the actions without parts, in order."""
    if isinstance(distribution, Product):
        for part in distribution.parts:
            yield from _parts(part)
    else:
        yield distribution


def _of_head(distribution: Distribution, head: Head) -> Arrays:
    match distribution, head.actions:
        case DiagGaussian() | TanhGaussian(), _:
            return {"mean": distribution.mean, "log_std": distribution.log_std}
        case Categorical(), _:
            return {"logits": distribution.logits}
        case MultiCategorical(logits=logits), MultiBinary():
            return {"logits": logits[..., 1] - logits[..., 0]}
        case MultiCategorical(logits=logits), MultiDiscrete(n=n):
            # The choices that there are, without what fills up the rows.
            number, choice = np.nonzero(np.arange(max(n)) < np.array(n)[:, None])
            return {"logits": logits[..., number, choice]}
    return {}
