"""klimb beside its peers, on one machine, in turns: `make bench-speed`.

Every contender is a process of its own that compiles, runs once to warm up, and then answers "go" with steps per
second. Contenders take turns, so that whatever else the machine does hits all of them; the result is the ratio of
each turn's pair. A contender that does not answer in time is killed and reported, not waited for.
"""

from __future__ import annotations

import queue
import statistics
import subprocess
import sys
import threading
import venv
from dataclasses import dataclass
from pathlib import Path

from results_file import write_results

HERE = Path(__file__).parent
PEERS = HERE.parent / ".venv" / "peers"
TURNS = 15
PATIENCE = 300  # seconds for one answer, compilation included


@dataclass(frozen=True)
class Contender:
    """A worker script, the Python that runs it, and its arguments."""

    name: str
    python: Path
    script: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """One thing measured: klimb first, then the peer."""

    name: str
    klimb: Contender
    peer: Contender


def works() -> list[Work]:
    """What is measured. Iterations are chosen so that a turn takes about a second."""
    ours, theirs = Path(sys.executable), PEERS / "bin" / "python"
    return [
        Work(
            "CartPole-v1, PPO, 4 × 128, 4 epochs × 4 minibatches, 64×64, one seed, compiled",
            Contender("klimb", ours, "klimb_ppo.py", ("512",)),
            Contender("rejax 0.1.3", theirs, "rejax_ppo.py", ("512",)),
        )
    ]


class Worker:
    """A running contender."""

    def __init__(self, contender: Contender) -> None:
        command = [str(contender.python), str(HERE / "workers" / contender.script), *contender.arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._name = contender.name
        self._answer()

    def turn(self) -> float:
        """Steps per second of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._answer())

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def _answer(self) -> str:
        try:
            return self._lines.get(timeout=PATIENCE)
        except queue.Empty:
            self.stop()
            raise SystemExit(f"{self._name} did not answer within {PATIENCE} s") from None


def measure(work: Work) -> dict[str, object]:
    """Steps per second of both, turn by turn, and the ratios."""
    workers: list[Worker] = []
    try:
        for contender in (work.klimb, work.peer):
            workers.append(Worker(contender))
        turns = [[worker.turn() for worker in workers] for _ in range(TURNS)]
    finally:
        for worker in workers:
            worker.stop()
    ratios = [ours / theirs for ours, theirs in turns]
    return {
        "work": work.name,
        "klimb": statistics.median(ours for ours, _ in turns),
        work.peer.name: statistics.median(theirs for _, theirs in turns),
        "ratio": {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)},
        "turns": turns,
    }


def install_peers() -> None:
    """Make the peers' environment unless it is there."""
    if (PEERS / ".ready").exists():
        return
    venv.create(PEERS, with_pip=True)
    pip = [str(PEERS / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", str(HERE / "peers.txt")], check=True)
    (PEERS / ".ready").touch()


def main() -> None:
    install_peers()
    peers = [line for line in (HERE / "peers.txt").read_text().splitlines() if not line.startswith("#")]
    results = [measure(work) for work in works()]
    write_results("speed", peers=peers, results=results)
    for result in results:
        rates = ", ".join(f"{name} {rate:,.0f} steps/s" for name, rate in list(result.items())[1:3])
        ratio = result["ratio"]
        print(result["work"])
        print(f"  {rates}")
        print(
            f"  ratio: median {ratio['median']:.2f}, from {ratio['min']:.2f} to {ratio['max']:.2f} over {TURNS} turns"
        )


if __name__ == "__main__":
    main()
