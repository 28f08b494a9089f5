"""Seeds of host environments, and of copies that are restarted."""

from __future__ import annotations

import itertools

import numpy as np

from klimb.environments.seeds import environment_seeds, restart_seed


def test_neighbouring_trainings_iterations_and_restarts_share_no_seed():
    seeds = [environment_seeds(seed, iteration, 64) for seed, iteration in itertools.product(range(8), range(8))]
    restarted = [restart_seed(int(seed)) for seed in np.concatenate(seeds)]
    again = [restart_seed(seed) for seed in restarted]
    assert len({*np.concatenate(seeds).tolist(), *restarted, *again}) == 3 * 8 * 8 * 64


def test_another_number_of_environments_leaves_the_first_ones_seeds():
    np.testing.assert_array_equal(environment_seeds(3, 7, 4), environment_seeds(3, 7, 9)[:4])
