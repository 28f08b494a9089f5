"""rejax's PPO on CartPole-v1 at the settings that klimb is compared with."""

from rejax import PPO


def cartpole(num_envs, num_steps, steps):
    """The algorithm, for `steps` environment steps in all."""
    algorithm = PPO.create(
        env="CartPole-v1",
        num_envs=num_envs,
        num_steps=num_steps,
        num_epochs=4,
        num_minibatches=4,
        learning_rate=3e-4,
        ent_coef=0.01,
        total_timesteps=steps,
        eval_freq=steps,
        skip_initial_evaluation=True,
        agent_kwargs={"activation": "tanh", "hidden_layer_sizes": (64, 64)},
    )
    # Only training is measured: the evaluation rejax runs at the end is replaced by nothing.
    return algorithm.replace(eval_callback=lambda algorithm, state, key: ())
