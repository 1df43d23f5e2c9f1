"""Layers in order with their tensors: the whole of a compressed model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy.description import Description
from leanax.deploy.ir.layers import Layer
from leanax.deploy.ir.tensor import Tensor, describe, values
from leanax.deploy.preprocessing import Preprocessing


class Network(NamedTuple):
  """Layers in an order in which each one's inputs are ready.

  Attributes:
    layers: the layers.
    tensors: every tensor by name, activations and constants.
    inputs: the activations that the caller feeds, by the names that the caller has for them, in order.
    outputs: the results, likewise.
    preprocessing: the step from raw images to the input; None when the network takes them as they are.
    description: of it in words: the classes, the licence, and how it was made.
  """

  layers: tuple[Layer, ...]
  tensors: dict[str, Tensor]
  inputs: Mapping[str, str]
  outputs: Mapping[str, str]
  preprocessing: Preprocessing | None = None
  description: Description | None = None

  @property
  def input(self) -> str:
    """The tensor of the only input.

    Raises:
      UserError: there are several.
    """
    return _sole(self.inputs, "input")

  @property
  def output(self) -> str:
    """The tensor of the only output; raises as `input` does."""
    return _sole(self.outputs, "output")

  @property
  def quantized(self) -> bool:
    """True where its layers run on integers."""
    return any(tensor.dtype == "int8" and tensor.data is None for tensor in self.tensors.values())

  def __str__(self) -> str:
    names = {tensor: "" if name == tensor else f"{name}: " for name, tensor in self.inputs.items()}
    given = [f"input {names[tensor]}{describe(self.tensors[tensor])}" for tensor in names]
    return "\n".join([*given, *map(self._line, self.layers)])

  def _line(self, layer: Layer) -> str:
    made = describe(self.tensors[layer.output])
    relu = " relu" if getattr(layer, "relu", False) else ""
    held = sum(values(self.tensors[name]).size for name in layer.constants())
    return f"{type(layer).__name__}{relu} {layer.name}: {', '.join(layer.inputs)} -> {made}, {held} parameters"


def _sole(ends: Mapping[str, str], kind: str) -> str:
  if len(ends) != 1:
    raise UserError(f"the network has {len(ends)} {kind}s, {', '.join(map(repr, ends))}; expected one")
  return next(iter(ends.values()))


def arranged(ends: Mapping[str, Any], given: Any, name: str) -> list[Any]:
  """Returns what is given for several ends in their order.

  Args:
    ends: by name.
    given: one array where there is one end; else a dict by name, or a tuple in order.
    name: of the network or file, in errors.

  Raises:
    UserError: another number of arrays, or other names.
  """
  if isinstance(given, Mapping):
    if given.keys() != ends.keys():
      raise UserError(f"{name} takes {', '.join(map(repr, ends))}; got {', '.join(map(repr, given))}")
    return [given[key] for key in ends]
  arrays = list(given) if isinstance(given, tuple) else [given]
  if len(arrays) != len(ends):
    raise UserError(f"{name} takes {len(ends)} inputs, {', '.join(map(repr, ends))}; got {len(arrays)}")
  return arrays


def returned(ends: Mapping[str, Any], arrays: list[np.ndarray]) -> Any:
  """Returns one array as it is, and several by the names of their ends."""
  return arrays[0] if len(ends) == 1 else dict(zip(ends, arrays, strict=True))
