"""Watching a policy in a page: a server on this machine's own address, which sends one episode after the other."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from string import Template
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from klimb.errors import RunError
from klimb.filming.card import asset, still
from klimb.filming.panels import action_rows, action_title, plain
from klimb.filming.scenes import Scene

ADDRESS = "127.0.0.1"
"""Nobody on another machine can watch. Who wants to, forwards the port: `ssh -L`."""
WAITING = 64
"""Messages that wait for a page, at most; a page that is slower than the film loses some."""
SILENCE = 30.0
"""Seconds after which a page that takes nothing any more counts as closed."""
SIDE = 480


class Watched(NamedTuple):
    """A policy to be watched. about: which one it is, for people."""

    policy: PyTree
    about: str


class Audience:
    """The pages that are open: what is sent goes to all of them."""

    def __init__(self) -> None:
        self._pages: list[queue.Queue[str | None]] = []
        self._begun: str | None = None
        self._changed = threading.Condition()

    def join(self) -> queue.Queue[str | None]:
        """The messages for a new page, which begin with the episode that is running."""
        messages: queue.Queue[str | None] = queue.Queue(WAITING)
        with self._changed:
            if self._begun is not None:
                messages.put(self._begun)
            self._pages.append(messages)
            self._changed.notify_all()
        return messages

    def leave(self, messages: queue.Queue[str | None]) -> None:
        """Forget a page that was closed."""
        with self._changed:
            self._pages.remove(messages)

    def wait(self) -> None:
        """Wait until there is somebody who watches."""
        with self._changed:
            while not self._pages:
                # Not for ever at once: a signal is only handled between two waits.
                self._changed.wait(0.2)

    def send(self, message: dict[str, Any]) -> None:
        """Send a message to all pages."""
        text = json.dumps(message, allow_nan=False)
        with self._changed:
            if message["kind"] == "begin":
                self._begun = text
            for messages in self._pages:
                if messages.full():
                    # A page that has fallen behind goes on with what is happening now.
                    _emptied(messages)
                    if self._begun is not None and message["kind"] != "begin":
                        messages.put(self._begun)
                messages.put(text)

    def end(self) -> None:
        """Send all pages away."""
        with self._changed:
            for messages in self._pages:
                if messages.full():
                    _emptied(messages)
                messages.put(None)


def _emptied(messages: queue.Queue[str | None]) -> None:
    """Take everything out of a queue, from which somebody else may take as well."""
    with contextlib.suppress(queue.Empty):
        while True:
            messages.get_nowait()


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
    audience = Audience()
    try:
        server = _Server((ADDRESS, port), _handler(scene, audience))
    except OSError as error:
        raise RunError(f"port {port} can't be used: {error.strerror}; give another one, or 0 for a free one") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        on_ready(f"http://{ADDRESS}:{server.server_address[1]}/")
        number = 0
        while episodes is None or number < episodes:
            audience.wait()
            _play(scene, newest(), seed + number, number + 1, speed, audience)
            number += 1
    finally:
        audience.end()
        server.shutdown()
        server.server_close()


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


class _Server(ThreadingHTTPServer):
    """A thread for each page, which ends with the program."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that was closed; anything else is an error of klimb's."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _handler(scene: Scene, audience: Audience) -> type[BaseHTTPRequestHandler]:
    """What answers the browser: the page, and the messages."""
    script = "\n".join(map(asset, ("strips.js", "watch.js")))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "connect-src 'self'"
    )
    title = escape(scene.environment.id)
    page = Template(asset("watch.html")).substitute(title=title, policy=rules, script=script).encode()

    class Handler(BaseHTTPRequestHandler):
        timeout = SILENCE

        def do_GET(self) -> None:
            # A page of another site could have its own name resolve to this address.
            host = self.headers.get("Host", "").partition(":")[0]
            if host not in (ADDRESS, "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self._answer("text/html; charset=utf-8")
                self.wfile.write(page)
            elif self.path == "/events":
                self._events()
            else:
                self.send_error(404)

        def _answer(self, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Cache-Control", "no-store")
            self.end_headers()

        def _events(self) -> None:
            self._answer("text/event-stream")
            messages = audience.join()
            try:
                while (message := _next(messages)) is not None:
                    self.wfile.write(message.encode())
                    self.wfile.flush()
            except OSError:
                pass  # the page was closed
            finally:
                audience.leave(messages)

        def log_message(self, *_: Any) -> None:
            """Requests are no news."""

    return Handler


def _next(messages: queue.Queue[str | None]) -> str | None:
    """The next message as the browser reads it; None after the last one."""
    try:
        message = messages.get(timeout=1.0)
    except queue.Empty:
        return ": still here\n\n"  # a comment, by which a page that was closed is noticed
    return None if message is None else f"data: {message}\n\n"
