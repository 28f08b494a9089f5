"""Untrusted files: every defect gives a one-line error."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import pickle
import re
import struct
from collections.abc import Callable, Collection
from pathlib import Path

import fuzz_loaders
import pytest
from fuzz_loaders import LOADERS, attempt, little_memory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import klimb
from klimb import TRPO, ConfigError, KlimbError, PolicyFileError, RunConfig, RunError, TrainOptions
from klimb.cli.main import main
from klimb.errors import one_line, shown
from klimb.fields import build
from klimb.report.page import write_report
from klimb.rules import RULES
from klimb.runs.directory import RunDirectory
from klimb.runs.toml import MAX_DOTS, MAX_FILE

HUGE = 2**40
NESTED = 100_000
ESCAPES = "two\nlines \x1b]0;taken\x07\x1b[2J\r\x00 \u2028 \u202e"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return fuzz_loaders.make_runs(tmp_path_factory.mktemp("files"))


def read(run: Path, name: str) -> bytes:
    return (run / LOADERS[name].file).read_bytes()


def refusal(run: Path, name: str, content: bytes | str) -> str:
    """What a loader says of a file with these bytes, which it may not take."""
    said = attempt(LOADERS[name], run, content if isinstance(content, bytes) else content.encode())
    assert said is not None, "it was taken"
    return said


def edited(run: Path, name: str, **changes: object) -> str:
    return json.dumps({**json.loads(read(run, name)), **changes})


def fault(what: str, outcome: str, *values: object, name: str = "") -> object:
    return pytest.param(*values, marks=pytest.mark.fault(what, outcome), id=name or what.replace(" ", "-"))


# safetensors: policies, demonstrations, checkpoints.

ARRAYS = ("policy arrays", "demonstrations", "checkpoint")


@pytest.mark.fault("a file of arrays is cut off at any point", "refused as incomplete")
@pytest.mark.parametrize("name", ARRAYS)
def test_cut_off(whole, name):
    content = read(whole, name)
    for length in range(0, len(content), max(1, len(content) // 40)):
        assert re.search("whole safetensors|can't be used|no usable", refusal(whole, name, content[:length]))


@pytest.mark.fault("a bit of an array is flipped", "refused: the contents do not match their checksum")
@pytest.mark.parametrize("name", ARRAYS)
def test_flipped(whole, name):
    content = read(whole, name)
    (header,) = struct.unpack("<Q", content[:8])
    for at in range(8 + header, len(content), max(1, (len(content) - header) // 40)):
        flipped = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        assert "contents do not match their checksum" in refusal(whole, name, flipped)


@pytest.mark.fault("a checkpoint has no checksum", "refused; policies and demonstrations of other tools are read")
def test_without_checksum(whole, tmp_path):
    for name in ARRAYS:
        path = tmp_path / "x.safetensors"
        content = read(whole, name)
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length])["__metadata__"]
        del metadata["sha256"]
        save_file(load_file(whole / LOADERS[name].file), path, metadata)
        said = attempt(LOADERS[name], whole, path.read_bytes())
        assert (said is None) == (name != "checkpoint")
        assert said is None or "it has no checksum" in said


@pytest.mark.fault(
    "a file of arrays is far larger than its network", "refused by its size, with both sizes, without reading it"
)
@pytest.mark.parametrize("name", ["policy arrays", "checkpoint"])
def test_oversized(whole, name):
    path = whole / LOADERS[name].file
    content = path.read_bytes()
    os.truncate(path, HUGE)  # a hole: it takes no room on the disk
    try:
        with little_memory(), pytest.raises(KlimbError, match=rf"it has {HUGE} bytes, .* at most \d+"):
            LOADERS[name].load(whole)
    finally:
        path.write_bytes(content)


@pytest.mark.fault("a header claims an array of 2⁴⁰ numbers", "refused before memory is allocated for it")
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("shape", [[HUGE], [2**62, 2**62], [2**63], [-1], [0, HUGE], ["x"], [[1]]], ids=str)
def test_absurd_shapes(whole, name, shape):
    content = read(whole, name)
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    last = max((key for key in header if key != "__metadata__"), key=lambda key: header[key]["data_offsets"])
    header[last]["shape"] = shape
    for end in (header[last]["data_offsets"][1], header[last]["data_offsets"][0] + 4 * HUGE):
        header[last]["data_offsets"][1] = end
        text = json.dumps(header).encode()
        with little_memory():
            refusal(whole, name, struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.fault("a header says that it is 2⁶³ bytes long", "refused before memory is allocated for it")
@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("length", [2**32, 2**63, 2**64 - 1])
def test_absurd_headers(whole, name, length):
    with little_memory():
        refusal(whole, name, struct.pack("<Q", length) + read(whole, name)[8:])


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.fault("a file of a run is replaced by a pickle", "refused as another format; no code in it is run")
@pytest.mark.parametrize("name", LOADERS)
def test_pickles_are_not_run(whole, name, tmp_path):
    content = pickle.dumps(Payload(tmp_path / "taken"))
    assert attempt(LOADERS[name], whole, content) is not None or LOADERS[name].lenient
    assert not (tmp_path / "taken").exists()
    pickle.loads(content)
    assert (tmp_path / "taken").exists()


def test_nothing_in_klimb_runs_data():
    words = r"\bpickle|\bdill\b|\beval\(|\bexec\(|allow_pickle|yaml\.load|torch\.load|__import__|\bmarshal\b|np\.load\("
    source = Path(klimb.__file__).parent
    found = [
        f"{path.relative_to(source)}: {line.strip()}"
        for path in source.rglob("*.py")
        for line in code_of(path).splitlines()
        if re.search(words, line)
    ]
    # The file that `klimb export` has just made of its own source, to compare it with the policy.
    assert found == ["export/python_file.py: exec(compile(content, 'policy.py', 'exec'), file)"]


def code_of(path: Path) -> str:
    """A file without its comments and docstrings, which may say what is not done."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body[0] = ast.Pass()
    return ast.unparse(tree)


