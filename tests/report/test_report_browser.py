"""How a browser takes the report: every chart drawn, nothing on its console, pointer and keyboard answered."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from made_up_runs import HOSTILE, ppo_run, read, trpo_run

from browser import CHROMIUM, Browser, browse
from klimb.report.page import write_report
from problems import slow_except


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("kind", slow_except({"trpo"}, ("trpo", "ppo", "long", "hostile", "shortest")))
def test_browser_draws_every_chart(tmp_path: Path, kind: str) -> None:
    make = {
        "trpo": lambda: trpo_run(tmp_path / "run"),
        "ppo": lambda: ppo_run(tmp_path / "run"),
        "long": lambda: trpo_run(tmp_path / "run", 3000, evaluate=False),
        "hostile": lambda: trpo_run(tmp_path / "run", 40, env=HOSTILE),
        "shortest": lambda: trpo_run(tmp_path / "run", 1),
    }
    path = write_report(make[kind]())
    document, console = browse(path, tmp_path / "profile")
    assert not re.search(r"CONSOLE.*(error|refused)|Uncaught", console, re.IGNORECASE), console
    assert 'data-rendered="true"' in document
    assert "<title>taken" not in document
    assert ('data-layer="fit"' in document) == (kind != "shortest")
    cards = document.split("data-chart=")[1:]
    assert len(cards) == len(read(path).data["charts"])
    for card in cards:
        figure = card.split("</figure>")[0]
        assert "<svg viewBox" in figure
        assert re.search(r'<path [^>]*d="M[^"]+"[^>]*data-layer|<path [^>]*data-layer[^>]*d="M', figure), figure[:400]
        assert "NaN" not in figure
        assert "Infinity" not in figure


# Presses every button twice, points at every chart in several places, and walks along it with the keyboard.
PLAY = """
for (const press of [0, 1]) for (const button of document.querySelectorAll(".legend button, .scale")) button.click();
let told = 0;
for (const card of document.querySelectorAll("[data-chart]")) {
  const chart = card.querySelector(".plot > svg"), box = chart.getBoundingClientRect();
  for (let i = 0; i < 40; i++) {
    const [x, y] = [(i + 0.5) / 40, ((i * 7) % 40) / 40];
    const where = { clientX: box.left + box.width * x, clientY: box.top + box.height * y };
    chart.dispatchEvent(new PointerEvent("pointermove", where));
    if (card.querySelector(".tooltip.shown b")) { told += 1; break; }
  }
  for (const key of ["ArrowLeft", "ArrowRight", "Escape"]) chart.dispatchEvent(new KeyboardEvent("keydown", { key }));
  chart.dispatchEvent(new PointerEvent("pointerleave"));
}
document.documentElement.dataset.told = told;
"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("make", slow_except({trpo_run}, (trpo_run, ppo_run)))
def test_charts_answer_pointer_keyboard_and_legend(tmp_path: Path, make: Any) -> None:
    path = write_report(make(tmp_path / "run", 50))
    text = re.sub(r"<meta http-equiv[^>]*>", "", path.read_text(encoding="utf-8"))
    path.write_text(text.replace("</body>", f"<script>{PLAY}</script></body>"), encoding="utf-8")
    document, console = browse(path, tmp_path / "profile")
    assert not re.search(r"CONSOLE|Uncaught", console), console
    charts = len(read(path).data["charts"])
    assert f'data-told="{charts}"' in document
    assert 'class="tooltip shown"' not in document
    assert "NaN" not in document.split("</style>")[1].split('<script type="application/json"')[0]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_nothing_is_wider_than_the_window_and_paper_shows_everything(tmp_path: Path) -> None:
    path = write_report(trpo_run(tmp_path / "run", 800))
    with Browser(tmp_path / "profile") as browser:
        for width in (400, 820, 1400):
            browser.open(path.resolve().as_uri(), width)
            browser.wait_for(f"document.documentElement?.dataset.rendered && innerWidth === {width}")
            root = "document.documentElement"
            assert browser.value(f"{root}.scrollWidth <= {root}.clientWidth"), width
        folded = "document.querySelectorAll('details:not([open])').length"
        assert browser.value(folded) > 0
        browser.value("window.dispatchEvent(new Event('beforeprint'))")
        assert browser.value(folded) == 0
        browser.value("window.dispatchEvent(new Event('afterprint'))")
        assert browser.value(folded) > 0
