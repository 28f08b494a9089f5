"""Hostile files, and mutations of them, for everything that reads a file: each is taken, or refused in one line."""

from __future__ import annotations

import ast
import contextlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType

import fuzz_corpus
import fuzz_loaders
import pytest
from fuzz_corpus import corpus, mutated, topics
from fuzz_loaders import LOADERS, attempt, little_memory

import klimb
from klimb import KlimbError

SOURCE = Path(klimb.__file__).parent
KEPT = Path(__file__).parent.parent.parent / ".cache" / "fuzzing"
"""Where a file is kept that a loader did not take and did not refuse."""
SECONDS = 30
LONGEST = 5.0
"""Seconds that a loader may take for a small file."""
fault = pytest.mark.fault

READING = {
    *("read_limited", "read_lines", "open_regular", "open_arrays", "require_regular"),  # of klimb
    *("safe_open", "load_file", "read_text", "read_bytes"),
}
"""Functions and methods that read a file, or say that one is about to be read."""
PARSING = {
    "json": {"load", "loads"},
    "tomllib": {"load", "loads"},
    "h5py": {"File"},
    "minari": {"load_dataset", "list_local_datasets"},
    "np": {"load", "loadtxt", "fromfile"},
}
"""Functions of modules that parse what was read."""
NO_FILE = {
    "cli/export.py _of_run": "the policy that has just been loaded, for its checksum",
    "export/python_file.py python_file": "a file of the package",
    "collect/host/ray_actor.py cpu_model": "what the kernel says of this machine",
    "collect/host/worker.py serve": "its own standard input, from the process that started it",
    "collect/host/worker.py _serve": "the same",
    "collect/host/worker_process.py WorkerProcess.receive": "a pipe from a process that this one has started",
    "environments/trial.py digests_elsewhere": "a file in a folder of its own, of a process that it has started",
    "environments/trial.py serve": "its own standard input",
    "filming/card.py asset": "a file of the package",
    "report/html.py resource": "a file of the package",
    "runs/arrays.py as_file": "bytes that it has made itself",
    "training/peers.py exchange": "what another process of the same training says",
    "tracking/wandb_sink.py WandbSink.finish": "files of the run, which are copied as they are",
    "training/resources.py _of_process": "what the kernel says of this process",
    "training/tune.py Search._write_best": "files of the best trial, which are copied as they are",
}
"""Functions that call one of these, and read no file of a stranger, with what they read."""


class TooSlow(BaseException):
    """A loader took longer than `LONGEST`. No Exception, which a loader may catch."""