@pytest.mark.fault("a file is replaced by a pipe", "refused without waiting for it")
@pytest.mark.parametrize("name", ["policy arrays", "policy description", "demonstrations", "checkpoint"])
def test_pipes(whole, name):
    path = whole / LOADERS[name].file
    kept = path.rename(path.with_suffix(".kept"))
    os.mkfifo(path)
    try:
        with pytest.raises(KlimbError, match=r"there is no policy file|no demonstrations at|it is not a regular file"):
            LOADERS[name].load(whole)
    finally:
        path.unlink()
        kept.rename(path)


# policy.json


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        fault("a policy has a layer of 2⁴⁰ units", "refused, with the limit", {"hidden": [HUGE]}, "hidden.0"),
        fault(
            "a policy's layers are within limits and its weights are not",
            "refused, with the number of weights",
            {"hidden": [2**16] * 16},
            "has 64424837120 weights",
        ),
        fault(
            "a policy is from a newer klimb",
            "refused, with both versions",
            {"version": 7, "news": [1]},
            "was written by a newer klimb: its version is 7, this one reads 4",
        ),
        fault("a policy has a field that klimb does not know", "refused, with its name", {"code": "x"}, "code = 'x'"),
        fault(
            "strings of a policy hold line breaks and terminal escapes",
            "refused in one printable line",
            {"format": ESCAPES, ESCAPES: ESCAPES},
            "format = ",
        ),
        fault(
            "a number of a policy has 5,000 digits",
            "refused in one line",
            {"observation_size": "DIGITS"},
            "not JSON|observation_size",
        ),
    ],
)
def test_descriptions(whole, changes, line):
    text = edited(whole, "policy description", **changes).replace('"DIGITS"', "9" * 5000)
    with little_memory():
        said = refusal(whole, "policy description", text)
    assert re.search(line, said)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        fault("a policy's JSON is nested 100,000 deep", "refused", "policy description", "[" * NESTED, name="policy"),
        fault("a configuration is nested 100,000 deep", "refused", "config", f"x = {'[' * NESTED}", name="config"),
        fault(
            "an evaluation is nested 100,000 deep",
            "refused",
            "report of an evaluation",
            '{"seeds":' * NESTED,
            name="evaluation",
        ),
        fault(
            "lines of the metrics are nested 100,000 deep",
            "left out; without any other line the report is refused",
            "report of metrics",
            "[" * NESTED + "\n",
            name="metrics",
        ),
    ],
)
def test_nested(whole, name, content):
    refusal(whole, name, content)


