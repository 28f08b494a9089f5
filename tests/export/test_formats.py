"""Exported policies against the policies they were made of: every kind of network, observation and action."""

from __future__ import annotations

import ast
import subprocess
import sys
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnasium import spaces

import klimb
from klimb.errors import ConfigError, ExportError, MissingExtra, RunError
from klimb.export.trial import compare
from klimb.export.write import FORMATS, export_policy
from klimb.policies.observations import MaskedObservations
from klimb.runs.policy_file import numbers_of
from problems import slow_except

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

INF = np.inf
VECTOR = spaces.Box(-INF, INF, (4,))
BOX = spaces.Box(np.float32([-0.5, -2, 1]), np.float32([0.25, 0.1, 4]))
PARTLY = spaces.Box(np.float32([-0.5, -INF, 0, -INF]), np.float32([0.25, INF, INF, 3]))
SWITCHES = spaces.MultiBinary((2, 2))
NUMBERS = spaces.MultiDiscrete([3, 2, 4], start=[1, 0, -2])
NESTED = spaces.Dict(
    arm=spaces.Tuple([spaces.Box(-2, 2, (2, 2)), spaces.Discrete(3, start=4)]), lamps=SWITCHES, way=NUMBERS
)
PICTURE = spaces.Box(0, 255, (9, 8, 2), np.uint8)
EVERYTHING = spaces.Dict(
    camera=PICTURE, level=spaces.Discrete(3, start=1), other=spaces.MultiDiscrete([[2, 3]]), speed=VECTOR
)


class Kind(NamedTuple):
    """Of a policy. options: of its network. masked: whether it has an action mask. hidden: parts it does not see."""

    observations: spaces.Space = VECTOR
    actions: spaces.Space = BOX
    options: dict[str, Any] = {}  # noqa: RUF012 (of a NamedTuple: nobody changes it)
    masked: bool = False
    unseen: tuple[str, ...] = ()


KINDS = {
    "box": Kind(),
    "partly unbounded": Kind(actions=PARTLY, options={"activation": "relu"}),
    "scalar box": Kind(actions=spaces.Box(-1, 3, ()), options={"activation": "gelu"}),
    "state-dependent std": Kind(options={"state_dependent_std": True, "activation": "silu"}),
    "bounded std": Kind(options={"log_std_bounds": (-0.2, 0.1)}),
    "squashed": Kind(options={"tanh_squash": True, "state_dependent_std": True, "log_std_bounds": (-0.5, 0.5)}),
    "gsde": Kind(options={"exploration": "gsde"}),
    "no hidden layer": Kind(actions=spaces.Discrete(3), options={"hidden": ()}),
    "layer norm, residual": Kind(options={"layer_norm": True, "residual": True, "hidden": (4, 6, 6)}),
    "discrete": Kind(actions=spaces.Discrete(5, start=2)),
    "masked": Kind(actions=spaces.Discrete(5), masked=True),
    "numbers": Kind(actions=NUMBERS, masked=True),
    "bytes": Kind(actions=spaces.Box(0, 9, (2, 2), np.uint8)),
    "switches": Kind(actions=SWITCHES),
    "nested": Kind(actions=NESTED, options={"log_std_bounds": (-1.0, 1.0)}),
    "masked, nested": Kind(actions=NESTED, masked=True),
    "one-hot": Kind(spaces.Discrete(7, start=-1), spaces.Discrete(4)),
    "gru": Kind(options={"memory": "gru", "memory_size": 5}),
    "lstm": Kind(actions=spaces.Discrete(3), options={"memory": "lstm", "memory_size": 5}),
    "minatar": Kind(spaces.Box(0, 1, (10, 10, 4)), spaces.Discrete(3), {"network": "minatar"}),
    "channels first": Kind(spaces.Box(0, 255, (3, 36, 40), np.uint8), spaces.Discrete(3), {"network": "nature"}),
    "grey, impala": Kind(spaces.Box(0, 255, (9, 8), np.uint8), BOX, {"network": "impala"}),
    "stacked in time": Kind(spaces.Box(0, 255, (3, 9, 8, 2), np.uint8), BOX, {"network": "mlp"}),
    "masked picture": Kind(PICTURE, spaces.Discrete(3), masked=True),
    "parts": Kind(EVERYTHING, NESTED, {"memory": "gru", "memory_size": 6}, masked=True),
    "parts that only the critic sees": Kind(EVERYTHING, unseen=("level", "camera")),
    "numbers that only the critic sees": Kind(spaces.Dict(a=VECTOR, b=VECTOR, c=spaces.Box(0, 1, (1,))), unseen=("b",)),
}


