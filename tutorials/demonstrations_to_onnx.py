# %% [markdown]
# # From demonstrations to a robot's file
#
# Somebody else's episodes, a policy that imitates them, reinforcement learning that goes on from there, and one file
# for a robot on which neither klimb nor JAX is installed. On Colab, run `%pip install 'klimb[onnx]'` first.

# %%
import gymnasium
import numpy as np

import klimb

# %% [markdown]
# ## Demonstrations
#
# Here a policy makes them, after a short training. klimb also reads Minari's datasets, `minari:NAME`.

# %%
teacher = klimb.train("Pendulum-v1", klimb.TRPO(), env_steps=150_000, num_envs=32)
demonstrations = klimb.record(teacher.policy, "Pendulum-v1", episodes=20)
klimb.save_demonstrations(demonstrations, "demonstrations.safetensors")
print(f"{demonstrations.num_episodes} episodes, mean return {demonstrations.returns.mean():.0f}")

# %% [markdown]
# ## Imitation
#
# Behaviour cloning makes the recorded actions probable. It needs no environment, and is no better than its teacher.

# %%
clone = klimb.train(
    "Pendulum-v1", klimb.BehaviourCloning(), demonstrations="demonstrations.safetensors", run_dir="runs/clone"
)
cloned = klimb.evaluate(clone.policy, "Pendulum-v1", episodes=50)
print(f"the clone: {cloned.mean:.0f} ± {cloned.standard_error:.0f}")

# %% [markdown]
# ## Going on with reinforcement learning
#
# `init_from` starts from the clone. During the first iterations only the critic learns, so that no step is taken with
# advantages that mean nothing yet.

# %%
tuned = klimb.train("Pendulum-v1", klimb.TRPO(), init_from="runs/clone", env_steps=150_000, num_envs=32)
final = klimb.evaluate(tuned.policy, "Pendulum-v1", episodes=50)
print(f"after {tuned.history[-1]['env_steps']:,} steps: {final.mean:.0f} ± {final.standard_error:.0f}")
assert final.mean > -900  # random actions have about -1200

# %% [markdown]
# ## One file for the robot
#
# The export runs the file on 1,000 observations and compares it with the policy before it is written.

# %%
exported = klimb.export_policy(tuned.policy, "pendulum.onnx", about={"env": "Pendulum-v1"})
print(exported.inputs, exported.outputs, f"difference {exported.agreement.difference:.1e}")

# %% [markdown]
# On the robot there is onnxruntime alone. Gymnasium's Pendulum stands for its sensors and motors:

# %%
import onnxruntime

session = onnxruntime.InferenceSession("pendulum.onnx")
env = gymnasium.make("Pendulum-v1")
returns = []
for seed in range(10):
    obs, _ = env.reset(seed=seed)
    total, truncated = 0.0, False
    while not truncated:
        (action,) = session.run(["action"], {"obs": obs.astype(np.float32)[None]})
        obs, reward, _, truncated, _ = env.step(action[0])
        total += float(reward)
    returns.append(total)
env.close()
print(f"with onnxruntime: {np.mean(returns):.0f}")
assert np.mean(returns) > -900

# %% [markdown]
# Without onnxruntime: `klimb.export_policy(policy, "pendulum.py")` writes a file of Python that needs NumPy alone.
