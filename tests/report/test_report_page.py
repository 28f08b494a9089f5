"""The report's page: what it says, hostile text, and the command that repeats the run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from made_up_runs import HOSTILE, Page, ppo_run, read, several_runs, trpo_run

from klimb.errors import RunError
from klimb.improve.rules.ppo import PPO
from klimb.improve.rules.trpo import TRPO
from klimb.report.configuration import command
from klimb.report.html import embed
from klimb.report.page import write_report
from klimb.report.text import format_number, setting
from klimb.runs.config import RunConfig, TrainOptions
from klimb.runs.metrics import METRICS


def test_report_is_written_beside_the_run_or_where_asked(tmp_path: Path) -> None:
    run = trpo_run(tmp_path / "run", 30)
    assert write_report(run) == run / "report.html"
    elsewhere = write_report(run, tmp_path / "other.html")
    assert elsewhere.read_bytes() == (run / "report.html").read_bytes()
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(RunError, match="cannot write"):
        write_report(run, tmp_path / "missing" / "report.html")


def test_page_says_what_the_run_was(tmp_path: Path) -> None:
    page = read(write_report(trpo_run(tmp_path / "run", 120)))
    assert "TRPO on CartPole-v1" in page.text
    for word in ("Final evaluation", "Best mean return", "Training time", "Steps per second", "Rejected steps"):
        assert word in page.text
    assert "klimb train trpo CartPole-v1 --env-steps 245760 --damping 0.05" in page.text
    titles = [chart["title"] for chart in page.data["charts"]]
    assert titles[:8] == [
        *("Episode return", "Final evaluation", "KL divergence", "Predicted and realised improvement"),
        *("Total variation", "Effective sample size", "Sampled lower bound and realised improvement", "Step excess"),
    ]
    assert {"Entropy", "Explained variance", "Value loss", "Speed", "Backtracks", "Step size"} <= set(titles)


def test_nothing_is_fetched_and_no_other_script_may_run(tmp_path: Path) -> None:
    text = write_report(trpo_run(tmp_path / "run", 30)).read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert attributes.get("href", "data:").startswith("data:")
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    assert "script-src 'sha256-" in policy
    assert "innerHTML" not in text
    assert "@import" not in text


def test_it_is_said_which_numbers_are_of_sampled_actions(tmp_path: Path) -> None:
    """The evaluation takes the mode, and may be far above the curve, whose actions are sampled."""
    run_dir = ppo_run(tmp_path / "run", 30)
    page = read(write_report(run_dir))
    assert "Final evaluation, deterministic" in page.text
    assert "Best mean return" in page.text
    assert "sampled actions, IQM of seeds" in page.text
    chart = page.chart("Episode return")
    assert chart["about"].endswith("their actions are sampled.")
    assert chart["levels"][0]["label"] == "final evaluation, deterministic"
    evaluation = run_dir / "evaluation.json"
    evaluation.write_text(evaluation.read_text().replace('"deterministic": true', '"deterministic": false'))
    page = read(write_report(run_dir))
    assert "Final evaluation, sampled actions" in page.text
    assert page.chart("Episode return")["levels"][0]["label"] == "final evaluation, sampled actions"


def test_a_sentence_says_what_a_step_certificate_is(tmp_path: Path) -> None:
    text = read(write_report(trpo_run(tmp_path / "run", 30))).text
    sentence = text.partition("The step certificate of a policy update ")[2].partition(".")[0]
    for words in ("predicted", "measured on the next batch", "distance between the old and the new policy", "bounds"):
        assert words in sentence


@pytest.mark.parametrize(("seeds", "few"), [(3, True), (4, True), (5, False)])
def test_a_word_stands_under_errors_and_bands_of_few_seeds(tmp_path: Path, seeds: int, few: bool) -> None:
    text = read(write_report(ppo_run(tmp_path / "run", 12, seeds=seeds))).text
    assert (f"{seeds} seeds are few: bands and errors from fewer than 5" in text) == few
    assert ("(fewer than 5: unreliable)" in text) == few
    assert f"± standard error over {seeds} seeds" in text


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    run_dir = trpo_run(tmp_path / HOSTILE.replace("/", "∕"), 30, env=HOSTILE)
    path = run_dir / "metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    records[3]["status"] = f"NO_{HOSTILE}"
    path.write_text("".join(json.dumps({**record, HOSTILE: 1.5}) + "\n" for record in records))
    page = read(write_report(run_dir))
    assert sum(tag == "script" for tag, _ in page.elements) == 2
    assert all(tag != "img" and "onerror" not in attributes for tag, attributes in page.elements)
    assert HOSTILE.split("&")[0] in page.text
    assert HOSTILE.strip() in [chart["title"] for chart in page.data["charts"]]


def test_embedded_json_is_inert_and_reads_back() -> None:
    tree = {"a": [HOSTILE, 1.5, None], "<!--": "<script>"}
    text = embed(tree)
    assert text.isascii()
    assert not re.search(r"[<>&]", text)
    assert json.loads(text) == tree
    with pytest.raises(ValueError, match="JSON"):
        embed({"a": float("nan")})


def test_a_rule_of_ones_own(tmp_path: Path) -> None:
    run_dir = several_runs(tmp_path / "run", my_measure=0.5)
    text = 'env = "CartPole-v1"\n\n[rule]\nname = "MyRule"\nmax_kl = 0.02\nother = "none"\n\n[options]\nseed = 4\n'
    (run_dir / "config.toml").write_text(text)
    page = read(write_report(run_dir))
    assert "MyRule on CartPole-v1" in page.text
    assert page.chart("KL divergence")["levels"] == []
    assert page.chart("My measure")["layers"][0]["values"][0] == 0.5
    assert "repeat this run from Python" in page.text


def test_command_repeats_the_run() -> None:
    options = TrainOptions(env_steps=50_000, hidden=(32, 32, 32), normalize_advantage=False, discount_states=True)
    rule = PPO(max_grad_norm=None, target_kl=0.02, learning_rate=1e-5)
    words = " ".join(command(RunConfig("pkg:My Env-v0", rule, options).to_dict()))
    assert words == (
        "klimb train ppo 'pkg:My Env-v0' --env-steps 50000 --discount-states --no-normalize-advantage "
        "--hidden 32 32 32 --learning-rate 1e-05 --max-grad-norm none --target-kl 0.02"
    )
    bare = RunConfig("CartPole-v1", PPO(), TrainOptions()).to_dict()
    assert " ".join(command(bare)) == "klimb train ppo CartPole-v1 --env-steps 200000"


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1234.5, "1,234"), (488.13, "488.1"), (-0.5, "−0.5"), (0.00973, "0.00973"), (2.5e-7, "2.50e−7")],
)
def test_figures_for_people(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("kl_coef_range", [0.001, 1000.0], "0.001 to 1000"),
        ("hidden", (64, 64), "64 × 64"),
        ("hidden", [], "none"),
        ("target_kl", None, "none"),
        ("discount_states", True, "yes"),
        ("env_steps", 200_000, "200,000"),
        ("their_range", ["a", "b"], "a × b"),
    ],
)
def test_settings_for_people(name: str, value: object, text: str) -> None:
    assert setting(name, value) == text


def test_metrics_have_the_rules_titles_and_meanings(tmp_path: Path) -> None:
    page = read(write_report(trpo_run(tmp_path / "run", 30)))
    for name in ("backtracks", "step_size", "episode_length"):
        title, meaning = {**METRICS, **TRPO().traits.metrics}[name]
        assert page.chart(title)["about"] == f"{meaning[0].upper()}{meaning[1:]}."
