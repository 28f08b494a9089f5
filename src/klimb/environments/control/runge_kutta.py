"""One step of an ordinary differential equation."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Array, Float


def runge_kutta(
    rate: Callable[[Float[Array, " D"]], Float[Array, " D"]], state: Float[Array, " D"], step: float
) -> Float[Array, " D"]:
    """The state after one step of ẋ = rate(x), by the classical Runge-Kutta method of fourth order.

    rate: x ↦ ẋ. state: x at the start. step: length of the step, in seconds.
    """
    k1 = rate(state)
    k2 = rate(state + step / 2 * k1)
    k3 = rate(state + step / 2 * k2)
    k4 = rate(state + step * k3)
    return state + step / 6 * (k1 + 2 * (k2 + k3) + k4)