def make_policy(kind: Kind, seed: int = 0) -> klimb.NetworkPolicy:
    """A policy that differs from a fresh one in every number."""
    actions, observations = klimb.action_spec(kind.actions), klimb.observation_spec(kind.observations)
    if kind.unseen:
        observations = observations.hiding(kind.unseen)
    if kind.masked:
        observations = MaskedObservations(observations, actions.num_choices)
    options = {"hidden": (8, 6), **kind.options}
    policy = klimb.NetworkPolicy(observations, actions, key=jax.random.key(seed), **options)
    rng = np.random.default_rng(seed)

    def moved(x):
        """By about as much as it is large itself."""
        inputs = max(np.prod(x.shape[:-1]), 8)
        return x + jnp.asarray(rng.normal(size=x.shape) / np.sqrt(inputs), x.dtype)

    policy = jax.tree.map(lambda x: moved(x) if eqx.is_inexact_array(x) else x, policy)
    numbers = numbers_of(policy.encoder)
    if numbers is None:
        return policy
    size = numbers.num_features
    statistics = jnp.asarray(rng.normal(size=size), float), jnp.asarray(rng.uniform(0.1, 4, size).round(1), float)
    return eqx.tree_at(
        lambda p: (numbers_of(p.encoder).normalizer.mean, numbers_of(p.encoder).normalizer.variance),
        policy,
        (statistics[0], statistics[1].at[0].set(0.0)),
    )


CASES = [(kind, suffix) for kind in KINDS for suffix in FORMATS]
QUICK = {("box", ".py"), ("nested", ".onnx"), ("parts", ".onnx"), ("parts", ".py"), ("squashed", ".stablehlo")}


@pytest.mark.parametrize("case", slow_except(QUICK, CASES), ids=" ".join)
def test_an_export_computes_what_the_policy_does(case, tmp_path):
    kind, suffix = case
    exported = export_policy(make_policy(KINDS[kind]), tmp_path / f"policy{suffix}")
    assert exported.agreement.rows == 1_000
    assert exported.agreement.difference <= max(2e-6, 5 * exported.agreement.rounding)
    assert exported.agreement.rounding < 2e-5
    assert exported.agreement.ties == 0
    assert exported.size == exported.path.stat().st_size


@pytest.fixture(scope="module")
def arm(tmp_path_factory) -> tuple[klimb.NetworkPolicy, Any]:
    """A policy with parts, a mask, pictures and memory, and its files."""
    folder, policy = tmp_path_factory.mktemp("arm"), make_policy(KINDS["parts"])
    for suffix in (".onnx", ".py"):
        export_policy(policy, folder / f"policy{suffix}", about={"env": "Arm-v0"})
    return policy, folder


