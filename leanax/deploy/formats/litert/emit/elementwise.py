"""Functions of numbers at the same place as LiteRT operators."""

from collections.abc import Callable

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, activate, read


def _add(plan: Plan, layer: ir.Add, tensors: dict[str, ir.Tensor]) -> None:
  del tensors
  fields = {"FusedActivationFunction": activate(layer)}
  plan.operators.append(Written("ADD", layer.inputs, layer.output, "AddOptions", fields))


_BINARY = {  # the code and its options; versions of broadcasting beyond 4 axes
  "add": ("ADD", "AddOptions", 2),
  "sub": ("SUB", "SubOptions", 3),
  "mul": ("MUL", "MulOptions", 2),
  "div": ("DIV", "DivOptions", 2),
  "max": ("MAXIMUM", "MaximumMinimumOptions", 3),
  "min": ("MINIMUM", "MaximumMinimumOptions", 3),
  "pow": ("POW", "PowOptions", 1),
}


def _binary(plan: Plan, layer: ir.Binary, tensors: dict[str, ir.Tensor]) -> None:
  code, options, version = _BINARY[layer.operation]
  plan.operators.append(Written(code, read(plan, layer, tensors), layer.output, options, version=version))


def _plain(code: str) -> Callable[..., None]:
  """Returns the emitter of an operator that has no options."""
  return lambda plan, layer, tensors: plan.operators.append(Written(code, layer.inputs, layer.output))


TABLE = {
  ir.Add: _add,
  ir.Binary: _binary,
  ir.Relu: _plain("RELU"),
  ir.Quantize: _plain("QUANTIZE"),
  ir.Dequantize: _plain("DEQUANTIZE"),
}
