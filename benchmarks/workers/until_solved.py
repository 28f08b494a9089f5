"""The protocol of workers that train until a task is solved, and the clock that they share.

A worker's argument is JSON: the goal (`Goal`), and what else it needs. It prints "ready", and then answers every line
on standard input, a seed, by one line of JSON: the environment steps and the seconds of training when the mean return
of deterministic episodes first reached the threshold, both null where a limit came first, and every evaluation.

The clock runs while a contender trains. It stands still while it is made, compiled and evaluated.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Goal:
    """What is to be reached, and the limits.

    threshold: of the mean return of `episodes` deterministic episodes. every: environment steps from one evaluation to
    the next. max_steps, max_seconds: of training, after which a seed counts as not solved.
    """

    env: str
    threshold: float
    episodes: int
    every: int
    max_steps: int
    max_seconds: float


class Clock:
    """The time and the evaluations of one seed's training.

    goal: of the task. evaluate: the mean return of the policy as it is now; the clock stands still meanwhile.
    """

    def __init__(self, goal: Goal, evaluate: Callable[[], float]) -> None:
        self._goal, self._evaluate = goal, evaluate
        self._next = goal.every
        self.seconds, self.steps, self.solved = 0.0, 0, False
        self.curve: list[tuple[int, float, float]] = []
        self.start()

    def start(self) -> None:
        """Let the clock run from here."""
        self._began = time.perf_counter()

    def over(self, steps: int) -> bool:
        """Whether training ends after so many environment steps; evaluates the policy where that is due."""
        self.seconds += time.perf_counter() - self._began
        self.steps = steps
        if steps >= self._next:
            self._next = (steps // self._goal.every + 1) * self._goal.every
            mean = self._evaluate()
            self.curve.append((steps, round(self.seconds, 5), round(mean, 2)))
            self.solved = mean >= self._goal.threshold
        self.start()
        return self.solved or steps >= self._goal.max_steps or self.seconds >= self._goal.max_seconds

    def answer(self, seed: int) -> str:
        """The line of this seed."""
        result = {"seconds": self.seconds, "steps": self.steps} if self.solved else {"seconds": None, "steps": None}
        used = {"used_seconds": self.seconds, "used_steps": self.steps}
        return json.dumps({"seed": seed, **result, **used, "curve": self.curve})


def task_and_goal() -> tuple[dict, Goal]:
    """The worker's argument, and the goal in it."""
    task = json.loads(sys.argv[1])
    return task, Goal(**{field.name: task[field.name] for field in fields(Goal)})


def serve(solve: Callable[[int], Clock]) -> None:
    """Answer seeds until standard input ends. solve: trains with a seed, and returns its clock."""
    print("ready", flush=True)
    for line in sys.stdin:
        seed = int(line)
        print(solve(seed).answer(seed), flush=True)
