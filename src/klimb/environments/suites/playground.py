"""MuJoCo Playground (Zakka et al. 2025): control suite, locomotion and manipulation, simulated by MJX."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray, PyTree

from klimb.environments.base import where_copies
from klimb.environments.rendering.mujoco import Pose
from klimb.environments.suites.physics import Clocked, PhysicsEnvironment
from klimb.environments.suites.suite import Step, import_library, legacy_key, refused_download, require_known
from klimb.errors import ConfigError, nearest, one_line
from klimb.policies.observation_parts import PartsObservations

IMPLEMENTATIONS = ("jax", "warp")
"""Of MJX."""
Randomizer = Callable[[Any, Array], tuple[Any, Any]]
"""Playground's: from a model and keys, the models of as many robots, and which of their arrays differ among them."""


class PlaygroundEnvironment(PhysicsEnvironment):
    """An environment of MuJoCo Playground, without its wrappers.

    Where observations are a dictionary, the policy sees the part `state`, and the critic all parts.

    id, env, max_episode_steps, action_repeat: as for any simulated robot. randomizer: draws the model of each
    episode; None for one model in all of them.
    """

    packages = ("playground", "mujoco-mjx", "mujoco")

    def __init__(
        self,
        id: str,
        env: Any,
        max_episode_steps: int,
        randomizer: Randomizer | None = None,
        *,
        action_repeat: int = 1,
    ) -> None:
        self.randomizer = randomizer
        self._differ: set[tuple] | None = None
        super().__init__(id, env, max_episode_steps, action_repeat)
        names = self._observed.names or () if isinstance(self._observed, PartsObservations) else ()
        self.critic_only = tuple(name for name in names if name != "state") if "state" in names else ()

    def begin(self, key: PRNGKeyArray) -> Step:
        """The start of an episode, with a model of its own if models are randomised. key: that it is drawn with."""
        if self.randomizer is None:
            return super().begin(key)
        key, key_model = jax.random.split(key)
        drawn = self._draw(legacy_key(key_model))
        with self._model(drawn):
            return self._seen(Clocked(self.env.reset(legacy_key(key)), jnp.int32(0), drawn))

    def advance(self, key: PRNGKeyArray, state: Clocked, action: Array) -> Step:
        """One step, without a reset.

        key: is not used. state: before the step. action: from −1 to 1.
        """
        if self.randomizer is None:
            return super().advance(key, state, action)
        with self._model(state.model):
            return super().advance(key, state, action)

    def model(self) -> Any:
        """MuJoCo's model of the robot; without randomisation, which pictures do not show."""
        return self.env.mj_model

    def pose(self, state: Clocked) -> Pose:
        """Where everything is in a state."""
        data = state.inner.data
        return Pose(data.qpos, data.qvel, (data.mocap_pos, data.mocap_quat))

    def _draw(self, key: Array) -> list[Array]:
        """The arrays of one model that are randomised. key: that they are drawn with."""
        assert self.randomizer is not None
        models, axes = self.randomizer(self.env.mjx_model, key[None])
        differ = _paths(axes)
        return [leaf[0] for path, leaf in jax.tree_util.tree_leaves_with_path(models) if path in differ]

    @contextlib.contextmanager
    def _model(self, drawn: list[Array]) -> Iterator[None]:
        """The environment with these arrays in its model, while a program is traced."""
        unwrapped, randomizer = self.env.unwrapped, self.randomizer
        assert randomizer is not None
        model = unwrapped._mjx_model
        if self._differ is None:
            keys = jax.ShapeDtypeStruct((1, 2), jnp.uint32)
            self._differ = _paths(jax.eval_shape(lambda keys: randomizer(model, keys)[1], keys))
        own, differ = iter(drawn), self._differ
        try:
            unwrapped._mjx_model = jax.tree_util.tree_map_with_path(
                lambda path, leaf: next(own) if path in differ else leaf, model
            )
            yield
        finally:
            unwrapped._mjx_model = model


