"""A task solved by rejax's PPO; protocol and clock are those of until_solved.py.

The argument also has `settings`, the arguments of `PPO.create`. Training is one compiled program from one evaluation
to the next, compiled by a training with another seed, which comes first. An evaluation takes the mode of the actions
and normalises observations as training does.
"""

import jax
import jax.numpy as jnp
from rejax import PPO
from rejax.evaluate import evaluate
from until_solved import Clock, serve, task_and_goal

task, goal = task_and_goal()
settings = task["settings"]
BATCH = settings["num_envs"] * settings["num_steps"]
STEPS = -(-goal.every // BATCH) * BATCH
nothing = {"total_timesteps": STEPS, "eval_freq": STEPS, "skip_initial_evaluation": True}
algorithm = PPO.create(env=goal.env, **settings, **nothing)
algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: ())
initialize = jax.jit(algorithm.init_state)
train = jax.jit(lambda state: algorithm.train(train_state=state)[0])


@jax.jit
def mean_return(state, key):
    def act(obs, key):
        if algorithm.normalize_observations:
            obs = algorithm.normalize_obs(state.obs_rms_state, obs)
        mode = algorithm.actor.apply(state.actor_ts.params, obs[None], method="_action_dist").mode()[0]
        if algorithm.discrete:
            return mode
        return jnp.clip(mode, algorithm.action_space.low, algorithm.action_space.high)

    params = algorithm.env_params
    _, returns = evaluate(act, key, algorithm.env, params, goal.episodes, params.max_steps_in_episode)
    return returns.mean()


def solve(seed):
    state = jax.block_until_ready(initialize(jax.random.key(seed)))
    clock = Clock(goal, lambda: float(mean_return(state, jax.random.key(10_000 + seed))))
    steps = 0
    while not clock.over(steps):
        state = jax.block_until_ready(train(state))
        steps += STEPS
    return clock


state = initialize(jax.random.key(10**6))
for _ in range(3):  # a trained state may have other types than a fresh one, and then compiles again
    state = train(state)
mean_return(state, jax.random.key(0)).block_until_ready()
serve(solve)
