# %% [markdown]
# # Sweep, compare, and a figure for a paper
#
# Is one setting better than another, or was it luck? Train both on several seeds, and compare with intervals. On
# Colab, run `%pip install klimb` first.

# %%
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np

import klimb


def command(words):
    """Run a command of klimb as in a terminal, and return what it prints."""
    line = [sys.executable, "-m", "klimb", *shlex.split(words)]
    return subprocess.run(line, check=True, capture_output=True, text=True).stdout


# %% [markdown]
# ## Two rules
#
# Five seeds of each, in one program.

# %%
for name, rule in {"trpo": klimb.TRPO(), "ppo": klimb.PPO()}.items():
    klimb.train("CartPole-v1", rule, num_seeds=5, env_steps=40_000, run_dir=f"runs/{name}")

# %%
print(command("compare runs/trpo runs/ppo"))

# %% [markdown]
# IQM is the mean of the middle half of the seeds, which one lucky seed does not move; the brackets are bootstrap
# intervals with a confidence of 95 %. Five seeds are few: the intervals say how few.
#
# The same as numbers, and as a figure in the format of a paper:

# %%
comparison = json.loads(command("compare runs/trpo runs/ppo -o comparison.pdf --overwrite --json"))
for algorithm in comparison["environments"][0]["algorithms"]:
    print(algorithm["algorithm"], algorithm["iqm"])

# %% [markdown]
# ## A sweep
#
# Every combination of some values, each a run of its own, in as few compiled programs as possible.

# %%
runs = klimb.sweep(
    "CartPole-v1",
    klimb.TRPO(),
    {"max_kl": [0.003, 0.01, 0.03]},
    num_seeds=3,
    env_steps=30_000,
    run_dir="runs/sweep",
)
for run in runs:
    # Of every seed; None where no episode ended in an iteration.
    last = np.array([record["episode_return"] for record in run.history[-5:]], float)
    print(run.config.rule.max_kl, np.nanmean(last, axis=0).round())
assert len(runs) == 3

# %%
print(command("compare runs/sweep -o sweep.png --overwrite"))

# %% [markdown]
# ## A search
#
# With more than two or three settings, let Optuna choose the next values (extra `tune`):
#
# ```
# klimb tune trpo CartPole-v1 --over max_kl:log:1e-3:1e-1 gamma:0.95:0.999 --trials 32
# ```
#
# ## What belongs beside the figure
#
# A run says what made it: the settings in `config.toml`, versions and machine in `provenance.json`.

# %%
print(Path("runs/trpo/config.toml").read_text()[:300])
assert Path("comparison.pdf").exists()
assert Path("sweep.png").exists()

# %% [markdown]
# Next: from demonstrations to a robot's file.