class WarpEnvironment(PlaygroundEnvironment):
    """The same simulated by MuJoCo Warp, which simulates all copies at once, by itself.

    Its states have arrays that all copies share, such as those of contacts: each step makes them anew. When an episode
    ends, they stay as they are, and all others change.
    """

    one_seed_at_once = True
    # A bank would be made by a second vmap.
    bank_resets = False

    def restarted(self, ended: Bool[Array, " N"], first: PyTree, state: PyTree) -> PyTree:
        """The states of N copies, of which some begin a new episode.

        ended: which. first, state: of all copies, at the start of an episode and after the last step.
        """
        flat, structure = jax.tree.flatten(state)
        chosen = [
            old if shared else where_copies(ended, new, old)
            for shared, new, old in zip(self._shared, jax.tree.leaves(first), flat, strict=True)
        ]
        return jax.tree.unflatten(structure, chosen)

    def of_copy(self, state: PyTree, copy: int) -> PyTree:
        """The state of one copy, with what is shared. state: of all. copy: its number."""
        flat, structure = jax.tree.flatten(state)
        own = [x if shared else x[copy] for shared, x in zip(self._shared, flat, strict=True)]
        return jax.tree.unflatten(structure, own)

    @functools.cached_property
    def _shared(self) -> list[bool]:
        """Of the arrays of the states of all copies, which have no axis of copies: found with two numbers of these."""
        two, three = (
            jax.tree.leaves(jax.eval_shape(self.reset_all, jax.random.split(jax.random.key(0), n))[0]) for n in (2, 3)
        )
        return [a.shape[:1] != (2,) or b.shape[:1] != (3,) for a, b in zip(two, three, strict=True)]


def _paths(axes: PyTree) -> set[tuple]:
    """Where in a model the arrays are that differ among robots: those with an axis, which the others have not."""
    return {path for path, _ in jax.tree_util.tree_leaves_with_path(axes)}


def _quieten_warp() -> None:
    """Keep Warp from printing what it compiles on standard output. Before anything of Warp's is used."""
    with contextlib.suppress(ImportError):
        import warp

        warp.config.log_level = warp.LOG_WARNING


def _without_warnings_of_iterations(env: Any) -> None:
    """Keep Warp from printing at every step that the solver has made as many iterations as it is to make, of which
    Playground's models have few. Other warnings are still printed.

    env: of Playground, with Warp.
    """
    from mujoco.mjx.third_party.mujoco_warp import OverflowType

    model = env.unwrapped._mjx_model
    warned = int(model.opt._impl.warn_overflow) & ~int(OverflowType.ITERATIONS)
    env.unwrapped._mjx_model = model.tree_replace({"opt._impl.warn_overflow": warned})


def make_playground(
    name: str, *, implementation: str = "jax", randomize: bool = False, **overrides: Any
) -> PlaygroundEnvironment:
    """The environment `name` of MuJoCo Playground, e.g. `CartpoleBalance`, with its own time limit.

    implementation: of the physics: jax runs everywhere, warp is for NVIDIA's GPUs. randomize: whether each episode has
    a model of its own, drawn as Playground defines it for its robots. overrides: other entries of the environment's
    configuration.

    Raises MissingExtra if Playground is not installed, EnvironmentNotFound for an unknown name, and ConfigError for
    options that it does not have.
    """
    full = f"playground:{name}"
    if implementation == "warp":
        _quieten_warp()
    registry = import_library("mujoco_playground", full, "playground").registry
    require_known(name, registry.ALL_ENVS, "Playground")
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError(f"{full}: implementation = {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}")
    if implementation == "warp" and randomize:
        raise ConfigError(f"{full}: models are randomised with implementation = jax only; leave one of the two out")
    config = registry.get_default_config(name)
    for option, value in overrides.items():
        if option not in config or option == "impl":
            hint = "; it is implementation here" if option == "impl" else nearest(option, config)
            raise ConfigError(f"{full} has no option {option}{hint}")
        try:
            config[option] = value
        except TypeError as error:
            raise ConfigError(f"{full}: {option} = {value!r}: {one_line(error, 120)}") from error
    config.impl = implementation
    steps, repeat = (config.get(option, 1) for option in ("episode_length", "action_repeat"))
    if min(steps, repeat) < 1:
        raise ConfigError(f"{full}: episode_length = {steps} and action_repeat = {repeat} have to be at least 1")
    randomizer = registry.get_domain_randomizer(name) if randomize else None
    if randomize and randomizer is None:
        raise ConfigError(f"{full}: Playground defines no randomisation for it; leave randomize out")
    suites = registry.dm_control_suite
    if name not in suites.ALL_ENVS and not registry.mjx_env.MENAGERIE_PATH.exists():
        raise refused_download(full, "models of robots", "playground.PlaygroundEnvironment")
    given = {"randomize=True": randomize, "implementation=warp": implementation == "warp"}
    options = [
        *(name for name, is_given in given.items() if is_given),
        *(f"{key}={value!r}" for key, value in overrides.items()),
    ]
    id = full + (f"({', '.join(sorted(options))})" if options else "")
    env = registry.load(name, config=config)
    kind = PlaygroundEnvironment
    if implementation == "warp":
        kind = WarpEnvironment
        _without_warnings_of_iterations(env)
    return kind(id, env, int(steps), randomizer, action_repeat=int(repeat))
