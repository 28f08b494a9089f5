"""The copies of a training: every seed under every value of what is varied, laid over the devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from klimb.precision import Precision
from klimb.training.devices import Layout
from klimb.training.spread import Spread


class Copies:
    """K = V·S copies: copy v·S + s is seed s under the v-th values.

    first_seed, num_seeds: the seeds; `seeds` has that of every copy. variations: V values of each varied field of the
    rule; none for one set of values. devices: what the copies are laid over. spread: how one copy lies on several of
    them, or None. precision: of the products of arrays.
    one_at_once: whether copies are never computed side by side.
    """

    def __init__(
        self,
        first_seed: int,
        num_seeds: int,
        variations: Mapping[str, Sequence[float]] | None,
        devices: Sequence[jax.Device],
        spread: Spread | None = None,
        precision: Precision = "float32",
        *,
        one_at_once: bool = False,
    ) -> None:
        self.values = {
            name: np.repeat(np.asarray(values, np.float32), num_seeds) for name, values in (variations or {}).items()
        }
        self.count = next((len(values) for values in self.values.values()), num_seeds)
        self.seeds = [first_seed + s for s in range(num_seeds)] * (self.count // num_seeds)
        self._one_at_once = one_at_once
        self.layout = Layout(self.count, devices, spread, precision)

    def keys(self) -> Key[Array, " K"]:
        """The key of every copy: the same for the same seed."""
        return jax.vmap(jax.random.key)(jnp.asarray(self.seeds, jnp.uint32))

    def values_of(self, copy: int) -> dict[str, float]:
        """The values of one copy, by field."""
        return {name: float(values[copy]) for name, values in self.values.items()}

    def vmapped(self, one: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """The same for all copies, vmapped; one after the other where that is forbidden.

        one: of one copy. All arguments have the leading axis of copies.
        """
        return partial(_one_after_the_other, one) if self._one_at_once else jax.vmap(one)

    def over_copies(self, one: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """The same for every copy of a device; all arguments have the leading axis of copies, the state is the first.

        One after the other on a CPU: a copy keeps its own branches and loops, and stays in the cache; a core gains
        nothing from several at once. An accelerator does: there they are vmapped, if the environment can be.
        """

        def every(*arguments: PyTree) -> PyTree:
            count = arguments[0].iteration.shape[0]
            if count > 1:
                return (self.vmapped(one) if side_by_side() else partial(_one_after_the_other, one))(*arguments)
            result = one(*jax.tree.map(lambda x: x[0], arguments))
            return jax.tree.map(lambda x: x[None], result)

        return every


def _one_after_the_other(one: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    return jax.lax.map(lambda rows: one(*rows), arguments)


def side_by_side() -> bool:
    """Whether the copies of a device are computed at the same time, and not one after the other."""
    return jax.default_backend() != "cpu"