def observed(count: int, seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """Observations as the environment gives them, and masks."""
    rng, space = np.random.default_rng(seed), EVERYTHING
    space.seed(seed)
    samples = [space.sample() for _ in range(count)]
    masks = rng.random((count, 2 * 4 + 3 + 9)) < 0.5
    # Of the arm's choice, of each switch and of each number, in the order of the parts.
    masks[:, [0, *range(3, 11, 2), 11, 14, 16]] = True
    return {name: np.stack([sample[name] for sample in samples]) for name in space.spaces}, masks


def test_a_file_of_python_acts_as_the_policy_does(arm):
    """With observations and masks as the environment has them, one and several, and memory."""
    policy, folder = arm
    file: dict[str, Any] = {"__name__": "policy"}
    exec(compile((folder / "policy.py").read_text(), "policy.py", "exec"), file)
    obs, masks = observed(6, 3)
    carry = own_carry = None
    for _ in range(3):
        expected, carry = policy.act_with_memory(obs, carry, action_mask=masks)
        action, own_carry = file["act_with_memory"](obs, own_carry, action_mask=masks)
        np.testing.assert_allclose(own_carry, carry, atol=1e-5)
    assert jax.tree.structure(action) == jax.tree.structure(expected)
    for own, its in zip(jax.tree.leaves(action), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(own, its, atol=1e-5)
        assert own.dtype == its.dtype
    one = {name: x[0] for name, x in obs.items()}
    alone, _ = file["act_with_memory"](one, carry[0], action_mask=masks[0])
    expected, _ = policy.act_with_memory(one, carry[0], action_mask=masks[0])
    assert alone["arm"][1] == expected["arm"][1]
    np.testing.assert_allclose(alone["arm"][0], expected["arm"][0], atol=1e-5)
    assert KINDS["parts"].actions.contains({**alone, "arm": (alone["arm"][0], np.int64(alone["arm"][1]))})
    for wrong in (lambda: file["act"](one), lambda: file["act_with_memory"](one, None)):
        with pytest.raises(ValueError, match=r"memory|mask"):
            wrong()


def test_a_file_of_python_samples_from_the_policys_distribution(arm):
    policy, folder = arm
    file: dict[str, Any] = {"__name__": "policy"}
    exec(compile((folder / "policy.py").read_text(), "policy.py", "exec"), file)
    obs, masks = observed(1, 5)
    count, rng = 4_000, np.random.default_rng(0)
    rows = {name: np.repeat(x, count, axis=0) for name, x in obs.items()}
    flags = np.repeat(masks, count, axis=0)
    own, _ = file["act_with_memory"](rows, None, deterministic=False, rng=rng, action_mask=flags)
    expected, _ = policy.act_with_memory(rows, None, deterministic=False, rng=rng, action_mask=flags)
    for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(expected), strict=True):
        difference = np.abs(one.mean(0) - other.mean(0))
        error = np.sqrt((one.var(0) + other.var(0)) / count)
        assert (difference <= 4 * error).all()
    allowed = masks[0][:3]
    assert allowed[own["arm"][1] - 4].all()


def test_a_file_of_python_needs_numpy_alone_and_an_old_python(arm):
    _, folder = arm
    ast.parse((folder / "policy.py").read_text(), feature_version=(3, 8))
    code = "import sys; sys.argv = ['policy.py']; import runpy; import policy; print(sorted(sys.modules))"
    modules = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    assert "'numpy'" in modules
    assert not {"'jax'", "'klimb'", "'gymnasium'"} & set(modules.strip("[]\n").split(", "))
    said = subprocess.run([sys.executable, "policy.py"], cwd=folder, capture_output=True, text=True)
    assert said.returncode == 0
    assert said.stdout.startswith("largest difference in 16 recorded observations: ")


def test_a_changed_file_of_python_notices(arm, tmp_path):
    source = (arm[1] / "policy.py").read_text()
    (tmp_path / "policy.py").write_text(source.replace("np.tanh(g)", "np.cos(g)").replace("np.tanh,", "np.sin,"))
    assert subprocess.run([sys.executable, "policy.py"], cwd=tmp_path, capture_output=True).returncode == 1


def test_what_is_known_of_a_policy_can_not_end_the_docstring(tmp_path):
    policy = make_policy(KINDS["box"])
    evil = 'x"""\nraise SystemExit(3)\n"""\\'
    export_policy(policy, tmp_path / "nul.py", about={"env": "a\0b\ud800"})
    export_policy(policy, tmp_path / "policy.py", about={"env": evil})
    tree = ast.parse((tmp_path / "policy.py").read_text())
    assert evil in ast.get_docstring(tree, clean=False)
    assert not any(isinstance(node, ast.Raise) for node in tree.body)


def test_an_onnx_file_says_what_it_is_and_loads_in_old_runtimes(arm):
    model = onnx.load(arm[1] / "policy.onnx")
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 13)]
    assert model.ir_version == 7
    known = {entry.key: entry.value for entry in model.metadata_props}
    assert known["env"] == "Arm-v0"
    assert known["klimb"] == klimb.__version__
    assert '"names": ["camera", "level", "other", "speed"]' in known["observations"]
    assert '"low": [-2.0, -2.0, -2.0, -2.0]' in known["actions"]
    session = onnxruntime.InferenceSession(arm[1] / "policy.onnx")
    inputs = {x.name: (x.type, x.shape) for x in session.get_inputs()}
    assert inputs["action_mask"] == ("tensor(bool)", ["B", 20])
    assert inputs["carry"] == ("tensor(float)", ["B", 6])
    names = [x.name for x in session.get_outputs()]
    assert {"action.arm.0", "mean.arm.0", "log_std.arm.0", "action.arm.1", "logits.way", "next_carry"} <= set(names)
    # The same policy is the same file.
    export_policy(arm[0], arm[1] / "again.onnx", about={"env": "Arm-v0"})
    assert (arm[1] / "again.onnx").read_bytes() == (arm[1] / "policy.onnx").read_bytes()


