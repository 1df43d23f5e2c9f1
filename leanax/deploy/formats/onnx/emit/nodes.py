"""The nodes and constants of a file while it is planned, and the layouts in which its activations are there.

ONNX convolves and pools images as (N, C, H, W). An activation of four axes is made in the layout of the layer that
makes it, and other layers take it as it is where their result does not depend on the layout; the other layout is made
by a Transpose when a layer first asks for it. So a convolutional network has one Transpose at its start, and none where
its result is (N, C).
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from leanax.deploy import ir

IMAGE = (0, 3, 1, 2)  # rows, columns, channels to channels, rows, columns
BACK = (0, 2, 3, 1)
INT4 = np.dtype(jnp.int4)  # a byte each in numpy, and half of one in the file


def axis_in(axis: int, rank: int, first: bool) -> int:
  """Returns an axis of the network's layout in a layout."""
  return IMAGE.index(axis % rank) if first else axis % rank


def vector(tensor: ir.Tensor) -> bool:
  """Returns whether all axes of an example but one have length 1: every layout has its numbers in one order."""
  return sum(size != 1 for size in tensor.shape[1:]) <= 1


class Node(NamedTuple):
  """One node as the file has it; all of ours have one output."""

  op: str
  inputs: tuple[str, ...]
  output: str
  attributes: dict[str, Any]


class Plan:
  """The nodes and constants of a file.

  An activation has its own name in the network's layout, and that name and ":nchw" with its channels first. The value
  of an int8 one is its codes; what layers compute with (`real`) is made of them by a DequantizeLinear.

  Args:
    tensors: of the network.
    sources: the names of its inputs.
    offset: what is added to an int8 code in the file, 128 for uint8 ones.
    groups: the form of dense kernels in groups, as of `onnx`.
  """

  def __init__(self, tensors: dict[str, ir.Tensor], sources: Sequence[str], offset: int, groups: str) -> None:
    self.tensors = dict(tensors)
    self.groups = groups
    self.offset = offset
    self.codes = np.dtype("uint8" if offset else "int8")
    self.nodes: list[Node] = []
    self.constants: dict[str, np.ndarray] = {}
    self._equal: dict[tuple[str, tuple[int, ...], bytes], str] = {}
    self.dequantized: set[str] = set()  # what Dequantize layers have made
    self._made = dict.fromkeys(sources, 0)  # by the order in which they are made

  def node(self, op: str, *inputs: str, output: str = "", **attributes: Any) -> str:
    """Adds a node, and returns its output's name; a fresh one without `output`."""
    output = output or f"{op}:{len(self.nodes)}"
    if output not in self._made:
      self.nodes.append(Node(op, inputs, output, attributes))
      self._made[output] = len(self._made)
    return output

  def constant(self, value: Any, dtype: Any = None, name: str = "") -> str:
    """Adds a constant, and returns its name; an equal one is shared."""
    array = np.array(value, dtype, order="C")
    key = (array.dtype.name, array.shape, hashlib.sha256(array.tobytes()).digest())
    if key not in self._equal:
      name = name or f"constant:{len(self.constants)}"
      while name in self.constants:  # a kernel that is also read in another layout
        name += ":"
      self._equal[key] = name
      self.constants[name] = array
    return self._equal[key]

  def grid(self, tensor: ir.Tensor) -> tuple[str, str]:
    """Returns the names of an activation's scale and zero point."""
    zero = self.constant(tensor.zero_point + self.offset, self.codes, f"{tensor.name}:zero_point")
    return self.constant(tensor.scale, np.float32, f"{tensor.name}:scale"), zero

  def first(self, *names: str) -> bool:
    """Returns whether a layer that treats all axes alike should take its inputs with channels first."""
    tensors = [self.tensors[name] for name in names]
    images = all(tensor.data is not None or len(tensor.shape) == len(IMAGE) for tensor in tensors)
    images &= all(len(tensor.shape) <= len(IMAGE) for tensor in tensors)
    return images and any(self._image(tensor) for tensor in tensors)

  def _image(self, tensor: ir.Tensor) -> bool:
    rows, channels = (self._made.get(name, len(self._made)) for name in (tensor.name, f"{tensor.name}:nchw"))
    return channels < rows  # made so, and not transposed for a convolution

  def value(self, name: str, first: bool = False) -> str:
    """Returns the name of an activation's or constant's numbers (codes where it is int8) in a layout."""
    tensor = self.tensors[name]
    if tensor.data is not None:
      return self.constant(self._constant(tensor, first), name=f"{name}:nchw" if first else name)
    first = first and len(tensor.shape) == len(IMAGE)
    wanted, other = (f"{name}:nchw", name) if first else (name, f"{name}:nchw")
    if vector(tensor):  # a reshape moves nothing
      shape = [-1, *([1, *tensor.shape[1:]][axis] for axis in IMAGE[1:])] if first else [-1, *tensor.shape[1:]]
      return self.node("Reshape", other, self.constant(shape, np.int64), output=wanted)
    return self.node("Transpose", other, output=wanted, perm=IMAGE if first else BACK)

  def real(self, name: str, first: bool = False) -> str:
    """Returns the name of the numbers that a layer computes with: those of codes, or the value itself."""
    value, tensor = self.value(name, first), self.tensors[name]
    if tensor.dtype != "int8":
      return value
    return self.node("DequantizeLinear", value, *self.grid(tensor), output=f"{value}:real")

  def _constant(self, tensor: ir.Tensor, first: bool) -> np.ndarray:
    data = ir.values(tensor)
    if tensor.dtype == "int8":
      data = (data.astype(np.int16) + self.offset).astype(self.codes)
    if not first or data.ndim == 0:
      return data
    return data.reshape((1,) * (len(IMAGE) - data.ndim) + data.shape).transpose(IMAGE)

  def moved(self, layer: ir.Layer, op: str, *inputs: str, first: bool = False, **attributes: Any) -> None:
    """Adds the node that makes a layer's output without computing: codes stay codes."""
    self.node(op, *inputs, output=f"{layer.output}:nchw" if first else layer.output, **attributes)

  def result(self, layer: ir.Layer, op: str, *inputs: str, first: bool = False, **attributes: Any) -> None:
    """Adds the node that computes a layer's output, the layer's ReLU and the rounding to the output's grid.

    onnxruntime drops a ReLU before QuantizeLinear where the grid begins at 0. Elsewhere the codes are clipped, which is
    the same and leaves the layer to the integer kernels.
    """
    tensor, relu = self.tensors[layer.output], getattr(layer, "relu", False)
    target = f"{tensor.name}:nchw" if first else tensor.name
    if tensor.dtype != "int8":
      value = self.node(op, *inputs, output="" if relu else target, **attributes)
      if relu:
        self.node("Relu", value, output=target)
      return
    value, (scale, zero) = self.node(op, *inputs, **attributes), self.grid(tensor)
    clipped = relu and tensor.zero_point != ir.QMIN
    if relu and not clipped:
      value = self.node("Relu", value)
    codes = self.node("QuantizeLinear", value, scale, zero, output="" if clipped else target)
    if clipped:
      self.node("Clip", codes, zero, output=target)
