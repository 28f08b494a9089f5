"""The page that is watched: what the server sends, to whom, and when it ends."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from counting import Counting, Half

from klimb.errors import RunError
from klimb.filming.live import Watched, watch
from klimb.filming.scenes import scene_of
from klimb.local_page import WAITING, Audience


class Watching:
    """A server in a thread, and its address."""

    def __init__(self, episodes: int | None = 2, speed: float = 100.0) -> None:
        self.loaded, self._closed = 0, False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(episodes, speed), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)

    def _serve(self, episodes: int | None, speed: float) -> None:
        with contextlib.suppress(KeyboardInterrupt), scene_of(Counting(3)) as scene:
            watch(scene, self._newest, seed=5, episodes=episodes, speed=speed, port=0, on_ready=self._at)

    def _newest(self) -> Watched:
        if self._closed:
            raise KeyboardInterrupt
        self.loaded += 1
        return Watched(Half(), f"policy number {self.loaded}")

    def _at(self, address: str) -> None:
        self.address = address
        self._ready.set()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        """End a server that would wait for ever: with a page for which there is no episode."""
        self._closed = True
        urllib.request.urlopen(self.address + "events", timeout=30).close()
        assert self.ends()

    def ends(self) -> bool:
        self._thread.join(30)
        return not self._thread.is_alive()

    def messages(self) -> Iterator[dict]:
        with urllib.request.urlopen(self.address + "events", timeout=30) as answer:
            assert answer.headers["Content-Type"] == "text/event-stream"
            for line in answer:
                if line.startswith(b"data: "):
                    yield json.loads(line[6:])


def test_every_state_of_every_episode_is_sent_with_its_rewards() -> None:
    watching = Watching()
    messages = list(watching.messages())
    assert watching.ends()
    assert [message["kind"] for message in messages] == ["begin", *["step"] * 4, "end"] * 2
    first, *steps, last = messages[:6]
    assert first == {"kind": "begin", "number": 1, "policy": "policy number 1"}
    assert [step["step"] for step in steps] == [0, 1, 2, 3]
    assert [step["rewards"] for step in steps] == [[], [1.0], [2.0], [3.0]]
    assert [step["return"] for step in steps] == [0, 1, 3, 6]
    assert [step["actions"] for step in steps] == [[], [[0.0, 0.0]], [[0.1, 0.1]], [[0.2, 0.2]]]
    assert len({step["picture"] for step in steps}) >= 2
    assert last == {"kind": "end", "number": 1, "return": 6.0, "steps": 3, "policy": "policy number 1"}
    # The second episode has the newest policy, as a training has written it meanwhile.
    assert messages[6]["policy"] == "policy number 2"


def test_the_page_runs_no_script_but_its_own() -> None:
    with Watching(episodes=None) as watching:
        with urllib.request.urlopen(watching.address, timeout=30) as answer:
            page = answer.read().decode()
        assert watching.loaded == 0, "nothing is played while nobody watches"
    assert "<title>counting · klimb</title>" in page
    rules = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert rules is not None
    assert "default-src 'none'" in rules[1]
    assert "connect-src 'self'" in rules[1]


@pytest.mark.parametrize(
    ("host", "path", "status"), [("evil.example:80", "/", 403), ("", "/events", 403), ("localhost", "/nothing", 404)]
)
def test_nobody_else_is_answered(host: str, path: str, status: int) -> None:
    with Watching(episodes=None) as watching:
        assert watching.address.startswith("http://127.0.0.1:")
        request = urllib.request.Request(watching.address.rstrip("/") + path, headers={"Host": host})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=30)
        assert refused.value.code == status
        refused.value.close()


def test_a_page_that_comes_later_sees_which_episode_it_is() -> None:
    watching = Watching(episodes=6, speed=1.0)
    early = watching.messages()
    assert next(early)["kind"] == "begin"
    late = watching.messages()
    assert next(late)["kind"] == "begin"
    assert sum(message["kind"] == "end" for message in late) >= 5
    early.close()
    assert watching.ends()


def test_a_port_that_is_taken_is_refused() -> None:
    with Watching(episodes=None) as watching, scene_of(Counting(3)) as scene:
        port = int(watching.address.rstrip("/").rpartition(":")[2])
        with pytest.raises(RunError, match=rf"port {port} can't be used: Address already"):
            watch(scene, lambda: Watched(Half(), ""), seed=0, episodes=1, speed=1.0, port=port, on_ready=print)


def test_a_page_that_has_fallen_behind_goes_on_with_the_episode_that_is_running() -> None:
    audience = Audience("begin")
    page = audience.join()
    audience.send({"kind": "begin", "number": 1})
    for step in range(WAITING + 5):
        audience.send({"kind": "step", "step": step})
    audience.send({"kind": "begin", "number": 2})
    audience.send({"kind": "step", "step": 0})
    waiting = [json.loads(page.get_nowait()) for _ in range(page.qsize())]
    assert waiting[0] == {"kind": "begin", "number": 1}
    assert waiting[-2:] == [{"kind": "begin", "number": 2}, {"kind": "step", "step": 0}]
    assert len(waiting) < WAITING
    for step in range(2 * WAITING):
        audience.send({"kind": "step", "step": step})
    audience.end()
    last = [page.get_nowait() for _ in range(page.qsize())]
    assert json.loads(last[0]) == {"kind": "begin", "number": 2}
    assert last[-1] is None


def test_pages_that_are_closed_at_once_say_nothing(capfd: pytest.CaptureFixture) -> None:
    with Watching(episodes=None) as watching:
        port = int(watching.address.rstrip("/").rpartition(":")[2])
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.sendall(b"GET / HT")
        with urllib.request.urlopen(watching.address, timeout=30) as answer:
            assert answer.status == 200
    assert "Traceback" not in capfd.readouterr().err
