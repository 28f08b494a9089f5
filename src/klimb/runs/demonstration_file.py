"""Demonstrations as one safetensors file with a checksum, or read from a local Minari dataset."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium.spaces
import numpy as np
from safetensors import SafetensorError

from klimb.collect.demonstrations import Demonstrations
from klimb.errors import DemonstrationError, MissingExtra, UnsupportedSpace, nearest, one_line, shown
from klimb.fields import MAX_NAME
from klimb.files import is_directory, is_file, make_directory, open_arrays, write_output
from klimb.policies.action_spec import ActionSpec
from klimb.policies.actions import action_spec, actions_from_json
from klimb.runs.arrays import as_file, check_checksum
from klimb.runs.minari_file import ENVIRONMENT, PREFIX, Episode, episodes, require_limited, require_number_of_episodes

FORMAT = "klimb-demonstrations-1"
FILE_NAME = "demonstrations.safetensors"
COLUMNS = ("obs", "action", "log_prob", "reward", "terminated", "truncated", "next_obs")
# safetensors' names of the types the columns have.
_TYPES = {"float32": "F32", "int32": "I32", "bool": "BOOL"}
_BYTES, _OBSERVED = "U8", ("obs", "next_obs")


def save_demonstrations(demonstrations: Demonstrations, path: str | Path) -> Path:
    """Write one file, whole or not at all; returns its path.

    demonstrations: what it is to hold. path: of the file. DemonstrationError when it can't be written.
    """
    path = Path(path)
    actions = demonstrations.actions
    described = {"environment": demonstrations.environment, "actions": actions.to_json()}
    meta = {"format": FORMAT, "klimb": json.dumps(described)}
    columns = {name: getattr(demonstrations, name) for name in COLUMNS}
    pictures = demonstrations.obs.ndim > 2 and demonstrations.obs.dtype == np.uint8
    types = {name: _dtype(name, actions) for name in COLUMNS} | (dict.fromkeys(_OBSERVED, "uint8") if pictures else {})
    arrays = {name: np.ascontiguousarray(column, types[name]) for name, column in columns.items()}
    content = as_file(arrays, meta)
    try:
        make_directory(path.parent)
        write_output(path, content)
    except OSError as error:
        raise DemonstrationError(f"cannot write {one_line(path)}: {error.strerror}") from None
    return path


def load_demonstrations(source: str | Path) -> Demonstrations:
    """From a file, from a run that `klimb record` has recorded, or from `minari:DATASET` (local datasets only).

    Reading runs no code. A file's checksum is verified; one without, as other tools write it, is read too.

    source: where they are. Raises DemonstrationError, with the file and what is wrong with it, when it is missing,
    damaged, empty or of another format, and MissingExtra when Minari is needed and not installed.
    """
    if str(source).startswith(PREFIX):
        return _from_minari(str(source))
    path = Path(source)
    try:
        path = path / FILE_NAME if is_directory(path) else path
        fields = _read(path) if is_file(path) else None
    except OSError as error:
        raise DemonstrationError(f"{one_line(path)} can't be used: {error.strerror or one_line(error)}") from None
    except (SafetensorError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DemonstrationError(f"{one_line(path)} can't be used: {one_line(error)}") from None
    if fields is None:
        raise DemonstrationError(f"there are no demonstrations at {one_line(path)}: record some with klimb record RUN")
    return Demonstrations(**fields, source=one_line(path))


def _read(path: Path) -> dict[str, Any]:
    """The fields of a file's demonstrations. The header says every type and shape: no array is read before they fit."""
    with open_arrays(path) as file:
        meta = file.metadata() or {}
        if meta.get("format") != FORMAT:
            raise ValueError(_wrong_format(meta.get("format")))
        present = set(file.keys())
        for name in sorted(present ^ set(COLUMNS)):
            raise ValueError(f"array {shown(name)} is {'not expected' if name in present else 'missing'}")
        environment, actions = _described(meta.get("klimb", ""))
        slices = {name: file.get_slice(name) for name in COLUMNS}
        shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
        if len(shapes["reward"]) != 1:
            raise ValueError(f"array reward has the shape {shapes['reward']}; it has to be one number per row")
        (rows,) = shapes["reward"]
        observed = (rows, *shapes["obs"][1:])
        # Pictures may be of bytes.
        pictures = len(observed) > 2 and slices["obs"].get_dtype() == _BYTES
        expected = {"obs": observed, "next_obs": observed, "action": (rows, *actions.shape)}
        for name, part in slices.items():
            shape, dtype = expected.get(name, (rows,)), _TYPES[_dtype(name, actions)]
            if name in _OBSERVED and pictures:
                dtype = _BYTES
            if (shapes[name], part.get_dtype()) != (shape, dtype):
                raise ValueError(
                    f"array {name} is {part.get_dtype()}{shown(list(shapes[name]))} where "
                    f"{dtype}{shown(list(shape))} is expected"
                )
        if 0 in observed[1:]:
            raise ValueError(f"array obs is {shown(list(observed))}: its observations hold no number")
        arrays = {name: file.get_tensor(name) for name in COLUMNS}
    check_checksum(meta, arrays)
    return arrays | {"environment": environment, "actions": actions}


def _wrong_format(found: str | None) -> str:
    family, _, version = FORMAT.rpartition("-")
    theirs, _, number = str(found).rpartition("-")
    if theirs == family and number.isdecimal() and number != version:
        return f"it was written by a newer klimb: its version is {shown(number)}, this one reads {version}"
    return f"it holds no demonstrations (its format is {shown(found)})"