@pytest.mark.fault("names of policy files contain seeds that are not numbers", "the list of seeds leaves them out")
def test_names_of_policies(tmp_path):
    for seed in ("x", "-1", "²", "9" * 200, "3"):
        (tmp_path / f"policy_seed{seed}.json").write_text("")
    with pytest.raises(PolicyFileError, match=r"this run has the seeds \[3\]: give seed="):
        klimb.load_policy(tmp_path)


# config.toml


def toml(env: object = '"CartPole-v1"', rule: str = 'name = "trpo"', options: str = "") -> str:
    return f"env = {env}\n[rule]\n{rule}\n[options]\n{options}\n"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        fault(
            "a configuration is larger than 1 MiB",
            "refused without reading it",
            toml() + "#" * MAX_FILE,
            "larger than any run",
        ),
        fault("a configuration is not UTF-8", "refused as not text", b"\xff\xfe" + toml().encode(), "not a text file"),
        fault("a configuration holds NUL bytes", "refused as not TOML", toml('"a\0b"'), "not valid TOML"),
        fault(
            "a configuration begins with a byte order mark", "refused as not TOML", "\ufeff" + toml(), "not valid TOML"
        ),
        fault(
            "an integer of a configuration has 5,000 digits",
            "refused in one line",
            toml(options=f"seed = {'9' * 5000}"),
            "not valid TOML",
        ),
        fault(
            "an integer of a configuration has 20,000 hexadecimal digits",
            "refused in one line",
            toml(options=f"seed = 0x{'f' * 20000}"),
            "seed = <a value of type int, too long to show>",
        ),
        fault(
            "a key of a configuration has 100,000 parts",
            "refused before its parser takes minutes and gigabytes",
            toml(options="x" + ".x" * NESTED + " = 1"),
            f"dots, and no run configuration has more than {MAX_DOTS}",
        ),
        fault(
            "a configuration asks for 2⁴⁰ seeds, environments, steps, units or minibatches",
            "refused, with the limit",
            toml(options=f"num_seeds = {HUGE}"),
            "num_seeds = 1099511627776: input should be less than or equal to 65536",
        ),
        fault(
            "sizes of a configuration are within limits and their product is not",
            "refused, with the product",
            toml(options="num_seeds = 65536\nnum_envs = 1048576"),
            "are 8796093022208 rows per iteration",
        ),
        fault(
            "layers of a configuration are within limits and their weights are not",
            "refused, with the number of weights",
            toml(options="hidden = [65536, 65536]"),
            "makes 4294967296 weights",
        ),
        fault(
            "strings of a configuration hold line breaks and terminal escapes",
            "refused in one printable line",
            toml(rule=f"name = {json.dumps(ESCAPES)}"),
            "there is no rule 'two",
        ),
        fault("a configuration's environment has a name of 10⁵ letters", "refused", toml(f'"{"x" * 10**5}"'), "100000"),
    ],
)
def test_configurations(whole, content, line):
    with little_memory():
        assert line in refusal(whole, "config", content)


WRONG = ["1", "-1", "1e999", "nan", "true", '""', '"x"', "[]", "[[1], 'a']", "{a = 1}", "1979-05-27", "07:32:00", "1.5"]


@pytest.mark.fault("a value of a configuration has the wrong type", "refused, with its name")
@pytest.mark.parametrize("value", WRONG)
def test_wrong_types(whole, value):
    nameless = "[rule] of a run configuration has a name"
    said = "env, [rule] with a name" if value != "{a = 1}" else nameless
    assert said in refusal(whole, "config", f"env = 'x'\nrule = {value}")
    said = "there is no rule" if value.startswith('"') else nameless
    assert said in refusal(whole, "config", toml(rule=f"name = {value}"))
    attempt(LOADERS["config"], whole, toml(value).encode())
    attempt(LOADERS["config"], whole, f"options = {value}\nenv = 'x'\n[rule]\nname = 'trpo'".encode())
    for field in dataclasses.fields(TrainOptions):
        attempt(LOADERS["config"], whole, toml(options=f"{field.name} = {value}").encode())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", ["[[1], 'a']", "1979-05-27"])
def test_wrong_types_in_rules(whole, rule, value):
    for field in dataclasses.fields(RULES[rule]):
        refusal(whole, "config", toml(rule=f"name = '{rule}'\n{field.name} = {value}"))


