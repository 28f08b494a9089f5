"""`klimb push` and `hf://`: from a run to a repository and back, against a server on loopback."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

import klimb
from hub_server import TOKEN, Hub, serve
from klimb.cli.main import main
from klimb.errors import ConfigError, RunError
from klimb.runs.config import RunConfig
from klimb.runs.hub import HubName, downloaded, is_hub
from klimb.runs.located import located
from klimb.sharing.card import _inert
from klimb.sharing.folder import alone

huggingface_hub = pytest.importorskip("huggingface_hub")
constants = pytest.importorskip("huggingface_hub.constants")

RUN = ["train", "ppo", "CartPole-v1", "--num-envs", "2", "--num-steps", "8", "--eval-episodes", "0", "--hidden", "4"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run of two seeds."""
    folder = tmp_path_factory.mktemp("pushed") / "cart"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KLIMB_COMPILATION_CACHE", "off")
        assert main([*RUN, "--env-steps", "16", "--num-seeds", "2", "--run-dir", str(folder)]) == 0
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub with nothing in it, a token for it, and an empty cache."""
    monkeypatch.setenv("KLIMB_COMPILATION_CACHE", "off")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve() as server:
        file = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {"ENDPOINT": server.address, "HUGGINGFACE_CO_URL_TEMPLATE": file}.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield server


def test_a_policy_is_pushed_and_evaluated_from_the_hub(run_dir: Path, hub: Hub, tmp_path, capsys) -> None:
    assert main(["push", str(run_dir), "me/cart", "--policy-seed", "1", "--no-video"]) == 0
    said = capsys.readouterr().out
    address, commit = re.search(r"^pushed       (\S+/([0-9a-f]{40}))$", said, re.MULTILINE).groups()
    assert address == f"{hub.address}/me/cart/commit/{commit}"
    assert f"evaluate     klimb evaluate hf://me/cart@{commit}" in said
    assert hub.private == {"me/cart": True}
    assert list(hub.commits["me/cart"])[1:] == [commit]  # one, after that with which the Hub makes a repository
    files = hub.files("me/cart", "main")
    del files[".gitattributes"]
    wanted = {"README.md", "config.toml", "evaluation.json", "policy.json", "policy.safetensors"}
    assert wanted <= set(files) <= wanted | {"policy.onnx"}
    evaluation = json.loads(files["evaluation.json"])
    assert evaluation["episodes"] == len(evaluation["returns"]) == 100
    # The interval, by hand.
    returns = np.array(evaluation["returns"])
    half = 1.98422 * returns.std(ddof=1) / 10
    np.testing.assert_allclose(evaluation["interval"], [returns.mean() - half, returns.mean() + half], rtol=1e-4)

    assert main(["evaluate", "hf://me/cart", "--episodes", "100", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["run"] == f"hf://me/cart@{commit}"
    assert again["seeds"][0]["returns"] == evaluation["returns"]
    assert main(["evaluate", f"hf://me/cart@{commit}", "--episodes", "1"]) == 0
    assert f"hub          hf://me/cart@{commit}\n" in capsys.readouterr().out
    policy = klimb.load_policy("hf://me/cart")
    for one, other in zip(jax.tree.leaves(policy), jax.tree.leaves(klimb.load_policy(run_dir, seed=1)), strict=True):
        np.testing.assert_array_equal(one, other)
    # Only what klimb reads was asked for; and nobody wrote the token down.
    read = {path.rpartition("/")[2] for method, path, _ in hub.requests if method == "GET" and "/resolve/" in path}
    assert read == {"config.toml", "policy.json", "policy.safetensors"}
    for content in files.values():
        assert TOKEN.encode() not in content
    assert not any(TOKEN.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_revision_is_pinned(run_dir: Path, hub: Hub, capsys) -> None:
    for seed in ("0", "1"):
        assert main(["push", str(run_dir), "me/cart", "--policy-seed", seed, "--no-video", "--public"]) == 0
    _, first, second = hub.commits["me/cart"]
    assert not hub.private["me/cart"]
    for revision, seed in ((f"@{first}", 0), (f"@{second}", 1), ("", 1)):
        weight = klimb.load_policy(f"hf://me/cart{revision}").network.weights[0]
        np.testing.assert_array_equal(weight, klimb.load_policy(run_dir, seed=seed).network.weights[0])
    with pytest.raises(RunError, match=r"hf://me/cart@v9 can't be downloaded: .*check the name and the revision"):
        klimb.load_policy("hf://me/cart@v9")


def test_nothing_of_the_policy_before_stays(run_dir: Path, hub: Hub) -> None:
    old = {"policy.onnx": b"old", "replay.webp": b"old", "notes.txt": b"mine"}
    hub.private["me/cart"], hub.commits["me/cart"] = True, {"c" * 40: old}
    assert main(["push", str(run_dir), "me/cart", "--no-video"]) == 0
    files = hub.files("me/cart", "main")
    assert files["notes.txt"] == b"mine"
    assert "replay.webp" not in files
    assert files.get("policy.onnx") != b"old"


def test_what_the_hub_refuses(run_dir: Path, hub: Hub, monkeypatch, capsys) -> None:
    with pytest.raises(RunError, match=r"hf://me/nothing can't be downloaded: .*\(check the name"):
        downloaded("hf://me/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert main(["push", str(run_dir), "me/cart", "--no-video"]) == 2
    error = capsys.readouterr().err
    assert "hf://me/cart can't be pushed: " in error
    assert "log in with `hf auth login`, or set HF_TOKEN" in error
    assert error.count("\n") == 1
    assert "hf_wrong" not in error
    hub.private["me/other"], hub.commits["me/other"] = False, {"a" * 40: {"model.bin": b"x"}}
    with pytest.raises(RunError, match=r"has no config\.toml: it is no policy that klimb push has written"):
        downloaded("hf://me/other")


def test_a_repository_names_no_code_to_import(run_dir: Path, hub: Hub, capsys) -> None:
    """Of a stranger's configuration klimb imports nothing, wherever it is from."""
    config = RunConfig.read(run_dir / "config.toml").to_toml().replace('env = "CartPole-v1"', 'env = "evil:Env-v0"')
    files = {name: (run_dir / f"policy_seed0.{name.rpartition('.')[2]}").read_bytes() for name in ("policy.json",)}
    hub.private["me/evil"] = False
    hub.commits["me/evil"] = {"b" * 40: {"config.toml": config.encode(), "evil.py": b"raise SystemExit", **files}}
    assert main(["evaluate", "hf://me/evil"]) == 2
    assert "--trust-environment" in capsys.readouterr().err
    assert not any("evil.py" in path for _, path, _ in hub.requests)


