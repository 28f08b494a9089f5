# %% [markdown]
# # The first run
#
# In two minutes: train a policy that balances a pole, see what every step did, watch it, and stop a training without
# losing it.
#
# Where klimb is not installed yet, such as on Colab, run `%pip install 'klimb[video]'` first, and let pip replace the
# JAX that is there if it wants to.

# %%
import klimb

run = klimb.train("CartPole-v1", klimb.TRPO(), env_steps=60_000, progress=True)
run

# %% [markdown]
# klimb has used its own CartPole, which is compiled together with the training. With `gymnasium:` in front of a name
# it takes Gymnasium's environments.
#
# How good is the policy? The longest episode has 500 steps, and each is worth 1.

# %%
evaluation = klimb.evaluate(run.policy, "CartPole-v1", episodes=20)
print(f"mean return {evaluation.mean:.1f} ± {evaluation.standard_error:.1f}")
assert evaluation.mean > 400

# %% [markdown]
# Every iteration has left a record: the return, how far the step moved the policy (its limit was 0.01), and whether
# it was taken.

# %%
import matplotlib.pyplot as plt

for record in run.history[::7]:
    print(record["iteration"], round(record["episode_return"], 1), f"KL {record['kl_old_new']:.4f}", record["status"])

plt.plot([record["env_steps"] for record in run.history], [record["episode_return"] for record in run.history])
plt.xlabel("environment steps")
plt.ylabel("return")
plt.show()

# %% [markdown]
# An episode as a film, which a notebook shows:

# %%
klimb.film(run, "CartPole-v1")

# %% [markdown]
# ## Stopping a training
#
# Ctrl-C, or the stop button of the notebook, ends a training after its newest iteration, and the exception holds what
# has been trained until then. Here a callback presses it:

# %%
import os
import signal


def press_stop(training):
    if training.iteration >= 5:
        os.kill(os.getpid(), signal.SIGINT)


try:
    klimb.train("CartPole-v1", klimb.PPO(), env_steps=1_000_000, callback=press_stop)
except klimb.Interrupted as interrupted:
    (stopped,) = interrupted.runs
    print(stopped)

# %% [markdown]
# With `run_dir="runs/first"` a training is also kept as files: `klimb.resume("runs/first")` continues it, and `klimb
# report runs/first` on the command line writes a page about it.
#
# Next: from REINFORCE to TRPO, one idea after the other.
