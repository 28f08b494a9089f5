"""A policy of any class as an ONNX file, by the converter jax2onnx, where it is installed."""

from __future__ import annotations

from typing import Any

import jax

from klimb.errors import ConfigError, MissingExtra, one_line
from klimb.export.interface import Inputs
from klimb.export.onnx_graph import onnx_package
from klimb.export.program import program
from klimb.policies.action_spec import ActionSpec
from klimb.policies.policy import Policy


def converted_file(policy: Policy, inputs: Inputs, actions: ActionSpec, about: dict[str, str]) -> bytes:
    """The file. Its operators are newer than those of klimb's own networks: runtimes need opset 23 (ONNX 1.18).

    policy, inputs, actions: as for `klimb.export.program.program`. about: metadata, by name. Raises MissingExtra
    without jax2onnx, and ConfigError where it can't convert the policy.
    """
    convert, onnx = _converter(type(policy).__name__), onnx_package()
    computed, names = program(policy, inputs, actions), list(inputs.shapes())
    (batch,) = jax.export.symbolic_shape("B")
    arrays = [jax.ShapeDtypeStruct((batch, *shape), dtype) for shape, dtype in inputs.shapes().values()]
    outputs = sorted(jax.eval_shape(computed, dict(zip(names, arrays, strict=True))))

    def in_order(*arrays: Any) -> tuple[Any, ...]:
        """arrays: in the order of the names."""
        found = computed(dict(zip(names, arrays, strict=True)))
        return tuple(found[name] for name in outputs)

    try:
        model = convert(in_order, arrays, input_names=names, output_names=outputs, model_name="policy")
    except Exception as error:
        raise ConfigError(
            f"jax2onnx can't convert {type(policy).__name__} ({type(error).__name__}: {one_line(error, 160)}): write "
            "it as .stablehlo"
        ) from error
    onnx.helper.set_model_props(model, about)
    return bytes(model.SerializeToString(deterministic=True))


def _converter(policy: str) -> Any:
    """jax2onnx. policy: the name of its class, for the message."""
    try:
        import jax2onnx
    except ImportError as error:
        cause = "" if isinstance(error, ModuleNotFoundError) and error.name == "jax2onnx" else f" ({one_line(error)})"
        raise MissingExtra(
            f"klimb writes its own networks as ONNX, and {policy} needs a converter: pip install jax2onnx{cause}; or "
            "write it as .stablehlo"
        ) from None
    return jax2onnx.to_onnx
