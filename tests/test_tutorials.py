"""The tutorials as people run them: as notebooks, in a kernel of Jupyter. And what klimb is in a notebook."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path

import nbclient
import nbformat
import pytest

import tutorials

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem: path for path in tutorials.scripts(ROOT)}
LONG = {"from_reinforce_to_trpo"}
LEAVES = {
    "sweep_and_compare": {"runs", "comparison.pdf", "sweep.png"},
    "demonstrations_to_onnx": {"runs", "demonstrations.safetensors", "pendulum.onnx"},
}
"""What a tutorial leaves in the current directory."""


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """Runs cells in a kernel of their own, in an empty directory. The kernel ends with the test."""
    cache = os.environ.get("KLIMB_TEST_CACHE", str(ROOT / ".cache" / "jax"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", cache)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT / 'src'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def text_of(cell) -> str:
    """What a cell has printed and shown."""
    shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])]
    return "".join(shown)


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_tutorial_is_a_script_and_a_notebook(name):
    ast.parse(SCRIPTS[name].read_text())
    made = tutorials.notebook(SCRIPTS[name])
    nbformat.validate(made)
    assert made.cells[0].source.startswith("# ")
    assert not any(cell.get("outputs") for cell in made.cells)
    assert tutorials.notebook_text(SCRIPTS[name]) == tutorials.notebook_text(SCRIPTS[name])
    page = tutorials.page(SCRIPTS[name])
    assert page.startswith("# ")
    assert f"({name}.ipynb)" in page
    assert "# %%" not in page


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param(x, marks=[pytest.mark.long] if x in LONG else []) for x in SCRIPTS])
def test_a_tutorial_runs_as_a_notebook(name, kernel):
    made = tutorials.notebook(SCRIPTS[name])
    nbclient.NotebookClient(made, timeout=170, kernel_name="python3").execute()
    assert {path.name for path in kernel.iterdir()} == LEAVES.get(name, set())
    for cell in made.cells:
        assert not any(output.output_type == "error" for output in cell.get("outputs", []))


CELLS = [
    """
import os, subprocess
import klimb

def children():
    listed = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "comm="], capture_output=True, text=True)
    return [name for name in listed.stdout.split() if name != "ps"]

before = children()
""",
    # Two trainings in one process, one with worker processes; the environment is MuJoCo's.
    """
first = klimb.train("CartPole-v1", klimb.TRPO(), env_steps=2_048, num_envs=2, num_steps=64, progress=True)
second = klimb.train(
    "gymnasium:InvertedPendulum-v5", klimb.PPO(), env_steps=512, num_envs=2, num_steps=32, workers=1, progress=True
)
print(len(first.history), len(second.history))
""",
    "started = True\nprint('ready', flush=True)",
    """
try:
    klimb.train("CartPole-v1", klimb.TRPO(), env_steps=10**9, num_envs=2, num_steps=64)
except klimb.Interrupted as interrupted:
    kept = interrupted.runs[0]
    print(type(kept.policy).__name__, len(kept.history) > 0)
""",
    """
third = klimb.train("CartPole-v1", klimb.TRPO(), env_steps=256, num_envs=2, num_steps=64)
print(len(third.history), children() == before, os.listdir("."))
""",
]


@pytest.mark.slow
def test_a_notebook_is_interrupted_and_goes_on(kernel):
    """The stop button keeps what was trained; no process and no file is left; progress is shown in place."""
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    client = nbclient.NotebookClient(made, timeout=170, kernel_name="python3")

    pressing = []

    def press(cell, cell_index) -> None:
        """Stop the long training once it has run for a while."""
        if cell_index == 3:
            code = "import os, signal, sys, time; time.sleep(8); os.kill(int(sys.argv[1]), signal.SIGINT)"
            pressing.append(subprocess.Popen([sys.executable, "-c", code, str(client.km.provisioner.pid)]))

    client.on_cell_execute = press
    began = time.monotonic()
    client.execute()
    assert pressing[0].wait(10) == 0
    assert time.monotonic() - began < 150
    _, trained, _, stopped, last = made.cells
    assert text_of(trained).rstrip().endswith("16 8")
    assert any(output.output_type == "display_data" for output in trained.outputs), "the panel"
    assert text_of(stopped).strip() == "NetworkPolicy True"
    assert text_of(last).strip() == "2 True []"
