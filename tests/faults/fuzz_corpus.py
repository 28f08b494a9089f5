"""Hostile files, made by code: each was once read wrongly by something, or is of a kind that easily is.

`corpus` gives them for one loader: its own whole file with one thing changed, and files that are hostile to all.
"""

from __future__ import annotations

import gzip
import json
import pickle
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from safetensors.numpy import load

from klimb.runs.arrays import CHECKSUM, as_file

ESCAPES = "two\nlines \x1b]0;taken\x07\x1b[2J\r\x00 \u2028 \u202e"
DIGITS = "1" + "0" * 400
JSON_VALUES = {
    "400 digits": DIGITS,
    "5,000 digits": "1" * 5000,
    "a negative number": "-3",
    "a large number": "1" + "0" * 18,
    "past a float's integers": "9007199254740993",
    "past float32": "3.5e38",
    "past float64": "1e999",
    "a denormal": "5e-324",
    "NaN": "NaN",
    "infinity": "Infinity",
    "minus infinity": "-Infinity",
    "a fraction": "1.5",
    "true": "true",
    "null": "null",
    "no text": '""',
    "text": '"x"',
    "escapes": json.dumps(ESCAPES),
    "half of a character": '"\\ud800"',
    "100,000 letters": json.dumps("x" * 100_000),
    "a list": "[]",
    "a ragged list": '[1, [2], "3"]',
    "a list of 3": "[1, 2, 3]",
    "an object": "{}",
    "deep lists": "[" * 100_000,
    "deep lists that end": "[" * 900 + "]" * 900,
    "deep objects": '{"a":' * 100_000,
}
"""JSON, some of it none, that stands in the place of a value."""
TOML_VALUES = {
    "400 digits": DIGITS,
    "5,000 digits": "1" * 5000,
    "20,000 hexadecimal digits": "0x" + "f" * 20_000,
    "a negative number": "-3",
    "2⁴⁰": str(2**40),
    "past float64": "1e999",
    "nan": "nan",
    "minus infinity": "-inf",
    "true": "true",
    "no text": '""',
    "escapes": json.dumps(ESCAPES).replace("\\u007f", ""),
    "a list": "[]",
    "a ragged list": "[1, [2], 'x']",
    "a table": "{a = 1}",
    "a date": "1979-05-27",
    "a time": "07:32:00",
    "deep lists": "[" * 100_000,
    "100,000 letters": json.dumps("x" * 100_000),
    "a path": '"../../../etc/passwd"',
    "a module": '"stranger:Thing"',
    "a dotted key": "1\n" + ".".join("a" * 1500) + " = 1",
}
FILES = {
    "empty": b"",
    "a space": b" ",
    "a NUL": b"\0",
    "1,000 NULs": b"\0" * 1000,
    "a byte order mark": b"\xef\xbb\xbf{}",
    "UTF-16": "{}".encode("utf-16"),
    "no UTF-8": b"\xff\xfe\x80\x81",
    "a pickle": pickle.dumps(print),
    "a gzip": gzip.compress(b"{}", mtime=0),
    "a zip": b"PK\x03\x04" + b"\0" * 26,
    "an HDF5 signature": b"\x89HDF\r\n\x1a\n" + b"\xff" * 64,
    "a page": b"<html><script>alert(1)</script></html>",
    "a line without an end": b"x" * 100_000,
    "only line ends": b"\n" * 10_000,
    "null": b"null",
    "a number": b"3",
    "a text": b'"x"',
    "a list": b"[]",
    "an object": b"{}",
    "an object of lists": b'{"iteration": [[]], "seeds": [[]], "score": []}',
    "deep lists": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "a header of 2⁶³ bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header of 0 bytes": struct.pack("<Q", 0),
    "a header that is a list": struct.pack("<Q", 8) + b"[]      ",
    "a header nested deeply": struct.pack("<Q", 100_000) + b"[" * 100_000,
}
"""Files that are hostile to every loader."""


Files = Iterator[tuple[str, bytes]]

OTHERS = "files of another kind"
VALUES = "a value"
KEYS = "keys"
STRUCTURE = "the structure"
RECORDS = "records of another run"
HEADERS = "headers of arrays"
NUMBERS = "numbers in arrays"
METADATA = "metadata of arrays"
TOPICS = {
    "json": (OTHERS, VALUES, KEYS),
    "lines": (OTHERS, VALUES, KEYS, STRUCTURE, RECORDS),
    "toml": (OTHERS, VALUES, KEYS),
    "arrays": (OTHERS, HEADERS, NUMBERS, METADATA),
}
"""What is hostile in a file, by what it holds."""