@pytest.mark.parametrize("size", [HUGE, 10**30])
def test_every_count_has_an_upper_bound(size):
    for field in dataclasses.fields(TrainOptions):
        if re.search("int|Count|Iterations", str(field.type)):
            with pytest.raises(ConfigError, match=f"{field.name} = {size}: input should be less"):
                build(TrainOptions, {field.name: size})
    with pytest.raises(ConfigError, match=r"hidden\.0"):
        build(TrainOptions, {"hidden": [size]})


@pytest.mark.fault(
    "a configuration names /etc/passwd, a device or a pipe for its policy or demonstrations",
    "nothing but a regular file of klimb's format is read; refused in one line",
)
@pytest.mark.parametrize(
    "place", ["/etc/passwd", "/dev/zero", "../../../../etc", "x\ny", "x\0y", "x" * 4000, "x/" * 2000]
)
def test_places(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for rule, option in (("trpo", "init_from"), ("behaviour-cloning", "demonstrations")):
        Path("config.toml").write_text(toml(rule=f'name = "{rule}"', options=f"{option} = {json.dumps(place)}"))
        assert main(["train", "--config", "config.toml"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("klimb: ")
        assert said.removesuffix("\n").isprintable()
        assert not Path("runs").exists()


# metrics.jsonl, evaluation.json: reports and comparisons.


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        fault(
            "each line of the metrics has a metric of its own",
            "refused before memory quadratic in their number is used",
            lines(*({"iteration": i, "env_steps": i, f"m{i}": 1} for i in range(3000))),
            "3002 different metrics",
        ),
        fault(
            "iterations of the metrics are not numbers, negative or infinite",
            "left out; without any other line the report is refused",
            lines(*({"iteration": x, "env_steps": 1} for x in ("1", -1, 10**400, 1.5, True, None, [1]))),
            "holds no iteration yet",
        ),
    ],
)
def test_metrics(whole, content, line):
    for name in ("report of metrics", "comparison of metrics"):
        assert line in refusal(whole, name, content)


@pytest.mark.fault(
    "a configuration claims 65,536 seeds for a few bytes of metrics", "refused before memory is allocated"
)
def test_claimed_seeds(whole):
    metrics = whole / "metrics.jsonl"
    kept = metrics.read_bytes()
    metrics.write_text(lines(*({"iteration": i, "env_steps": i} for i in range(5000))))
    try:
        with little_memory():
            said = refusal(whole, "report of a configuration", toml(options="num_seeds = 65536\nnum_envs = 1"))
    finally:
        metrics.write_bytes(kept)
    assert "too few for 5000 iterations of 65536 seeds" in said


@pytest.mark.fault("every record of the metrics has a different status", "the report counts most of them together")
def test_many_statuses(whole):
    text = lines(*({"iteration": i, "env_steps": i, "status": f"REASON_{i}"} for i in range(3000)))
    assert attempt(LOADERS["report of metrics"], whole, text.encode()) is None
    assert (whole / "report.html").read_text().count("<li class=") < 50


@pytest.mark.fault("numbers of the metrics exceed float32", "left out of the report")
@pytest.mark.parametrize("number", [1e308, -1e308, 10**400, "NaN", "Infinity", 5e-324])
def test_extreme_numbers(whole, number):
    records = [json.loads(line) for line in read(whole, "report of metrics").splitlines()]
    names = ("episode_return", "kl_old_new", "predicted_improvement", "realised_improvement", "ess", "wall_time", "tv")
    text = lines(*({**record, **dict.fromkeys(names, number)} for record in records)).replace('"NaN"', "NaN")
    for name in ("report of metrics", "comparison of metrics"):
        attempt(LOADERS[name], whole, text.replace('"Infinity"', "Infinity").encode())


@pytest.mark.fault("strings of a run's files hold HTML and scripts", "they are text in the report, escaped")
def test_scripts_stay_text(whole):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    records = [json.loads(line) for line in read(whole, "report of metrics").splitlines()]
    text = lines(*({**record, "status": hostile, hostile: 0.5} for record in records))
    configuration = toml(
        json.dumps(hostile), f"name = {json.dumps(hostile)}\n{json.dumps(hostile)} = {json.dumps(hostile)}"
    )
    kept = (whole / "config.toml").read_text()
    (whole / "config.toml").write_text(configuration)
    try:
        assert attempt(LOADERS["report of metrics"], whole, text.encode()) is None
    finally:
        (whole / "config.toml").write_text(kept)
    page = (whole / "report.html").read_text()
    assert page.count("<script") == 2
    assert page.count("</script") == 2
    assert "<img" not in page


@pytest.mark.fault("names in runs to compare hold line breaks and terminal escapes", "they are printed without them")
def test_comparisons_print_no_escapes(whole, capsys):
    path = whole / "config.toml"
    kept = path.read_text()
    hostile = json.dumps(ESCAPES)
    path.write_text(toml(hostile, f"name = {hostile}\n{hostile} = {hostile}"))
    try:
        assert main(["compare", str(whole), str(whole.parent / "other")]) == 0
    finally:
        path.write_text(kept)
    out = capsys.readouterr().out
    assert not set(out) & set(ESCAPES) - {"\n", " ", *map(chr, range(33, 127))}


@pytest.mark.fault("the name of a rule looks like a formula", "it is text in the figure of a comparison")
def test_formulas_stay_text(whole, tmp_path):
    path = whole / "config.toml"
    kept = path.read_text()
    path.write_text(toml("'$\\frac{$'", "name = '$\\frac{$'\nx = '$x$'"))
    try:
        assert main(["compare", str(whole), str(whole.parent / "other"), "-o", str(tmp_path / "x.svg")]) == 0
    finally:
        path.write_text(kept)


@pytest.mark.parametrize(
    "content",
    [
        fault("an evaluation is a list", "refused", "[]"),
        fault("an evaluation holds no seeds", "refused", '{"seeds": 3}'),
        fault("seeds of an evaluation are infinite", "refused", '{"seeds": [{"seed": Infinity}]}'),
        fault("an evaluation is cut off", "refused", '{"episodes": 2, "seeds": [{"seed": 0, "me'),
    ],
)
def test_evaluations(whole, content):
    assert "is not an evaluation" in refusal(whole, "report of an evaluation", content)


# Runs.


@pytest.mark.fault("a directory has a config.toml that is a directory", "refused as not a run")
def test_directories_for_files(tmp_path):
    (tmp_path / "config.toml").mkdir()
    with pytest.raises(RunError, match="is not a run"):
        RunDirectory.open(tmp_path)
    with pytest.raises(KlimbError):
        write_report(tmp_path)


@pytest.mark.fault("the metadata of a checkpoint are not JSON, or from another run", "refused, with the file's name")
@pytest.mark.parametrize("told", ["", "{", "[]", "[" * NESTED, '{"iteration": "x"}', '{"iteration": 1e999}', ESCAPES])
def test_what_checkpoints_say(whole, told):
    from klimb.runs.arrays import save_arrays

    path = whole / LOADERS["checkpoint"].file
    kept = path.read_bytes()
    save_arrays(path, fuzz_loaders.make_state(), {"format": "klimb-checkpoint-2", "klimb": told})
    content = path.read_bytes()
    path.write_bytes(kept)
    assert "000000001.safetensors" in refusal(whole, "checkpoint", content)


# Whatever else there may be.


def fast(examples: int) -> settings:
    return settings(deadline=None, max_examples=examples, suppress_health_check=list(HealthCheck), database=None)


def mutate(content: bytes, draw: Callable) -> bytes:
    """Some bytes flipped, cut out, put in, or copied from elsewhere."""
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        length = draw(st.sampled_from([1, 2, 8, 100, len(content)]))
        match draw(st.sampled_from(["flip", "cut", "insert", "splice", "end"])):
            case "flip" if at < len(content):
                content = content[:at] + bytes([content[at] ^ draw(st.integers(1, 255))]) + content[at + 1 :]
            case "cut":
                content = content[:at] + content[at + length :]
            case "insert":
                content = content[:at] + draw(st.binary(max_size=20)) + content[at:]
            case "splice":
                other = draw(st.integers(0, len(content)))
                content = content[:at] + content[other : other + length] + content[at:]
            case "end":
                content = content[:at]
    return content


def any_bytes(name: str, run: Path, examples: int) -> None:
    @fast(examples)
    @given(st.binary(max_size=200))
    def check(content):
        attempt(LOADERS[name], run, content)

    check()


def any_damage(name: str, run: Path, examples: int) -> None:
    content = read(run, name)

    @fast(examples)
    @given(st.data())
    def check(data):
        attempt(LOADERS[name], run, mutate(content, data.draw))

    check()


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
TREES = st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=9), x, max_size=4))


