"""Operators and tensors as a file has them, and what the emitters of layers share."""

from typing import Any, NamedTuple

from leanax.deploy import ir
from leanax.deploy.formats.litert.sparse import Rows


class Written(NamedTuple):
  """One operator as the file has it: its code, the tensors it reads and makes, and its options by schema name.

  A form that came later than int8 has its version; others have the code's.
  """

  code: str
  inputs: tuple[str | None, ...]
  output: str
  options: str | None = None
  fields: dict[str, Any] = {}  # noqa: RUF012
  version: int | None = None


class Plan(NamedTuple):
  """The operators and tensors of a file, in the file's own layouts.

  Attributes:
    operators: in order.
    tensors: by name.
    rows: constants that are held in compressed rows, by name.
  """

  operators: list[Written]
  tensors: dict[str, ir.Tensor]
  rows: dict[str, Rows]


def keep(plan: Plan, tensor: ir.Tensor) -> str:
  """Adds a tensor to the plan and returns its name."""
  plan.tensors[tensor.name] = tensor
  return tensor.name


def read(plan: Plan, layer: ir.Layer, tensors: dict[str, ir.Tensor]) -> tuple[str, ...]:
  """Returns the names of a layer's inputs, of which constants are added to the plan."""
  for name in layer.inputs:
    if tensors[name].data is not None:
      keep(plan, tensors[name])
  return layer.inputs


FEW = 4  # bits of codes that a file can hold packed


def packs(weights: ir.Tensor, depth: int | None) -> bool:
  """Returns whether the weights of a dense layer of so many inputs are held as int4: codes of 4 bits at most.

  XNNPACK leaves an odd number of inputs to other kernels, which round in another way.
  """
  return weights.dtype == "int8" and ir.on_grid(weights).bits <= FEW and depth is not None and depth % 2 == 0


def activate(layer: Any) -> str | None:
  """Returns the fused activation of a layer by its schema name."""
  return "RELU" if layer.relu else None
