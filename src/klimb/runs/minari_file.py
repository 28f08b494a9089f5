"""The steps of a Minari dataset in HDF5: what klimb learns from and nothing else, up to a stated number of bytes.

HDF5 is compressed, and may point to other files: what a dataset unpacks to, and whether all of it is in its own file,
is looked up before anything is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from klimb.errors import shown
from klimb.files import TooLarge, exists, require_regular

MAX_METADATA = 2**24
"""Largest description of a dataset that is read, in bytes."""
MAX_EPISODES = 2**20
"""Most episodes that are read."""
MAX_BYTES = 2**32
"""Most bytes that all arrays that are read may take when they are unpacked."""
FILE_NAME = "main_data.hdf5"
PREFIX = "minari:"
"""What stands before the ID of a dataset."""
LOG_PROB, SAMPLED_ACTION = "action_log_prob", "sampled_action"
"""In the `infos` of an episode: log π(a|s) of every step; the policy's actions, flat, before they were clipped."""
ENVIRONMENT = "klimb_environment"
"""In the metadata: the environment by the name that klimb makes it by."""
# HDF5's numbers of its own filters, and of LZF, which h5py brings; a plugin would be code.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}


class Episode(NamedTuple):
    """T steps.

    observations: the one before the first step too. actions: as the action space has them; None where there are
    sampled_actions, which are the policy's own, flat and not clipped. log_probs: of the actions; None where they are
    not known.
    """

    observations: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    actions: np.ndarray | None = None
    sampled_actions: np.ndarray | None = None
    log_probs: np.ndarray | None = None


def require_limited(metadata: Path) -> None:
    """OSError or TooLarge for a description that can't be read, or is too large. metadata: the file."""
    if exists(metadata):
        require_regular(metadata)
        size = metadata.stat().st_size
        if size > MAX_METADATA:
            raise TooLarge(f"its metadata have {size} bytes; klimb reads at most {MAX_METADATA}")


def require_number_of_episodes(count: Any) -> int:
    """The number of episodes that a description claims. ValueError for anything that is none, or too large.

    count: as it stands there.
    """
    if type(count) is not int or not 0 <= count <= MAX_EPISODES:
        raise ValueError(f"its metadata claim {shown(count, 40)} episodes; klimb reads at most {MAX_EPISODES}")
    return count


def episodes(
    folder: Path, count: int, obs: tuple[int, ...], action: tuple[int, ...] | None, sampled: tuple[int, ...]
) -> Iterator[Episode]:
    """The episodes of a dataset, in order.

    folder: with its files. count: how many it has. obs: the shape of an observation. action: that of an action of the
    space, None where an action is no array. sampled: that of an action as klimb's arrays hold it.
    Raises ValueError before anything is read where the arrays are no numbers, have other shapes, are stored elsewhere
    than in the dataset's file, or are too large; OSError and h5py's errors where the file is damaged.
    """
    import h5py

    path = folder / FILE_NAME
    require_regular(path)
    with h5py.File(path, "r") as file:
        total = 0
        for number in range(count):
            total += sum(_bytes(array) for array in _arrays(h5py, file, number, obs, action, sampled).values())
            if total > MAX_BYTES:
                raise ValueError(
                    f"its first {number + 1} episodes are {total} bytes when they are unpacked, from a file of "
                    f"{path.stat().st_size}; klimb reads at most {MAX_BYTES} of all {count}"
                )
        for number in range(count):
            arrays = _arrays(h5py, file, number, obs, action, sampled)
            episode = Episode(**{column: array[()] for column, array in arrays.items()})
            log_probs = episode.log_probs
            # Minari's collector keeps the infos of the reset too, as the first ones.
            yield episode if log_probs is None else episode._replace(log_probs=log_probs[-len(episode.rewards) :])


def _arrays(
    h5py: Any, file: Any, number: int, obs: tuple[int, ...], action: tuple[int, ...] | None, sampled: tuple[int, ...]
) -> dict[str, Any]:
    """The arrays of an episode by the fields of `Episode`, without reading them."""
    name = f"episode_{number}"
    _require_link(h5py, file, name, name)
    group = file[name]
    rewards = _array(h5py, group, "rewards", f"{name}/rewards")
    if len(rewards.shape) != 1:
        raise ValueError(f"{name}/rewards has the shape {shown(list(rewards.shape))}; it has to be one number per step")
    (steps,) = rewards.shape
    expected = {"observations": (steps + 1, *obs), "terminations": (steps,), "truncations": (steps,)}
    infos = _infos(h5py, group, name)
    if _has(infos, SAMPLED_ACTION):
        expected[f"infos/{SAMPLED_ACTION}"] = (steps, *sampled)
    elif action is None:
        raise ValueError(f"{name} has no array of actions: the actions of this space are no arrays")
    else:
        expected["actions"] = (steps, *action)
    if _has(infos, LOG_PROB):
        expected[f"infos/{LOG_PROB}"] = (steps,)
    arrays = {"rewards": rewards}
    for path, shape in expected.items():
        column = path.rpartition("/")[2]
        array = _array(h5py, infos if "/" in path else group, column, f"{name}/{path}")
        after_reset = column == LOG_PROB and array.shape == (steps + 1,)
        if array.shape != shape and not after_reset:
            raise ValueError(
                f"{name}/{path} has the shape {shown(list(array.shape))} where {shown(list(shape))} is expected"
            )
        arrays[_FIELDS.get(column, column)] = array
    return arrays


_FIELDS = {LOG_PROB: "log_probs", SAMPLED_ACTION: "sampled_actions"}


def _infos(h5py: Any, group: Any, name: str) -> Any:
    """The group with the infos of an episode; None where there is none."""
    if not _has(group, "infos"):
        return None
    _require_link(h5py, group, "infos", f"{name}/infos")
    infos = group["infos"]
    return infos if isinstance(infos, h5py.Group) else None


def _has(group: Any, name: str) -> bool:
    """Whether a group, or None, has an entry of this name, of any kind; what it may point to is not opened."""
    return group is not None and group.get(name, getlink=True) is not None


def _array(h5py: Any, group: Any, column: str, name: str) -> Any:
    """A dataset of HDF5 that holds numbers, in this file. ValueError for everything else."""
    _require_link(h5py, group, column, name)
    array = group[column]
    if not isinstance(array, h5py.Dataset) or array.shape is None:
        raise ValueError(f"{name} is no array")
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name} holds {shown(str(array.dtype))}, which are no numbers")
    if array.external or array.is_virtual:
        raise ValueError(f"{name} is stored in other files, which klimb does not open")
    properties = array.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    if not set(filters) <= _FILTERS or len(set(filters)) < len(filters):
        raise ValueError(f"{name} is packed by the filters {shown(filters)}; klimb reads HDF5's own, each once")
    return array


def _require_link(h5py: Any, group: Any, name: str, full_name: str) -> None:
    """ValueError unless a group has an entry of this name itself, which is no link to another place or file."""
    # Only the link is looked at: `name in group` opens what it points to.
    link = group.get(name, getlink=True) if isinstance(group, h5py.Group) else None
    if link is None:
        raise ValueError(f"{full_name} is missing")
    if not isinstance(link, h5py.HardLink):
        raise ValueError(f"{full_name} is a link to another place, which klimb does not follow")


def _bytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize
