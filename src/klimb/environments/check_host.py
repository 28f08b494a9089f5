"""Checks of environments that are stepped in Python."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils.env_checker import check_env as gymnasium_check

from klimb.environments.adapters.action_masks import ActionMask
from klimb.environments.adapters.gymnasium import GymnasiumEnvironment
from klimb.environments.faults import Trouble
from klimb.environments.findings import Finding
from klimb.environments.host import HostEnvironment
from klimb.environments.trial import AllowedActions, Trial, digests_elsewhere, random_actions, run
from klimb.errors import EnvironmentFault, one_line

WORKER_STEPS = 200
"""Steps that are repeated in a worker process."""
WORKER_TIMEOUT = 120.0
SEED_REMEDY = (
    "draw every random number from self.np_random, call super().reset(seed=seed) first in reset, and keep no state "
    "from one episode to the next"
)


def host_findings(
    environment: HostEnvironment, steps: int, seed: int, *, in_worker: bool, can_act: bool
) -> Iterator[Finding]:
    """All findings but those about the spaces.

    environment: to check. steps, seed, in_worker: as for `check_env`. can_act: whether klimb supports its spaces.
    """
    if can_act:
        try:
            actions = random_actions(environment.action_space, environment.actions, steps, seed)
            trial, captured = _tried(environment, actions, seed)
        except Exception as error:
            yield _raised(error, "reset and step")
        else:
            yield _stepped(trial)
            yield from numbers(trial)
            yield _repeatable(environment, trial, actions, seed)
            yield episodes(trial, environment.max_episode_steps)
            yield _resumable(captured)
            yield _in_workers(environment, trial, seed, in_worker=in_worker)
    if environment.image_shape is not None:
        yield _image(environment)
    if isinstance(environment, GymnasiumEnvironment):
        yield from _raw_observations(environment, min(steps, WORKER_STEPS), seed, can_act=can_act)
        yield from _gymnasiums_own(environment)


def _tried(environment: HostEnvironment, actions: np.ndarray, seed: int) -> tuple[Trial, bool]:
    """The steps, and whether the simulator's state can be saved after them."""
    vector = environment.vector(1)
    try:
        allowed = AllowedActions(environment.observations, environment.actions, seed)
        return run(vector, actions, seed, allowed), vector.capture() is not None
    finally:
        vector.close()


def _raised(error: Exception, name: str) -> Finding:
    if isinstance(error, EnvironmentFault):
        text = str(error).replace("copy 0 of the environment", "it", 1)
        return Finding(name, "fails", text, traceback=error.environment_traceback)
    trouble = Trouble.of(error, "step")
    return Finding(name, "fails", trouble.cause, traceback=trouble.traceback)


def _stepped(trial: Trial) -> Finding:
    ended = int((trial.terminated | trial.truncated).sum())
    return Finding(
        "reset and step",
        "ok",
        f"{len(trial.reward)} steps with random actions, {ended} episode{'' if ended == 1 else 's'} ended",
    )


def numbers(trial: Trial) -> Iterator[Finding]:
    """Whether rewards and observations are finite.

    trial: the steps.
    """
    reward = trial.reward
    if np.isfinite(reward).all():
        span = f"from {reward.min():.4g} to {reward.max():.4g}, mean {reward.mean():.4g}"
        # Constant rewards say something where episodes end sooner or later by what the policy does.
        same = reward.min() == reward.max() and not trial.terminated.any()
        remedy = (
            "the reward was the same in every step: there is nothing to learn from until it differs" if same else ""
        )
        yield Finding("rewards", "note" if same and len(reward) > 1 else "ok", span, remedy)
    else:
        step = int(np.flatnonzero(~np.isfinite(reward))[0])
        yield Finding(
            "rewards", "fails", f"the reward of step {step} is {reward[step]}", "return a finite reward in every step"
        )
    for place, all_rows in (("returned by", trial.next_obs), ("before", trial.obs)):
        rows = all_rows.reshape(len(reward), -1)
        finite = np.isfinite(rows)
        if not finite.all():
            step, element = map(int, np.argwhere(~finite)[0])
            yield Finding(
                "observations",
                "fails",
                f"element {element} of the observation {place} step {step} is {rows[step, element]}",
                "return finite observations: end the episode before the simulator diverges",
            )
            return
    yield Finding("observations", "ok", "finite")