def _dtype(name: str, actions: ActionSpec) -> str:
    if name in ("terminated", "truncated"):
        return "bool"
    return np.dtype(actions.dtype).name if name == "action" else "float32"


def _described(text: str) -> tuple[str, ActionSpec]:
    """Environment and action space, from the JSON that goes with the arrays."""
    match json.loads(text):
        # Printable, because it goes into messages of one line.
        case {"environment": str(environment), "actions": dict(actions)} if _is_name(environment):
            try:
                return environment, actions_from_json(actions)
            except ValueError as error:
                raise ValueError(f"its description has no environment or no action space: {error}") from None
    raise ValueError("its description has no environment or no action space")


def _is_name(environment: str) -> bool:
    return environment.isprintable() and len(environment) <= MAX_NAME


def _from_minari(source: str) -> Demonstrations:
    source = one_line(source)
    name = source.removeprefix(PREFIX)
    try:
        import minari
        from minari.storage.datasets_root_dir import get_dataset_path
    except ImportError:
        raise MissingExtra(f"{source} needs Minari: pip install 'klimb[offline]'") from None
    # Damaged files are read by other people's code: whatever it raises, the dataset can't be used.
    try:
        require_limited(get_dataset_path(name) / "data" / "metadata.json")
        _require_local(minari, name)
        dataset = minari.load_dataset(name)
        return Demonstrations(**_minari_fields(dataset), source=source)
    except DemonstrationError:
        raise
    except UnsupportedSpace as error:
        raise DemonstrationError(f"{source}: {one_line(error)}") from None
    except ImportError:
        raise MissingExtra(
            f"{source} needs the packages that Minari reads files with: pip install 'klimb[offline]'"
        ) from None
    except Exception as error:
        raise DemonstrationError(f"{source} can't be used: {one_line(error) or type(error).__name__}") from None


def _require_local(minari: Any, name: str) -> None:
    """DemonstrationError when there is no such dataset here, or none that can be read without running code."""
    with warnings.catch_warnings(record=True) as caught:
        # Minari warns of every dataset whose metadata it can't read, and leaves it out.
        warnings.simplefilter("always")
        local = minari.list_local_datasets()
    if name not in local:
        broken = [one_line(w.message) for w in caught if f"named {name}:" in str(w.message)]
        if broken:
            raise DemonstrationError(f"minari:{name} can't be used: {broken[0]}")
        known = f"local datasets: {one_line(', '.join(local))}; " if local else ""
        raise DemonstrationError(
            f"there is no local Minari dataset {name!r}{nearest(name, local)} ({known}klimb downloads "
            f"nothing: minari download {name})"
        )
    # Without them Minari makes the environment that the dataset names, which can be any function of any module.
    for space in ("observation_space", "action_space"):
        if space not in local[name]:
            raise DemonstrationError(
                f"minari:{name} has no {space} in its metadata, and klimb runs no code to find it out"
            )
    if local[name].get("data_format") != "hdf5":
        raise DemonstrationError(
            f"minari:{name} is stored as {shown(local[name].get('data_format'), 40)}; klimb reads datasets in HDF5"
        )
    require_number_of_episodes(local[name].get("total_episodes"))


def _minari_fields(dataset: Any) -> dict[str, Any]:
    """The fields of a Minari dataset's demonstrations. Log-probs that are not known are NaN."""
    space = dataset.observation_space
    if not isinstance(space, gymnasium.spaces.Box) or not space.shape:
        raise UnsupportedSpace(f"its observations are in {space}; klimb reads boxes")
    actions = action_spec(dataset.action_space)
    columns: dict[str, list[np.ndarray]] = {column: [] for column in COLUMNS}
    folder, count = Path(dataset.storage.data_path), require_number_of_episodes(dataset.total_episodes)
    pictures = len(space.shape) > 1 and space.dtype == np.uint8
    for episode in episodes(folder, count, space.shape, dataset.action_space.shape, actions.shape):
        if len(episode.rewards) == 0:
            continue
        for column, values in _columns(episode, actions).items():
            dtype = "uint8" if pictures and column in _OBSERVED else _dtype(column, actions)
            columns[column].append(np.asarray(values, dtype))
    if not columns["reward"]:
        raise ValueError("it is empty: it has no steps")
    arrays = {column: np.concatenate(values) for column, values in columns.items()}
    return arrays | {"actions": actions, "environment": _name(dataset)}


def _columns(episode: Episode, actions: ActionSpec) -> dict[str, np.ndarray]:
    """The columns of one episode. actions: the action space."""
    truncated = np.array(episode.truncations, bool)
    # A Minari episode may stop without a flag; what it knows ends there, and the value goes on.
    truncated[-1] |= not episode.terminations[-1]
    sampled, unknown = episode.sampled_actions, np.full(len(truncated), np.nan)
    return {
        "obs": episode.observations[:-1],
        "next_obs": episode.observations[1:],
        "action": actions.flatten(episode.actions) if sampled is None else sampled,
        "reward": episode.rewards,
        "log_prob": unknown if episode.log_probs is None else episode.log_probs,
        "terminated": episode.terminations,
        "truncated": truncated,
    }


def _name(dataset: Any) -> str:
    """The name of its environment; klimb's own where a recording has it."""
    own = dataset.storage.metadata.get(ENVIRONMENT)
    if isinstance(own, str) and _is_name(own):
        return own
    spec = getattr(dataset, "env_spec", None)
    return str(getattr(spec, "id", None) or "an unnamed environment")