def any_tree(name: str, run: Path, examples: int) -> None:
    """A JSON file with anything in the place of one of its values, at any depth."""
    content = read(run, name)
    original = [json.loads(line) for line in (content.splitlines() if name.endswith("metrics") else [content])]

    @fast(examples)
    @given(st.data())
    def check(data):
        trees = json.loads(json.dumps(original))
        tree, key = trees, data.draw(st.integers(0, len(trees) - 1))
        while isinstance(tree[key], dict | list) and tree[key] and data.draw(st.integers(0, 3)):
            tree = tree[key]
            key = data.draw(st.sampled_from(sorted(tree) if isinstance(tree, dict) else range(len(tree))))
        tree[key] = data.draw(TREES)
        attempt(LOADERS[name], run, "".join(json.dumps(tree) + "\n" for tree in trees).encode())

    check()


LITERALS = st.recursive(
    st.sampled_from([value for value in WRONG if value[0] not in "[{"]) | st.text(max_size=9).map(json.dumps),
    lambda x: (
        st.lists(x, max_size=4).map(lambda parts: f"[{', '.join(parts)}]")
        | st.dictionaries(st.sampled_from("abc"), x).map(lambda tree: f"{{{', '.join(map(' = '.join, tree.items()))}}}")
    ),
)


def any_toml(name: str, run: Path, examples: int) -> None:
    """A configuration of klimb's or of a foreign rule with anything for one of its values."""
    fields = [field.name for field in (*dataclasses.fields(TrainOptions), *dataclasses.fields(TRPO))]

    @fast(examples)
    @given(
        st.sampled_from(['"trpo"', '"mine"']), st.sampled_from([*fields, "mine"]), LITERALS, LITERALS | st.just('"x"')
    )
    def check(rule, field, value, env):
        in_rule = f"{field} = {value}" if field not in TrainOptions.__dataclass_fields__ else ""
        text = toml(env, f"name = {rule}\n{in_rule}", "" if in_rule else f"{field} = {value}")
        attempt(LOADERS[name], run, text.encode(errors="surrogatepass"))

    check()