def _repeatable(environment: HostEnvironment, trial: Trial, actions: np.ndarray, seed: int) -> Finding:
    """Whether the same seed and actions (more than the trial has steps, where some only carried out a reset) repeat."""
    try:
        again, _ = _tried(environment, actions, seed)
    except Exception as error:
        return _raised(error, "same seed, same episodes")
    return compared(trial, again.digests, "a second copy in this process")


def compared(trial: Trial, digests: list[str], where: str) -> Finding:
    """Whether other steps with the same seed and actions were the same.

    trial: the first ones. digests: of the others. where: they were made.
    """
    name = "same seed, same episodes"
    differs = [t for t, pair in enumerate(zip(trial.digests, digests, strict=False)) if pair[0] != pair[1]]
    if not differs and len(digests) <= len(trial.reward):
        return Finding(name, "ok", f"{where} gave the same {len(digests)} steps, bit for bit")
    step = differs[0] if differs else len(trial.reward)
    return Finding(
        name,
        "note",
        f"{where} gave a different step {step} with the same seed and actions: runs can't be repeated",
        SEED_REMEDY,
    )


def episodes(trial: Trial, limit: int | None) -> Finding:
    """Whether episodes end.

    trial: the steps. limit: steps after which an episode is truncated, where that is known.
    """
    if limit is not None:
        return Finding("end of episodes", "ok", f"after {limit} steps at the latest")
    if trial.terminated.any() or trial.truncated.any():
        return Finding(
            "end of episodes",
            "ok",
            "episodes end; there is no time limit that klimb knows of",
        )
    return Finding(
        "end of episodes",
        "note",
        f"no episode ended in {len(trial.reward)} steps, and there is no time limit: an evaluation would never end",
        "give max_episode_steps when it is registered, or wrap it in gymnasium.wrappers.TimeLimit",
    )


def _resumable(captured: bool) -> Finding:
    name = "state of the simulator"
    if captured:
        return Finding(name, "ok", "can be saved: a resumed run continues exactly")
    return Finding(
        name, "note", "can't be saved: a resumed run restarts the episodes that were running (docs/reliability.md)"
    )


def _in_workers(environment: HostEnvironment, trial: Trial, seed: int, *, in_worker: bool) -> Finding:
    name, spec = "worker processes", environment.env_spec
    if spec is None:
        return Finding(
            name,
            "note",
            "another process can't make it: it is stepped in the training's process",
            "register it with Gymnasium, its class as 'module:Class' in an importable module, and name it module:ID"
            if isinstance(environment, GymnasiumEnvironment)
            else "",
        )
    if not in_worker:
        return Finding(name, "ok", "a worker process can make it")
    try:
        digests = digests_elsewhere(spec, trial.actions[:WORKER_STEPS], seed, timeout=WORKER_TIMEOUT)
    except EnvironmentFault as fault:
        return Finding(
            name,
            "fails",
            str(fault),
            "train with --workers 0, which uses no worker processes",
            traceback=fault.environment_traceback,
        )
    same = compared(trial, digests, "a worker process")
    return Finding(name, same.status, same.text, same.remedy)


def _image(environment: HostEnvironment) -> Finding:
    return Finding(
        "images",
        "note",
        f"observations of shape {environment.image_shape} are flattened: klimb's own network has "
        f"{environment.observations.size} inputs",
        "klimb's convolutional networks read bytes from 0 to 255, and floats from 0 to 1 with channels: give their "
        "space these bounds, or a network of your own (docs/own-network.md)",
    )


