"""The documentation site: every public name is described in its reference, and its links lead somewhere."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import posixpath
import re

import pytest

import build_site
import klimb
import names_index
import reference
from browser import CHROMIUM, browse
from command_reference import options_of
from docstrings import parse
from klimb.cli.commands import COMMANDS
from links import Links, place_of, relative, with_separate_lists
from navigation import HOW_TO, linked_pages, sections
from site_check import problems
from surface import Entry, Member, entry, topics

NAMES = [name for names in topics().values() for name in names]
# A summary that begins with one of these as an order says what is done, and not what is returned.
IMPERATIVES = re.compile(
    r"(Add|Check|Compare|Compute|Continue|Draw|Film|Find|Go|Join|Let|Load|Make|Merge|Move|Put|Read|Record|Reset|Run|Sample"
    r"|Save|Search|Set|Solve|Start|Step|Take|Train|Turn|Write)\b"
)


def described(one: Entry) -> list[Member]:
    return [one.head, *one.members]


def test_every_public_name_has_a_topic_and_an_entry_with_a_description():
    assert sorted(NAMES) == sorted(klimb.__all__)
    pages = "\n".join(reference.pages().values())
    for name in NAMES:
        assert entry(name).head.doc.summary, name
        assert f"{{#{reference.anchor(name)}}}" in pages, name


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_and_field_is_described(name):
    one = entry(name)
    for argument in one.fields:
        assert argument.meaning, f"{name}: the field {argument.name}"
    for member in described(one):
        for argument in member.arguments:
            assert argument.meaning, f"{member.name}: the argument {argument.name}"


@pytest.mark.parametrize("name", NAMES)
def test_what_is_returned_is_stated(name):
    for member in described(entry(name)):
        if member.kind in ("function", "method") and member.result != "None" and not member.doc.returns:
            assert not IMPERATIVES.match(member.doc.summary), member.name


def raised(member: Member) -> set[str]:
    """The exceptions that the body of a function raises by name."""
    nodes = ast.walk(member.source) if member.source is not None else ()
    raised = (ast.unparse(node.exc).partition("(")[0] for node in nodes if isinstance(node, ast.Raise) and node.exc)
    return {name for name in raised if hasattr(klimb, name) or hasattr(builtins, name)}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_raised_is_stated_and_exists(name):
    one = entry(name)
    for member in described(one):
        stated = " ".join((*member.doc.raises, *one.head.doc.raises))
        for error in raised(member):
            assert error in stated, f"{member.name} raises {error}"
        for error in re.findall(reference.ERROR, stated):
            assert hasattr(klimb, error) or hasattr(builtins, error), f"{member.name}: {error}"


def test_a_docstring_is_taken_apart():
    text = """What it does, or why not: in a sentence.

    More about it; obs: no argument here.

    obs: one observation, or several. first, second: numbers,
        in order. Raises ValueError for none.

    Returns a number. ConfigError when `first` is wrong; RunError if a file is.
    """
    doc = parse(text, ["obs", "first", "second"])
    assert doc.summary == "What it does, or why not: in a sentence."
    assert doc.arguments["obs"] == "one observation, or several."
    assert doc.arguments["first"] == doc.arguments["second"] == "numbers,\nin order."
    assert doc.returns == ("Returns a number.",)
    assert doc.raises == ("ValueError for none", "ConfigError when `first` is wrong", "RunError if a file is")


def test_a_docstring_without_anything_has_no_parts():
    assert parse(None, ["obs"]) == parse("", [])
    assert parse(None, []).summary == ""


def test_signatures_are_those_of_the_source():
    assert entry("make").head.signature.startswith("make(env")
    assert "\n    *,\n" in entry("train").head.signature
    assert "**options: Unpack[TrainOptionsDict]" in entry("train").head.signature
    limit = next(field for field in entry("TRPO").fields if field.name == "max_kl")
    assert limit.default == "0.01"
    assert "Enforced limit" in limit.meaning


def test_names_in_backticks_become_links_but_not_in_code_or_headings():
    text = (
        "# `klimb.train`\n`klimb.train(env)` and `klimb.Clip.save`, `train`, [`klimb.act`](x.md)\n```\n`klimb.act`\n```"
    )
    linked = reference.linked(text, "runs.md", relative)
    assert linked.splitlines()[0] == "# `klimb.train`"
    assert "[`klimb.train(env)`](api/train-and-use.md#klimb.train)" in linked
    assert "[`klimb.Clip.save`](api/train-and-use.md#klimb.Clip.save), `train`, [`klimb.act`](x.md)" in linked
    assert "\n`klimb.act`\n" in linked
    linked = reference.linked("`gae` `Batch`\n:   as `gae`", "api/rules.md", relative)
    assert linked == "`gae` [`Batch`](types.md#klimb.Batch)\n:   as [`gae`](estimators.md#klimb.gae)"


@pytest.mark.parametrize(
    ("repository", "link"),
    [
        ("", "../source/src/klimb/files.py.md#__codelineno-0-3"),
        ("https://example.org/klimb/blob/main/", "https://example.org/klimb/blob/main/src/klimb/files.py#L3"),
    ],
)
def test_links_to_files_lead_to_the_repository_or_to_a_page(repository, link):
    links = Links(build_site.ROOT, repository)
    text = "[files](../../src/klimb/files.py#L3), [theory](../../src/klimb/theory), [`x`](../runs.md#metrics) `[y](z)`"
    turned = links.turned(text, "docs/theory/page.md", "theory/page.md")
    directory = "theory" if not repository else f"[theory]({repository}src/klimb/theory)"
    assert turned == f"[files]({link}), {directory}, [`x`](../runs.md#metrics) `[y](z)`"
    assert [place for place, _ in links.source_pages()] == ([] if repository else ["source/src/klimb/files.py.md"])


def test_pages_beside_docs_lead_to_places_in_the_site():
    assert place_of("CHANGELOG.md") == "changelog.md"
    assert relative("theory/page.md", "changelog.md#new") == "../changelog.md#new"
    assert relative("runs.md", "runs.md#metrics") == "#metrics"


def test_lists_get_an_empty_line_before_them():
    assert with_separate_lists("text\n- a\n  more\n- b\n\n1. c") == "text\n\n- a\n  more\n- b\n\n1. c"
    assert with_separate_lists("```\ntext\n- a\n```") == "```\ntext\n- a\n```"


def placed(items):
    """The pages of a navigation, of its sections too."""
    for item in items:
        if isinstance(item, str):
            yield item
        else:
            inside = next(iter(item.values()))
            yield from placed([inside] if isinstance(inside, str) else inside)


def test_every_page_is_in_the_navigation_once():
    index = (build_site.DOCS / "index.md").read_text()
    pages = list(placed(sections(index, ["new.md"])))
    files = [page.relative_to(build_site.DOCS).as_posix() for page in build_site.DOCS.rglob("*.md")]
    assert sorted(pages) == sorted([*files, "new.md"])
    assert {"API": ["api/a.md", "api/b.md"]} in sections(index, ["api/a.md", "api/b.md"])[5]["Reference"]
    by_title = {title: pages for section in sections(index, ["new.md"]) for title, pages in section.items()}
    assert by_title[HOW_TO][-1] == "new.md"
    assert linked_pages("[a](b.md) [c](d.md#e) [f](b.md)") == ["b.md"]


def test_the_index_has_everything_in_alphabetical_order():
    page = names_index.page((build_site.DOCS / "glossary.md").read_text())
    for name in NAMES:
        assert f"`klimb.{name}`" in page
    for command in COMMANDS:
        assert f"`klimb {command}`" in page
        assert all(f"`{one.flag.names[0]}`" in page for one in options_of(command) if not one.flag.positional)
    assert "[trust region](glossary.md#term-trust-region) term" in page
    letters = re.findall(r"^## ([A-Z])$", page, flags=re.MULTILINE)
    assert letters == sorted(set(letters))


def test_links_and_anchors_of_all_pages_exist_before_they_are_built():
    """Of Markdown, so that the fast tests see it; `make docs` checks what is built."""
    pages = build_site.pages("")
    for place, text in pages.items():
        for target in re.findall(
            r"\]\(([^)#\s]+\.md)", re.sub(r"^(`{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
        ):
            if "://" not in target:
                assert posixpath.normpath(posixpath.join(posixpath.dirname(place), target)) in pages, (place, target)


def test_the_check_finds_what_is_wrong(tmp_path):
    (tmp_path / "a.html").write_text(
        '<p id="here">text\n- a list</p><a href="#here">x</a><a href="#there">x</a><a href="b.html">x</a>'
        '<a href="https://example.org">x</a><script src="https://example.org/x.js"></script><img src="c.png">'
    )
    found = list(problems(tmp_path))
    assert len(found) == 5
    for part in (
        "#there leads to no anchor",
        "b.html leads to no file",
        "x.js is loaded from the network",
        "c.png",
        "'- a'",
    ):
        assert any(part in line for line in found), part


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, as Zensical builds it."""
    if importlib.util.find_spec("zensical") is None:
        pytest.skip("needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_site, "STAGE", folder)
        build_site.stage(build_site.pages(""))
        assert build_site.build() == []
    return folder / "site"


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(site):
    assert list(problems(site)) == []
    assert len(list(site.rglob("*.html"))) > 100


@pytest.mark.slow
def test_a_link_without_an_anchor_is_told_by_one_warning(site, tmp_path, monkeypatch):
    monkeypatch.setattr(build_site, "STAGE", tmp_path)
    build_site.stage(build_site.pages("") | {"ideas.md": "# Ideas\n\n[x](runs.md#nowhere)\n"})
    (said,) = build_site.build()
    assert "ideas.md:3:13" in said
    assert "anchor does not exist" in said
    assert "Traceback" not in said


SEARCH = """<!doctype html><title>search</title><body><script src="assets/iframe-worker.js"></script>
<script src="search.js"></script><script>
  const worker = new Worker("WORKER");
  worker.onmessage = ({ data }) => {
    if (data.type === 1) worker.postMessage({ type: 2, data: { input: "conjugate gradient" } });
    if (data.type === 3) document.title = `${data.data.items.length} pages found`;
  };
  worker.postMessage({ type: 0, data: __index });
</script></body>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_pages_opened_as_files_can_be_searched_and_load_nothing_from_elsewhere(site, tmp_path):
    _, said = browse(site / "index.html", tmp_path / "profile")
    assert "net::" not in said
    (worker,) = (site / "assets" / "javascripts" / "workers").glob("search.*.js")
    (site / "find.html").write_text(SEARCH.replace("WORKER", worker.relative_to(site).as_posix()))
    elements, _ = browse(site / "find.html", tmp_path / "profile")
    assert int(re.findall(r"<title>(\d+) pages found</title>", elements)[0]) > 3