class Linear(eqx.Module):
    """A policy of a class of one's own."""

    weight: jax.Array

    def __call__(self, obs):
        return klimb.DiagGaussian(mean=obs @ self.weight, log_std=jnp.zeros(2))


LINEAR = Linear(jnp.asarray([[1.0, 0.5], [0.25, -1.0], [2.0, 0.0]]))
SPACES = {
    "observations": klimb.observation_spec(spaces.Box(-1, 1, (3,))),
    "actions": klimb.action_spec(spaces.Box(-1, 1, (2,))),
}


def test_policies_of_any_class(tmp_path, monkeypatch):
    path = tmp_path / "policy.stablehlo"
    export_policy(LINEAR, path, **SPACES)
    computed = jax.export.deserialize(bytearray(path.read_bytes())).call({"obs": np.float32([[0.5, 0, 0]])})
    np.testing.assert_allclose(computed["action"], [[0.5, 0.25]])
    with pytest.raises(ConfigError, match=r"layers of your own: write it as .stablehlo"):
        export_policy(LINEAR, tmp_path / "policy.py", **SPACES)
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(MissingExtra, match="pip install jax2onnx"):
        export_policy(LINEAR, tmp_path / "policy.onnx", **SPACES)
    with pytest.raises(ConfigError, match="give observations= and actions="):
        export_policy(LINEAR, path)


