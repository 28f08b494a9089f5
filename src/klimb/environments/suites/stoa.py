"""Environments with the common interface Stoa (Toledo 2025), which other JAX environments have adapters to."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array, PRNGKeyArray, PyTree

from klimb.environments.adapters.action_masks import unmasked
from klimb.environments.suites.spaces import gymnasium_space, named_parts, observation_space, part_names
from klimb.environments.suites.suite import Step, SuiteEnvironment, legacy_key
from klimb.errors import UnsupportedSpace
from klimb.policies.observation_parts import ACTION_MASK


class StoaEnvironment(SuiteEnvironment):
    """An environment of Stoa. Without its wrappers that reset: klimb resets itself.

    A part `action_mask` of dictionaries of observations is the action mask.

    id: a name for it. env: Stoa's. params: its parameters; None for its default ones. max_episode_steps: its time
    limit, if it has one (of `stoa.EpisodeStepLimitWrapper`, for example), for `klimb check-env`.

    Raises UnsupportedSpace for several players with a reward each.
    """

    packages = ("stoa-env",)

    def __init__(self, id: str, env: Any, params: Any = None, *, max_episode_steps: int | None = None) -> None:
        self.params = params
        if env.reward_space(params).shape != ():
            raise UnsupportedSpace(f"{id} has a reward for each of several players, and klimb trains by one reward")
        space = self._library_space = env.observation_space(params)
        actions = gymnasium_space(env.action_space(params), f"{id}'s action")
        observed = observation_space(space, f"{id}'s observation")
        masked = ACTION_MASK in part_names(space)
        observed = unmasked(observed, "observation" if masked else None)
        super().__init__(id, env, observed, actions, masked=masked, max_episode_steps=max_episode_steps)

    def begin(self, key: PRNGKeyArray) -> Step:
        """The start of an episode. key: that it is drawn with."""
        return self._seen(*self.env.reset(legacy_key(key), self.params))

    def advance(self, key: PRNGKeyArray, state: PyTree, action: Array) -> Step:
        """One step, without a reset.

        key: is not used: environments keep one in their states. state: Stoa's. action: in the action space.
        """
        state, after = self.env.step(state, action, self.params)
        return self._seen(state, after)._replace(
            reward=after.reward, terminated=after.terminated(), truncated=after.truncated()
        )

    def _seen(self, state: PyTree, timestep: Any) -> Step:
        obs = named_parts(timestep.observation, self._library_space)
        return Step(state, obs, obs[ACTION_MASK] if self.masked else None)
