"""How far estimates of a return are from it: `make bench-off-policy`.

Policies of TRPO on CartPole-v1 after 3 and 4 iterations. The first makes the episodes, 50 times 1,000 of them; the
return of the second is estimated from each of these sets, and measured in 50,000 episodes of its own. The share of
intervals that contain the return is to be compared with their level, 95 %.
"""

from __future__ import annotations

import dataclasses

import numpy as np

import klimb
from results_file import write_results

REPEATS, EPISODES, RESAMPLES, TRUE_EPISODES = 50, 1000, 500, 50_000
STEPS = 2048
"""Of an iteration."""
COLUMNS = ("obs", "action", "log_prob", "reward", "terminated", "truncated", "next_obs")


def policy_after(iterations: int) -> klimb.NetworkPolicy:
    return klimb.train("CartPole-v1", klimb.TRPO(), env_steps=iterations * STEPS).policy


def sets_of(episodes: klimb.Demonstrations) -> list[klimb.Demonstrations]:
    """The same episodes in sets of `EPISODES`."""
    ends = np.cumsum(episodes.lengths)[EPISODES - 1 :: EPISODES]
    parts = {name: np.split(getattr(episodes, name), ends[:-1]) for name in COLUMNS}
    return [dataclasses.replace(episodes, **{name: parts[name][k] for name in COLUMNS}) for k in range(len(ends))]


def main() -> None:
    behaviour, policy = policy_after(3), policy_after(4)
    true = klimb.evaluate(policy, "CartPole-v1", episodes=TRUE_EPISODES, seed=11, deterministic=False)
    recorded = klimb.record(behaviour, "CartPole-v1", episodes=REPEATS * EPISODES, seed=100)
    made = [
        klimb.estimate_return(policy, episodes, gamma=1.0, min_ess=0.0, resamples=RESAMPLES)
        for episodes in sets_of(recorded)
    ]
    ess = np.array([each.ess for each in made])
    print(f"return {true.mean:.2f} ± {true.standard_error:.2f}, behaviour {recorded.returns.mean():.2f}")
    print(f"effective episodes: {ess.min():.0f} to {ess.max():.0f}, median {np.median(ess):.0f}")
    rows = {}
    for name in made[0].estimates:
        intervals = [each.estimates[name] for each in made]
        values = np.array([interval.value for interval in intervals])
        covered = float(np.mean([interval.low <= true.mean <= interval.high for interval in intervals]))
        rows[name] = {"mean": float(values.mean()), "deviation": float(values.std(ddof=1)), "covered": covered}
        print(f"  {name:30}{values.mean():10.2f} ± {values.std(ddof=1):8.2f}   covered {covered:.2f}")
    write_results(
        "off_policy_estimates",
        repeats=REPEATS,
        episodes=EPISODES,
        resamples=RESAMPLES,
        true={"mean": true.mean, "standard_error": true.standard_error},
        behaviour=float(recorded.returns.mean()),
        effective_episodes={"median": float(np.median(ess)), "lowest": float(ess.min()), "highest": float(ess.max())},
        estimates=rows,
    )


if __name__ == "__main__":
    main()
