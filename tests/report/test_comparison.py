"""klimb compare on made-up runs: which are pooled, what they are called, what is said of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from klimb import PPO, TRPO, RunConfig, TrainOptions
from klimb.cli.main import execute
from klimb.errors import ConfigError, KlimbError, RunError
from klimb.report.comparison import default_threshold, read_comparison
from klimb.report.comparison_figure import draw, learning_curve, spread
from klimb.report.data import read_run
from klimb.report.lines import mean_line
from klimb.report.statistics import Resampling, interquartile_mean

BATCH, ITERATIONS = 2048, 40


def make_run(
    path: Path, rule: Any, *, env: str = "CartPole-v1", level: float = 480.0, evaluate: bool = True, **options: Any
) -> Path:
    """Seed s ends near level + s, and its final evaluation is exactly level + s."""
    config = RunConfig(env, rule, TrainOptions(**{"env_steps": ITERATIONS * BATCH, **options}))
    seeds = config.options.seed + np.arange(config.options.num_seeds)
    rng = np.random.default_rng(seeds)
    path.mkdir()
    (path / "config.toml").write_text(config.to_toml())
    lines = []
    for i in range(ITERATIONS):
        returns = (level + seeds) * min(1, (i + 1) / 25) + rng.normal(size=len(seeds))
        cells = [None if i % 6 == 0 else float(x) for x in returns]
        status = ["ACCEPTED"] * len(seeds)
        record = {"iteration": i + 1, "env_steps": (i + 1) * BATCH, "wall_time": 3 + 0.1 * i, "steps_per_second": 9.0}
        record |= {"episode_return": cells, "status": status} if len(seeds) > 1 else {}
        record |= {"episode_return": cells[0], "status": status[0]} if len(seeds) == 1 else {}
        lines.append(json.dumps(record) + "\n")
    (path / "metrics.jsonl").write_text("".join(lines))
    if evaluate:
        entries = [{"seed": int(s), "mean": level + s, "standard_error": None, "returns": [level + s]} for s in seeds]
        tree = {"episodes": 1, "deterministic": True, "seeds": entries}
        (path / "evaluation.json").write_text(json.dumps(tree, default=float))
    return path


def said(capsys, *words: Any) -> str:
    execute(["compare", *map(str, words)])
    return capsys.readouterr().out


def in_json(capsys, *words: Any) -> dict[str, Any]:
    return json.loads(said(capsys, *words, "--json", "--samples", "50"))


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Two algorithms: TRPO in two runs of 3 and 2 seeds, PPO in one of 4."""
    return [
        make_run(tmp_path / "a", TRPO(), num_seeds=3),
        make_run(tmp_path / "b", TRPO(), num_seeds=2, seed=3, checkpoint_every=7),
        make_run(tmp_path / "c", PPO(), num_seeds=4, level=450.0),
    ]


def test_seeds_of_one_algorithm_are_pooled(runs, capsys):
    tree = in_json(capsys, *runs)
    (environment,) = tree["environments"]
    trpo, ppo = environment["algorithms"]
    assert (trpo["algorithm"], ppo["algorithm"]) == ("TRPO", "PPO")
    assert trpo["runs"] == ["a", "b"]
    assert [seed["seed"] for seed in trpo["seeds"]] == [0, 1, 2, 3, 4]
    assert [seed["run"] for seed in trpo["seeds"]] == ["a", "a", "a", "b", "b"]
    scores = 480 + np.arange(5.0)
    assert [seed["score"] for seed in trpo["seeds"]] == scores.tolist()
    assert trpo["iqm"]["value"] == pytest.approx(float(interquartile_mean(scores)))
    assert 480 <= trpo["iqm"]["low"] < trpo["iqm"]["value"] < trpo["iqm"]["high"] <= 484
    assert (trpo["mean"], trpo["median"], trpo["best"]) == (482.0, 482.0, 484.0)
    assert tree["score"] == "final evaluation"


