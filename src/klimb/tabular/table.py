"""The tabular softmax policy: one parameter for every state and action."""

from __future__ import annotations

import equinox as eqx
from jaxtyping import Array, Float, Int

from klimb.policies.distributions import Categorical


class SoftmaxTable(eqx.Module):
    """π(a|s) ∝ exp logits[s, a]; reads state numbers."""

    logits: Float[Array, "S A"]

    def __call__(self, state: Int[Array, ""]) -> Categorical:
        return Categorical(logits=self.logits[state])
