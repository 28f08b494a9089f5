"""Recorded episodes as a new local Minari dataset, with the log-probs of their actions.

Beside what every Minari dataset has, the `infos` of each episode hold `action_log_prob`, one for each step, and where
the policy's action is not the environment's, `sampled_action`: flat, and before it was clipped to the bounds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from klimb._version import __version__
from klimb.collect.demonstrations import Demonstrations
from klimb.environments.host import HostEnvironment
from klimb.environments.registry import Environment
from klimb.errors import ConfigError, DemonstrationError, MissingExtra, RunError, one_line, shown
from klimb.files import exists, flush_directory, is_file, make_directory, make_new_directory
from klimb.runs.minari_file import ENVIRONMENT, LOG_PROB, PREFIX, SAMPLED_ACTION

ROOT = "MINARI_DATASETS_PATH"
"""Minari's environment variable for the folder of its datasets."""
REPLACED = ".replaced"
"""The dataset that a new one replaces, until that is in its place. No part of an ID begins with a dot."""


def require_new_dataset(source: str, *, overwrite: bool) -> str:
    """The ID in minari:ID, after it was found out that a dataset of this name can be written.

    source: minari:ID, as it was typed. overwrite: whether a dataset of this name may be replaced.

    Raises ConfigError for what is no ID, RunError for a dataset that exists already, and MissingExtra.
    """
    name = source.removeprefix(PREFIX)
    minari = _minari(source)
    try:
        minari.dataset.minari_dataset.parse_dataset_id(name)
        valid = source.startswith(PREFIX)
    except (ValueError, TypeError):
        valid = False
    if not valid:
        raise ConfigError(
            f"{shown(source)} names no Minari dataset: write minari:NAME-v0, or minari:FOLDER/NAME-v0, of letters, "
            "digits, - and _"
        )
    place = _place(minari, name)
    if exists(place) and not (overwrite and is_file(place / "data" / "metadata.json")):
        remedy = (
            "give --overwrite, or another name" if is_file(place / "data" / "metadata.json") else "give another name"
        )
        raise RunError(f"{one_line(place)} exists already; {remedy} with --to minari:NAME-v0")
    return name


def write_dataset(
    demonstrations: Demonstrations, name: str, environment: Environment, *, algorithm: str, overwrite: bool = False
) -> Path:
    """Write a dataset under a hidden name, then rename it: it is there as a whole or not at all. Returns its folder.

    demonstrations: what it is to hold. name: its ID, for which `require_new_dataset` raises nothing. environment: where
    they were recorded; the dataset names Gymnasium's environment of the same spaces if there is one, and holds the
    spaces in any case. algorithm: that trained the policy. overwrite: whether a dataset of this name may be replaced.

    Raises DemonstrationError when it can't be written.
    """
    minari = _minari(f"{PREFIX}{name}")
    root, place = _place(minari, ""), _place(minari, name)
    hidden = root / f".{uuid.uuid4().hex[:8]}.part"
    try:
        make_new_directory(hidden)
        with _datasets_in(hidden), warnings.catch_warnings():
            # Minari warns of all that a dataset could say about itself.
            warnings.simplefilter("ignore")
            _create(minari, demonstrations, name, environment, algorithm)
        _take_place(minari, hidden, name, overwrite)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise DemonstrationError(f"cannot write {one_line(place)}: {reason or one_line(error)}") from None
    finally:
        # What was to be replaced, where the new dataset did not get its place.
        if exists(hidden / REPLACED) and not exists(place):
            (hidden / REPLACED).rename(place)
        shutil.rmtree(hidden, ignore_errors=True)
    return place


def _take_place(minari: Any, hidden: Path, name: str, overwrite: bool) -> None:
    """Rename a dataset that is complete; one that it replaces goes where it was.

    hidden: the folder that it is in. name: its ID. overwrite: whether it may replace one.
    """
    place, namespace = _place(minari, name), minari.dataset.minari_dataset.parse_dataset_id(name)[0]
    if namespace is not None and namespace not in minari.namespace.list_local_namespaces():
        minari.namespace.create_namespace(namespace)
    make_directory(place.parent)
    if overwrite and exists(place):
        place.rename(hidden / REPLACED)
    (hidden / name).rename(place)
    flush_directory(place.parent)