@pytest.mark.parametrize("without", [0, 3])
def test_the_report_draws_the_mean_that_is_compared(tmp_path, capsys, without):
    """Ten seeds with the returns 0, 0, 0, 10, …, 10: the middle half is half a 0 and four and a half 10s."""
    path = make_run(tmp_path / "a", TRPO(), num_seeds=10 + without, evaluate=False)
    returns = [None] * without + [0.0] * 3 + [10.0] * 7
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**record, "episode_return": returns}) for record in records]
    (path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = read_run(path)
    assert set(run.centre("episode_return").tolist()) == {9.0}
    assert set(mean_line(run, run.columns["episode_return"], "", 1)["values"]) == {9}
    if without == 0:  # a seed without a score can't be compared
        (algorithm,) = in_json(capsys, path)["environments"][0]["algorithms"]
        assert algorithm["iqm"]["value"] == 9.0
    assert float(interquartile_mean(np.array(returns, float))) == 9.0


def test_time_to_the_registered_threshold(runs, capsys):
    (environment,) = in_json(capsys, *runs)["environments"]
    trpo, ppo = environment["algorithms"]
    assert environment["threshold"] == 475.0
    assert (trpo["reached"], ppo["reached"]) == (5, 0)
    assert 25 * BATCH <= trpo["env_steps_to_threshold"] <= 33 * BATCH
    assert trpo["wall_time_to_threshold"] == pytest.approx(3 + 0.1 * (trpo["env_steps_to_threshold"] / BATCH - 1))
    assert ppo["env_steps_to_threshold"] is None
    assert ppo["seeds"][0]["wall_time_to_threshold"] is None


def test_every_pair_is_compared(runs, capsys):
    rows = in_json(capsys, *runs)["improvement"]
    assert [(row["algorithm"], row["over"], row["value"]) for row in rows] == [("TRPO", "PPO", 1), ("PPO", "TRPO", 0)]


def test_labels_say_what_differs_and_nothing_else(tmp_path):
    paths = [
        make_run(tmp_path / "a", TRPO()),
        make_run(tmp_path / "b", TRPO(max_kl=0.02)),
        make_run(tmp_path / "c", PPO()),
    ]
    assert read_comparison(paths).labels == ["TRPO max_kl=0.01", "TRPO max_kl=0.02", "PPO"]
    paths.append(make_run(tmp_path / "d", PPO(), hidden=(32, 32), env_steps=99))
    assert read_comparison(paths[2:]).labels == [
        f"PPO env_steps={ITERATIONS * BATCH} hidden=none",
        "PPO env_steps=99 hidden=32×32",
    ]


def test_a_rule_of_ones_own_that_is_called_like_another_gets_its_runs_name(tmp_path):
    paths = [make_run(tmp_path / "a", TRPO()), make_run(tmp_path / "b", TRPO())]
    config = paths[1] / "config.toml"
    config.write_text(config.read_text().replace('name = "trpo"', 'name = "TRPO"'))
    assert read_comparison(paths).labels == ["TRPO (a)", "TRPO (b)"]


def test_training_returns_are_the_score_unless_all_are_evaluated(tmp_path, capsys):
    paths = [make_run(tmp_path / "a", TRPO()), make_run(tmp_path / "b", PPO(), evaluate=False)]
    tree = in_json(capsys, *paths)
    assert tree["score"] == "training returns"
    assert "b has no final evaluation" in tree["notes"][0]
    records = [json.loads(line) for line in (paths[0] / "metrics.jsonl").read_text().splitlines()]
    last = [record["episode_return"] for record in records[-4:] if record["episode_return"] is not None]
    assert len(last) == 3
    assert tree["environments"][0]["algorithms"][0]["mean"] == pytest.approx(np.mean(last))


def test_several_environments_have_an_aggregate(tmp_path, capsys):
    paths = [
        make_run(tmp_path / "a", TRPO(), num_seeds=3),
        make_run(tmp_path / "b", PPO(), num_seeds=3, level=470.0),
        make_run(tmp_path / "c", TRPO(), num_seeds=3, env="gymnasium:Swimmer-v5", env_steps=7, level=10.0),
        make_run(tmp_path / "d", PPO(), num_seeds=3, env="Swimmer-v5", env_steps=7, level=20.0),
        make_run(tmp_path / "e", PPO(), num_seeds=3, env="Acrobot-v1", level=-90.0),
    ]
    tree = in_json(capsys, *paths)
    assert [environment["environment"] for environment in tree["environments"]] == [
        "CartPole-v1",
        "Swimmer-v5",
        "Acrobot-v1",
    ]
    assert tree["aggregate"]["environments"] == ["CartPole-v1", "Swimmer-v5"]
    # 12 steps from 0 to 1: TRPO's are 10, 11, 12 on one environment and 0, 1, 2 on the other; PPO's the reverse.
    expected = float(interquartile_mean(np.array([0, 1, 2, 10, 11, 12]) / 12))
    for row in tree["aggregate"]["algorithms"]:
        assert row["iqm"]["value"] == pytest.approx(expected)
        assert row["iqm"]["low"] < expected < row["iqm"]["high"]
    assert [row["value"] for row in tree["improvement"]] == [0.5, 0.5]
    assert "CartPole-v1, Swimmer-v5 together" in said(capsys, *paths)


def test_what_is_printed_into_a_pipe(runs, capsys):
    text = said(capsys, *runs)
    assert "\x1b" not in text
    assert "…" not in text
    row = next(line for line in text.splitlines() if line.startswith("TRPO "))
    assert row.split()[1:3] == ["5", "482.0"]
    assert row.endswith("5 of 5")
    assert "mean return of its final evaluation" in text
    assert "no interval" not in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_single_run_of_one_seed(tmp_path, capsys):
    path = make_run(tmp_path / "a", TRPO(), env="Pendulum-v1", level=-200.0)
    text = said(capsys, path)
    assert "no interval from a single seed" in text
    assert "env steps to" not in text
    assert "better" not in text
    assert "env steps to −300" in said(capsys, path, "--threshold", "-300")
    algorithm = in_json(capsys, path)["environments"][0]["algorithms"][0]
    assert algorithm["iqm"] == {"value": -200.0, "low": None, "high": None}
    assert algorithm["reached"] is None


def test_default_threshold_of_bare_ids():
    assert default_threshold("CartPole-v1") == default_threshold("gymnasium:CartPole-v1") == 475.0
    assert default_threshold("Pendulum-v1") is None
    assert default_threshold("nobody:Knows-v3") is None


def test_figure(runs, tmp_path, capsys):
    kinds = {"figure.png": b"\x89PNG", "figure.svg": b"<?xml", "figure.pdf": b"%PDF"}
    for name, first in kinds.items():
        assert said(capsys, *runs, "-o", tmp_path / name, "--samples", "20").endswith(f"{name}\n")
        assert (tmp_path / name).read_bytes().startswith(first)
    assert "</svg>" in (tmp_path / "figure.svg").read_text()
    assert b"CreationDate" not in (tmp_path / "figure.pdf").read_bytes()
    comparison = read_comparison(runs)
    left, right = draw(comparison, None, Resampling(20)).axes
    assert {text.get_text() for text in left.texts} == {"475", "TRPO", "PPO"}
    assert [text.get_text() for text in right.get_yticklabels()] == ["TRPO, 5 seeds", "PPO, 4 seeds"]
    assert "fewer than 5 seeds" in right.get_xlabel()


def test_a_figure_is_not_written_over_unasked(runs, tmp_path, capsys):
    """Which is said before anything is computed."""
    (tmp_path / "figure.png").write_text("mine")
    with pytest.raises(RunError, match=r"figure\.png exists already; give --overwrite, or another file with -o FILE"):
        execute(["compare", *map(str, runs), "-o", str(tmp_path / "figure.png")])
    assert capsys.readouterr().out == ""
    assert (tmp_path / "figure.png").read_text() == "mine"
    said(capsys, *runs, "-o", tmp_path / "figure.png", "--samples", "20", "--overwrite")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


@pytest.fixture
def crowded(tmp_path) -> list[Path]:
    """Seven algorithms with long names whose curves end at almost the same return."""
    rules = [
        TRPO(),
        TRPO(max_kl=0.02, damping=0.2),
        *(PPO(epochs=k, clip_eps=0.1, learning_rate=1e-4) for k in (1, 2, 3)),
    ]
    rules += [PPO(), TRPO(max_kl=0.05, cg_iterations=20)]
    return [make_run(tmp_path / f"{i}", rule, num_seeds=5, level=470.0 + i) for i, rule in enumerate(rules)]


def test_names_stand_beside_their_curves(runs):
    """About a tenth of the panel from the curve's end at most; not over each other, the axes or the threshold."""
    figure = draw(read_comparison(runs), None, Resampling(20))
    FigureCanvasAgg(figure).draw()
    left, right = figure.axes
    panel = left.get_window_extent()
    names = [text for text in left.texts if text.get_text() != "475"]
    boxes = [Text.get_window_extent(name) for name in names]  # without the line to the curve
    ends = {
        line.get_color(): left.transData.transform((line.get_xdata()[-1], line.get_ydata()[-1])) for line in left.lines
    }
    for name, box in zip(names, boxes, strict=True):
        assert box.x0 >= panel.x1  # the threshold's line ends there
        assert abs((box.y0 + box.y1) / 2 - ends[name.get_color()][1]) <= 0.11 * panel.height
        assert box.x1 <= right.get_tightbbox().x0
    assert not boxes[0].overlaps(boxes[1])
    for name in right.get_yticklabels():
        assert name.get_window_extent().x1 <= right.get_window_extent().x0


def test_names_that_do_not_fit_beside_their_curves_stand_in_a_legend(crowded):
    """Whole, each beside its own line, and outside of both panels."""
    comparison = read_comparison(crowded)
    figure = draw(comparison, None, Resampling(20))
    FigureCanvasAgg(figure).draw()
    left, right = figure.axes
    assert [text.get_text() for text in left.texts] == ["475"]
    (legend,) = figure.legends
    named = [" ".join(text.get_text().split()) for text in legend.get_texts()]
    assert named == comparison.labels
    looks = [(line.get_color(), str(line._dash_pattern)) for line in legend.get_lines()]
    assert len(set(looks)) == 7
    drawn = [(line.get_color(), str(line._dash_pattern)) for line in left.lines[:7]]
    assert drawn == looks
    for axes in (left, right):
        assert legend.get_window_extent().y1 <= axes.get_tightbbox().y0
    boxes = [text.get_window_extent() for text in right.get_yticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert [" ".join(text.get_text().split()) for text in right.get_yticklabels()] == [
        f"{label}, 5 seeds" for label in comparison.labels
    ]


def test_a_word_is_said_of_intervals_from_few_seeds(tmp_path, capsys):
    """In the terminal, as JSON and in the figure; not of five seeds or more, nor of one, which has no interval."""
    few, enough, one = (make_run(tmp_path / f"{n}", TRPO(max_kl=0.01 * n), num_seeds=n, level=400.0) for n in (4, 5, 1))
    for paths, expected in (([few, enough], True), ([enough], False), ([one, enough], False)):
        assert ("fewer than 5 seeds are too narrow" in said(capsys, *paths, "--samples", "20")) == expected
        assert in_json(capsys, *paths)["few_seeds"] == expected
        right = draw(read_comparison(paths), None, Resampling(20)).axes[1]
        assert ("fewer than 5 seeds" in right.get_xlabel()) == expected


def test_learning_curves_are_bands_on_a_common_grid(runs):
    group = read_comparison(runs).groups[0]
    steps, (centre, low, high) = learning_curve(group, Resampling(50), points=20)
    assert steps[0] == 2 * BATCH  # the first iteration ended no episode
    assert steps[-1] == ITERATIONS * BATCH
    assert (low <= centre).all()
    assert (centre <= high).all()
    assert centre[-1] == pytest.approx(482, abs=1)


@pytest.mark.parametrize("places", [[0.5, 0.5, 0.5], [0.0, 0.02, 1.0], [0.9, 0.95, 0.1], [0.3], [0.2, 0.5, 0.8]])
def test_labels_are_spread(places):
    places = np.array(places)
    moved = spread(places, 0.1)
    assert (np.diff(np.sort(moved)) >= 0.1 - 1e-12).all()
    assert ((moved >= -1e-12) & (moved <= 1 + 1e-12)).all()
    assert (np.argsort(moved, kind="stable") == np.argsort(places, kind="stable")).all()
    if len(places) == 1 or np.diff(np.sort(places)).min() >= 0.1:
        np.testing.assert_allclose(moved, places)


def test_a_seed_counts_once(runs):
    with pytest.raises(ConfigError, match=r"seed 0 of TRPO on CartPole-v1 occurs twice, in a and in a"):
        execute(["compare", str(runs[0]), str(runs[0])])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "at least one run directory"),
        (["RUN", "--samples", "0"], "samples = 0"),
        (["RUN", "--seed", "-1"], "seed = -1"),
        (["RUN", "--confidence", "1"], "confidence = 1 "),
        (["RUN", "--threshold", "nan"], "threshold = nan"),
        (["RUN", "-o", "figure.jpg"], "figure.jpg ends in .jpg; figures are written as .png, .svg and .pdf"),
        (["RUN", "-o", "nowhere/figure.png"], "cannot write nowhere/figure.png"),
        (["RUN", "--treshold", "3"], "did you mean '--threshold'"),
        (["RUN", "nowhere"], "nowhere is not a run: there is no such directory"),
        (["RUN", "empty"], "empty is not a run: it has no config.toml"),
    ],
)
def test_mistakes_are_one_line(words, message, tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "RUN", TRPO())
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KlimbError) as error:
        execute(["compare", *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_runs_without_a_finished_episode_or_an_iteration(tmp_path):
    path = make_run(tmp_path / "a", TRPO(), evaluate=False)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**record, "episode_return": None}) + "\n" for record in records]
    (path / "metrics.jsonl").write_text("".join(lines))
    with pytest.raises(ConfigError, match="a: seed 0 finished no episode in the last 4 of its 40 iterations"):
        execute(["compare", str(path)])
    (path / "metrics.jsonl").write_text("")
    with pytest.raises(RunError, match="no iteration yet"):
        execute(["compare", str(path)])


def test_runs_without_returns_but_with_an_evaluation(tmp_path, capsys):
    path = make_run(tmp_path / "a", TRPO(), num_seeds=2)
    records = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({**record, "episode_return": None, "env_steps": 0}) + "\n" for record in records]
    (path / "metrics.jsonl").write_text("".join(lines))
    assert "0 of 2" in said(capsys, path, "-o", tmp_path / "figure.png")
