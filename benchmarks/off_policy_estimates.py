"""How far estimates of a return are from it: `make bench-off-policy`.

Policies of TRPO on CartPole-v1 after 3, 4 and 5 iterations. The first makes the episodes, 100 times 1,000 of them; the
returns of the two others are estimated from each of these, and measured in 50,000 episodes of their own. The share of
intervals that contain the return is to be compared with their level, 95 %.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import klimb
from klimb.estimate.off_policy_evaluation import MIN_ESS
from results_file import write_results

REPEATS, EPISODES, RESAMPLES, TRUE_EPISODES = 100, 1000, 500, 50_000
STEPS = 2048
"""Of an iteration."""


def policy_after(iterations: int) -> klimb.NetworkPolicy:
    return klimb.train("CartPole-v1", klimb.TRPO(), env_steps=iterations * STEPS).policy


def compare(behaviour: klimb.NetworkPolicy, policy: klimb.NetworkPolicy) -> dict[str, Any]:
    """The return of a policy, and what its estimates are from one set of episodes to the next."""
    true = klimb.evaluate(policy, "CartPole-v1", episodes=TRUE_EPISODES, seed=11, deterministic=False)
    made = [
        klimb.estimate_return(
            policy,
            klimb.record(behaviour, "CartPole-v1", episodes=EPISODES, seed=100 + repeat),
            gamma=1.0,
            min_ess=0.0,
            resamples=RESAMPLES,
        )
        for repeat in range(REPEATS)
    ]
    rows = {}
    for name in made[0].estimates:
        intervals = [each.estimates[name] for each in made]
        values = np.array([interval.value for interval in intervals])
        covered = np.mean([interval.low <= true.mean <= interval.high for interval in intervals])
        rows[name] = {"mean": values.mean(), "deviation": values.std(ddof=1), "covered": covered}
    ess = np.array([each.ess for each in made])
    return {
        "true": true.mean,
        "true_standard_error": true.standard_error,
        "behaviour": np.mean([each.behaviour.value for each in made]),
        "ess": {"median": np.median(ess), "lowest": ess.min(), "highest": ess.max()},
        "refused": np.mean(ess < MIN_ESS),
        "estimates": rows,
    }


def main() -> None:
    klimb.use_all_cores()
    behaviour = policy_after(3)
    results = {f"iteration {k}": compare(behaviour, policy_after(k)) for k in (4, 5)}
    plain = {name: as_floats(result) for name, result in results.items()}
    for name, result in plain.items():
        print(f"{name}: return {result['true']:.2f}, behaviour {result['behaviour']:.2f}, {result['ess']}")
        for estimator, row in result["estimates"].items():
            print(f"  {estimator:30}{row['mean']:10.2f} ± {row['deviation']:8.2f}   covered {row['covered']:.2f}")
    write_results("off_policy_estimates", repeats=REPEATS, episodes=EPISODES, results=plain)


def as_floats(tree: Any) -> Any:
    """Numbers of NumPy as those of Python."""
    if isinstance(tree, dict):
        return {name: as_floats(value) for name, value in tree.items()}
    return float(tree)


if __name__ == "__main__":
    main()