def topics(kind: str) -> tuple[str, ...]:
    """What can be hostile in a file. kind: what it holds, as in `fuzz_loaders.Loader`."""
    return TOPICS.get(kind, (OTHERS,))


def corpus(kind: str, whole: bytes) -> dict[str, list[tuple[str, bytes]]]:
    """(what it is, content) of the hostile files for a loader, by topic.

    kind: what its file holds. whole: its file, as it should be.
    """
    found: dict[str, list[tuple[str, bytes]]] = {topic: [] for topic in topics(kind)}
    found[OTHERS] += _others(whole)
    makers = {"json": _json, "lines": _lines, "toml": _toml, "arrays": _arrays}
    for topic, what, content in makers[kind](whole) if kind in makers else ():
        found[topic].append((what, content))
    return found


def _others(whole: bytes) -> Files:
    yield from FILES.items()
    yield "twice", whole + whole
    yield "half", whole[: len(whole) // 2]
    yield "without its last byte", whole[:-1]
    yield "Windows' line ends", whole.replace(b"\n", b"\r\n")


def _json(whole: bytes) -> Iterator[tuple[str, str, bytes]]:
    """One value after the other replaced, and all at once, keys added, left out and given twice."""
    text = whole.decode()
    # Each number, text and constant that is no key.
    tokens = re.finditer(r'"(?:[^"\\]|\\.)*"(\s*:)?|-?\d[\d.eE+-]*|true|false|null', text)
    places = [token.span() for token in tokens if token[1] is None]
    for k, (what, value) in enumerate(JSON_VALUES.items()):
        for at in sorted({k % len(places), (7 * k + 3) % len(places)}):
            start, end = places[at]
            yield VALUES, f"value {at} is {what}", (text[:start] + value + text[end:]).encode()
        everywhere = text
        for start, end in reversed(places):
            everywhere = everywhere[:start] + value + everywhere[end:]
        yield VALUES, f"every value is {what}", everywhere.encode()
    tree = json.loads(text)
    for what, other in _other_trees(tree):
        yield KEYS, what, json.dumps(other).encode()
    yield KEYS, "its keys are there twice", (text.rstrip()[:-1] + "," + text.lstrip()[1:]).encode()


def _other_trees(tree: Any) -> Iterator[tuple[str, Any]]:
    yield "it is in a list", [tree]
    yield "1,000 of it are in a list", [tree] * 1000
    if isinstance(tree, dict):
        for key in tree:
            yield f"{key} is missing", {name: value for name, value in tree.items() if name != key}
            yield f"{key} is a list of itself", {**tree, key: [tree[key]] * 3}
            yield f"{key} is an object", {**tree, key: {"x": tree[key]}}
        yield "a key is hostile", {**tree, ESCAPES: ESCAPES}
        yield "1,000 keys more", {**tree, **{f"key{i}": i for i in range(1000)}}
        # As a run configuration might say it.
        yield "2³⁰ of all", {key: 2**30 if type(value) is int else value for key, value in tree.items()}


def _lines(whole: bytes) -> Iterator[tuple[str, str, bytes]]:
    """The hostile variants of one line, among the others."""
    first, second, *rest = whole.splitlines(keepends=True)
    for topic, what, line in _json(second):
        yield topic, what, first + line + b"\n" + b"".join(rest)
    yield STRUCTURE, "lines in another order", b"".join([*rest, second, first])
    yield STRUCTURE, "a line 1,000 times", first + second * 1000
    many = ({"iteration": i, "env_steps": i, f"m{i}": 1} for i in range(1100))
    yield STRUCTURE, "1,100 metrics", b"".join(json.dumps(record).encode() + b"\n" for record in many)
    statuses = [["ACCEPTED"] * 3, "x", ["x", 1], [], [[]], {}, 3, None, "NONFINITE", ["NONFINITE", "NONFINITE"]]
    records = [{**json.loads(second), "iteration": i, "status": status} for i, status in enumerate(statuses)]
    yield RECORDS, "other statuses", b"".join(json.dumps(record).encode() + b"\n" for record in records)
    for name in ("episodes", "episode_return", "eval_return"):
        for what, value in (("text", "x"), ("ragged", [1, [2]]), ("of 3 seeds", [1, 2, 3]), ("huge", 10**400)):
            record = {**json.loads(second), "episodes": 2, "episode_return": 1.5, name: value}
            yield RECORDS, f"{name} is {what}", first + json.dumps(record).encode() + b"\n" + b"".join(rest)


def _toml(whole: bytes) -> Iterator[tuple[str, str, bytes]]:
    """One value after the other replaced, keys and sections added and given twice."""
    text = whole.decode()
    places = [match.span(1) for match in re.finditer(r"^[\w-]+ = (.*)$", text, flags=re.MULTILINE)]
    for k, (what, value) in enumerate(TOML_VALUES.items()):
        for at in sorted({0, (3 * k + 1) % len(places), (11 * k + 5) % len(places)}):
            start, end = places[at]
            yield VALUES, f"value {at} is {what}", (text[:start] + value + text[end:]).encode()
    for start, end in places:
        yield KEYS, f"without {text[start:end][:30]}", (text[:start].rpartition("\n")[0] + text[end:]).encode()
    yield KEYS, "a key is hostile", f"{json.dumps(ESCAPES)} = 1\n{text}".encode()
    yield KEYS, "a key is there twice", (text + "\n" + text[slice(*places[-1])]).encode()
    yield KEYS, "a section is there twice", (text + "\n[options]\n[options]\n").encode()
    yield KEYS, "5,000 dots", ("a." * 5000 + "a = 1\n" + text).encode()
    yield KEYS, "1,000 keys more", (text + "\n" + "\n".join(f"key{i} = 1" for i in range(1000))).encode()


def _arrays(whole: bytes) -> Iterator[tuple[str, str, bytes]]:
    """Headers that claim what is not so, and arrays and metadata that are not what they should be, with a checksum."""
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    for what, change in _headers(names).items():
        changed = json.loads(json.dumps(header))
        change(changed)
        yield HEADERS, what, _with_header(json.dumps(changed).encode(), data)
    yield HEADERS, "bytes after the arrays", whole + b"\0" * 64
    yield HEADERS, "a bit is flipped", whole[:-1] + bytes([whole[-1] ^ 1])
    text = json.dumps(header)
    yield HEADERS, "a name is there twice", _with_header((text[:-1] + ", " + text[1:]).encode(), data)
    for what, value in JSON_VALUES.items():
        changed = text.replace(json.dumps(header["__metadata__"][CHECKSUM]), value)
        yield METADATA, f"the checksum is {what}", _with_header(changed.encode(), data)
    arrays, metadata = load(whole), {k: v for k, v in header["__metadata__"].items() if k != CHECKSUM}
    for what, others in _values(arrays).items():
        yield NUMBERS, what, as_file(others, metadata)
    for key in metadata:
        yield METADATA, f"metadata {key} is missing", as_file(arrays, {k: v for k, v in metadata.items() if k != key})
        for what, value in (("escapes", ESCAPES), ("deep", "[" * 100_000), ("long", "x" * 100_000), ("none", "")):
            yield METADATA, f"metadata {key} is {what}", as_file(arrays, {**metadata, key: value})
    if metadata.get("klimb", "").startswith("{"):
        for _, what, content in _json(metadata["klimb"].encode()):
            yield METADATA, f"metadata: {what}", as_file(arrays, {**metadata, "klimb": content.decode()})


def _with_header(header: bytes, data: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _headers(names: list[str]) -> dict[str, Callable[[dict], object]]:
    """Changes of a header, by what they are."""
    first, last = names[0], names[-1]
    changes: dict[str, Callable[[dict], object]] = {
        f"the type is {dtype}": lambda header, dtype=dtype: header[first].update(dtype=dtype)
        for dtype in ("F64", "F16", "BF16", "F8_E4M3", "F4", "I64", "U8", "BOOL", "C64", "x", "", 3)
    }
    changes |= {
        f"the shape is {shape}": lambda header, shape=shape: header[last].update(shape=shape)
        for shape in ([], [0], [-1], [2**40], [2**63], [2**62, 2**62], [0, 2**40], ["x"], [[1]], None, 3, [1] * 70)
    }
    changes |= {
        f"the offsets are {offsets}": lambda header, offsets=offsets: header[last].update(data_offsets=offsets)
        for offsets in ([0, 0], [0, 4], [4, 0], [-4, 4], [0, 2**63], [2**64 - 4, 2**64], [0], "x", None)
    }
    changes |= {
        "two arrays overlap": lambda header: header[last].update(data_offsets=header[first]["data_offsets"]),
        "an array is missing": lambda header: header.pop(last),
        "an array has a hostile name": lambda header: header.update({ESCAPES: header.pop(last)}),
        "an array has a path for a name": lambda header: header.update({"../../x": header.pop(last)}),
        "an array is nothing": lambda header: header.update({last: {}}),
        "there are no metadata": lambda header: header.pop("__metadata__"),
        "the metadata are a list": lambda header: header.update(__metadata__=[]),
        "a word of the metadata is a number": lambda header: header["__metadata__"].update(format=3),
        "there is one array more": lambda header: header.update(
            x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
        ),
    }
    return changes


def _values(arrays: dict[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Arrays with other numbers, by what they are."""
    floats = [name for name, array in arrays.items() if array.dtype == np.float32]
    whole = [name for name, array in arrays.items() if array.dtype != np.float32]
    found = {}
    for what, value in {
        "NaN": np.nan, "infinite": np.inf, "3e38": 3e38, "minus 3e38": -3e38, "denormal": 1e-45, "negative": -1.0,
    }.items():  # fmt: skip
        found[f"all numbers are {what}"] = {**arrays, **{k: np.full_like(arrays[k], value) for k in floats}}
        found[f"one number is {what}"] = {**arrays, **{k: _with_last(arrays[k], value) for k in floats[-1:]}}
    for what, limit in (("smallest", "min"), ("largest", "max")):
        extreme = {
            k: np.full_like(arrays[k], getattr(np.iinfo(arrays[k].dtype), limit))
            for k in whole
            if arrays[k].dtype != bool
        }
        found[f"all integers are the {what}"] = {**arrays, **extreme}
    found["all flags are set"] = {**arrays, **{k: np.ones_like(x) for k, x in arrays.items() if x.dtype == bool}}
    found["no rows"] = {k: x[:0] if x.ndim else x for k, x in arrays.items()}
    found["one row more"] = {k: np.concatenate([x, x[:1]]) if x.ndim else x for k, x in arrays.items()}
    return found


def _with_last(array: np.ndarray, value: float) -> np.ndarray:
    changed = array.copy()
    changed.reshape(-1)[-1:] = value
    return changed


# Mutations of them.


def mutated(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Some bytes flipped, cut out, repeated, put in, or taken from another file.

    content: that is mutated. rng: decides how. others: files that pieces are taken from.
    """
    for _ in range(rng.randint(1, 6)):
        at, length = rng.randint(0, len(content)), rng.choice([1, 1, 2, 4, 8, 30, 200])
        match rng.randrange(8):
            case 0 if at < len(content):
                content = content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :]
            case 1:
                content = content[:at] + content[at + length :]
            case 2:
                content = content[:at] + content[at : at + length] * rng.choice([2, 2, 50]) + content[at + length :]
            case 3:
                content = content[:at] + rng.choice(PIECES) + content[at:]
            case 4:
                content = content[:at] + rng.choice(PIECES) + content[at + length :]
            case 5:
                other = rng.choice(others)
                start = rng.randint(0, len(other))
                content = content[:at] + other[start : start + 8 * length] + content[at + length :]
            case 6:
                numbers = list(re.finditer(rb"-?\d[\d.eE+-]*", content))
                if numbers:
                    start, end = rng.choice(numbers).span()
                    content = content[:start] + rng.choice(OTHER_NUMBERS) + content[end:]
            case 7:
                content = content[:at] + rng.randbytes(length) + content[at + length :]
    return content[:400_000]


OTHER_NUMBERS = [
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"-Infinity",
    DIGITS.encode(),
    b"2147483648",
    b"1.5",
    b"1e-400",
    b'"1"',
    b"[]",
]
PIECES = [
    *OTHER_NUMBERS, *(b"[", b"]", b"{", b"}", b'"', b"'", b",", b":", b"=", b".", b"\n", b"\0", b"\\", b"\\u0000"),
    *(b"\xff", b"null", b"true", b"inf", b"[[", b"]]", b"[options]\n", b'{"a":', b"[" * 2000),
    *("\u202e".encode(), b"\x1b[2J", b"__metadata__", b"data_offsets", b"iteration", b"status"),
    struct.pack("<Q", 2**62),
]  # fmt: skip
