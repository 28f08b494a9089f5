"""Watching a policy in a page: a server on this machine's own address, which sends one episode after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from html import escape
from string import Template
from typing import NamedTuple

import numpy as np
from jaxtyping import PyTree

from klimb.filming.card import asset, still
from klimb.filming.panels import action_rows, action_title, plain
from klimb.filming.scenes import Scene
from klimb.local_page import Audience, content_policy, served

SIDE = 480


class Watched(NamedTuple):
    """A policy to be watched. about: which one it is, for people."""

    policy: PyTree
    about: str


def watch(
    scene: Scene,
    newest: Callable[[], Watched],
    *,
    seed: int,
    episodes: int | None,
    speed: float,
    port: int,
    on_ready: Callable[[str], None],
) -> None:
    """Serve a page that shows one episode after the other, until there have been enough.

    scene: where. newest: the policy of the next episode, which may be another one than before. seed: of the first
    episode; each has the next one. episodes: how many; None for no end. speed: 1 for the environment's own time.
    port: of the page; 0 for a free one. on_ready: called with the page's address.

    Nothing is drawn while no page is open. Raises RunError when the port can't be used.
    """
    audience, page = Audience("begin"), _page(scene)
    with served(lambda: page, audience, port) as address:
        on_ready(address)
        number = 0
        while episodes is None or number < episodes:
            audience.wait()
            _play(scene, newest(), seed + number, number + 1, speed, audience)
            number += 1


def _play(scene: Scene, watched: Watched, seed: int, number: int, speed: float, audience: Audience) -> None:
    """One episode. number: of the episode, from 1. The others: as for `watch`."""
    title, pause = action_title(scene.environment.actions), 1 / (scene.pictures_per_second * speed)
    audience.send({"kind": "begin", "number": number, "policy": watched.about})
    rewards: list[float] = []
    actions: list[np.ndarray] = []
    total, due = 0.0, time.monotonic()
    for step, shot in enumerate(scene.episode(watched.policy, seed)):
        if step > 0:
            rewards.append(shot.reward)
            total += shot.reward
        if step % scene.every == 0 or shot.action is None:
            audience.wait()
            message = {
                "kind": "step",
                "title": title,
                "step": step,
                "return": plain(np.array([total]))[0],
                "rewards": plain(np.array(rewards, np.float32)),
                "actions": plain(action_rows(np.stack(actions))) if actions else [],
                "picture": still(shot.draw(), SIDE),
            }
            audience.send(message)
            rewards, actions = [], []
            # A picture that was drawn late is not made up for by showing the next ones faster.
            due = max(due + pause, time.monotonic() - pause)
            time.sleep(max(0.0, due - time.monotonic()))
        if shot.action is not None:
            actions.append(shot.action)
    audience.send(
        {"kind": "end", "number": number, "return": plain(np.array([total]))[0], "steps": step, "policy": watched.about}
    )


def _page(scene: Scene) -> str:
    """The page, which is the same for every episode."""
    script = "\n".join(map(asset, ("strips.js", "watch.js")))
    policy = content_policy(script, connects=True)
    return Template(asset("watch.html")).substitute(title=escape(scene.environment.id), policy=policy, script=script)
