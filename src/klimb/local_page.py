"""A page on this machine's own address, and messages that it gets while it is open (server-sent events)."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import queue
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from klimb.errors import RunError

ADDRESS = "127.0.0.1"
"""Nobody on another machine can look. Who wants to, forwards the port: `ssh -L`."""
WAITING = 64
"""Messages that wait for a page, at most; a page that is slower than they come loses some."""
SILENCE = 30.0
"""Seconds after which a page that takes nothing any more counts as closed."""


class Audience:
    """The pages that are open: what is sent goes to all of them.

    opening: kind of the messages with which a page begins that is opened later, or that has fallen behind.
    """

    def __init__(self, opening: str) -> None:
        self._opening = opening
        self._pages: list[queue.Queue[str | None]] = []
        self._begun: str | None = None
        self._changed = threading.Condition()

    def join(self) -> queue.Queue[str | None]:
        """The messages for a new page, which begin with the last one of the kind `opening`."""
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
        opening = message["kind"] == self._opening
        with self._changed:
            if opening:
                self._begun = text
            for messages in self._pages:
                if messages.full():
                    # A page that has fallen behind goes on with what is happening now.
                    _emptied(messages)
                    if self._begun is not None and not opening:
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


@contextlib.contextmanager
def served(
    page: Callable[[], str], audience: Audience, port: int, on_given: Callable[[str], None] | None = None
) -> Iterator[str]:
    """Serve a page and its messages while the block runs, which gets the address of the page.

    page: makes the page, once per request, in a thread of the request; it must not raise. audience: who gets the
    messages, at `/events`. port: of the page; 0 for a free one. on_given: called with a page that was sent completely.
    Raises RunError when the port can't be used.
    """
    try:
        server = _Server((ADDRESS, port), _handler(page, audience, on_given))
    except OSError as error:
        raise RunError(f"port {port} can't be used: {error.strerror}; give another one, or 0 for a free one") from None
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{ADDRESS}:{server.server_address[1]}/"
    finally:
        audience.end()
        server.shutdown()
        server.server_close()


def content_policy(script: str, *, connects: bool = False) -> str:
    """The content security policy of a page: it runs one script, and loads nothing from elsewhere.

    script: its text. connects: whether the script may ask the server of the page.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:"
    return f"{rules}; connect-src 'self'" if connects else rules


class _Server(ThreadingHTTPServer):
    """A thread for each page, which ends with the program."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that was closed; anything else is an error of klimb's."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


def _handler(
    page: Callable[[], str], audience: Audience, on_given: Callable[[str], None] | None
) -> type[BaseHTTPRequestHandler]:
    """What answers the browser: the page, and the messages."""

    class Handler(BaseHTTPRequestHandler):
        timeout = SILENCE

        def do_GET(self) -> None:
            # A page of another site could have its own name resolve to this address.
            host = self.headers.get("Host", "").partition(":")[0]
            if host not in (ADDRESS, "localhost"):
                self.send_error(403)
            elif self.path == "/":
                self._page()
            elif self.path == "/events":
                self._events()
            else:
                self.send_error(404)

        def _page(self) -> None:
            text = page()
            self._answer("text/html; charset=utf-8")
            self.wfile.write(text.encode())
            self.wfile.flush()
            if on_given is not None:
                on_given(text)

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
