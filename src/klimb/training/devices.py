"""Using all devices: seeds are split over them; of one seed, policy and critic update at the same time, or its
environments and rows are spread (`klimb.mesh`).

XLA runs networks of this size on one core, whatever its thread settings are. With each core a device of its own, the
devices run in parallel, and synchronise only where one needs results of another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, PyTree

from klimb.precision import Precision, with_precision
from klimb.training import peers
from klimb.training.spread import Spread

logger = logging.getLogger("klimb")

AXIS = "devices"
# AVX-512, where the CPU has it, saves 7 % of an iteration. The timeout: by default XLA aborts when one device waits for
# another for 40 seconds, which happens when the critic's fit takes minutes.
CPU_OPTIONS = {"xla_cpu_prefer_vector_width": 512, "xla_cpu_collective_call_terminate_timeout_seconds": 10**6}


def use_all_cores() -> None:
    """Make every core a JAX device of its own. Call it before JAX starts; afterwards it only logs a warning.

    It has no effect if the number of devices is already set (`jax_num_cpu_devices`, or in XLA_FLAGS).
    """
    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.jax_num_cpu_devices > 0:  # type: ignore[attr-defined]
        return
    try:
        jax.config.update("jax_num_cpu_devices", cores())
    except RuntimeError:  # JAX has started
        if len(available()) < cores() and jax.default_backend() == "cpu":
            logger.warning(
                "klimb.use_all_cores() came too late: JAX has started, with %s of %d cores. Call it before the first "
                "computation, for example right after the imports",
                len(available()),
                cores(),
            )


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available() -> Sequence[jax.Device]:
    """The devices of this process; of a training in several processes, those of all of them."""
    return jax.devices() if peers.count() > 1 else jax.local_devices()


def own(devices: Sequence[jax.Device]) -> Sequence[jax.Device]:
    """Those of some devices that are this process's. devices: of all processes."""
    return [device for device in devices if device.process_index == jax.process_index()]


def limited(devices: Sequence[jax.Device], limit: int | None) -> Sequence[jax.Device]:
    """The devices that a training is laid over; a limit that is above their number is logged.

    devices: those of this process. limit: the option `cores`; None for all.
    """
    if limit is not None and limit > len(devices):
        more = "" if len(devices) >= cores() else " (klimb.use_all_cores(), before JAX starts, makes every core one)"
        logger.warning("cores = %d, but JAX has only %d here, which are all used%s", limit, len(devices), more)
    return devices[:limit]


def compiler_options() -> dict[str, Any] | None:
    """XLA's options for the training program, on CPUs only; chosen by measurement (docs/performance.md)."""
    return CPU_OPTIONS if jax.default_backend() == "cpu" else None


