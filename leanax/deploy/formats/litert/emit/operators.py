"""Operators and tensors as a file has them, and what the emitters of layers share."""

from typing import Any, NamedTuple

from leanax.deploy import ir


class Written(NamedTuple):
  """One operator as the file has it: its code, the tensors it reads and makes, and its options by schema name."""

  code: str
  inputs: tuple[str | None, ...]
  output: str
  options: str | None = None
  fields: dict[str, Any] = {}  # noqa: RUF012


class Plan(NamedTuple):
  """The operators and tensors of a file, in the file's own layouts."""

  operators: list[Written]
  tensors: dict[str, ir.Tensor]


def keep(plan: Plan, tensor: ir.Tensor) -> str:
  """Adds a tensor to the plan and returns its name."""
  plan.tensors[tensor.name] = tensor
  return tensor.name


def activate(layer: Any) -> str | None:
  """Returns the fused activation of a layer by its schema name."""
  return "RELU" if layer.relu else None
