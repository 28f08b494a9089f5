"""Action masks of Gymnasium environments, wherever they come from, at the end of flat observations."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np

from klimb.environments.adapters.flattening import flat
from klimb.environments.returns import InvalidReturn, described, numbers_of
from klimb.errors import UnsupportedSpace, one_line
from klimb.policies.action_spec import ActionSpec
from klimb.policies.actions import action_spec
from klimb.policies.observation_parts import ACTION_MASK

MaskSource = Literal["observation", "method", "info"]
"""Where a mask is: a part `action_mask` of Dict observations, a method `action_masks()`, or `info["action_mask"]`."""
NAME, METHOD = ACTION_MASK, "action_masks"


def mask_source(env: gym.Env) -> MaskSource | None:
    """Where an environment gives an action mask; None for one that gives none.

    An environment with discrete actions is reset once, for its info. What is wrong with its reset is left to others.

    env: without klimb's own wrappers. Raises UnsupportedSpace for a mask of another size than the actions have choices.
    """
    try:
        actions = action_spec(env.action_space)
    except UnsupportedSpace:  # said by whoever needs the actions
        return None
    if actions.num_choices == 0:
        return None
    space = env.observation_space
    if isinstance(space, gym.spaces.Dict) and NAME in space.spaces:
        size = gym.spaces.flatdim(space[NAME])
        if size != actions.num_choices or len(space.spaces) == 1:
            raise UnsupportedSpace(
                f"the part {NAME} of the observations has {size} flags, and the actions "
                f"{one_line(env.action_space, 120)} have {actions.num_choices} choices: it must have one flag for "
                "each, and another part must say what the policy decides from"
            )
        return "observation"
    if env.has_wrapper_attr(METHOD) and callable(env.get_wrapper_attr(METHOD)):
        return "method"
    try:
        _, info = env.reset(seed=0)
        return "info" if NAME in info else None
    # SystemExit: an environment that calls sys.exit() must not end the program.
    except (Exception, SystemExit):
        return None


class ActionMask(gym.Wrapper):
    """Flat observations with the action mask at their end.

    env: without klimb's own wrappers. source: where it gives its mask (`mask_source`).
    """

    def __init__(self, env: gym.Env, source: MaskSource) -> None:
        super().__init__(env)
        self._actions, self._source, self._time = action_spec(env.action_space), source, 0
        observed, self._flat = flat(unmasked(env.observation_space, source))
        self._shape = observed.shape
        choices = self._actions.num_choices
        low, high = (np.asarray(bound, np.float32) for bound in (observed.low, observed.high))
        self.observation_space = gym.spaces.Box(
            np.append(low, np.zeros(choices, np.float32)), np.append(high, np.ones(choices, np.float32))
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """As the environment returns it, with its mask at the end of the observation."""
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple | list) or len(result) != 2:
            return result  # what is wrong with it is said by whoever gets it
        obs, info = result
        self._time = 0
        return self._masked(obs, info, "reset", goes_on=True), info

    def step(self, action: Any) -> Any:
        """As the environment returns it, with its mask at the end of the observation.

        action: in the action space.
        """
        result = self.env.step(action)
        if not isinstance(result, tuple | list) or len(result) != 5:
            return result
        obs, reward, terminated, truncated, info = result
        goes_on = not (terminated or truncated)
        self._time += 1
        return self._masked(obs, info, "step", goes_on=goes_on), reward, terminated, truncated, info

    def _masked(self, obs: Any, info: Any, call: str, *, goes_on: bool) -> np.ndarray:
        """The flat observation and its mask. goes_on: whether an action is going to be chosen by it."""
        match self._source:
            case "observation":
                given = obs.get(NAME) if isinstance(obs, dict) else None
                obs = {name: part for name, part in obs.items() if name != NAME} if isinstance(obs, dict) else obs
            case "method":
                given = self.env.get_wrapper_attr(METHOD)()
            case "info":
                given = info.get(NAME) if isinstance(info, dict) else None
        if given is None and not goes_on:
            given = np.ones(self._actions.num_choices)
        when = call if call == "reset" else f"step {self._time} of an episode"
        mask = mask_of(given, self._actions, when, required=goes_on)
        return np.append(numbers_of(self._flat(obs), self._shape, call, "observation"), mask)


def unmasked(space: gym.Space, source: MaskSource | None) -> gym.Space:
    """The space of observations without the mask.

    space: as the environment has it. source: where it gives its mask.
    """
    if source != "observation":
        return space
    assert isinstance(space, gym.spaces.Dict)
    # As pairs, which keep their order: of a dictionary Gymnasium sorts the names.
    return gym.spaces.Dict([(name, part) for name, part in space.spaces.items() if name != NAME])


def mask_of(given: Any, actions: ActionSpec, call: str, *, required: bool) -> np.ndarray:
    """An action mask as flags, `[num_choices]` float32. InvalidReturn for what is none.

    given: an array of flags, or one for every discrete part. actions: that it is for. call: that returned it, for
    messages. required: whether every part must have a choice that is allowed.
    """
    sizes = actions.choices
    try:
        parts = given if isinstance(given, tuple | list) else (given,)
        flags = np.concatenate([np.ravel(np.asarray(part)) for part in parts])
        mask = flags.astype(np.float32)
    except (ValueError, TypeError):
        mask = np.zeros(0, np.float32)
    if mask.size != sum(sizes) or not np.isin(mask, (0, 1)).all():
        raise InvalidReturn(
            f"{call} must give an action mask of {sum(sizes)} flags, 1 for each choice that is allowed and 0 for each "
            f"that is not; it gave {described(given)}"
        )
    if required:
        blocked = actions.blocked(mask)
        if blocked is not None:
            which = "" if len(sizes) == 1 else f" for number {blocked} of the action"
            raise InvalidReturn(
                f"{call} gave an action mask that allows nothing{which}, and the episode goes on: allow at least one "
                "choice, or end the episode"
            )
    return mask
