"""What the layers of klimb's networks can do. Imports no JAX, because worker processes import it."""

from __future__ import annotations

from typing import Literal, NamedTuple

Initialization = Literal["orthogonal", "glorot", "he", "lecun"]
MemoryKind = Literal["gru", "lstm"]
LAYER_NORM_FLOOR = 1e-5
"""Added to the variance that layer normalisation divides by."""


class LayerOptions(NamedTuple):
    """What the hidden layers do besides a product and an activation.

    layer_norm: whether units are normalised before the activation. residual: whether a layer's input is added to its
    output where both have one size. initialization: of the weights.
    """

    layer_norm: bool = False
    residual: bool = False
    initialization: Initialization = "orthogonal"


PLAIN = LayerOptions()
