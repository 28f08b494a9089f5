"""A task solved by SB3's PPO, sb3-contrib's TRPO or SBX's PPO; protocol and clock are those of until_solved.py.

The argument also has `library` (sb3, sb3-contrib or sbx) and `settings` as rl-baselines3-zoo writes them: `n_envs` and
`normalize` beside the arguments of the algorithm; `lin_0.1` decreases from 0.1 to 0 over the largest number of steps.
Environments named envpool:ID are stepped by EnvPool, others by Gymnasium in this process, as in the zoo.

SBX compiles anew for every model, so that training another one first does not help: each model trains for one
iteration, and starts over from its initial parameters, keys and statistics.
"""

from copy import deepcopy

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize
from until_solved import Clock, serve, task_and_goal

task, goal = task_and_goal()
match task["library"]:
    case "sb3":
        from stable_baselines3 import PPO as Algorithm
        from torch.nn import ReLU as Relu
    case "sb3-contrib":
        from sb3_contrib import TRPO as Algorithm
        from torch.nn import ReLU as Relu
    case "sbx":
        from flax.linen import relu as Relu
        from sbx import PPO as Algorithm


def decreasing(value):
    """A schedule for what the zoo writes as lin_VALUE."""
    if not isinstance(value, str):
        return value
    first = float(value.removeprefix("lin_"))
    return lambda remaining: first * remaining


settings = {name: decreasing(value) for name, value in task["settings"].items()}
NUM_ENVS, NORMALIZED = settings.pop("n_envs"), settings.pop("normalize", False)
ITERATION = NUM_ENVS * settings["n_steps"]
if settings.get("policy_kwargs", {}).get("activation_fn") == "relu":
    settings["policy_kwargs"]["activation_fn"] = Relu


def environments(count, seed):
    if goal.env.startswith("envpool:"):
        from envpool_for_sb3 import EnvPoolVec

        return EnvPoolVec(goal.env.removeprefix("envpool:"), count, seed)
    return make_vec_env(goal.env, n_envs=count, seed=seed)


class UntilSolved(BaseCallback):
    """Lets the clock look at every iteration, and ends training when it says so."""

    def __init__(self, seed):
        super().__init__()
        self._envs, self._over = environments(goal.episodes, 10_000 + seed), False
        if NORMALIZED:
            self._envs = VecNormalize(self._envs, training=False, norm_reward=False)
        self.clock = Clock(goal, self._mean_return)

    def _on_training_start(self):
        self.clock.start()

    def _on_rollout_start(self):  # after the update with all steps so far
        self._look()

    def _on_training_end(self):  # the last update has not been looked at
        self._look()

    def _on_step(self):
        return not self._over

    def _look(self):
        self._over = self._over or self.clock.over(self.num_timesteps)

    def _mean_return(self):
        if NORMALIZED:
            self._envs.obs_rms = self.training_env.obs_rms
        mean, _ = evaluate_policy(self.model, self._envs, n_eval_episodes=goal.episodes, deterministic=True, warn=False)
        return float(mean)


def make(seed):
    """A model that has learned nothing yet, compiled."""
    envs = environments(NUM_ENVS, seed)
    if NORMALIZED:
        envs = VecNormalize(envs, gamma=settings.get("gamma", 0.99))
    model = Algorithm("MlpPolicy", envs, device="cpu", seed=seed, **deepcopy(settings))
    if task["library"] == "sbx":
        policy = model.policy
        initial = model.key, policy.key, policy.noise_key, policy.actor_state, policy.vf_state
        statistics = deepcopy((envs.obs_rms, envs.ret_rms)) if NORMALIZED else None
        model.learn(ITERATION)
        model.set_random_seed(seed)
        model.key, policy.key, policy.noise_key, policy.actor_state, policy.vf_state = initial
        if NORMALIZED:
            envs.obs_rms, envs.ret_rms = statistics
    return model


def solve(seed):
    callback, model = UntilSolved(seed), make(seed)
    model.learn(goal.max_steps, callback=callback)
    model.env.close()
    callback._envs.close()
    return callback.clock


make(10**6).learn(ITERATION)
serve(solve)
