"""Pictures are read as they are: which spaces hold some, convolutions, the networks of the papers, and files."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import klimb
from klimb.errors import ConfigError, PolicyFileError
from klimb.policies.actions import Discrete
from klimb.policies.architectures import encoder_of
from klimb.policies.critic import state_values
from klimb.policies.encoders import FlatEncoder
from klimb.policies.observations import observations_from_json
from klimb.policies.parts_encoder import PartsEncoder
from klimb.policies.picture_observations import PictureObservations
from klimb.policies.pictures import Convolution, PictureEncoder, convolution, products_of_patches
from klimb.policies.policy import action_distribution
from problems import assert_same_bits

INF = np.inf


def bytes_of(*shape):
    return spaces.Box(0, 255, shape, np.uint8)


@pytest.mark.parametrize(
    ("space", "picture"),
    [
        (bytes_of(84, 84), (84, 84, 1)),
        (bytes_of(210, 160, 3), (210, 160, 3)),
        (bytes_of(4, 84, 84), (84, 84, 4)),
        (bytes_of(4, 84, 84, 3), (84, 84, 12)),
        (bytes_of(7, 7, 3), (7, 7, 3)),
        (bytes_of(9, 8, 10), (9, 8, 10)),
        (spaces.Box(0, 1, (10, 10, 4)), (10, 10, 4)),
        (bytes_of(6, 7, 3), None),
        (bytes_of(84), None),
        (bytes_of(2, 2, 8, 8, 3), None),
        (spaces.Box(0, 200, (84, 84, 3), np.uint8), None),
        (spaces.Box(0, 1, (10, 10)), None),
        (spaces.Box(-1, 1, (10, 10, 4)), None),
        (spaces.Box(0, 255, (10, 10, 4), np.int32), None),
        (spaces.Discrete(5), None),
    ],
)
def test_which_spaces_hold_pictures(space, picture):
    spec = PictureObservations.from_space(space)
    assert (None if spec is None else spec.picture) == picture
    if spec is None:
        assert not isinstance(klimb.observation_spec(space), PictureObservations)
    else:
        assert klimb.observation_spec(space) == spec == observations_from_json(spec.to_json())
        assert spec.dtype == space.dtype
        assert spec.shape == space.shape
        assert not spec.is_scaled


def test_observations_keep_their_bytes():
    spec = PictureObservations((8, 8, 1))
    rows = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    assert spec.flatten(rows) is rows
    floats = spec.flatten(rows.astype(float).tolist())
    assert floats.dtype == np.uint8
    np.testing.assert_array_equal(floats, rows)
    for wrong, message in ((rows / 2, "no bytes"), (rows[:, 0], "shape"), (rows - 300.0, "no bytes")):
        with pytest.raises(ConfigError, match=message):
            spec.flatten(wrong)
    floating = PictureObservations((8, 8, 1), "float32")
    assert floating.flatten(rows / 255).dtype == np.float32


@pytest.mark.parametrize(
    "fields",
    [
        {"shape": [8, 8, 1], "numbers": "int64"},
        {"shape": [8], "numbers": "uint8"},
        {"shape": [8, 0, 1], "numbers": "uint8"},
        {"shape": [8, 8, 1, 1, 1], "numbers": "uint8"},
        {"shape": [8, 8, 1], "numbers": "uint8", "more": 1},
        {"shape": [8192, 8192, 1], "numbers": "uint8"},
        {"shape": "8 8", "numbers": "uint8"},
    ],
)
def test_specs_in_files_that_are_none(fields):
    with pytest.raises(ValueError, match=r"pictures have a shape|klimb reads at most"):
        observations_from_json({"kind": "picture", **fields})


@pytest.mark.parametrize(("size", "stride", "padded"), [(3, 1, False), (4, 2, False), (8, 4, False), (3, 1, True)])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_convolutions_are_those_of_equinox(size, stride, padded, lead, x64):
    reference = eqx.nn.Conv2d(2, 5, size, stride, padding="SAME" if padded else 0, key=jax.random.key(0))
    reference = jax.tree.map(lambda x: x.astype(float) if eqx.is_array(x) else x, reference)
    own = Convolution(jnp.transpose(reference.weight, (2, 3, 1, 0)), reference.bias[:, 0, 0], stride, padded)
    x = jax.random.normal(jax.random.key(1), (*lead, 17, 12, 2))
    expected = np.moveaxis(jax.vmap(reference)(jnp.moveaxis(x.reshape(-1, 17, 12, 2), -1, 1)), 1, -1)
    np.testing.assert_allclose(own(x).reshape(expected.shape), expected, rtol=1e-12, atol=1e-12)
    if not padded:  # what accelerators use
        np.testing.assert_allclose(
            convolution(x, own.kernel, stride), products_of_patches(x, own.kernel, stride), rtol=1e-12, atol=1e-12
        )


def impala_of_equinox(encoder, picture):
    """The same network from the layers of Equinox, for one picture `[C, H, W]`."""

    def conv(layer, x):
        channels = layer.kernel.shape
        reference = eqx.nn.Conv2d(channels[2], channels[3], 3, padding=1, key=jax.random.key(0))
        weights = jnp.transpose(layer.kernel, (3, 2, 0, 1)), layer.bias[:, None, None]
        return eqx.tree_at(lambda c: (c.weight, c.bias), reference, weights)(x)

    x = picture / 255
    for stage in encoder.stages:
        x = eqx.nn.MaxPool2d(3, 2, padding=1)(conv(stage.first, x))
        for one, other in stage.blocks:
            x = x + conv(other, jax.nn.relu(conv(one, jax.nn.relu(x))))
    flat = jnp.moveaxis(jax.nn.relu(x), 0, -1).reshape(-1)
    return jax.nn.relu(flat @ encoder.dense.weight + encoder.dense.bias)


def test_impala_is_that_of_the_paper(x64):
    spec = PictureObservations((21, 24, 3))
    encoder = encoder_of(spec, jax.random.key(0), network="impala", initialization="lecun")
    encoder = jax.tree.map(lambda x: x.astype(float), encoder)
    obs = np.random.default_rng(0).integers(0, 256, (21, 24, 3), np.uint8)
    expected = impala_of_equinox(encoder, jnp.moveaxis(jnp.asarray(obs, float), -1, 0))
    np.testing.assert_allclose(encoder(jnp.asarray(obs)), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("network", "shape", "features", "weights"),
    [
        # Of Mnih et al. 2015 with pictures of 84 × 84 × 4, as other libraries count them.
        ("nature", (4, 84, 84), 512, 1_684_128),
        # Young and Tian 2019: 16 windows of 3 × 3, and 128 units.
        ("minatar", (10, 10, 4), 128, 3 * 3 * 4 * 16 + 16 + 8 * 8 * 16 * 128 + 128),
        ("mlp", (10, 10, 4), 400, 0),
    ],
)
def test_sizes_of_networks(network, shape, features, weights):
    encoder = eqx.filter_eval_shape(
        lambda: encoder_of(PictureObservations(shape), jax.random.key(0), network=network, initialization="he")
    )
    assert encoder.num_features == features
    assert sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(encoder)) == weights


def test_pictures_get_the_network_that_suits_their_size():
    key = jax.random.key(0)
    make = lambda *shape: eqx.filter_eval_shape(  # noqa: E731
        lambda: encoder_of(PictureObservations(shape), key, initialization="he").network
    )
    assert make(10, 10, 4) == "minatar"
    assert make(36, 40, 3) == "nature"


def test_outputs_read_the_last_layer_of_a_picture_network_directly():
    """As in the papers; tanh layers behind it saturate. `mlp` has no layers of its own, and gets hidden ones."""
    observations, actions, key = PictureObservations((10, 10, 4)), Discrete(3), jax.random.key(0)
    assert klimb.NetworkPolicy(observations, actions, key=key).network.sizes == (128, 3)
    assert klimb.Critic(observations, key=key).network.sizes == (128, 1)
    assert klimb.NetworkPolicy(observations, actions, hidden=(5,), key=key).network.sizes == (128, 5, 3)
    assert klimb.NetworkPolicy(observations, actions, network="mlp", key=key).network.sizes == (400, 64, 64, 3)


@pytest.mark.parametrize("dimensions", [(9, 8), (9, 8, 2), (2, 9, 8), (3, 9, 8, 2)])
def test_axes_of_pictures(dimensions):
    """The channels of every layout, against NumPy."""
    spec = PictureObservations(dimensions)
    obs = np.random.default_rng(0).integers(0, 256, (4, *dimensions), np.uint8)
    match dimensions:
        case (_, _):
            expected = obs[..., None]
        case (2, _, _):
            expected = obs.transpose(0, 2, 3, 1)
        case (3, _, _, _):
            expected = np.concatenate([obs[:, s] for s in range(3)], axis=-1)
        case _:
            expected = obs
    encoder = encoder_of(spec, jax.random.key(0), network="mlp")
    assert expected.shape[1:] == spec.picture
    obs = jnp.asarray(obs)
    np.testing.assert_allclose(encoder(obs), expected.reshape(4, -1) / 255, rtol=1e-6)
    assert encoder(obs[0]).shape == (encoder.num_features,)


@pytest.mark.parametrize("axes", [1, 2])
def test_few_rows_at_once_are_all_of_them(axes):
    """Values and derivatives of 70 pictures, of which 32 are evaluated at a time."""
    spec, actions = PictureObservations((8, 8, 2)), klimb.action_spec(spaces.Box(-1, 1, (2,)))
    policy = klimb.NetworkPolicy(spec, actions, hidden=(5,), key=key())
    critic = klimb.Critic(spec, hidden=(5,), key=key(1))
    obs = jnp.asarray(np.random.default_rng(0).integers(0, 256, (70, 8, 8, 2), np.uint8))
    rows = obs if axes == 1 else obs.reshape(7, 10, 8, 8, 2)

    def loss(policy, distribution):
        return jnp.sum(jnp.square(distribution(policy).mean)) + jnp.sum(distribution(policy).log_std)

    few, all_rows = (lambda p: action_distribution(p, rows, axes=axes)), (lambda p: jax.vmap(p)(obs))
    np.testing.assert_allclose(few(policy).mean.reshape(70, 2), all_rows(policy).mean, rtol=1e-5, atol=1e-6)
    for one, other in zip(*(jax.tree.leaves(eqx.filter_grad(loss)(policy, of)) for of in (few, all_rows)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    if axes == 2:
        np.testing.assert_allclose(state_values(critic, rows).reshape(-1), jax.vmap(critic)(obs), rtol=1e-5, atol=1e-6)


def test_derivatives_in_pictures_are_those_of_all_rows():
    critic = klimb.Critic(PictureObservations((8, 8, 2), "float32"), hidden=(5,), key=key())
    rows = jax.random.uniform(key(1), (7, 10, 8, 8, 2))
    few = jax.grad(lambda rows: jnp.sum(state_values(critic, rows)))(rows)
    expected = jax.grad(lambda rows: jnp.sum(jax.vmap(critic)(rows)))(rows.reshape(70, 8, 8, 2))
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(few.reshape(expected.shape), expected, rtol=1e-4, atol=1e-6)


def test_parts_of_a_dictionary_have_an_encoder_each():
    space = spaces.Dict(camera=bytes_of(9, 8, 2), speed=spaces.Box(-INF, INF, (3,)), goal=spaces.Discrete(4))
    observations = klimb.observation_spec(space)
    rng = np.random.default_rng(0)
    obs = {
        "camera": rng.integers(0, 256, (6, 9, 8, 2), np.uint8),
        "speed": rng.normal(3, 2, (6, 3)).astype(np.float32),
        "goal": rng.integers(0, 4, 6),
    }
    rows = jnp.asarray(observations.flatten(obs))
    encoder = encoder_of(observations, jax.random.key(0))
    assert isinstance(encoder, PartsEncoder)
    (camera,) = encoder.pictures
    seen = encoder(rows)
    assert encoder.num_features == seen.shape[-1] == 3 + 4 + 128
    np.testing.assert_allclose(seen[:, 7:], camera(jnp.asarray(obs["camera"])), rtol=1e-5)
    # The numbers have their running statistics, and one-hot vectors and pictures none; the layers absorb them.
    critic = klimb.Critic(observations, hidden=(5,), key=jax.random.key(1))
    weight = jnp.ones(6)
    critic, _ = critic.observe(rows, weight)
    again, rescaling = critic.observe(rows + 1, weight)
    np.testing.assert_allclose(jax.vmap(again)(rows), jax.vmap(critic)(rows), rtol=1e-4, atol=1e-5)
    assert rescaling.scale.shape == (encoder.num_features,)
    order = list(observations.names)
    start = 0 if order.index("goal") < order.index("speed") else 3
    np.testing.assert_array_equal(again.encoder(rows)[:, start : start + 4].sum(-1), 1)


def test_parts_that_only_the_critic_sees_may_be_pictures():
    space = spaces.Dict(camera=bytes_of(9, 8, 2), speed=spaces.Box(-1, 1, (3,)))
    observations = klimb.observation_spec(space)
    policy = klimb.NetworkPolicy(observations.hiding(("camera",)), klimb.action_spec(spaces.Discrete(2)), key=key())
    assert isinstance(policy.encoder, FlatEncoder)
    assert policy.encoder.num_features == 3
    blind = klimb.NetworkPolicy(observations.hiding(("speed",)), klimb.action_spec(spaces.Discrete(2)), key=key())
    assert blind.encoder.numbers is None
    row = observations.flatten({"camera": np.ones((9, 8, 2), np.uint8), "speed": np.zeros(3)})
    other = observations.flatten({"camera": np.ones((9, 8, 2), np.uint8), "speed": np.ones(3)})
    np.testing.assert_array_equal(blind(jnp.asarray(row)).logits, blind(jnp.asarray(other)).logits)


def key(seed=0):
    return jax.random.key(seed)


SPACES = {
    "picture": bytes_of(8, 8, 2),
    "float picture": spaces.Box(0, 1, (8, 8, 2)),
    "dictionary": spaces.Dict(camera=bytes_of(8, 8, 2), speed=spaces.Box(-INF, INF, (3,))),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("network", [None, "mlp"])
def test_policy_files(space, network, tmp_path):
    observations, actions = klimb.observation_spec(space), klimb.action_spec(spaces.Box(-1, 1, (2,)))
    policy = klimb.NetworkPolicy(observations, actions, hidden=(5,), network=network, key=key())
    space.seed(0)
    obs = space.sample()
    weight = jnp.ones(1)
    policy, _ = policy.observe(jnp.asarray(observations.flatten(obs))[None], weight)
    loaded = klimb.load_policy(klimb.save_policy(policy, tmp_path))
    assert_same_bits(loaded, policy)
    assert jax.tree.structure(loaded) == jax.tree.structure(policy)
    np.testing.assert_array_equal(loaded.act(obs), policy.act(obs))


def test_policy_files_name_a_network_that_there_is(tmp_path):
    policy = klimb.NetworkPolicy(
        PictureObservations((8, 8, 2)), klimb.action_spec(spaces.Discrete(2)), hidden=(5,), key=key()
    )
    path = klimb.save_policy(policy, tmp_path) / "policy.json"
    text = path.read_text()
    for wrong, message in (('"resnet"', "its network is 'resnet'"), ('"nature"', "larger pictures than 8 × 8")):
        path.write_text(text.replace('"minatar"', wrong))
        with pytest.raises(PolicyFileError, match=message):
            klimb.load_policy(tmp_path)


def test_networks_that_can_not_be():
    vector = klimb.observation_spec(spaces.Box(-1, 1, (3,)))
    for observations, network, message in (
        (vector, "nature", "there are none in observations of shape"),
        (vector, "natur", "none of mlp, minatar, nature, impala.*did you mean 'nature'"),
        (PictureObservations((20, 20, 3)), "nature", "larger pictures than 20 × 20"),
        (vector, "test_pictures:not_there", "has no 'not_there'"),
        (vector, "test_pictures:key_of", "it has to return a klimb.Encoder"),
    ):
        with pytest.raises(ConfigError, match=message):
            encoder_of(observations, key(), network=network)


def key_of(observations, key):
    return key


class Shifted(FlatEncoder):
    """An encoder of the user's own."""

    shift: float = 0.0

    def features(self, inputs):
        return inputs + self.shift


def shifted(observations, key):
    own = FlatEncoder.of(observations)
    return Shifted(own.normalizer, own.columns, own.scaled, shift=1.0)


def test_an_encoder_of_your_own_by_its_name():
    encoder = encoder_of(klimb.observation_spec(spaces.Box(-1, 1, (3,))), key(), network="test_pictures:shifted")
    np.testing.assert_allclose(encoder(jnp.zeros(3)), np.ones(3))


def test_a_picture_encoder_has_no_statistics():
    encoder = encoder_of(PictureObservations((8, 8, 2)), key())
    assert isinstance(encoder, PictureEncoder)
    same, rescaling = encoder.observe(jnp.ones((3, 8, 8, 2), jnp.uint8), jnp.ones(3))
    assert same is encoder
    assert rescaling is None
    assert dataclasses.is_dataclass(encoder)
