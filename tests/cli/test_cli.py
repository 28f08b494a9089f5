"""The command line: what it prints, what it leaves, and one clear line with exit status 2 for every mistake."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from klimb import TRPO, NetworkPolicy, RunConfig, TrainOptions, load_policy, make, save_policy
from klimb.cli.main import main
from klimb.policies.actions import Discrete
from klimb.runs.directory import RunDirectory
from klimb.training.final_evaluation import evaluate_seeds
from klimb.training.networks import load_policies_of_one_iteration
from klimb.training.progress.view import Lines
from problems import Stopper

SMALL = shlex.split("--num-envs 4 --num-steps 32 --hidden 8 --critic-epochs 2 --critic-num-minibatches 2")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    """Runs go to runs/ in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A small finished run of two seeds, and in `said.txt` beside `runs` what was printed, with `--verbose`."""
    folder = tmp_path_factory.mktemp("cli")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KLIMB_COMPILATION_CACHE", "off")
        words = ["train", "trpo", "CartPole-v1", *SMALL, "--env-steps", "512", "--num-seeds", "2", "--verbose"]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            assert main([*words, "--eval-episodes", "3", "--max-kl", "0.02"]) == 0
        Path("said.txt").write_text(said.getvalue())
    return folder / "runs" / "trpo-CartPole-v1"


def test_training_leaves_a_run_with_evaluation_and_report(run_dir):
    assert (run_dir / "report.html").stat().st_size > 10_000
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    assert [entry["seed"] for entry in evaluation["seeds"]] == [0, 1]
    assert len(evaluation["seeds"][0]["returns"]) == 3
    assert "max_kl = 0.02" in (run_dir / "config.toml").read_text()


def test_training_says_what_it_does_and_where_everything_is(capsys, monkeypatch):
    """One record a line, whatever the width of the terminal: this is no terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert main(["train", "ppo", "CartPole-v1", *SMALL, "--env-steps", "256", "--eval-episodes", "2"]) == 0
    out = capsys.readouterr().out
    for expected in (
        "jax:CartPole-v1 (compiled)", "PPO(", "iteration 2/2", "env steps 256", "steps/s", "return", "KL",
        "time left", "mean return", "runs/ppo-CartPole-v1/report.html", "klimb evaluate runs/ppo-CartPole-v1",
    ):  # fmt: skip
        assert expected in " ".join(out.split()), expected
    assert re.sub(r"[^\x20-\x7e\n…–±]", "", out) == out
    words = ["environment", "rule", "training", "compiling", "iteration", "iteration", "checkpoint", "trained:"]
    words += ["evaluation", "memory", "report", "policy", "metrics", "again"]
    assert [line.split()[0] for line in out.splitlines()] == words


