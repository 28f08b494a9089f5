"""The registry of networks by name: from observations to the encoder that reads them."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import PRNGKeyArray

from klimb import modules
from klimb.errors import ConfigError, nearest, one_line
from klimb.policies.encoders import Encoder, FlatEncoder
from klimb.policies.layers import Initialization
from klimb.policies.observation_spec import ObservationSpec
from klimb.policies.parts_encoder import PartsEncoder
from klimb.policies.picture_observations import PictureObservations, pictures_in
from klimb.policies.pictures import NETWORKS, PictureEncoder, network_for


def encoder_of(
    observations: ObservationSpec,
    key: PRNGKeyArray,
    *,
    network: str | None = None,
    initialization: Initialization = "orthogonal",
) -> Encoder:
    """A fresh encoder of observations.

    observations: of the policy or critic. key: for the weights. network: of the pictures in them, a name in
    `klimb.policies.pictures.NETWORKS`, or `module:name` of a function or class of your own for all of them,
    (observations, key) -> encoder; None for the one that suits pictures of their size. initialization: of the weights.

    Raises UnsupportedSpace for arrays that are neither vectors nor pictures, and ConfigError for a network that there
    is none of, or that can't read these observations.
    """
    if network is not None and modules.module_of(network) is not None:
        return _own(network, observations, key)
    if network is not None and network not in NETWORKS:
        raise ConfigError(
            f"network = {one_line(network, 40)} is none of {', '.join(NETWORKS)}, nor a function of your own, "
            f"module:name{nearest(network, NETWORKS)}"
        )
    found = list(pictures_in(observations))
    if not found:
        return _flat(observations, network)
    keys = jax.random.split(key, len(found))
    pictures = tuple(
        _of_picture(picture, k, network, initialization) for k, (_, picture) in zip(keys, found, strict=True)
    )
    if isinstance(observations, PictureObservations):
        return pictures[0]
    starts = tuple(start for start, _ in found)
    return PartsEncoder(_numbers(observations, found), pictures, starts)


def _of_picture(
    picture: PictureObservations, key: PRNGKeyArray, network: str | None, initialization: Initialization
) -> PictureEncoder:
    name = network_for(picture) if network is None else network
    return NETWORKS[name](picture, key, initialization, name)


def _flat(observations: ObservationSpec, network: str | None) -> FlatEncoder:
    if network not in (None, "mlp"):
        raise ConfigError(
            f"network = {network} reads pictures, and there are none in observations of shape "
            f"{list(observations.shape)}: leave it out. Pictures are boxes of bytes from 0 to 255, or of floats from 0 "
            "to 1 with channels"
        )
    return FlatEncoder.of(observations)


def _numbers(observations: ObservationSpec, found: list[tuple[int, PictureObservations]]) -> FlatEncoder | None:
    """The encoder of everything in a vector that is no picture and that is seen."""
    seen = np.zeros(observations.size, bool)
    seen[: observations.encoded.size] = True
    if observations.columns is not None:
        seen[:] = False
        seen[list(observations.columns)] = True
    for start, picture in found:
        seen[start : start + picture.size] = False
    columns = tuple(map(int, np.flatnonzero(seen)))
    return FlatEncoder.reading(observations, columns) if columns else None


def _own(name: str, observations: ObservationSpec, key: PRNGKeyArray) -> Encoder:
    encoder = modules.load(name, "network")(observations, key)
    if not isinstance(encoder, Encoder):
        raise ConfigError(
            f"network = {one_line(name, 80)} returned {type(encoder).__name__}: it has to return a klimb.Encoder"
        )
    return encoder