def _raw_observations(environment: GymnasiumEnvironment, steps: int, seed: int, *, can_act: bool) -> Iterator[Finding]:
    """Whether observations are in their space, before klimb flattens and converts them."""
    try:
        env = environment.make()
        if isinstance(env, gym.wrappers.FlattenObservation | ActionMask):
            env.env = returned = _Returned(env.env)
        else:
            env = returned = _Returned(env)
        obs, _ = env.reset(seed=seed)
        choose = _allowed(environment, seed) if can_act else lambda _: environment.action_space.sample()
        environment.action_space.seed(seed)
        for _ in range(steps):
            obs, _, terminated, truncated, _ = env.step(choose(obs))
            if terminated or truncated:
                obs, _ = env.reset()
        env.close()
    except Exception:  # said by the trial
        return
    rows, space = returned.observations, returned.observation_space
    wrong = [text for obs in rows if (text := outside(obs, space)) is not None]
    if not wrong:
        yield Finding("observation space", "ok", f"contains all {len(rows)} observations")
    else:
        yield Finding(
            "observation space",
            "note",
            f"{len(wrong)} of {len(rows)} observations are not in it: {wrong[0]}",
            "klimb converts and normalises observations but does not clip them; correct the space",
        )


def _allowed(environment: GymnasiumEnvironment, seed: int) -> Callable[[Any], Any]:
    """From an observation with its mask, if it has one, to a random action that is allowed."""
    actions, space = environment.actions, environment.action_space
    allowed = AllowedActions(environment.observations, actions, seed)

    def choose(obs: Any) -> Any:
        return actions.unflatten(allowed(np.asarray(obs)[None], actions.clip(actions.flatten(space.sample()))))

    return choose


class _Returned(gym.Wrapper):
    """Keeps all observations, as the environment returns them."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observations: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        result = self.env.reset(seed=seed, options=options)
        self.observations.append(result[0])
        return result

    def step(self, action: Any) -> Any:
        result = self.env.step(action)
        self.observations.append(result[0])
        return result


def outside(obs: Any, space: gym.Space) -> str | None:
    """Why an observation is not in its space; None where it is.

    obs: as the environment returned it. space: its space.
    """
    if not isinstance(space, gym.spaces.Box):
        return None if space.contains(obs) else f"it is {one_line(obs, 80)}"
    try:
        array = np.asarray(obs)
        below, above = array < space.low, array > space.high
    except (TypeError, ValueError):
        return f"it is {one_line(obs, 80)}"
    if array.shape != space.shape:
        return f"its shape is {array.shape} instead of {space.shape}"
    beyond = np.argwhere(below | above)
    if len(beyond):
        place = tuple(int(i) for i in beyond[0])
        low, high, value = (float(x[place]) for x in (space.low, space.high, array))
        return f"element {list(place)} is {value:.6g}, outside [{low:.6g}, {high:.6g}]"
    if not isinstance(obs, np.ndarray):
        return f"it is a {type(obs).__name__} instead of an array"
    if not np.can_cast(array.dtype, np.dtype(space.dtype)):
        return f"its dtype is {array.dtype} instead of {space.dtype}"
    return None


def _gymnasiums_own(environment: GymnasiumEnvironment) -> Iterator[Finding]:
    """What Gymnasium's `check_env` says, each thing once."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            env = environment.make()
            gymnasium_check(env.unwrapped, skip_render_check=True)
            env.close()
        except Exception as error:
            found.append(Trouble.of(error, "check").cause)
    for warning in caught:
        text = re.sub(r"\x1b\[[0-9;]*m", "", str(warning.message))
        found.append(one_line(re.sub(r"^(WARN|ERROR): ", "", text.strip())))
    for text in dict.fromkeys(found):
        yield Finding("Gymnasium's checker", "note", text)
    if not found:
        yield Finding("Gymnasium's checker", "ok", "found no problem")
