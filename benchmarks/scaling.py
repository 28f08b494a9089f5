"""How the cost of an iteration grows, and where its time goes: `make bench-scaling`.

TRPO on the compiled CartPole-v1, one size varied at a time; and the parts of an iteration, each as a program of its
own, with what is left of the whole beside them. Draws docs/performance/scaling.png and docs/performance/parts.png.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from klimb import PPO, TRPO, RunConfig, TrainOptions, make
from klimb.estimate.values import values
from klimb.theory.figures import style
from klimb.training import devices
from klimb.training.program import Program
from klimb.training.sources import HostSource
from results_file import write_results

FIGURES = Path(__file__).parent.parent / "docs" / "performance"
REPETITIONS = 5
SWEEPS: dict[str, tuple[str, list[int], dict[str, Any]]] = {
    "environments": ("num_envs", [4, 16, 64, 256, 1024, 4096], {"num_steps": 16}),
    "steps per iteration": ("num_steps", [32, 64, 128, 256, 512, 1024], {"num_envs": 16}),
    "width of both hidden layers": ("hidden", [64, 128, 256, 512, 1024], {"num_envs": 16, "num_steps": 64}),
    "seeds": ("num_seeds", [1, 2, 4, 16, 64, 256], {"num_envs": 4, "num_steps": 64}),
}


def program(env: str, rule: Any, **options: Any) -> Program:
    return Program(RunConfig(env, rule, TrainOptions(env_steps=2**32 - 1, **options)), make(env))


def milliseconds(run: Any) -> float:
    """Of the fastest of some runs, after one that compiles: the machine only ever adds to it."""
    jax.block_until_ready(run())
    times = []
    for _ in range(REPETITIONS):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def iteration_time(**options: Any) -> float:
    trained = program("CartPole-v1", TRPO(), **options)
    state = trained.initial_state()
    state, _ = trained.advance(state, 1)
    start = time.perf_counter()
    state, _ = trained.advance(state, 1)
    count = int(max(1, min(64, 0.2 / (time.perf_counter() - start))))

    def run() -> Any:
        nonlocal state
        state, _ = trained.advance(state, count)
        return state

    return milliseconds(run) / count


def growth_exponent(sizes: list[int], times: list[float]) -> float:
    """p of time ∝ sizeᵖ over the larger half, where what it costs anyway no longer counts."""
    half = len(sizes) // 2
    x, y = np.log(sizes[half:]), np.log(times[half:])
    return float(np.polyfit(x, y, 1)[0])


def grow() -> dict[str, Any]:
    """Milliseconds per iteration for every size."""
    found = {}
    for title, (name, sizes, fixed) in SWEEPS.items():
        times = []
        for size in sizes:
            value = (size, size) if name == "hidden" else size
            times.append(iteration_time(**{"critic_num_minibatches": 4, **fixed, name: value}))
            print(f"{title:<28} {size:>6} {times[-1]:10.2f} ms", flush=True)
        exponent = growth_exponent(sizes, times)
        found[title] = {"sizes": sizes, "milliseconds": times, "exponent": exponent}
        print(f"{title:<28} cost grows as size^{exponent:.2f} at the end", flush=True)
    return found


def parts_compiled(rule: Any, **options: Any) -> dict[str, float]:
    """Milliseconds of the parts of one seed's iteration on one device, and of the whole on all of them."""
    one = program("CartPole-v1", rule, cores=1, **options)
    step, state = one.iteration, jax.tree.map(lambda x: x[0], one.initial_state())
    policy = eqx.combine(state.policy, step.policy_static)
    critic = eqx.combine(state.critic, step.critic_static)
    collector = step.collector
    assert collector is not None
    _, rollout, _ = jax.jit(lambda: collector.collect(state.key, policy, state.collector_state))()
    batch = step.estimator.estimate(rollout, *values(critic, rollout), fraction_done=jnp.zeros(()))
    repeat = 64

    def timed(body: Any, start: Any) -> float:
        options = devices.compiler_options()
        looped = jax.jit(lambda s: jax.lax.fori_loop(0, repeat, lambda i, s: body(s), s), compiler_options=options)
        return milliseconds(lambda: looped(start)) / repeat

    def collect(carry: tuple) -> tuple:
        key, where, total = carry
        where, seen, _ = collector.collect(key, policy, where)
        return jax.random.split(key)[0], where, total + jnp.sum(seen.reward) + jnp.sum(seen.log_prob)

    def only_step(carry: tuple) -> tuple:
        key, where, total = carry
        key, key_step = jax.random.split(key)
        action = jnp.zeros(rollout.action.shape[1:], rollout.action.dtype)

        def advance(where: Any, key: Any) -> tuple:
            after = jax.vmap(collector.environment.step)(jax.random.split(key, len(action)), where, action)
            return after.state, jnp.sum(after.reward)

        where, rewards = jax.lax.scan(advance, where, jax.random.split(key_step, len(rollout.reward)))
        return key, where, total + jnp.sum(rewards)

    def estimate(total: Any) -> Any:
        shifted = eqx.tree_at(lambda r: r.reward, rollout, rollout.reward + 1e-30 * total)
        found = step.estimator.estimate(shifted, *values(critic, shifted), fraction_done=jnp.zeros(()))
        return total + jnp.sum(found.advantage)

    def improve(carry: tuple) -> tuple:
        key, arrays, memory = carry
        key, key_step = jax.random.split(key)
        new, memory, _ = rule.step(key_step, eqx.combine(arrays, step.policy_static), memory, batch)
        return key, eqx.filter(new, eqx.is_array), memory

    def criticise(carry: tuple) -> tuple:
        key, arrays, memory = carry
        key, key_fit = jax.random.split(key)
        new, memory, _ = step.critic_fit.fit(key_fit, eqx.combine(arrays, step.critic_static), memory, batch)
        return key, eqx.filter(new, eqx.is_array), memory

    zero = jnp.zeros(())
    environment = timed(only_step, (state.key, state.collector_state.env_state, zero))
    found = {
        "environment": environment,
        "policy": timed(collect, (state.key, state.collector_state, zero)) - environment,
        "estimate": timed(estimate, zero),
        "improve": timed(improve, (state.key, state.policy, state.rule_state)),
        "critic": timed(criticise, (state.key, state.critic, state.critic_state)),
    }
    whole, everything = (program("CartPole-v1", rule, cores=cores, **options) for cores in (1, None))
    on_one, on_all = _whole(whole, repeat), _whole(everything, repeat)
    found["rest"] = max(0.0, on_one - sum(found.values()))
    return {**found, "whole, one device": on_one, "whole": on_all}


