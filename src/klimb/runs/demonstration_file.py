"""Demonstrations as one safetensors file, or read from a local Minari dataset."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium.spaces
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from klimb.collect.demonstrations import Demonstrations
from klimb.errors import DemonstrationError, MissingExtra, UnsupportedSpace, nearest
from klimb.policies.networks import Box, Discrete, action_spec
from klimb.runs.files import write_atomically

FORMAT = "klimb-demonstrations-1"
FILE_NAME = "demonstrations.safetensors"
COLUMNS = ("obs", "action", "log_prob", "reward", "terminated", "truncated", "next_obs")


def save_demonstrations(demonstrations: Demonstrations, path: str | Path) -> Path:
    """Write one file, whole or not at all; returns its path."""
    path = Path(path)
    actions = demonstrations.actions
    if isinstance(actions, Discrete):
        told: dict[str, Any] = {"n": actions.n}
    else:
        # JSON has no infinity: null stands for an action without a bound.
        bounds = {"low": actions.low, "high": actions.high}
        told = {name: [x if abs(x) < np.inf else None for x in bound] for name, bound in bounds.items()}
    meta = {"format": FORMAT, "klimb": json.dumps({"environment": demonstrations.environment, "actions": told})}
    arrays = {name: np.ascontiguousarray(getattr(demonstrations, name)) for name in COLUMNS}
    content = save(arrays, meta)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
    return path


def load_demonstrations(source: str | Path) -> Demonstrations:
    """From a file, from a run that `klimb record` has recorded, or from `minari:DATASET` (local datasets only).

    Reading runs no code. Raises DemonstrationError, with the file and what is wrong with it, when it is missing,
    damaged, empty or of another format, and MissingExtra when Minari is needed and not installed.
    """
    if str(source).startswith("minari:"):
        return _from_minari(str(source))
    path = Path(source)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise DemonstrationError(f"there are no demonstrations at {path}: record some with klimb record RUN")
    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT:
                raise DemonstrationError(f"{path} holds no demonstrations (its format is {meta.get('format')!r})")
            missing = sorted(set(COLUMNS) ^ set(file.keys()))
            if missing:
                raise DemonstrationError(f"{path}: array {missing[0]} is missing or not expected")
            arrays = {name: file.get_tensor(name) for name in COLUMNS}
        told = json.loads(meta["klimb"])
        fields = _checked(arrays) | {"environment": str(told["environment"]), "actions": _actions(told["actions"])}
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, DemonstrationError):
            raise
        raise DemonstrationError(f"{path} can't be used: {error}") from None
    return Demonstrations(**fields, source=str(path))


def _checked(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The arrays with the types that they have to have."""
    for name, kind in {"obs": "f", "next_obs": "f", "log_prob": "f", "reward": "f"}.items():
        if arrays[name].dtype.kind != kind:
            raise ValueError(f"array {name} is {arrays[name].dtype}")
    for name in ("terminated", "truncated"):
        if arrays[name].dtype != bool:
            raise ValueError(f"array {name} is {arrays[name].dtype}, not bool")
    if arrays["obs"].shape != arrays["next_obs"].shape:
        raise ValueError(f"obs is {arrays['obs'].shape} and next_obs {arrays['next_obs'].shape}")
    for name in ("log_prob", "reward", "terminated", "truncated"):
        if arrays[name].ndim != 1:
            raise ValueError(f"array {name} has the shape {arrays[name].shape}")
    return dict(arrays)


def _actions(told: dict[str, Any]) -> Discrete | Box:
    if "n" in told:
        return Discrete(int(told["n"]))
    low = tuple(-np.inf if x is None else float(x) for x in told["low"])
    return Box(low, tuple(np.inf if x is None else float(x) for x in told["high"]))


def _from_minari(source: str) -> Demonstrations:
    name = source.removeprefix("minari:")
    try:
        import minari
    except ImportError:
        raise MissingExtra(f"{source} needs Minari: pip install 'klimb[offline]'") from None
    local = minari.list_local_datasets()
    if name not in local:
        known = f"; there are {', '.join(local)}" if local else ""
        raise DemonstrationError(
            f"there is no local Minari dataset {name!r}{nearest(name, local)}{known} (klimb downloads nothing: "
            f"minari download {name})"
        )
    dataset = minari.load_dataset(name)
    space = dataset.observation_space
    if not isinstance(space, gymnasium.spaces.Box) or space.shape is None or len(space.shape) != 1:
        raise DemonstrationError(f"{source} has observations in {space}; klimb has one-dimensional boxes")
    try:
        actions = action_spec(dataset.action_space)
    except UnsupportedSpace as error:
        raise DemonstrationError(f"{source}: {error}") from None
    columns: dict[str, list[np.ndarray]] = {column: [] for column in COLUMNS}
    for episode in dataset.iterate_episodes():
        steps = len(episode.rewards)
        if steps == 0:
            continue
        truncated = np.array(episode.truncations, bool)
        # A Minari episode may stop without a flag; what it knows ends there, and the value goes on.
        truncated[-1] |= not episode.terminations[-1]
        for column, values in {
            "obs": np.asarray(episode.observations, np.float32)[:-1],
            "next_obs": np.asarray(episode.observations, np.float32)[1:],
            "action": np.asarray(episode.actions),
            "reward": np.asarray(episode.rewards, np.float32),
            "log_prob": np.full(steps, np.nan, np.float32),
            "terminated": np.asarray(episode.terminations, bool),
            "truncated": truncated,
        }.items():
            columns[column].append(values)
    if not columns["reward"]:
        raise DemonstrationError(f"{source} is empty: there is not one step in it")
    arrays = {column: np.concatenate(values) for column, values in columns.items()}
    arrays["action"] = arrays["action"].astype(np.int32 if isinstance(actions, Discrete) else np.float32)
    return Demonstrations(**arrays, actions=actions, environment=_name(dataset), source=source)


def _name(dataset: Any) -> str:
    spec = getattr(dataset, "env_spec", None)
    return str(getattr(spec, "id", None) or "an unnamed environment")