def _create(minari: Any, demonstrations: Demonstrations, name: str, environment: Environment, algorithm: str) -> None:
    count, rows = demonstrations.num_episodes, len(demonstrations.reward)
    dataset = minari.create_dataset_from_buffers(
        name,
        [_buffer(minari, demonstrations, rows) for rows in _episodes(demonstrations)],
        env=_same_in_gymnasium(environment),
        observation_space=environment.observation_space,
        action_space=environment.action_space,
        algorithm_name=algorithm,
        description=f"{count} episodes, {rows} steps of {environment.id}, recorded by klimb {__version__}",
        data_format="hdf5",
        # Pictures in JPEG would not be the ones that the policy has seen.
        jpeg_encoding=False,
    )
    dataset.storage.update_metadata({ENVIRONMENT: demonstrations.environment})


def _episodes(demonstrations: Demonstrations) -> Iterator[slice]:
    """The rows of each episode."""
    ends = np.cumsum(demonstrations.lengths)
    for start, end in zip(ends - demonstrations.lengths, ends, strict=True):
        yield slice(int(start), int(end))


def _buffer(minari: Any, demonstrations: Demonstrations, rows: slice) -> Any:
    """An episode as Minari takes it. rows: of the episode."""
    actions, sampled = demonstrations.actions, demonstrations.action[rows]
    taken = actions.clip(sampled)
    own = actions.unflatten(taken)
    infos = {LOG_PROB: demonstrations.log_prob[rows].astype(np.float64)}
    if not isinstance(own, np.ndarray) or not np.array_equal(taken, sampled):
        infos[SAMPLED_ACTION] = sampled
    return minari.data_collector.EpisodeBuffer(
        observations=np.concatenate([demonstrations.obs[rows], demonstrations.next_obs[rows][-1:]]),
        actions=own,
        rewards=demonstrations.reward[rows],
        terminations=demonstrations.terminated[rows],
        truncations=demonstrations.truncated[rows],
        infos=infos,
    )


def _same_in_gymnasium(environment: Environment) -> gymnasium.Env | None:
    """Gymnasium's environment of the same id and the same spaces; None where there is none."""
    identifier = _identifier(environment)
    if identifier not in gymnasium.registry:
        return None
    try:
        made = gymnasium.make(identifier)
    except Exception:  # whatever it needs is not here
        return None
    made.close()
    same = made.observation_space.shape == environment.observation_space.shape
    return made if same and made.action_space == environment.action_space else None


def _identifier(environment: Environment) -> str | None:
    """The id of an environment in Gymnasium's registry; None of one that is not from there, or has wrappers."""
    if isinstance(environment, HostEnvironment):
        known = environment.env_spec
        return None if known is None or known["wrappers"] else EnvSpec.from_json(known["spec"]).id
    prefix, _, identifier = environment.id.partition(":")
    # klimb's own compiled environments with an id of Gymnasium's are the same ones.
    return identifier if prefix == "jax" else None


@contextlib.contextmanager
def _datasets_in(folder: Path) -> Iterator[None]:
    """Minari looks for its datasets in another folder."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT]
        else:
            os.environ[ROOT] = before


def _place(minari: Any, name: str) -> Path:
    return Path(minari.storage.datasets_root_dir.get_dataset_path(name))


def _minari(source: str) -> Any:
    """The module. MissingExtra without it. source: what it is needed for."""
    try:
        import h5py  # noqa: F401 — Minari asks for it in the middle of its work
        import minari
        import minari.dataset.minari_dataset
        import minari.namespace
        import minari.storage.datasets_root_dir
    except ImportError:
        raise MissingExtra(f"{one_line(source)} needs Minari: pip install 'klimb[offline]'") from None
    return minari
