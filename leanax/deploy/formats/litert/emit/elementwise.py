"""Functions of numbers at the same place as LiteRT operators."""

from collections.abc import Callable

from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, activate


def _add(plan: Plan, layer: ir.Add, tensors: dict[str, ir.Tensor]) -> None:
  del tensors
  fields = {"FusedActivationFunction": activate(layer)}
  plan.operators.append(Written("ADD", layer.inputs, layer.output, "AddOptions", fields))


def _plain(code: str) -> Callable[..., None]:
  """Returns the emitter of an operator that has no options."""
  return lambda plan, layer, tensors: plan.operators.append(Written(code, layer.inputs, layer.output))


TABLE = {
  ir.Add: _add,
  ir.Relu: _plain("RELU"),
  ir.Quantize: _plain("QUANTIZE"),
  ir.Dequantize: _plain("DEQUANTIZE"),
}
