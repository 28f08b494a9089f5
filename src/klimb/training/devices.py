"""Every core at work: seeds laid over the devices, or the two halves of one seed's learning side by side.

XLA runs networks of this size on one core, whatever its thread settings say. Two host devices are two such cores:
each runs a program of its own, and they meet only where one needs what the other has made.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

AXIS = "devices"
# AVX-512 where there is any: 7 % of an iteration. A fit of many minutes on one device is not a hang of the other,
# which is what XLA takes it for after 40 seconds.
CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512, "xla_cpu_collective_call_terminate_timeout_seconds": 10**6}


def use_all_cores() -> None:
    """Make every core a device of its own. It has to be said before JAX starts; afterwards it changes nothing.

    Where the number of devices has been chosen already (`jax_num_cpu_devices`, or XLA_FLAGS), it is left alone.
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    # RuntimeError: JAX has started.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", cores())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available() -> Sequence[jax.Device]:
    """The devices that a training is laid over, unless it is told how many."""
    return jax.local_devices()


def compiler_options() -> dict[str, Any] | None:
    """What programs are compiled with; chosen by measurement (docs/performance.md)."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None


class Layout:
    """How a training of K seeds lies on the devices.

    Several seeds are cut into equal shares, one a device, the last of them filled up with copies of the last seed.
    A single seed on two or more CPU devices is on two of them whole, and `run_concurrently` shares its work out.
    """

    def __init__(self, num_seeds: int, devices: Sequence[jax.Device]) -> None:
        self.num_seeds = num_seeds
        self.splits_roles = num_seeds == 1 and len(devices) > 1 and devices[0].platform == "cpu"
        count = 2 if self.splits_roles else min(num_seeds, len(devices))
        self._mesh = Mesh(devices[:count], (AXIS,), axis_types=(AxisType.Auto,))
        self._padding = 0 if self.splits_roles else -num_seeds % count
        self._spec = P() if self.splits_roles else P(AXIS)

    @property
    def role_axis(self) -> str | None:
        """What `run_concurrently` is given: the axis over which one seed's work is shared out; None where it is not."""
        return AXIS if self.splits_roles else None

    def compile(self, function: Callable[..., PyTree], *, by_seed: Sequence[bool]) -> Any:
        """`function` on every device's share of the seeds, as one program.

        by_seed: of each argument, whether its leaves have the leading axis of seeds; all results do. The first
        argument is given up.
        """
        specs = tuple(self._spec if split else P() for split in by_seed)
        shared = jax.shard_map(function, mesh=self._mesh, in_specs=specs, out_specs=self._spec, check_vma=False)

        def program(*arguments: PyTree) -> PyTree:
            if self._padding == 0:
                return shared(*arguments)
            padded = [self._pad(tree) if split else tree for tree, split in zip(arguments, by_seed, strict=True)]
            return jax.tree.map(lambda x: x[: self.num_seeds], shared(*padded))

        return jax.jit(
            program,
            donate_argnums=0,
            out_shardings=self._sharding,
            compiler_options=compiler_options(),
        )

    def place(self, tree: PyTree) -> PyTree:
        """A tree of arrays, leading axis of seeds, where the programs leave their results.

        From elsewhere the first call would be compiled for itself.
        """
        return jax.device_put(tree, self._sharding)

    @property
    def _sharding(self) -> NamedSharding:
        return NamedSharding(self._mesh, self._spec if self._padding == 0 else P())

    def _pad(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * self._padding]), tree)


def run_concurrently(
    first: Callable[[], PyTree], second: Callable[[], PyTree], axis: str | None
) -> tuple[PyTree, PyTree]:
    """(first(), second()); with an axis of two devices, one on each at the same time, and both results on both.

    Neither function may use collectives. Results are exchanged as bits: the same numbers as without an axis.
    """
    if axis is None:
        return first(), second()
    shapes = jax.eval_shape(first), jax.eval_shape(second)

    def nothing(shape: PyTree) -> list[Array]:
        return [jnp.zeros(word.shape, word.dtype) for word in jax.eval_shape(_words, shape)]

    here = jax.lax.axis_index(axis) == 0
    mine = jax.lax.cond(
        here,
        lambda: (_words(first()), nothing(shapes[1])),
        lambda: (nothing(shapes[0]), _words(second())),
    )
    # One meeting of the devices for all arrays, not one each.
    flat, rebuild = ravel_pytree(mine)
    words = rebuild(jax.lax.psum(flat, axis))
    return _from_words(words[0], shapes[0]), _from_words(words[1], shapes[1])


def _words(tree: PyTree) -> list[Array]:
    """The leaves of a tree as unsigned 32-bit numbers, bit for bit."""

    def word(x: Array) -> Array:
        if x.dtype == bool:
            return x.astype(jnp.uint32)
        if x.dtype.itemsize < 4:
            return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(x, jnp.uint32)

    return [word(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]


def _from_words(words: list[Array], shapes: PyTree) -> PyTree:
    """The inverse of `_words`."""

    def leaf(word: Array, shape: jax.ShapeDtypeStruct) -> Array:
        if shape.dtype == bool:
            return word.astype(bool)
        if shape.dtype.itemsize < 4:
            word = word.astype(f"uint{8 * shape.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(word, shape.dtype)

    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [leaf(*pair) for pair in zip(words, leaves, strict=True)])