class Layout:
    """How the K seeds of a training are distributed over devices.

    num_seeds: K. devices: to use, at least one. spread: how one seed lies on several devices; None for one device.
    precision: of products in the compiled functions.
    Several seeds are split into equal shares, one per device; the last share is padded with copies of the last seed.
    A single seed on two or more CPU devices is replicated on two of them, and `run_concurrently` splits its work.
    With a spread the mesh has a second axis, and every share of the seeds has a row of devices.
    """

    def __init__(
        self,
        num_seeds: int,
        devices: Sequence[jax.Device],
        spread: Spread | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.num_seeds, self._precision = num_seeds, precision
        self.splits_roles = spread is None and num_seeds == 1 and len(devices) > 1 and devices[0].platform == "cpu"
        each = 1 if spread is None else spread.devices
        count = 2 if self.splits_roles else min(num_seeds, len(devices) // each)
        names = (AXIS,) if spread is None else (AXIS, spread.axis)
        grid = np.array(devices[: count * each])
        if spread is not None:
            grid = grid.reshape(count, each)
        self._mesh = Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))
        self._padding = 0 if self.splits_roles else -num_seeds % count
        # What other processes have can't be read here.
        everywhere = self._padding > 0 or peers.count() > 1
        self._spec = P() if self.splits_roles else P(AXIS)
        self._sharding = NamedSharding(self._mesh, P() if everywhere else self._spec)

    @property
    def role_axis(self) -> str | None:
        """The axis for `run_concurrently`, over which one seed's work is split; None where it is not."""
        return AXIS if self.splits_roles else None

    def compile(self, function: Callable[..., PyTree], *, by_seed: Sequence[bool]) -> Any:
        """A compiled function that applies `function` to every device's share of the seeds.

        function: of pytrees. by_seed: for each argument, whether its leaves have the leading axis of seeds; all results
        have it. The buffers of the first argument are donated.
        """
        specs = tuple(self._spec if split else P() for split in by_seed)
        shared = jax.shard_map(
            function,
            mesh=self._mesh,
            in_specs=specs,
            out_specs=self._spec,
            # Along the other axis, if there is one, the compiler decides what lies where.
            axis_names={AXIS},
            check_vma=False,
        )

        @with_precision(self._precision)
        def program(*arguments: PyTree) -> PyTree:
            """`shared`, with the seeds padded to a multiple of the number of devices."""
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
        """A tree of arrays with the leading axis of seeds, on the devices where compiled functions leave their results.

        Without this, the first call would be compiled separately.
        """
        if peers.count() == 1:
            return jax.device_put(tree, self._sharding)
        # `device_put` would compare what the processes have, and finds a NaN different from itself.
        return jax.tree.map(partial(_placed, sharding=self._sharding), tree)

    def _pad(self, tree: PyTree) -> PyTree:
        return jax.tree.map(lambda x: jnp.concatenate([x, *[x[-1:]] * self._padding]), tree)


def _placed(x: Array, sharding: NamedSharding) -> Array:
    """An array that every process has, as one of all processes."""
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_placed(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    numbers = np.asarray(x)
    return jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])


def run_concurrently(
    first: Callable[[], PyTree], second: Callable[[], PyTree], axis: str | None
) -> tuple[PyTree, PyTree]:
    """(first(), second()), each computed on a device of its own at the same time; both devices get both results.

    first, second: functions without collectives. axis: of two devices; None to compute both on one device.
    Results are exchanged as bits, so the numbers are the same with and without an axis.
    """
    if axis is None:
        return first(), second()
    shapes = jax.eval_shape(first), jax.eval_shape(second)

    def zeros(shape: PyTree) -> list[Array]:
        """Zeros in the place of the result of this shape that the other device computes."""
        return [jnp.zeros(words.shape, words.dtype) for words in jax.eval_shape(_words, shape)]

    own_results = jax.lax.cond(
        jax.lax.axis_index(axis) == 0,
        lambda: (_words(first()), zeros(shapes[1])),
        lambda: (zeros(shapes[0]), _words(second())),
    )
    # One exchange for all arrays together is faster than one per array.
    flat, unravel = ravel_pytree(own_results)
    words = unravel(jax.lax.psum(flat, axis))
    return _from_words(words[0], shapes[0]), _from_words(words[1], shapes[1])


def _words(tree: PyTree) -> list[Array]:
    """The leaves of a tree as unsigned 32-bit integers, bit for bit."""
    return [_to_words(jnp.asarray(leaf)) for leaf in jax.tree.leaves(tree)]


def _to_words(x: Array) -> Array:
    if x.dtype == bool:
        return x.astype(jnp.uint32)
    if x.dtype.itemsize < 4:
        return jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    return jax.lax.bitcast_convert_type(x, jnp.uint32)


def _from_words(words: list[Array], shapes: PyTree) -> PyTree:
    """The inverse of `_words`."""
    leaves, structure = jax.tree.flatten(shapes)
    return jax.tree.unflatten(structure, [_to_leaf(*pair) for pair in zip(words, leaves, strict=True)])


def _to_leaf(words: Array, shape: jax.ShapeDtypeStruct) -> Array:
    if shape.dtype == bool:
        return words.astype(bool)
    if shape.dtype.itemsize < 4:
        words = words.astype(f"uint{8 * shape.dtype.itemsize}")
    return jax.lax.bitcast_convert_type(words, shape.dtype)