def test_policies_of_any_class_are_given_to_the_converter(tmp_path, monkeypatch):
    """jax2onnx is asked for names and shapes; what it returns is compared, and gets the metadata."""
    helper = onnx.helper

    def to_onnx(function, inputs, *, input_names, output_names, model_name):
        assert [x.shape[1:] for x in inputs] == [(3,)]
        assert jax.tree.map(lambda x: x.shape[1:], jax.eval_shape(function, *inputs)) == ((2,), (2,), (2,))
        assert (input_names, output_names) == (["obs"], ["action", "log_std", "mean"])
        nodes = [
            helper.make_node("MatMul", ["obs", "W"], ["mean"]),
            helper.make_node("Clip", ["mean", "low", "high"], ["action"]),
            helper.make_node("Sub", ["mean", "mean"], ["log_std"]),
        ]
        constants = {"W": np.asarray(LINEAR.weight), "low": np.float32(-1), "high": np.float32(1)}
        info = {name: helper.make_tensor_value_info(name, 1, ["B", 2]) for name in output_names}
        graph = helper.make_graph(
            nodes,
            model_name,
            [helper.make_tensor_value_info("obs", 1, ["B", 3])],
            list(info.values()),
            [onnx.numpy_helper.from_array(np.asarray(x), name) for name, x in constants.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)

    monkeypatch.setitem(sys.modules, "jax2onnx", type(sys)("jax2onnx"))
    monkeypatch.setattr(sys.modules["jax2onnx"], "to_onnx", to_onnx, raising=False)
    exported = export_policy(LINEAR, tmp_path / "policy.onnx", about={"env": "Line-v0"}, **SPACES)
    assert exported.agreement.difference < 1e-6
    assert {x.key: x.value for x in onnx.load(exported.path).metadata_props}["env"] == "Line-v0"


def test_what_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("klimb.export.onnx_layers.LAYER_NORM_FLOOR", 0.1)
    with pytest.raises(ExportError, match=r"policy.onnx differs from the policy by .* nothing was written"):
        export_policy(make_policy(KINDS["layer norm, residual"]), tmp_path / "policy.onnx")
    assert not list(tmp_path.iterdir())


def test_comparisons():
    actions = klimb.action_spec(spaces.Discrete(3))
    expected = {"action": np.array([0, 1, 2]), "logits": np.float32([[1, 0, -np.inf], [1, 1, 0], [0, 0, 1]])}
    assert compare(expected, expected, actions, "f") == (3, 0.0, 0, 0.0)
    # The second row is a tie: both choices are right. The first one is none.
    assert compare({**expected, "action": np.array([0, 0, 2])}, expected, actions, "f").ties == 1
    with pytest.raises(ExportError, match="takes another action than the policy for 1 of 3 observations"):
        compare({**expected, "action": np.array([1, 1, 2])}, expected, actions, "f")
    for wrong in (np.nan, -np.inf, 0.1):
        logits = expected["logits"].copy()
        logits[0, 1] = wrong
        with pytest.raises(ExportError, match="differs from the policy by"):
            compare({**expected, "logits": logits}, expected, actions, "f")
    finite = np.where(np.isfinite(expected["logits"]), expected["logits"], -1e30)
    with pytest.raises(ExportError, match="differs"):
        compare({**expected, "logits": finite}, expected, actions, "f")
    with pytest.raises(ExportError, match=r"returns \['action'\], and the policy \['action', 'logits'\]"):
        compare({"action": expected["action"]}, expected, actions, "f")


def test_a_tie_excuses_its_own_number_alone():
    """Not another number of the same action, nor another part; and one without a choice is never tied."""
    two = klimb.action_spec(spaces.MultiDiscrete([1, 3]))
    expected = {"action": np.array([[0, 0]]), "logits": np.float32([[0, 5, 1, 1]])}
    with pytest.raises(ExportError, match="takes another action"):
        compare({**expected, "action": np.array([[0, 1]])}, expected, two, "f")
    both = klimb.action_spec(spaces.Tuple([spaces.Discrete(2), spaces.Discrete(2)]))
    names = {"action.0": np.array([0]), "action.1": np.array([0])}
    expected = {**names, "logits.0": np.float32([[1, 1]]), "logits.1": np.float32([[9, 0]])}
    assert compare({**expected, "action.0": np.array([1])}, expected, both, "f").ties == 1
    with pytest.raises(ExportError, match=r"takes another action\.1"):
        compare({**expected, "action.0": np.array([1]), "action.1": np.array([1])}, expected, both, "f")
    with pytest.raises(ExportError, match=r"takes another action\.0"):
        compare({**expected, "action.0": np.array([7])}, expected, both, "f")


def test_boxes_are_compared_in_half_widths():
    box = klimb.action_spec(spaces.Box(np.float32([-1e-6, -1000]), np.float32([1e-6, 1000])))
    expected = {"action": np.float32([[1e-6, 900], [-1e-6, 0]])}
    compare(expected, expected, box, "f")
    for wrong in (-expected["action"], expected["action"] * np.float32([1, 1.01]), expected["action"].astype(int)):
        with pytest.raises(ExportError, match=r"differs|as int64"):
            compare({"action": wrong}, expected, box, "f")
    # Rounding of the policy widens the tolerance, and not without limit.
    near = {"action": expected["action"] * np.float32([1, 1.0005])}
    assert compare(near, expected, box, "f", rounding=1e-4).difference == pytest.approx(4.5e-4, rel=0.01)
    for rounding in (np.inf, np.nan, 10.0):
        with pytest.raises(ExportError, match="differs"):
            compare({"action": -expected["action"]}, expected, box, "f", rounding=rounding)


def loaded(path) -> dict[str, Any]:
    """A file of Python, run."""
    file: dict[str, Any] = {"__name__": "policy"}
    exec(compile(path.read_text(), "policy.py", "exec"), file)
    return file


def test_masks_in_a_file_of_python_are_those_of_the_policy(tmp_path):
    policy = make_policy(Kind(spaces.Dict(level=spaces.Discrete(3)), spaces.MultiDiscrete([2, 2]), masked=True))
    act = loaded(export_policy(policy, tmp_path / "policy.py").path)["act"]
    obs, mask = {"level": np.array([0, 2])}, np.array([[1, 0, 0, 1], [0, 1, 1, 0]])
    expected = policy.act(obs, action_mask=mask)
    for given in (
        act(obs, action_mask=mask),
        act({**obs, "action_mask": mask}),
        act(policy.observations.flatten({**obs, "action_mask": mask})),
        act(obs, action_mask=mask.reshape(2, 2, 2) - 0.4),
    ):
        np.testing.assert_array_equal(given, expected)
    for wrong in (mask[0], mask * 0, np.array([[1, 1, 0, 0]] * 2), mask[:, :3]):
        with pytest.raises(ValueError, match="mask"):
            act(obs, action_mask=wrong)
    with pytest.raises(ValueError, match="needs it"):
        act(obs)


@pytest.mark.parametrize(
    ("space", "wrong"),
    [
        (spaces.Discrete(4, start=2), [1, 6, 2.5]),
        (spaces.MultiDiscrete([2, 3]), [[3, 0], [-1, 0], [0, 5]]),
        (PICTURE, [np.full(PICTURE.shape, 0.5), np.full(PICTURE.shape, 300)]),
        (spaces.Tuple([VECTOR, VECTOR]), [(np.zeros(4),)]),
        (VECTOR, [np.zeros(3)]),
    ],
)
def test_observations_out_of_their_space_are_refused_by_a_file_of_python(space, wrong, tmp_path):
    policy = make_policy(Kind(space, spaces.Discrete(3), {"network": "mlp"} if space is PICTURE else {}))
    act = loaded(export_policy(policy, tmp_path / "policy.py").path)["act"]
    assert act(space.sample()) in range(3)
    for obs in wrong:
        with pytest.raises(ValueError, match="the observation has"):
            act(obs)
        with pytest.raises(ConfigError):
            policy.act(obs)


def test_numbers_as_the_policy_takes_them(tmp_path):
    """Scalars with an axis, and what bounds of infinity become."""
    kind = Kind(spaces.Box(-1, 1, ()), options={"log_std_bounds": (-INF, 1.0)})
    policy = make_policy(kind)
    act = loaded(export_policy(policy, tmp_path / "policy.py").path)["act"]
    for obs in (0.5, [0.5], [[0.5], [0.25]]):
        assert act(obs).shape == policy.act(obs).shape
        np.testing.assert_allclose(act(obs), policy.act(obs), atol=1e-6)


def test_no_path_of_the_machine_is_in_a_program(tmp_path):
    content = export_policy(make_policy(KINDS["parts"]), tmp_path / "policy.stablehlo").path.read_bytes()
    for path in (str(tmp_path), __file__, "site-packages", "klimb/export"):
        assert path.encode() not in content


@pytest.mark.parametrize(
    "space",
    [
        spaces.Dict({"a": spaces.Dict(b=spaces.Discrete(3)), "a.b": spaces.Discrete(2)}),
        spaces.Dict({"": spaces.Discrete(3), "b": spaces.Discrete(2)}),
    ],
)
def test_names_of_parts_have_to_differ(space, tmp_path):
    with pytest.raises(ConfigError, match="which have to differ and may not be empty"):
        export_policy(make_policy(Kind(actions=space)), tmp_path / "policy.py")


def test_files_that_can_not_be_written(tmp_path):
    policy = make_policy(KINDS["box"])
    with pytest.raises(ConfigError, match=r"a policy is written as .onnx, .stablehlo or .py"):
        export_policy(policy, tmp_path / "policy.pt")
    with pytest.raises(RunError, match="there is no such directory"):
        export_policy(policy, tmp_path / "none" / "policy.py")
    (tmp_path / "policy.py").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        export_policy(policy, tmp_path / "policy.py")
