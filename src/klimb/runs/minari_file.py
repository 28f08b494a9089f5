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
# HDF5's numbers of its own filters, and of LZF, which h5py brings; a plugin would be code.
_FILTERS = {1, 2, 3, 4, 5, 6, 32000}


class Episode(NamedTuple):
    """T steps. observations: the one before the first step too."""

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray


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


def episodes(folder: Path, count: int, obs: tuple[int, ...], action: tuple[int, ...]) -> Iterator[Episode]:
    """The episodes of a dataset, in order.

    folder: with its files. count: how many it has. obs, action: shapes of an observation and an action.
    Raises ValueError before anything is read where the arrays are no numbers, have other shapes, are stored elsewhere
    than in the dataset's file, or are too large; OSError and h5py's errors where the file is damaged.
    """
    import h5py

    path = folder / FILE_NAME
    require_regular(path)
    with h5py.File(path, "r") as file:
        total = 0
        for number in range(count):
            total += sum(_bytes(array) for array in _arrays(h5py, file, number, obs, action))
            if total > MAX_BYTES:
                raise ValueError(
                    f"its first {number + 1} episodes are {total} bytes when they are unpacked, from a file of "
                    f"{path.stat().st_size}; klimb reads at most {MAX_BYTES} of all {count}"
                )
        for number in range(count):
            yield Episode(*(array[()] for array in _arrays(h5py, file, number, obs, action)))


def _arrays(h5py: Any, file: Any, number: int, obs: tuple[int, ...], action: tuple[int, ...]) -> list[Any]:
    """The arrays of an episode, in the order of `Episode`, without reading them."""
    name = f"episode_{number}"
    _require_link(h5py, file, name, name)
    group = file[name]
    arrays = [_array(h5py, group, column, f"{name}/{column}") for column in Episode._fields]
    rewards = Episode(*arrays).rewards.shape
    if len(rewards) != 1:
        raise ValueError(f"{name}/rewards has the shape {shown(list(rewards))}; it has to be one number per step")
    (steps,) = rewards
    shapes = ((steps + 1, *obs), (steps, *action), rewards, rewards, rewards)
    for column, array, shape in zip(Episode._fields, arrays, shapes, strict=True):
        if array.shape != shape:
            raise ValueError(
                f"{name}/{column} has the shape {shown(list(array.shape))} where {shown(list(shape))} is expected"
            )
    return arrays


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