def test_verbose_has_a_line_for_every_iteration(run_dir):
    lines = (run_dir.parent.parent / "said.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines if line.startswith("iteration")] == [f"{i}/4" for i in (1, 2, 3, 4)]
    assert sum(line.startswith("compiled ") for line in lines) == 1
    assert "checkpoint of iteration 4 written to runs/trpo-CartPole-v1" in lines


def test_quiet_and_verbose_are_opposites(run_dir, capsys):
    for words in (["train", "trpo", "CartPole-v1", "-q", "-v"], ["resume", str(run_dir), "--quiet", "--verbose"]):
        assert main(words) == 2
        assert capsys.readouterr().err == "klimb: --quiet and --verbose are opposites: choose one of them\n"


@pytest.mark.slow
def test_a_second_run_gets_a_directory_of_its_own():
    for _ in range(2):
        assert main(["train", "trpo", "CartPole-v1", *SMALL, "--env-steps", "128", "--eval-episodes", "0"]) == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["trpo-CartPole-v1", "trpo-CartPole-v1-2"]


@pytest.mark.slow
def test_a_sweep_leaves_runs_to_compare(capsys):
    """Also with the flag's own spelling; the runs are those that `klimb compare` is told of."""
    words = ["sweep", "trpo", "CartPole-v1", "--over", "max-kl", "0.003", "0.03", *SMALL]
    assert main([*words, "--env-steps", "256", "--eval-episodes", "2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"max_kl=0\.03 +mean return [\d.]+ over 2 episodes per seed", out)
    parent = Path("runs/sweep-trpo-CartPole-v1")
    assert f"klimb compare {parent}\n" in out
    assert sorted(path.name for path in parent.iterdir()) == ["max_kl=0.003", "max_kl=0.03", "sweep.toml"]
    assert all((path / "report.html").exists() for path in parent.glob("max_kl=*"))
    # Told of everything in the folder, as a shell does for `*`, or of the folder alone.
    for words in (map(str, parent.iterdir()), [str(parent)]):
        assert main(["compare", *words]) == 0
        assert "TRPO max_kl=0.03" in capsys.readouterr().out
    # A line for every value, with its own limit.
    assert re.search(r"max_kl=0\.003  .*iteration 2/2  .*KL 0\.00\d+ / 0\.003  ", out)
    assert re.search(r"max_kl=0\.03   .*iteration 2/2  .*KL 0\.0\d+ / 0\.03  ", out)


@pytest.mark.slow
def test_a_sweep_over_anything_is_stopped_and_gone_on_with(capsys, monkeypatch):
    """Options, sizes and switches; each value's own run; what has been evaluated is not evaluated again."""
    stop, update = Stopper(1), Lines.update

    def stopped_update(self: Lines, records: list[dict]) -> None:
        update(self, records)
        stop(SimpleNamespace(iteration=records[-1]["iteration"]))

    monkeypatch.setattr(Lines, "update", stopped_update)
    words = ["sweep", "trpo", "CartPole-v1", "--over", "hidden", "4", "8,8", "--over", "max_kl", "1e-2", "0.02"]
    words += [word for word in SMALL if word not in ("--hidden", "8")]
    assert main([*words, "--env-steps", "512", "--eval-episodes", "1"]) == 128 + 15
    said = capsys.readouterr()
    folder = Path("runs/sweep-trpo-CartPole-v1")
    assert f"go on with: klimb resume {folder}\n" in said.err
    assert "training     hidden=4,max_kl=0.01, hidden=4,max_kl=0.02 (2 of 4 combinations begun)" in said.out
    assert main(["resume", str(folder)]) == 0
    out = capsys.readouterr().out
    assert len(re.findall(r"^hidden=\S+,max_kl=\S+ +mean return [\d.]+ over 1 episodes", out, re.MULTILINE)) == 4
    assert RunConfig.read(folder / "hidden=8x8,max_kl=0.02" / "config.toml").options.hidden == (8, 8)
    assert main(["resume", str(folder)]) == 0
    assert "every run of the sweep had been trained already" in capsys.readouterr().out
    assert main(["resume", str(folder), "--env-steps", "600"]) == 2
    assert "klimb resume runs/sweep-trpo-CartPole-v1/NAME --env-steps" in capsys.readouterr().err
    assert main(["evaluate", str(folder)]) == 2
    assert "it is a sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("trpo CartPole-v1", "needs what to sweep over"),
        ("trpo CartPole-v1 --over max_kl", "takes a field and its values"),
        ("trpo CartPole-v1 --over max_kl small", "'small'"),
        ("trpo CartPole-v1 --over hidden 64,x", "hidden.1 = 'x'"),
        ("trpo CartPole-v1 --over num_envs 1.5 2", "num_envs = 1.5"),
        ("trpo CartPole-v1 --over advantage gae gea", "advantage = 'gea'"),
        ("trpo CartPole-v1 --over num_seeds 1 2", "set their number (--num-seeds K), or sweep over seed"),
        (
            "trpo CartPole-v1 --over seed 1 2 --num-seeds 3",
            "both train seed 2: choose values that are at least 3 apart",
        ),
        ("trpo CartPole-v1 --over gama 1 2", "no option 'gama'; did you mean 'gamma'"),
        ("trpo CartPole-v1 --over env_steps 1e3 1000", "the values of env_steps to sweep over are not all different"),
        ("trpo CartPole-v1 --over max_kl 0 1", "max_kl = 0.0"),
        ("trpo CartPole-v1 --over max_kl 1 --over max_kl 2", "--over max_kl is given twice"),
        ("trpo CartPole-v1 --over max_kl 1 --overlap", "leave --overlap off"),
    ],
)
def test_sweeps_that_cannot_be_get_one_line(words, said, capsys):
    assert main(["sweep", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not Path("runs").exists()


def test_a_report_is_written_over_in_its_run_only(run_dir, capsys):
    """That is what the command is for; a file elsewhere is somebody's."""
    for words in ([], ["-o", str(run_dir / "report.html")]):
        assert main(["report", str(run_dir), *words]) == 0
    Path("mine.html").write_text("mine")
    assert main(["report", str(run_dir), "-o", "mine.html"]) == 2
    assert capsys.readouterr().err == (
        "klimb: mine.html exists already; give --overwrite, or another file with -o FILE\n"
    )
    assert Path("mine.html").read_text() == "mine"
    assert main(["report", str(run_dir), "-o", "mine.html", "--overwrite"]) == 0
    assert Path("mine.html").read_text().startswith("<!doctype html>")


def test_evaluate_as_json(run_dir, capsys):
    assert main(["evaluate", str(run_dir), "--episodes", "4", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["env"] == "jax:CartPole-v1"
    assert [len(entry["returns"]) for entry in result["seeds"]] == [4, 4]
    assert result["mean"] == pytest.approx(sum(entry["mean"] for entry in result["seeds"]) / 2)


def test_the_episodes_of_all_seeds_are_counted_together(run_dir):
    told, config = [], RunConfig.read(run_dir / "config.toml")
    policies = [load_policy(run_dir, seed=seed) for seed in (0, 1)]
    evaluate_seeds(policies, config, make("CartPole-v1"), 2, 0, True, lambda *now: told.append(now))
    assert (told[0], told[-1]) == ((0, 4), (4, 4))
    assert (2, 4) in told
    assert told == sorted(told)


def test_evaluate_the_best(run_dir, capsys):
    assert main(["evaluate", str(run_dir), "--episodes", "2", "--best"]) == 0
    assert "over 2 episodes" in capsys.readouterr().out
    assert (run_dir / "best" / "score.json").exists()


def test_evaluate_says_of_which_iteration_the_policy_is(run_dir, tmp_path, capsys):
    """Of a run that is being trained too, which is said; and of the best."""
    assert main(["evaluate", str(run_dir), "--episodes", "1"]) == 0
    assert "policy       of iteration 4, after 640 environment steps\n" in capsys.readouterr().out
    live = shutil.copytree(run_dir, tmp_path / "live")
    (live / "ended.json").unlink()
    directory = RunDirectory.open(live)
    directory.lock()
    try:
        assert main(["evaluate", str(live), "--episodes", "1"]) == 0
        out = capsys.readouterr().out
        expected = f"the run is still being trained by process {os.getpid()} on"
        assert f"of iteration 4, after 640 environment steps; {expected}" in out
        assert main(["evaluate", str(live), "--episodes", "1", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert (result["iteration"], result["env_steps"], result["being_trained"]) == (4, 640, True)
        assert result["ended"] is None
    finally:
        directory.close()
    assert main(["evaluate", str(live), "--episodes", "1", "--json", "--best"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["iteration"] == json.loads((live / "best" / "score.json").read_text())["iteration"]
    assert not result["being_trained"]


def test_policies_of_several_iterations_are_read_again(run_dir, tmp_path, monkeypatch):
    """Files of two seeds, between which a training has written; until they are of one iteration."""
    live = shutil.copytree(run_dir, tmp_path / "live")
    config = RunConfig.read(live / "config.toml")
    policy = load_policy(live, seed=0)
    save_policy(policy, live, name="policy_seed1", iteration=7)
    waits = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            save_policy(policy, live, name="policy_seed0", iteration=7)

    monkeypatch.setattr("klimb.training.networks.time.sleep", wait)
    _, iteration = load_policies_of_one_iteration(live, config, make(config.env))
    assert iteration == 7
    assert len(waits) == 3
    save_policy(policy, live, name="policy_seed1")
    assert load_policies_of_one_iteration(live, config, make(config.env))[1] is None


@pytest.mark.slow
def test_a_training_that_ends_early_says_why(capsys):
    words = ["train", "reinforce", "CartPole-v1", *SMALL, "--env-steps", "1024", "--eval-every", "128"]
    assert main([*words, "--eval-episodes", "2", "--until-return", "1"]) == 0
    reason = "the evaluation return reached until_return = 1"
    assert f"ended        after iteration 1: {reason}\n" in capsys.readouterr().out
    run = Path("runs/reinforce-CartPole-v1")
    assert reason in (run / "report.html").read_text()
    assert len(json.loads((run / "evaluation.json").read_text())["seeds"][0]["returns"]) == 2
    assert main(["evaluate", str(run), "--episodes", "1"]) == 0
    assert f"the training ended early: {reason}" in capsys.readouterr().out
    assert main(["resume", str(run)]) == 0
    assert reason in capsys.readouterr().out
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1


def test_evaluate_elsewhere_and_for_people(run_dir, capsys):
    assert main(["evaluate", str(run_dir), "--episodes", "2", "--env", "gymnasium:CartPole-v1", "--stochastic"]) == 0
    assert re.search(r"seed 1: mean return \d+\.\d\d ± \d+\.\d\d over 2 episodes", capsys.readouterr().out)


@pytest.mark.slow
def test_evaluate_exactly(capsys):
    """The return of a table's policy without an episode's noise, in words and as JSON."""
    config = RunConfig("FrozenLake-v1", TRPO(), TrainOptions(hidden=()))
    Path("lake").mkdir()
    Path("lake", "config.toml").write_text(config.to_toml())
    save_policy(NetworkPolicy(16, Discrete(4), hidden=(), key=jax.random.key(0)), "lake")
    assert main(["evaluate", "lake", "--episodes", "2", "--exact", "--json"]) == 0
    (exact,) = json.loads(capsys.readouterr().out.splitlines()[-1])["exact"]
    assert exact["optimal"] == pytest.approx(0.5420259320)
    assert 0 < exact["sampled"] < exact["optimal"]
    assert main(["evaluate", "lake", "--episodes", "2", "--exact"]) == 0
    assert f"discounted return {exact['sampled']:.4f} with sampled actions" in capsys.readouterr().out


def test_resume_of_a_finished_run_changes_nothing(run_dir, capsys):
    """And with --quiet it says what came out and where it is, and nothing else."""
    before = (run_dir / "metrics.jsonl").read_text()
    capsys.readouterr()
    assert main(["resume", str(run_dir), "-q"]) == 0
    assert (run_dir / "metrics.jsonl").read_text() == before
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert [line[0] for line in lines] == ["evaluation", "evaluation", "mean", "report", "policy", "metrics", "again"]
    assert err == ""


@pytest.mark.slow
def test_a_configuration_file_repeats_a_run(run_dir):
    words = ["train", "--config", str(run_dir / "config.toml"), "--run-dir", "again"]
    assert main([*words, "--seed", "5"]) == 0
    original, again = ((path / "config.toml").read_text() for path in (run_dir, Path("again")))
    assert again == original.replace("seed = 0", "seed = 5")


@pytest.mark.slow
def test_no_limit_is_written_none():
    words = ["train", "ppo", "CartPole-v1", *SMALL, "--env-steps", "128", "--eval-episodes", "0"]
    assert main([*words, "--run-dir", "run", "--max-grad-norm", "none"]) == 0
    assert 'max_grad_norm = "none"' in Path("run/config.toml").read_text()


def test_report_goes_where_it_is_told(run_dir, capsys):
    assert main(["report", str(run_dir), "-o", "page.html"]) == 0
    assert Path("page.html").exists()


MISTAKES = {
    "train trppo CartPole-v1": "no rule 'trppo'; did you mean 'trpo'",
    "train trpo CartPol-v1": "no environment 'CartPol-v1'; did you mean 'CartPole-v1'",
    "train trpo jax:Pendulu-v1": "did you mean 'Pendulum-v1'",
    "train trpo gymnasum:CartPole-v1": "did you mean 'gymnasium'",
    "train trpo CartPole-v1 --max-kll 3": "no flag --max-kll; did you mean '--max-kl'",
    "train trpo CartPole-v1 --max-kl -3": "max_kl = -3.0: input should be greater than 0",
    "train trpo CartPole-v1 --max-kl abc": "--max-kl: could not convert string to float: 'abc'",
    "train trpo CartPole-v1 --max-kl": "--max-kl needs a value",
    "train trpo CartPole-v1 --gamma 1.5": "gamma = 1.5",
    "train trpo CartPole-v1 --gae-lambda nan": "gae_lambda = nan",
    "train trpo CartPole-v1 --env-steps 1.5": "--env-steps: '1.5' is not a whole number",
    "train trpo CartPole-v1 --seed -1": "seed = -1",
    "train trpo CartPole-v1 --advantage gaee": "did you mean 'gae'",
    "train trpo CartPole-v1 --hidden 64 abc": "--hidden",
    "train trpo CartPole-v1 --num-envs 1 --num-steps 129": "129 is not divisible by critic_num_minibatches = 8; "
    "choose num_steps = 128",
    "train ppo CartPole-v1 --num-minibatches 3": "2048 is not divisible by num_minibatches = 3; "
    "choose num_steps = 129 (with num_envs = 16)",
    "train": "a rule and an environment, before any flags: klimb train RULE ENV [FLAGS]",
    "train --seed 1 trpo CartPole-v1": "a rule and an environment, before any flags: klimb train RULE ENV [FLAGS]",
    "train trpo": "ENV is missing: klimb train RULE ENV [FLAGS]",
    "train trpo CartPole-v1 Acrobot-v1": "'Acrobot-v1' is one word too many: klimb train RULE ENV [FLAGS]",
    "train CartPole-v1 trpo": "the rule comes before the environment: klimb train trpo CartPole-v1",
    "train Pendulum-v1 tropo": "the rule comes before the environment: klimb train tropo Pendulum-v1",
    "train trpo CartPole-v1 --workers many": "--workers: it takes none or INT, not 'many'",
    "train no_such_module:Rule CartPole-v1": "there is no module 'no_such_module' to import",
    "train --config": "--config needs a value",
    "train --config none.toml": "cannot read none.toml",
    "sweep": "klimb sweep takes a rule and an environment, before any flags: klimb sweep RULE ENV --over FIELD V...",
    "sweep trpo": "ENV is missing: klimb sweep RULE ENV --over FIELD V... [FLAGS]",
    "sweep trpo CartPole-v1 --over max_kl 1 --max-kll 3": "no flag --max-kll; did you mean '--max-kl'",
    "train trpo CartPole-v1 --config none.toml": "cannot read none.toml",
    "train trpo CartPole-v1 --run-dir .": "exists already",
    "trian trpo CartPole-v1": "no command 'trian'; did you mean 'train'",
    "train dual-descent CartPole-v1 --epsilon 0": "epsilon = 0.0: input should be greater than 0",
    "train natural-gradient CartPole-v1 --epsilon -1": "epsilon = -1.0: input should be greater than 0",
    "train natural-gradient CartPole-v1 --solver dense --damping 0": "solver = dense needs damping > 0",
    "train kl-penalty CartPole-v1 --kl-coef -1": "kl_coef = -1.0: input should be greater than or equal to 0",
    "train ppo CartPole-v1 --penalty l2": "--penalty is one of clip, kl; not 'l2'",
    "train off-policy-gradient CartPole-v1 --weighting per-step": "did you mean 'per_step'",
    "train behaviour-cloning CartPole-v1": "there are none: record some with klimb record RUN",
    "train behaviour-cloning CartPole-v1 --demonstrations nowhere": "no demonstrations at nowhere",
    "train trpo CartPole-v1 --demonstrations nowhere": "trpo can't learn from demonstrations",
    "train trpo CartPole-v1 --init-from nowhere": "there is no policy file nowhere/policy.safetensors",
    "train trpo CartPole-v1 --tanh-squash": "tanh_squash is for continuous actions",
    "record nowhere": "is not a run",
    "record": "RUN is missing: klimb record RUN [FLAGS]",
    "record a b": "'b' is one word too many: klimb record RUN [FLAGS]",
    "record . --episodez 3": "did you mean '--episodes'",
    "record . -o": "--output needs a value",
    "resume nowhere": "nowhere is not a run: there is no such directory",
    "resume .": "is not a run: it has no config.toml",
    "resume": "RUN is missing: klimb resume RUN [FLAGS]",
    "resume a b": "'b' is one word too many: klimb resume RUN [FLAGS]",
    "evaluate --episodes 3": "RUN is missing: klimb evaluate RUN [FLAGS]",
    "evaluate --episodez 3": "did you mean '--episodes'",
    "evaluate . --episodes=many": "--episodes: 'many' is not a whole number",
    "report": "RUN is missing: klimb report RUN [FLAGS]",
    "report . --outptu x": "did you mean '--output'",
    "compare": "takes at least one run directory",
    "compare . --jsn": "did you mean '--json'",
    "verify now": "'now' is one word too many: klimb verify [FLAGS]",
    "figure fields bounds": "'bounds' is one word too many: klimb figure [NAME] [FLAGS]",
    "completion": "SHELL is missing: klimb completion SHELL",
    "completion bsh": "SHELL is one of bash, zsh, fish; not 'bsh'; did you mean 'bash'",
    "list rules environments": "'environments' is one word too many: klimb list [SECTION]",
    "evaluate nowhere": "is not a run",
    "evaluate . --episodez 3": "did you mean '--episodes'",
    "report nowhere": "is not a run",
    "report nowhere -o": "--output needs a value",
    "list rulez": "SECTION is one of rules, environments, presets, figures, metrics, zoo; not 'rulez'; did you mean",
    "help tran": "no command 'tran'; did you mean 'train'",
}


@pytest.mark.parametrize("words", MISTAKES, ids=lambda words: words.replace(" ", "_"))
def test_mistakes_get_one_line_and_status_2(words, capsys):
    assert main(words.split()) == 2
    captured = capsys.readouterr()
    assert MISTAKES[words] in captured.err
    assert captured.err.startswith("klimb: ")
    assert captured.err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "policy_seed1.safetensors").write_bytes(b"\x80\x04pickled"), "not a whole safetensors"),
        (lambda path: (path / "policy_seed0.json").write_text('{"format": "other"}'), "not a klimb policy description"),
        (lambda path: (path / "policy_seed0.safetensors").unlink(), "there is no policy file"),
        (lambda path: (path / "config.toml").write_text("rule = 3"), "a run configuration has"),
    ],
    ids=["foreign arrays", "foreign description", "missing", "foreign configuration"],
)
def test_damaged_runs_get_one_line_and_status_2(damage, message, run_dir, capsys):
    import shutil

    shutil.copytree(run_dir, "copy")
    damage(Path("copy"))
    assert main(["evaluate", "copy", "--episodes", "1"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_policy_of_another_environment_is_refused(run_dir, capsys):
    assert main(["evaluate", str(run_dir), "--env", "Pendulum-v1"]) == 2
    assert "was trained on another environment" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_a_checkpoint_and_says_how_to_resume(number, tmp_path):
    words = ["train", "trpo", "CartPole-v1", *SMALL, "--env-steps", "100000000", "--run-dir", "long"]
    process = subprocess.Popen(
        [sys.executable, "-m", "klimb", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 100
        metrics = tmp_path / "long" / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size > 0):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline, "training did not begin"
            time.sleep(0.05)
        os.kill(process.pid, number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "checkpoint saved; go on with: klimb resume long" in err
    assert list((tmp_path / "long" / "checkpoints").glob("*.safetensors"))


class Screen:
    """A terminal of some width, as far as a panel needs one: what it would show, line by line."""

    def __init__(self, width: int) -> None:
        self.width, self.lines, self.row, self.column = width, [""], 0, 0

    def write(self, text: str) -> None:
        for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|.", text, flags=re.DOTALL):
            if part == "\r":
                self.column = 0
            elif part == "\n":
                self._down()
            elif part.startswith("\x1b"):
                self._control(part[2:-1], part[-1])
            else:
                if self.column == self.width:  # the cursor waits behind the last column
                    self._down()
                    self.column = 0
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + part + line[self.column + 1 :]
                self.column += 1

    def _down(self) -> None:
        self.row += 1
        self.lines += [""] * (self.row == len(self.lines))

    def _control(self, number: str, letter: str) -> None:
        if letter == "A":
            self.row = max(0, self.row - int(number or 1))
        elif letter == "K":
            assert number == "2"
            self.lines[self.row] = ""
        else:
            assert letter in "mhl"  # colours; the cursor hidden and shown


@pytest.mark.slow
@pytest.mark.parametrize("width", [50, 80])
def test_interrupting_in_a_terminal_leaves_one_panel(width, tmp_path):
    """The terminal echoes ^C at the end of the panel, which is then drawn again."""
    fcntl, pty, struct, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "struct", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
    words = ["train", "trpo", "CartPole-v1", *SMALL, "--env-steps", "100000000", "--run-dir", "long"]
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    # The terminal sends its signals to the process whose own it is.
    own = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from klimb.__main__ import main"
    code = f"{own}; import sys; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words], stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, env={**environment, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen, interrupted = b"", False
    try:
        with contextlib.suppress(OSError):  # the terminal of a process that has ended
            while piece := os.read(ours, 4096):
                seen += piece
                if not interrupted and b"return" in seen:
                    os.write(ours, b"\x03")
                    interrupted = True
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    screen, drawn = Screen(width), seen.decode()
    screen.write(drawn)
    shown = "\n".join(screen.lines)
    assert re.search(r"compiling … 0:00:\d\d", re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", drawn))
    assert drawn.count("^C") == 1
    assert shown.count("╭") == shown.count("╰") == 1, shown
    assert "checkpoint saved; go on with: klimb resume long" in shown.replace("\n", "")


@pytest.mark.slow  # each step has a test of its own
def test_from_a_run_to_demonstrations_to_a_clone_to_a_run_that_goes_on(run_dir, capsys):
    """record, train behaviour-cloning, train --init-from: each prints the line that leads to the next."""
    recorded = Path("recorded.safetensors")
    assert main(["record", str(run_dir), "--episodes", "3", "-o", str(recorded)]) == 0
    said = capsys.readouterr().out
    assert "3 episodes" in said
    assert "klimb train behaviour-cloning CartPole-v1 --demonstrations recorded.safetensors" in said.replace("jax:", "")
    assert main(["record", str(run_dir), "-o", str(recorded)]) == 2
    assert "give --overwrite" in capsys.readouterr().err
    assert main(["record", str(run_dir), "--episodes", "2", "-o", str(recorded), "--overwrite", "--deterministic"]) == 0
    assert "without log-probs" in capsys.readouterr().out
    clone = ["train", "behaviour-cloning", "CartPole-v1", "--demonstrations", str(recorded), "--max-epochs", "2"]
    assert main([*clone, "--run-dir", "clone", "--eval-episodes", "2", "--hidden", "8"]) == 0
    assert "held-out log-likelihood" in capsys.readouterr().out
    assert "passes over the demonstrations" in Path("clone/report.html").read_text()
    tuned = ["train", "ppo", "CartPole-v1", "--init-from", "clone", "--critic-warmup", "1", *SMALL]
    assert main([*tuned, "--run-dir", "tuned", "--eval-episodes", "2"]) == 0
    statuses = [json.loads(line)["status"] for line in Path("tuned/metrics.jsonl").read_text().splitlines()]
    assert statuses[0] == "CRITIC_WARMUP"
    assert "CRITIC_WARMUP" not in statuses[1:]
    off_policy = ["train", "off-policy-gradient", "CartPole-v1", "--demonstrations", str(recorded), "--run-dir", "off"]
    assert main([*off_policy, *SMALL]) == 2
    assert "log-probs are missing" in capsys.readouterr().err
    assert not Path("off").exists()


def test_record_goes_where_it_is_told(run_dir, capsys):
    """By default into the run; a directory gets a file of the default name; another environment, another seed."""
    assert main(["record", str(run_dir), "--episodes", "2", "--overwrite"]) == 0
    assert (run_dir / "demonstrations.safetensors").exists()
    assert f"--demonstrations {run_dir}\n" in capsys.readouterr().out
    Path("folder").mkdir()
    words = ["record", str(run_dir), "--episodes", "2", "-o", "folder", "--env", "gymnasium:CartPole-v1"]
    assert main(words) == 0
    assert "behaviour-cloning gymnasium:CartPole-v1 --demonstrations folder\n" in capsys.readouterr().out
    file = Path("folder", "demonstrations.safetensors")
    first = file.read_bytes()
    assert main([*words, "--policy-seed", "0", "--overwrite"]) == 0
    assert file.read_bytes() == first
    assert main([*words, "--policy-seed", "1", "--overwrite"]) == 0
    assert file.read_bytes() != first


def test_a_recording_that_cannot_be_made_gets_one_line_and_status_2(run_dir, capsys):
    Path("file").write_text("")
    for words, line in {
        "--episodes 0": "episodes = 0; demonstrations need at least 1",
        "--env Pendulum-v1": "was trained on another environment",
        "--env CartPol-v1": "did you mean 'CartPole-v1'",
        "--policy-seed 7": "the run has no seed 7, only 0 to 1",
        "-o file": "file exists already; give --overwrite",
        "-o file/under": "cannot write file/under",
    }.items():
        arguments = [*words.split()] if "--episodes" in words else ["--episodes", "1", *words.split()]
        if "-o" not in words:
            arguments += ["-o", "new"]
        assert main(["record", str(run_dir), *arguments]) == 2, words
        err = capsys.readouterr().err
        assert line in err
        assert err.count("\n") == 1
