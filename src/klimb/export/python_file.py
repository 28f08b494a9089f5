"""A policy as one file of Python that needs NumPy alone."""

from __future__ import annotations

import base64
import pprint
import textwrap
from collections.abc import Callable
from importlib import resources
from typing import Any

import numpy as np

from klimb.errors import printable
from klimb.export.interface import CARRY, MASK, NEXT_CARRY, OBS, heads_of
from klimb.export.network import OwnNetwork

ROWS_TO_KEEP = 16
"""Observations in the file, with their actions: `python policy.py` compares them with what it computes."""
WIDTH = 112


def python_file(own: OwnNetwork, about: dict[str, str], recorded: dict[str, Any]) -> bytes:
    """The source of the file.

    own: the network. about: what is known of the policy. recorded: by name, arrays that it reads, `[B, …]`, and what it
    makes of them.
    """
    source = resources.files("klimb.export").joinpath("standalone.py").read_text(encoding="utf-8")
    _, quotes, code = source.partition('\n"""\n')
    assert quotes, "the docstring of standalone.py gives way to that of the file"
    known = printable("\n".join(f"{name}: {value}" for name, value in about.items() if len(value) <= WIDTH))
    kept = {*own.inputs.shapes(), *(head.named("action") for head in heads_of(own.policy.actions))}
    some = {name: np.asarray(array[:ROWS_TO_KEEP]) for name, array in recorded.items() if name in kept}
    return "\n".join(
        [
            f'"""{_HEAD}\n\n{_escaped(known)}\n"""\n',
            f"{code.strip()}\n",
            f"ABOUT = {pprint.pformat(own.to_json(), width=WIDTH, sort_dicts=False, compact=True)}",
            _literal("ARRAYS", own.arrays),
            _literal("RECORDED", some),
            _TAIL.strip("\n"),
            "",
        ]
    ).encode()


_HEAD = """A policy that klimb trained, in Python and NumPy alone.

    import policy

    action = policy.act(obs)                                      # the mode: the most probable action, or the mean
    action = policy.act(obs, deterministic=False, rng=generator)  # a sample
    action, carry = policy.act_with_memory(obs, carry)            # a policy with memory; carry is None at first

`python policy.py` compares its actions for some observations with those that klimb computed."""
_TAIL = """
POLICY = Policy(ABOUT, ARRAYS)
act, act_with_memory = POLICY.act, POLICY.act_with_memory

if __name__ == "__main__":
    difference = POLICY.difference(RECORDED)
    print(f"largest difference in {len(RECORDED['obs'])} recorded observations: {difference:.1e}")
    raise SystemExit(int(not difference <= 1e-4))
"""


def _literal(name: str, arrays: dict[str, np.ndarray]) -> str:
    """A dictionary of arrays as source."""
    lines = [f"{name} = {{"]
    for key, array in arrays.items():
        text = textwrap.fill(base64.b64encode(_little(array)).decode(), WIDTH)
        lines.append(f'    {key!r}: decoded({array.dtype.name!r}, {array.shape}, """\n{text}\n"""),')
    return "\n".join([*lines, "}", ""])


def _little(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes()


def _escaped(text: str) -> str:
    """Text inside of a docstring, which it can't end: names in a run's files may be a stranger's."""
    return text.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def load_python_file(content: bytes) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What the file computes from arrays: actions, parameters of the distribution and what is remembered, by name.

    content: of the file, which is run.
    """
    file: dict[str, Any] = {"__name__": "policy"}
    exec(compile(content, "policy.py", "exec"), file)
    about, named_parts, action_of = file["ABOUT"], file["named_parts"], file["action_of"]
    actions = about["actions"]

    def compute(arrays: dict[str, Any]) -> dict[str, Any]:
        """arrays: by name."""
        parameters, carry = file["POLICY"].distribution(arrays[OBS], arrays.get(MASK), arrays.get(CARRY))
        found = named_parts(actions, action_of(actions, about, parameters, None), "action")
        for part, its in named_parts(actions, parameters, "").items():
            found |= {what + part: value for what, value in its.items()}
        return found | ({} if carry is None else {NEXT_CARRY: carry})

    return compute
