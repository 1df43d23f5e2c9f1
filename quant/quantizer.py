"""A quantizer: the grid of one tensor of a model, activation or kernel, as plain data.

An activation has an affine grid with one scale, from the range that an observer gathers (a symmetric one, of levels
that are not integers). A kernel has a symmetric one, from its own values, with a scale for each combination of output
and batch axes or one for all.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leanax.core.trees import path_name
from quant.estimators import Estimator, Placed, Statistics
from quant.grid import Grid, affine, limits, symmetric
from quant.sharing import Scales
from quant.spec import Spec

# Scale and zero point that the integer kernels of runtimes have for the results of these functions, in 8 bits.
FIXED = {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0), "softmax": (1 / 256, -128)}

# The scale of the network's input stays static: to learn it one would need the gradient with respect to the images.
_INPUT = re.compile(r"input(_\d+)?(#\d+)?")


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Label:
  """The codes of a grid of the state, such as "a8" or "w4 power_of_two": a pytree node without leaves."""

  codes: str


class Quantizer(NamedTuple):
  """The grid of a tensor.

  Attributes:
    key: an activation's name; of a kernel the leaf's, for its first grid, otherwise that of the first site.
    spec: of an activation that of the reader that asks for the most bits, of a kernel the first site's.
    estimator: how its rounding is trained.
    kernel: it is a kernel; the fields below, but the last two, are of kernels only.
    leaf: the leaf in whose axes it is written; None where the operand is not simply a part of one: then it is written
      in the operand's axes, and taken from the operand as it is seen there.
    shape: of the leaf, perhaps with axes split, or of the operand.
    axis: the axes of `shape` along which scales vary.
    apart: those of them that number layers or slices.
    scales: how an operand finds its scales in the leaf's.
    fixed: of an activation the scale and the zero point that it has whatever is seen (`FIXED`); None for most.
    centred: whether an activation's zero point is 0.
  """

  key: str
  spec: Spec
  estimator: Estimator
  kernel: bool = False
  leaf: str | None = None
  shape: tuple[int, ...] = ()
  axis: tuple[int, ...] = ()
  apart: tuple[int, ...] = ()
  scales: Scales | None = None
  fixed: tuple[float, int] | None = None
  centred: bool = False

  @property
  def outside(self) -> bool:
    """Returns whether it is an input of the network."""
    return not self.kernel and is_input(self.key)

  @property
  def bits(self) -> int:
    return self.spec.bits

  @property
  def format(self) -> str:
    """The levels, a name in `quant.formats`."""
    return self.spec.format

  @property
  def symmetric(self) -> bool:
    """Returns whether the grid has no zero point: of kernels, and of activations that are not integers."""
    return self.kernel or self.format != "integer"

  @property
  def narrow(self) -> bool:
    """Returns whether the grid leaves out its lowest code."""
    return self.symmetric and self.spec.narrow

  @property
  def label(self) -> Label:
    """The width and levels, without which the scales mean nothing."""
    words = ["full"] * (self.kernel and not self.narrow) + [self.format] * (self.format != "integer")
    group = f"g{self.spec.group}" if self.spec.group else ""
    return Label(" ".join([f"{'w' if self.kernel else 'a'}{self.bits}{group}", *words]))

  @property
  def layers(self) -> tuple[int, ...]:
    """The axes of the scales along which none is raised to a share of the largest (`quant.symmetric`)."""
    # A channel's floor is there for biases in int32, which kernels with groups have none of.
    return tuple(place for place, i in enumerate(self.axis) if i in self.apart or self.spec.group is not None)

  @property
  def ends(self) -> tuple[int, int]:
    """The lowest and the highest code."""
    return limits(self.bits, True, self.narrow)

  @property
  def largest(self) -> int:
    """The largest magnitude of a code less its zero point."""
    lowest, highest = self.ends
    return max(-lowest, highest) if self.kernel else highest - lowest

  def start(self, low: jax.Array, high: jax.Array, magnitude: jax.Array) -> dict[str, jax.Array]:
    """Returns the scale (and of an activation the zero point) of a range, the scale as the spec's estimator starts.

    Args:
      low: the lowest value, () or one for each scale.
      high: the highest value, likewise; of a kernel both count by their magnitude.
      magnitude: the mean magnitude, likewise.
    """
    if self.fixed is not None:
      scale, zero_point = (jnp.full(jnp.shape(low), one) for one in self.fixed)
      return {"scale": jnp.where(jnp.isfinite(low + high), scale, jnp.nan), "zero_point": zero_point}
    if self.symmetric or self.centred:
      narrow = self.narrow or self.centred
      grid = symmetric(jnp.maximum(-low, high), self.bits, narrow=narrow, layers=self.layers, format=self.format)
    else:
      grid = affine(low, high, self.bits)
    init = self.spec.make_estimator().init  # the input starts so too, though its scale is not trained
    scale = grid.scale if init is None else init(Statistics(magnitude, grid), self.spec.start)
    return {"scale": scale} if self.kernel else {"scale": scale, "zero_point": grid.zero_point}

  def entry(self, start: Mapping[str, jax.Array], old: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the entry of the quantizers' state: the grid of what was seen, and the one in use, unchanged."""
    return {"grid": self.label, "seen": start, "used": start if old is None else old["used"]}

  def place(self, x: jax.Array, used: Mapping[str, Any]) -> Placed:
    """Returns an operand and its grid.

    Args:
      x: the operand.
      used: its scale, () or of the operand's rank, of an activation the zero point, and perhaps a random key.
    """
    if self.outside:
      # A runtime is given rounded numbers: the compiler must not merge the preprocessing's factor with 1 / s, for
      # pixels have few values, and some lie on ties of the grid.
      x = jax.lax.optimization_barrier(x)
    if self.kernel:
      count = math.prod(n for i, n in enumerate(self.shape) if i not in self.axis)
    else:
      count = x.size // x.shape[0]  # the features of one example: the leading axis is the batch
    zero_point = used.get("zero_point", jnp.zeros((), jnp.int32))
    return Placed(x, used["scale"], zero_point, self.ends, count, self.format, used.get("key"))

  def grid(self, used: Mapping[str, Any]) -> Grid:
    """Returns the grid of an activation, or of a kernel's leaf, behind the axes of scans."""
    scale = used["scale"]
    if not self.kernel:
      return Grid(scale, used["zero_point"], self.bits, narrow=self.narrow, format=self.format)
    scans = scale.ndim - len(self.axis)
    axes = (*range(scans), *(scans + i for i in self.axis))
    place, shape = axes[0] if len(axes) == 1 else axes or None, (*scale.shape[:scans], *self.shape)
    return Grid(scale, jnp.zeros(scale.shape, jnp.int32), self.bits, True, self.narrow, place, shape, self.format)


def labels(tree: Any) -> dict[str, str]:
  """Returns what the grids of a tree's quantizer states hold, by their place in the tree: what no array of it says."""
  nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: isinstance(node, Label))
  return {path_name(path): node.codes for path, node in nodes if isinstance(node, Label)}


def is_input(key: str) -> bool:
  """Returns whether it is the name of an input of the network."""
  return _INPUT.fullmatch(key) is not None
