"""Drafts of layers while a traced function is walked: those recognised so far, and those still open."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.traced import Traced
from leanax.deploy.lifting.views import Link, ordered
from leanax.graph.program import Node


@dataclass
class Draft:
  """A layer that may still take in a bias, a ReLU or a divisor.

  Attributes:
    kind: the layer's class.
    name: its name, the leaf's for one with weights; empty for one that is named by its input.
    inputs: numbers of the values it reads, and constants of a layer without a kernel.
    end: number of the value that it makes so far.
    node: its first equation.
    kernel: weights in the IR's layout, of a convolution or dense layer.
    bias: (channels,) or None.
    relu: whether ReLU is fused.
    share: for a pool or mean still to be divided, by how much; None once it is.
    undivided: makes it the layer of the sum, where it is read before it is divided.
    fields: what else the layer's class takes.
    early: its ReLU stands behind the pool that follows; before it the numbers are the same.
    positive: it reads no negative value, as such a pool, or it is proven on positive ones alone, as a logarithm.
  """

  kind: type[ir.Layer]
  name: str
  inputs: tuple[int | np.ndarray, ...]
  end: int
  node: Node
  kernel: np.ndarray | None = None
  bias: np.ndarray | None = None
  relu: bool = False
  share: int | None = None
  undivided: Callable[["Draft"], None] | None = None
  fields: dict[str, Any] = field(default_factory=dict)
  early: bool = False
  positive: bool = False


@dataclass(frozen=True)
class Composite:
  """Equations that make one value of others, and the layer that they are.

  Attributes:
    kind: the layer's class.
    inputs: numbers of the values that they read, and constants.
    end: number of the value that they make.
    nodes: indices of the equations; nothing else reads what they make but `end`.
    fields: what the layer's class takes beside names; an array becomes a constant tensor.
    positive: whether it has numbers for positive inputs alone.
  """

  kind: type[ir.Layer]
  inputs: tuple[int | np.ndarray, ...]
  end: int
  nodes: frozenset[int]
  fields: dict[str, Any] = field(default_factory=dict)
  positive: bool = False


class Spread(NamedTuple):
  """A value that repeats another one along axes: the other one's number, and the axis at which each of its axes is."""

  source: int
  axes: tuple[int, ...]


class Pick(NamedTuple):
  """A value that holds entries of another one: the other one's number, and which entries along which axes."""

  source: int
  entries: dict[int, np.ndarray]


class Affine(NamedTuple):
  """A value that is another one times `factor` and then plus `offset`, both float64; either may be None."""

  x: int
  factor: np.ndarray | None
  offset: np.ndarray | None


