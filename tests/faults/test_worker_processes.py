"""Worker processes: they end with the training, however it ends, and no sooner."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from klimb import processes
from klimb.collect.host.numpy_policy import NumpyPolicySpec
from klimb.collect.host.workers import Workers
from klimb.environments.adapters.gymnasium import GymnasiumEnvironment
from klimb.policies.action_spec import GaussianStyle
from klimb.policies.actions import Discrete
from klimb.policies.observations import BoxObservations

fault = pytest.mark.fault
STEPS = 4
SECONDS = 10.0
"""Within which a worker has to end: a machine that is busy takes some of them."""

HANGING = '''
import ctypes, os, pathlib, time
import gymnasium
import numpy as np

class Hanging(gymnasium.Env):
    """Does what `what` says in its first step, after it has written its process number into the file `where`."""
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, what="nothing", where="worker"):
        self.what, self.where = what, where

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action):
        part = pathlib.Path(self.where + ".part")
        part.write_text(str(os.getpid()))
        part.rename(self.where)
        if self.what == "sleeps":
            time.sleep(600)
        if self.what == "holds the interpreter":
            ctypes.PyDLL(None).sleep(600)
        return np.zeros(2, np.float32), 1.0, False, False, {}

gymnasium.register("Hanging-v0", "hanging_environment:Hanging", disable_env_checker=True)
'''

TRAINER = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from test_worker_processes import hanging_workers, rollout
workers = hanging_workers(sys.argv[3], Path(sys.argv[4]))
rollout(workers)
"""


def hanging_workers(what: str, where: Path) -> Workers:
    """One worker with two copies of the environment of `hanging_environment`, without JAX."""
    importlib.import_module("hanging_environment")
    gymnasium.registry["Hanging-v0"].kwargs = {"what": what, "where": str(where)}
    environment = GymnasiumEnvironment.from_registry("hanging", "Hanging-v0", "hanging_environment")
    spec = NumpyPolicySpec((2, 2), "tanh", 10.0, Discrete(2), GaussianStyle())
    assert environment.env_spec is not None
    return Workers(
        environment.env_spec, spec, (STEPS, 1, 2), BoxObservations((2,)), Discrete(2), 1, lambda policy: policy
    )


def rollout(workers: Workers) -> np.ndarray:
    """The rewards of a rollout after a reset."""
    workers.reset(np.zeros((1, 2), np.uint32))
    workers.begin(np.ones((1, 10), np.float32), np.zeros((STEPS, 1, 2), np.float32))
    return workers.finish()[0].reward


@pytest.fixture
def hanging(tmp_path, monkeypatch):
    (tmp_path / "hanging_environment.py").write_text(HANGING)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    yield tmp_path
    gymnasium.registry.pop("Hanging-v0", None)
    sys.modules.pop("hanging_environment", None)


def is_running(process: int) -> bool:
    """Whether a process runs: one that has ended may still be in the table of processes, as a zombie."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    return holds()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends them on Linux only")
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(
            "sleeps",
            marks=[
                pytest.mark.slow,
                fault(
                    "the process of a training is killed (SIGKILL) while an environment hangs in a worker",
                    "the worker ends within seconds",
                ),
            ],
        ),
        pytest.param(
            "holds the interpreter",
            marks=fault(
                "the process of a training is killed (SIGKILL) while native code of an environment holds the "
                "interpreter of a worker",
                "the kernel ends the worker within seconds",
            ),
        ),
    ],
)
def test_a_worker_that_hangs_ends_with_its_training(hanging, what):
    where = hanging / "worker"
    words = [sys.executable, "-c", TRAINER, str(Path(__file__).parent), str(hanging), what, str(where)]
    trainer = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    assert within(60, lambda: where.exists() or trainer.poll() is not None)
    assert trainer.poll() is None, trainer.communicate()[1]
    worker = int(where.read_text())
    assert is_running(worker)
    trainer.kill()
    trainer.communicate()
    try:
        assert within(SECONDS, lambda: not is_running(worker))
    finally:
        if is_running(worker):
            os.kill(worker, signal.SIGKILL)


@fault(
    "the process of a training is killed while a worker hangs, on a system whose kernel does not end workers",
    "the worker notices, and ends within seconds",
)
def test_a_worker_that_the_kernel_does_not_end():
    child = (
        "import os, time; from klimb import processes; processes._kernel_ends_it = lambda: False; "
        "processes.end_with(os.getppid()); print(os.getpid(), flush=True); time.sleep(600)"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    # stderr of its own, because the one of pytest would be held open.
    started = subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert started.stdout is not None
    worker = int(started.stdout.readline())
    started.kill()
    started.wait()
    started.stdout.close()
    try:
        assert within(SECONDS, lambda: not is_running(worker))
    finally:
        if is_running(worker):
            os.kill(worker, signal.SIGKILL)


@fault("the process of a training is killed before its worker has begun", "the worker ends at once")
def test_a_worker_whose_training_ended_before():
    code = "from klimb.processes import end_with; end_with(2**22 + 1); print('still here')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")


@fault(
    "the thread that started the worker processes ends, and another one trains on",
    "the workers go on with it: they end with the process",
)
def test_workers_outlive_the_thread_that_started_them(hanging):
    made: list[Workers] = []
    rewards: list[np.ndarray] = []

    def work():
        made.append(hanging_workers("nothing", hanging / "worker"))
        # Once it has answered, it has told the kernel with whom it ends.
        rewards.append(rollout(made[0]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (workers,) = made
    try:
        time.sleep(0.2)
        rewards.append(rollout(workers))
        np.testing.assert_array_equal(rewards, np.ones((2, STEPS, 1, 2)))
        assert workers._losses == [0]
    finally:
        workers.close()


TRAINING_IN_A_THREAD = """
import threading
from klimb import TRPO, train
def work():
    run = train(
        "gymnasium:CartPole-v1", TRPO(), env_steps=32 * 20, num_envs=2, num_steps=16, workers=2, hidden=(4,),
        critic_epochs=1, critic_num_minibatches=1,
    )
    print(len(run.history), sum(record["env_faults"] for record in run.history))
threading.Thread(target=work).start()
"""


@pytest.mark.slow
@fault(
    "a training with worker processes runs in a thread, and the main thread has ended",
    "it is trained to the end without a fault",
)
def test_a_training_in_a_thread():
    done = subprocess.run([sys.executable, "-c", TRAINING_IN_A_THREAD], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["20", "0"], done.stderr


def test_a_process_that_can_not_be_started_says_so():
    with pytest.raises(FileNotFoundError):
        processes.start(["/no/such/program"])
    # The thread goes on.
    assert processes.start([sys.executable, "-c", ""]).wait() == 0


def test_a_fork_has_a_thread_of_its_own():
    """Processes can be started in a forked child too, which has none of the threads of its parent."""
    assert processes.start([sys.executable, "-c", ""]).wait() == 0
    code = (
        "import os, sys; from klimb import processes; quick = [sys.executable, '-c', '']\n"
        "assert processes.start(quick).wait() == 0\n"
        "child = os.fork()\n"
        "if child == 0: os._exit(processes.start(quick).wait())\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "0\n", done.stderr


@pytest.mark.parametrize("flags", [["-I"], ["-E"], ["-s"]])
def test_workers_are_as_isolated_as_this_process(flags):
    code = (
        f"import sys; sys.path[:] = {sys.path!r}; from klimb import processes; "
        "print(processes.command('klimb.processes', 'end_with')[1:-2])"
    )
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, timeout=60)
    assert flags[0] in done.stdout, done.stderr
