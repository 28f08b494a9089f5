"""Stable-Baselines3's PPO, sb3-contrib's TRPO or SBX's PPO at their defaults, on DummyVecEnv.

Same protocol as klimb_training.py. Arguments: sb3-ppo | sb3-trpo | sbx-ppo | sb3-atari | sb3-recurrent | sb3-masked,
the id of the environment, the number of environments, steps of each a rollout, steps a turn. sb3-atari is PPO with
CnnPolicy, 4 epochs of minibatches of 256; sb3-recurrent is sb3-contrib's RecurrentPPO with LSTMs of 64 units;
sb3-masked its MaskablePPO, on Gymnasium's Taxi.
"""

import sys
import time

from stable_baselines3.common.env_util import make_vec_env

RULE, ENV = sys.argv[1:3]
NUM_ENVS, NUM_STEPS, STEPS = map(int, sys.argv[3:])
ITERATION = NUM_ENVS * NUM_STEPS
TURN = -(-STEPS // ITERATION) * ITERATION  # whole iterations

POLICY, OPTIONS = "MlpPolicy", {}
if RULE == "sb3-atari":
    import ale_py  # registers the games
    from stable_baselines3.common.env_util import make_atari_env
    from stable_baselines3.common.vec_env import VecFrameStack

    assert ale_py
    envs = VecFrameStack(make_atari_env(ENV, n_envs=NUM_ENVS, seed=0), 4)
    POLICY, OPTIONS = "CnnPolicy", {"n_epochs": 4, "batch_size": 256}
elif RULE == "sb3-masked":
    from sb3_contrib.common.wrappers import ActionMasker

    def allowed(env):
        return env.unwrapped.action_mask(env.unwrapped.s).astype(bool)

    envs = make_vec_env(
        ENV, n_envs=NUM_ENVS, seed=0, wrapper_class=ActionMasker, wrapper_kwargs={"action_mask_fn": allowed}
    )
else:
    envs = make_vec_env(ENV, n_envs=NUM_ENVS, seed=0)
match RULE:
    case "sb3-ppo" | "sb3-atari":
        from stable_baselines3 import PPO as Algorithm
    case "sb3-trpo":
        from sb3_contrib import TRPO as Algorithm
    case "sbx-ppo":
        from sbx import PPO as Algorithm
    case "sb3-recurrent":
        from sb3_contrib import RecurrentPPO as Algorithm

        POLICY, OPTIONS = "MlpLstmPolicy", {"policy_kwargs": {"lstm_hidden_size": 64}}
    case "sb3-masked":
        from sb3_contrib import MaskablePPO as Algorithm

model = Algorithm(POLICY, envs, n_steps=NUM_STEPS, device="cpu", seed=0, **OPTIONS)

model.learn(total_timesteps=ITERATION)
print("ready", flush=True)
for _ in sys.stdin:
    before = model.num_timesteps
    start = time.perf_counter()
    model.learn(total_timesteps=TURN, reset_num_timesteps=False)
    print((model.num_timesteps - before) / (time.perf_counter() - start), flush=True)
