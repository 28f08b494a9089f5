"""CartPole-v1 solved: SB3's or SBX's PPO as rl-baselines3-zoo tuned it, the time to a mean return of 475.

Argument: sb3 | sbx. Prints "ready"; then every line on standard input is a seed, answered by one line of JSON: the
steps after which 20 deterministic episodes first averaged 475, and the seconds of training that took (evaluations
and compilation left out). Both are null if 100,000 steps were not enough.

SBX compiles anew for every model, so that training another one first does not help: each model trains for one
iteration, and starts over from its initial parameters and keys.
"""

import json
import sys
import time

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

if sys.argv[1] == "sb3":
    from stable_baselines3 import PPO
else:
    from sbx import PPO

TOTAL, EVERY, EPISODES, THRESHOLD = 100_000, 2048, 20, 475


class UntilSolved(BaseCallback):
    """Evaluates between iterations, with the clock stopped, and ends training once the threshold is reached."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.steps: int | None = None
        self.seconds = 0.0
        self._envs = make_vec_env("CartPole-v1", n_envs=EPISODES, seed=10_000 + seed)
        self._next = EVERY

    def _on_training_start(self) -> None:
        self._start = time.perf_counter()

    def _on_rollout_start(self) -> None:  # after the update with all steps so far
        self._evaluate()

    def _on_training_end(self) -> None:
        self._next = min(self._next, self.num_timesteps)  # the last update has not been evaluated
        self._evaluate()

    def _on_step(self) -> bool:
        return self.steps is None

    def _evaluate(self) -> None:
        if self.steps is not None or self.num_timesteps < self._next:
            return
        self.seconds += time.perf_counter() - self._start
        self._next += EVERY
        mean, _ = evaluate_policy(self.model, self._envs, n_eval_episodes=EPISODES, deterministic=True, warn=False)
        if mean >= THRESHOLD:
            self.steps = self.num_timesteps
        self._start = time.perf_counter()


def make(seed: int) -> PPO:
    """A model that has done nothing yet, compiled."""
    model = PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=8, seed=seed),
        n_steps=32,
        batch_size=256,
        gae_lambda=0.8,
        gamma=0.98,
        n_epochs=20,
        ent_coef=0.0,
        learning_rate=lambda remaining: 0.001 * remaining,
        clip_range=lambda remaining: 0.2 * remaining,
        device="cpu",
        seed=seed,
    )
    if sys.argv[1] == "sbx":
        policy = model.policy
        initial = model.key, policy.key, policy.noise_key, policy.actor_state, policy.vf_state
        model.learn(8 * 32)
        model.set_random_seed(seed)
        model.key, policy.key, policy.noise_key, policy.actor_state, policy.vf_state = initial
    return model


make(0).learn(EVERY)
print("ready", flush=True)
for line in sys.stdin:
    seed = int(line)
    callback = UntilSolved(seed)
    model = make(seed)
    model.learn(TOTAL, callback=callback)
    seconds = None if callback.steps is None else callback.seconds
    print(json.dumps({"seed": seed, "steps": callback.steps, "seconds": seconds}), flush=True)