def _whole(trained: Program, count: int) -> float:
    state = trained.initial_state()

    def run() -> Any:
        nonlocal state
        state, _ = trained.advance(state, count)
        return state

    return milliseconds(run) / count


def parts_host(env: str, **options: Any) -> dict[str, float]:
    """Milliseconds of the parts of an iteration on EnvPool; improving and the critic go on side by side."""
    trained = program(env, TRPO(), **options)
    source = trained.source
    assert isinstance(source, HostSource)
    # The parts are not for users.
    rollouts, learn = source._rollouts, source._run
    state = trained.initial_state()
    trained.start(iteration=0)
    laps: dict[str, list[float]] = {"collect": [], "learn": [], "whole": []}
    for _ in range(40):
        start = time.perf_counter()
        seen, behaviour, episodes = rollouts.next(state.policy)
        collected = time.perf_counter()
        state, metrics = learn(state, {}, behaviour, seen, episodes, None)
        rollouts.prepare()
        jax.block_until_ready(state)
        learned = time.perf_counter()
        metrics.unpack()
        laps["collect"].append(collected - start)
        laps["learn"].append(learned - collected)
        laps["whole"].append(time.perf_counter() - start)
    trained.close()
    medians = {name: 1e3 * statistics.median(times[5:]) for name, times in laps.items()}
    return {**medians, "rest": medians["whole"] - medians["collect"] - medians["learn"]}


@style.with_style
def draw_growth(found: dict[str, Any]) -> Any:
    """Milliseconds per iteration against each size, both axes logarithmic."""
    figure = style.page(9.2, 6.4)
    for axes, (title, one) in zip(figure.subplots(2, 2).flat, found.items(), strict=True):
        sizes, times = one["sizes"], one["milliseconds"]
        axes.loglog(sizes, times, "o-", color=style.BLUE, markersize=5)
        guide = [times[-1] * size / sizes[-1] for size in sizes]
        axes.loglog(sizes, guide, ":", color=style.QUIET, linewidth=1.2)
        axes.set_ylim(min(times) * 0.6, max(times) * 1.8)
        axes.set_title(title)
        axes.set_ylabel("ms per iteration")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.minorticks_off()
        axes.grid(True, axis="y")
    return figure


@style.with_style
def draw_parts(found: dict[str, dict[str, float]]) -> Any:
    """Where the time of an iteration goes, as shares of it."""
    colours = {
        "environment": style.GOLD,
        "policy": style.PINK,
        "collect": style.GOLD,
        "estimate": style.GREEN,
        "improve": style.BLUE,
        "learn": style.BLUE,
        "critic": style.ORANGE,
        "rest": style.QUIET,
    }
    figure = style.page(9.2, 1.0 + 0.75 * len(found))
    axes = figure.subplots()
    for row, one in enumerate(found.values()):
        named = {name: one[name] for name in colours if name in one}
        total, left = sum(named.values()), 0.0
        for name, time_of in named.items():
            share = time_of / total
            axes.barh(row, share, left=left, color=colours[name], height=0.55)
            if share > 0.07:
                words = f"{name}\n{time_of:.2f} ms"
                axes.text(left + share / 2, row, words, ha="center", va="center", color="white", fontsize=9.5)
            left += share
    axes.set_yticks(range(len(found)), list(found))
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_visible(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


def main() -> None:
    """Measure, draw and keep."""
    devices.use_all_cores()
    ppo = PPO(learning_rate=3e-4, epochs=4, num_minibatches=4, ent_coef=0.01, max_grad_norm=None)
    four = {"critic_epochs": 4, "critic_num_minibatches": 4, "normalize_observations": False}
    parts = {
        "CartPole-v1, PPO, 4 × 128, one device": parts_compiled(ppo, num_envs=4, num_steps=128, **four),
        "CartPole-v1, TRPO, 16 × 128, one device": parts_compiled(TRPO(), num_envs=16, num_steps=128),
    }
    try:
        parts["HalfCheetah-v5, TRPO, 64 × 32, EnvPool, all cores"] = parts_host(
            "envpool:HalfCheetah-v5", num_envs=64, num_steps=32
        )
    except ImportError as missing:
        print(f"left out: {missing}")
    for title, one in parts.items():
        print(title, *(f"  {name:<20} {number:7.3f} ms" for name, number in one.items()), sep="\n", flush=True)
    growth = grow()
    FIGURES.mkdir(exist_ok=True)
    style.save(draw_growth(growth), FIGURES / "scaling.png")
    style.save(draw_parts(parts), FIGURES / "parts.png")
    write_results("scaling", growth=growth, parts=parts)


if __name__ == "__main__":
    main()