def test_a_dry_run_writes_the_folder_and_sends_nothing(run_dir: Path, hub: Hub, tmp_path, capsys) -> None:
    folder = tmp_path / "card"
    words = ["push", str(run_dir), "me/cart", "--dry-run", str(folder)]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert not hub.requests
    assert f"folder       {folder}: nothing was sent" in said
    film = next(path.name for path in folder.iterdir() if path.stem == "replay")
    card = huggingface_hub.ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    evaluation = json.loads((folder / "evaluation.json").read_text())
    assert (result.dataset_type, result.metric_type) == ("CartPole-v1", "mean_reward")
    assert result.metric_value == evaluation["mean"]
    assert card.data.tags == ["reinforcement-learning", "klimb", "CartPole-v1", "ppo"]
    assert film in card.text
    assert 'klimb.load_policy("hf://me/cart")' in card.text
    assert "| num_envs | 2 |" in card.text
    config = RunConfig.read(folder / "config.toml")
    assert (config.options.num_seeds, config.options.seed) == (1, 0)
    # The folder is a run like those of the zoo.
    assert main(["evaluate", str(folder), "--episodes", "1"]) == 0
    assert main(words) == 2
    assert "exists already: give --dry-run a new directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["me/cart", "--episodes", "99"], "a policy is shared with an evaluation over at least 100 episodes"),
        (["cart"], "'cart' is no name on the Hub: write hf://USER/NAME"),
        (["me/cart", "--policy-seed", "7"], "the run has no seed 7, only 0 to 1"),
    ],
)
def test_what_is_wrong_is_said_first(run_dir: Path, hub: Hub, capsys, words, message) -> None:
    assert main(["push", str(run_dir), *words]) == 2
    assert message in capsys.readouterr().err
    assert not hub.requests


def test_names_on_the_hub() -> None:
    assert HubName.read("hf://me/cart") == HubName.read(Path("hf://me/cart")) == ("me/cart", None)
    assert HubName.read("hf://me/cart@v1.0") == ("me/cart", "v1.0")
    assert str(HubName.read("me/cart@main")) == "hf://me/cart@main"
    assert is_hub(Path("hf://me/cart"))
    assert not is_hub("runs/hf")
    for wrong in (
        "hf://cart",
        "hf://me/cart/more",
        "hf://../cart@a b",
        "hf://me/ca rt",
        "hf://me/cart@../x y",
        "hf://../cart",
        "hf://me/..@a/../b",
    ):
        with pytest.raises(ConfigError, match="is no name on the Hub"):
            located(wrong)


def test_no_path_of_the_machine_is_shared(run_dir: Path) -> None:
    config = RunConfig.read(run_dir / "config.toml")
    options = {"init_from": "C:\\Users\\somebody\\first", "demonstrations": "minari:mujoco/hopper"}
    options["log"] = ["mlflow:file:///home/somebody/mlruns"]
    changed = RunConfig.from_dict({**config.to_dict(), "options": {**config.to_dict()["options"], **options}})
    shared = alone(changed, 1)
    assert (shared.options.init_from, shared.options.demonstrations) == ("first", "minari:mujoco/hopper")
    assert shared.options.log == ()
    assert "somebody" not in shared.to_toml()
    assert _inert("<b>|x") == "&#60;b&#62;&#124;x"