@contextlib.contextmanager
def limited(seconds: float) -> Iterator[None]:
    """TooSlow after some seconds. The timer that pytest has set for the whole test goes on afterwards."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"it took more than {seconds:g} s")

    handler, began = signal.signal(signal.SIGALRM, stop), time.monotonic()
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, max(0.01, remaining - time.monotonic() + began) if remaining else 0)
        signal.signal(signal.SIGALRM, handler)


@pytest.fixture(scope="module")
def whole() -> Iterator[Path]:
    """A whole run, in memory where there is such a folder: the files are written thousands of times."""
    memory = Path("/dev/shm")
    folder = tempfile.mkdtemp(prefix="klimb-fuzzing-", dir=memory if os.access(memory, os.W_OK) else None)
    yield fuzz_loaders.make_runs(Path(folder))
    shutil.rmtree(folder)


def failure(name: str, run: Path, content: bytes, seconds: float = LONGEST) -> str | None:
    """What a loader does with a file beside taking it and refusing it in one line; None where it does neither."""
    try:
        with limited(seconds), little_memory(512):
            said = attempt(LOADERS[name], run, content)
        # Raised by NumPy, and told as what is wrong with the file.
        assert said is None or "llocate" not in said, said
    except (Exception, TooSlow) as error:
        trace, found = error.__traceback__, "?"
        while trace is not None:
            file = Path(trace.tb_frame.f_code.co_filename)
            found = f"{file.name}:{trace.tb_lineno}" if file.is_relative_to(SOURCE) else found
            trace = trace.tb_next
        return f"{type(error).__name__} at {found}: {str(error)[:200]!a}"
    return None


def keep(name: str, content: bytes) -> Path:
    """The file that a failing input is kept in."""
    KEPT.mkdir(parents=True, exist_ok=True)
    path = KEPT / f"{name.replace(' ', '_')}-{abs(hash(content)):x}{Path(LOADERS[name].file).suffix}"
    path.write_bytes(content)
    return path


OUTCOME = "taken, or refused in one line"
FAULTS = {
    fuzz_corpus.OTHERS: fault("any file that is read is one of 30 files of another kind", OUTCOME),
    fuzz_corpus.VALUES: fault(
        "a value of any JSON or TOML file is one of 26: deep, 400 digits, NaN, escapes, …", OUTCOME
    ),
    fuzz_corpus.KEYS: fault("keys of any JSON or TOML file are missing, twice there, hostile or 1,000 more", OUTCOME),
    fuzz_corpus.STRUCTURE: fault("lines of the metrics are in another order, repeated, or have 1,100 metrics", OUTCOME),
    fuzz_corpus.RECORDS: fault("records are of a run with other seeds, or hold no numbers, and it is resumed", OUTCOME),
    fuzz_corpus.HEADERS: fault("headers of arrays claim other types, shapes, offsets and names", OUTCOME),
    fuzz_corpus.NUMBERS: fault("arrays with a right checksum are NaN, infinite, extreme or of another size", OUTCOME),
    fuzz_corpus.METADATA: fault("metadata of arrays with a right checksum are hostile, negative or 10³⁰⁰", OUTCOME),
}
CASES = [
    pytest.param(name, topic, marks=FAULTS[topic], id=f"{name}-{topic}".replace(" ", "_"))
    for name, loader in LOADERS.items()
    for topic in topics(loader.kind)
]


@pytest.mark.parametrize(("name", "topic"), CASES)
def test_the_corpus(whole, name, topic):
    loader = LOADERS[name]
    failures = []
    for what, content in corpus(loader.kind, (whole / loader.file).read_bytes())[topic]:
        said = failure(name, whole, content)
        if said is not None:
            failures.append(f"{what}: {said}; kept as {keep(name, content)}")
            if "TooSlow" in said:
                break
    assert not failures, "\n".join(failures)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(10 * SECONDS)
@fault("any file that is read is mutated at random, for half a minute", OUTCOME)
def test_mutations(whole):
    seed = int(os.environ.get("KLIMB_FUZZING_SEED", random.SystemRandom().randrange(2**32)))
    rng, end, count = random.Random(seed), time.monotonic() + SECONDS, 0
    names = list(LOADERS)
    bases = {}
    for name in names:
        content = (whole / LOADERS[name].file).read_bytes()
        found = [content for files in corpus(LOADERS[name].kind, content).values() for _, content in files]
        # As often the whole file as one of the corpus: most of its mutations are still read to their end.
        bases[name] = [content] * len(found) + [other for other in found if len(other) < 20_000]
    failures: dict[str, str] = {}
    while time.monotonic() < end:
        name = rng.choice(names)
        content = mutated(rng.choice(bases[name]), rng, bases[rng.choice(names)])
        count += 1
        said = failure(name, whole, content)
        if said is not None:
            failures.setdefault(f"{name}: {said[:60]}", f"{said}; kept as {keep(name, content)}")
    assert count > SECONDS, "hardly anything was tried"
    assert not failures, f"KLIMB_FUZZING_SEED={seed}, {count} files: " + "\n".join(
        f"{name}: {said}" for name, said in failures.items()
    )


def test_a_loader_that_fails_is_noticed(whole, monkeypatch):
    """What the tests above look for: an exception, a message of two lines, a warning, and too much time."""

    def raising(error: BaseException) -> Callable[[Path], object]:
        def load(run: Path) -> object:
            raise error

        return load

    loaders = {
        "ValueError at": raising(ValueError("two\nlines")),
        "AssertionError at": raising(KlimbError("two\nlines")),
        "TooSlow at": lambda run: time.sleep(9),
    }
    for expected, load in loaders.items():
        monkeypatch.setitem(LOADERS, "made up", fuzz_loaders.Loader("ended.json", load))
        said = failure("made up", whole, b"x", seconds=0.2)
        assert said is not None
        assert said.startswith(expected)
    monkeypatch.setitem(LOADERS, "made up", fuzz_loaders.Loader("ended.json", raising(KlimbError("one line"))))
    assert failure("made up", whole, b"x") is None


# What stands where a file should be.


def pipe(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def loop(path: Path) -> None:
    path.symlink_to(path)


def dangling(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def enormous(path: Path) -> None:
    """6 GB, which take no room on the disk."""
    path.touch()
    os.truncate(path, 6 * 10**9)


PLACES = [
    pytest.param(pipe, marks=fault("any file that is read is a pipe", "refused without waiting for it, or left out")),
    pytest.param(folder, marks=fault("any file that is read is a directory", OUTCOME)),
    pytest.param(device, marks=fault("any file that is read is a link to /dev/zero", "refused, or left out")),
    pytest.param(loop, marks=fault("any file that is read is a link to itself", OUTCOME)),
    pytest.param(dangling, marks=fault("any file that is read is a link to nothing", OUTCOME)),
    pytest.param(nothing, marks=fault("any file that is read is missing", OUTCOME)),
    pytest.param(enormous, marks=fault("any file that is read is 6 GB large", "refused without reading all of it")),
]


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("make", PLACES)
def test_what_is_no_file_of_a_run(whole, name, make):
    path = whole / LOADERS[name].file
    kept = path.rename(path.with_name(f"{path.name}.kept"))
    said = None
    try:
        make(path)
        with limited(LONGEST), little_memory():
            LOADERS[name].load(whole)
    except KlimbError as error:
        said = None if str(error).isprintable() else f"it says {str(error)!a}"
    except (Exception, TooSlow) as error:
        said = f"{type(error).__name__}: {error}"
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        kept.rename(path)
    assert said is None, said


# Whether everything that reads a file is among the loaders.


def functions_that_read() -> set[str]:
    """`file function` of everything in klimb that calls a function that reads or parses."""
    found = set()
    for file in sorted(SOURCE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        found |= {f"{file.relative_to(SOURCE).as_posix()} {name}" for name, node in functions(tree, "") if reads(node)}
    return found


def functions(node: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield f"{prefix}{child.name}", child
            yield from functions(child, f"{prefix}{child.name}.")
        elif isinstance(child, ast.ClassDef):
            yield from functions(child, f"{prefix}{child.name}.")
        else:
            yield from functions(child, prefix)


def reads(function: ast.AST) -> bool:
    return any(isinstance(node, ast.Call) and is_read(node) for node in ast.walk(function))


def is_read(call: ast.Call) -> bool:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name) if name in READING:
            return True
        case ast.Attribute(value=ast.Name(id=module), attr=name) if name in PARSING.get(module, ()):
            return True
        case ast.Attribute(attr="open") | ast.Name(id="open"):
            # RunDirectory.open has no mode.
            words = [
                word
                for word in (*call.args, *(named.value for named in call.keywords))
                if isinstance(word, ast.Constant)
            ]
            return any(
                isinstance(word.value, str) and re.fullmatch(r"r[bt]?\+?|[aw]b?\+", word.value) for word in words
            )
    return False


def reached(run: Path) -> set[str]:
    """`file function` of everything in klimb that runs while the loaders read whole files."""
    seen: set[str] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(str(SOURCE)):
            name = code.co_qualname.replace("<locals>.", "")
            seen.add(f"{Path(code.co_filename).relative_to(SOURCE).as_posix()} {name}")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for name, loader in LOADERS.items():
            said = attempt(loader, run, (run / loader.file).read_bytes())
            assert said is None, (name, said)
    finally:
        sys.setprofile(before)
    return seen


def test_everything_that_reads_a_file_is_fuzzed(whole):
    """A new loader is added to LOADERS in fuzz_loaders.py, and a function that reads no file to NO_FILE here."""
    found = functions_that_read()
    assert {"runs/provenance.py read_provenance", "runs/toml.py read_toml", "runs/arrays.py load_arrays"} <= found
    assert not set(NO_FILE) - found, "functions that are gone, or read nothing any more"
    assert not found - reached(whole) - set(NO_FILE)