JSON = [name for name in LOADERS if LOADERS[name].file.endswith(("json", "jsonl"))]
FUZZ = [
    *[(any_bytes, name) for name in LOADERS],
    *[(any_damage, name) for name in LOADERS],
    *[(any_tree, name) for name in JSON],
    *[(any_toml, name) for name in LOADERS if LOADERS[name].file == "config.toml"],
]


# Other loaders get the files of fuzz_corpus.py in the fast tests.
QUICK = {
    *("config", "policy description", "policy arrays", "demonstrations", "checkpoint", "report of metrics"),
    *("report of an evaluation", "report of a provenance", "report of a configuration"),
    *("comparison of metrics", "comparison of a configuration"),
}


def cases(examples: int, names: Collection[str], *marks: pytest.MarkDecorator) -> list:
    return [
        pytest.param(fuzz, name, examples, marks=marks, id=f"{fuzz.__name__}-{name}-{examples}".replace(" ", "_"))
        for fuzz, name in FUZZ
        if name in names
    ]


@pytest.mark.parametrize(("fuzz", "name", "examples"), cases(25, QUICK) + cases(150, LOADERS, pytest.mark.slow))
def test_anything_is_taken_or_refused_in_one_line(whole, fuzz, name, examples):
    fuzz(name, whole, examples)


@given(st.text(), st.integers(10, 500))
def test_one_line_is_printable_and_short(text, limit):
    for line in (one_line(text, limit), shown(text, limit)):
        assert line.isprintable()
        assert len(line) <= limit + 1


def test_a_whole_run_is_taken(whole):
    for name, loader in LOADERS.items():
        assert attempt(loader, whole, read(whole, name)) is None
    assert RunConfig.read(whole / "config.toml") == RunConfig("CartPole-v1", TRPO(), TrainOptions())