@dataclass
class Lifter:
  """The drafts so far.

  Attributes:
    traced: the function.
    foldable: see `recognise`.
    drafts: in order.
    ends: the draft that ends at a value.
    same: values that are another value under another number.
    pads: values that are another one with zeros around it.
    spreads: values that repeat another one along axes; `narrow` is for layers that broadcast what they read.
    picks: values that hold entries of another one.
    shaped: values that are another one in another shape.
    links: values that are another one in another shape and then in another order of axes.
    affine: values that are another one times a constant and plus one.
    later: makes the layers of a value when the first of its readers needs it: of all of these.
    turned: numbers of values with their axes in another order, by theirs and the order.
    indices: by the equation that reads rows of a table at indices, the number of the indices as the caller has them.
    skipped: indices of equations that are part of what a later one makes.
  """

  traced: Traced
  foldable: bool
  drafts: list[Draft] = field(default_factory=list)
  ends: dict[int, Draft] = field(default_factory=dict)
  same: dict[int, int] = field(default_factory=dict)
  pads: dict[int, tuple[int, ir.Padding]] = field(default_factory=dict)
  spreads: dict[int, Spread] = field(default_factory=dict)
  picks: dict[int, Pick] = field(default_factory=dict)
  shaped: dict[int, int] = field(default_factory=dict)
  links: dict[int, Link] = field(default_factory=dict)
  affine: dict[int, Affine] = field(default_factory=dict)
  later: dict[int, Callable[[], None]] = field(default_factory=dict)
  turned: dict[tuple[int, tuple[int, ...]], int] = field(default_factory=dict)
  indices: dict[int, int] = field(default_factory=dict)
  skipped: set[int] = field(default_factory=set)

  def number(self, number: int) -> int:
    """Returns the number of the value itself, where it was only handed on."""
    while number in self.same:
      number = self.same[number]
    return number

  def shape(self, number: int) -> tuple[int, ...]:
    """Returns a value's shape, with the batch that was traced."""
    return tuple(self.traced.aval(number).shape)

  def sole(self, number: int) -> bool:
    """Returns whether nothing else reads the value, under any of its numbers, or links to what it is made of."""
    while number in self.traced.views or self.traced.uses[number] == 1:
      if number in self.same:
        number = self.same[number]
      elif number in self.links and number not in self.ends:
        number = self.links[number].parent
      else:
        return True
    return False

  def operand(self, node: Node, place: int = 0) -> int:
    """Returns the number of an operand that depends on the input."""
    ref = node.inputs[place]
    if not self.traced.is_data(ref):
      raise self.traced.refuse(node, "its first operand does not depend on the input")
    return self.traced.graph.resolve(ref)

  def finished(self, number: int, node: Node) -> int:
    """Returns the number of a value that a layer may read; what makes it, and was left open so far, is a layer now."""
    number = self.number(number)
    if number in self.later:
      self.later.pop(number)()
      number = self.number(number)
    draft = self.ends.get(number)
    if draft is not None and draft.share is not None:
      assert draft.undivided is not None
      draft.share = None
      draft.undivided(draft)
    if number in self.pads:
      source, ((top, bottom), (left, right)) = self.pads.pop(number)
      fields = {"padding": ((0, 0), (top, bottom), (left, right), (0, 0))}
      self.start(Draft(ir.Pad, "", (self.finished(source, node),), number, node, fields=fields))
    return number

  def narrow(self, number: int, node: Node) -> int:
    """Returns the number of a value that a layer which broadcasts may read: axes of length 1 need not be spread."""
    spread = self.spreads.get(self.number(number))
    if spread is None:
      return self.finished(number, node)
    return self.finished(self.reshaped(spread.source, self.narrowed(number), node), node)

  def narrowed(self, number: int) -> tuple[int, ...]:
    """Returns a value's shape, with length 1 where it is spread."""
    spread, shape = self.spreads.get(self.number(number)), self.shape(number)
    if spread is None:
      return shape
    sizes = dict(zip(spread.axes, self.shape(spread.source), strict=True))
    return tuple(sizes.get(axis, 1) for axis in range(len(shape)))

  def reshaped(self, number: int, shape: Sequence[int], node: Node) -> int:
    """Returns the number of a value in another shape, which is no layer until one reads it."""
    number, shape = self.number(number), tuple(shape)
    for one in (number, self.shaped.get(number, number)):
      if tuple(self.traced.aval(one).shape) == shape:
        return one
    end = self.traced.new(shape, self.traced.aval(number).dtype)
    self.reshape(number, end, node)
    return end

  def reshape(self, number: int, end: int, node: Node) -> None:
    """Makes `end` of a value in its own shape; what is reshaped twice is reshaped once."""
    number = self.number(number)
    source = self.shaped.get(number, number)
    if self.traced.aval(source).shape == self.traced.aval(end).shape:
      self.same[end] = source
      return
    self.shaped[end] = source
    self.later[end] = lambda: self.start(Draft(ir.Reshape, "", (self.finished(source, node),), end, node))

  def between(
    self, kind: type[ir.Layer], inputs: tuple[int | np.ndarray, ...], shape: Sequence[int], node: Node, **fields: Any
  ) -> int:
    """Starts a layer that makes a value of the operand's type which no equation makes; returns the value's number."""
    read = next(one for one in inputs if isinstance(one, int))
    end = self.traced.new(shape, self.traced.aval(read).dtype)
    self.start(Draft(kind, "", inputs, end, node, fields=fields))
    return end

  def per_example(self, constant: np.ndarray, node: Node) -> np.ndarray:
    """Returns a constant whose first axis is the batch's with one entry there.

    Raises:
      UserError: its entries differ.
    """
    if constant.shape[0] != 1 and not np.array_equal(*np.broadcast_arrays(constant, constant[:1]), equal_nan=False):
      raise self.traced.refuse(node, "a constant of it differs from one example of the batch to the next")
    return constant[:1]

  def constants(self, node: Node) -> tuple[int, np.ndarray] | None:
    """Returns the position of the operand that depends on the input, and the value of the other; None without one."""
    places = [place for place in (0, 1) if self.traced.is_data(node.inputs[place])]
    if len(places) != 1:
      return None
    return places[0], self.traced.constant(node.inputs[1 - places[0]])

  def read(self, draft: Draft) -> int:
    """Returns the number of the first value that a draft reads."""
    return next(one for one in draft.inputs if isinstance(one, int))

  def start(self, draft: Draft) -> None:
    if str(self.traced.aval(draft.end).dtype) not in ("float32", "int32", "bool"):
      raise self.traced.refuse(draft.node, f"it makes {self.traced.aval(draft.end).dtype}; lift a float32 function")
    self.drafts.append(draft)
    self.ends[draft.end] = draft

  def link(self, end: int, link: Link, node: Node) -> None:
    """Notes that a value is another one in another shape and order; one that only has another shape is a reshape."""
    self.links[end] = link
    if ordered(link.permutation):
      self.shaped[end] = link.source
    self.later[end] = lambda: self._linked(end, link, node)

  def _linked(self, number: int, link: Link, node: Node) -> None:
    """Starts the reshape and the transpose that make a linked value."""
    if link.permutation[0] != 0:
      why = "it puts another axis before the batch, and what reads it needs the batch first"
      raise self.traced.refuse(node, why)
    x, made = self.finished(link.source, node), self.shape(number)
    if ordered([axis for axis in link.permutation if link.shape[axis] != 1]):  # no numbers change places
      if self.shape(x) == made:
        self.same[number] = x
      else:
        self.start(Draft(ir.Reshape, "", (x,), number, node))
      return
    if self.shape(x) != link.shape:
      shaped = self.traced.view(number, link.shape, link.back(link.shape))
      self.start(Draft(ir.Reshape, "", (x,), shaped, node))
      x = shaped
    self.start(Draft(ir.Transpose, "", (x,), number, node, fields={"permutation": link.permutation}))

  def start_linked(self, draft: Draft, own: Sequence[int], shape: Sequence[int], permutation: Sequence[int]) -> None:
    """Starts a draft of a layer that makes its end in the shape `own`: that in `shape`, and then transposed, is it."""
    if tuple(own) != tuple(shape) or not ordered(permutation):
      self._behind(draft, draft.end, Link(draft.end, tuple(shape), tuple(permutation), draft.end), tuple(own))
    self.start(draft)

  def _behind(self, draft: Draft, end: int, link: Link, own: tuple[int, ...]) -> None:
    """Makes `end` a link to what a draft makes, in the shape `own`."""
    draft.end = self.traced.view(end, own, link.back(own))
    self.link(end, link._replace(source=draft.end, parent=draft.end), draft.node)

  def extend(self, draft: Draft, node: Node) -> None:
    """Moves the end of the draft behind this equation."""
    del self.ends[draft.end]
    end, before = node.outputs[0], [self.number(n) for n in self.traced.data(node)]
    for link in (self.links[n] for n in before if n in self.links):
      if link.source == draft.end:
        self._behind(draft, end, link, self.shape(draft.end))
        break
    else:
      draft.end = end
    self.ends[draft.end] = draft

  def open(self, number: int, *kinds: Any) -> Draft | None:
    """Returns the open draft that ends at this value: of these kinds, without its ReLU yet, and read once."""
    draft = self.ends.get(self.behind(number))
    if draft is None or draft.relu or not self.sole(number) or not issubclass(draft.kind, kinds):
      return None
    return draft

  def behind(self, number: int) -> int:
    """Returns the number of the value that another one holds in another shape or order of axes, or its own."""
    number = self.number(number)
    while number in self.links and number not in self.ends:
      number = self.number(self.links[number].source)
    return number
