"""Drafts of layers while a traced function is walked: those recognised so far, and those still open."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.traced import Traced
from leanax.deploy.lifting.views import Affine, Link, Pick, composed, moved, ordered
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
    layout: makes an array of that layout of one of the equation's operand, its kernel; None where entries are added.
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
  layout: Callable[[np.ndarray], np.ndarray] | None = None
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
    spread: values that are another one, of as many axes, whose axes of length 1 are repeated.
    links: values that are another one in another shape or order of axes.
    affine: values that are another one times a constant, and one more added.
    picks: values that hold entries of another one.
    later: makes the layers of a pick when the first of its readers needs it.
    indices: by the equation that reads rows of a table at indices, the number of the indices as the caller has them.
    skipped: indices of equations that are part of what a later one makes.
    shared: numbers of values that are others under another number, of which parts are read too.
  """

  traced: Traced
  foldable: bool
  drafts: list[Draft] = field(default_factory=list)
  ends: dict[int, Draft] = field(default_factory=dict)
  same: dict[int, int] = field(default_factory=dict)
  pads: dict[int, tuple[int, ir.Padding]] = field(default_factory=dict)
  spread: dict[int, int] = field(default_factory=dict)
  links: dict[int, Link] = field(default_factory=dict)
  affine: dict[int, Affine] = field(default_factory=dict)
  picks: dict[int, Pick] = field(default_factory=dict)
  later: dict[int, Callable[[], None]] = field(default_factory=dict)
  indices: dict[int, int] = field(default_factory=dict)
  skipped: set[int] = field(default_factory=set)
  shared: set[int] = field(default_factory=set)
  _views: dict[Any, int] = field(default_factory=dict)

  def number(self, number: int) -> int:
    """Returns the number of the value itself, where it was only handed on."""
    while number in self.same:
      number = self.same[number]
    return number

  def shape(self, number: int) -> tuple[int, ...]:
    """Returns a value's shape, with the batch that was traced."""
    return tuple(self.traced.aval(number).shape)

  def sole(self, number: int) -> bool:
    """Returns whether nothing else reads the value, under any of its numbers."""
    while number not in self.shared and (number in self.traced.views or self.traced.uses[number] == 1):
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
    draft = self.ends.get(number)
    if draft is not None and draft.share is not None:
      assert draft.undivided is not None
      draft.share = None
      draft.undivided(draft)
    if draft is not None:
      return number
    if number in self.affine:
      return self._scaled(number, node)
    if number in self.links:
      return self._linked(number, node)
    if number in self.spread:
      source = self.finished(self.spread[number], node)
      self.start(Draft(ir.Broadcast, "", (source,), number, node))
      return number
    if number in self.pads:
      source, ((top, bottom), (left, right)) = self.pads.pop(number)
      fields = {"padding": ((0, 0), (top, bottom), (left, right), (0, 0))}
      self.start(Draft(ir.Pad, "", (self.finished(source, node),), number, node, fields=fields))
    return number

  def _scaled(self, number: int, node: Node) -> int:
    """Starts the layers of a value that is another one times a constant and one more added."""
    x, *numbers = self.affine[number]
    dtype = self.traced.aval(number).dtype
    factor, offset = (None if one is None else one.astype(dtype) for one in numbers)
    if factor is not None and offset is not None:
      if (factor == -1).all():
        self.start(Draft(ir.Binary, "", (offset, x), number, node, fields={"operation": "sub"}))
        return number
      shape = np.broadcast_shapes(self.shape(x), factor.shape)
      times = self.traced.view(x, shape, lambda value, factor=factor: value * factor)
      self.start(Draft(ir.Binary, "", (x, factor), times, node, fields={"operation": "mul"}))
      x = times
    operation, constant = ("mul", factor) if offset is None else ("add", offset)
    assert constant is not None
    self.start(Draft(ir.Binary, "", (x, constant), number, node, fields={"operation": operation}))
    return number

  def _linked(self, number: int, node: Node) -> int:
    """Starts the reshape and the transpose that make a linked value."""
    link, made = self.links[number], self.shape(number)
    if link.permutation[0] != 0:
      raise self.traced.refuse(node, "the batch is not the first axis of what it reads")
    x = self.finished(link.source, node)
    long = [axis for axis in link.permutation if link.shape[axis] != 1]
    if ordered(long):  # no numbers change places
      if self.shape(x) == made:
        return x
      self.start(Draft(ir.Reshape, "", (x,), number, node))
      return number
    if self.shape(x) != link.shape:
      shaped = self.traced.view(number, link.shape, link.back(link.shape))
      self.start(Draft(ir.Reshape, "", (x,), shaped, node))
      x = shaped
    self.start(Draft(ir.Transpose, "", (x,), number, node, fields={"permutation": link.permutation}))
    return number

  def turned(self, number: int, permutation: Sequence[int], node: Node) -> int:
    """Returns the number of a value with its axes in another order, which is no layer until one reads it."""
    if ordered(permutation):
      return number
    source, order = self.origin(number, node)
    order = composed(order, permutation)
    if ordered(order):
      return source
    new = self._view(("turn", source, order), source, moved(self.shape(source), order), lambda x: x.transpose(order))
    self.links.setdefault(new, Link(source, self.shape(source), order, source))
    return new

  def shaped(self, number: int, shape: Sequence[int], node: Node) -> int:
    """Returns the number of a value in another shape, which a layer may read."""
    return self.finished(self.reshaped(number, shape), node)

  def reshaped(self, number: int, shape: Sequence[int]) -> int:
    """Returns the number of a value in another shape, which is no layer before one reads it."""
    number, shape = self.number(number), tuple(map(int, shape))
    source = self.root(number)
    if self.shape(source) == shape:
      return source
    new = self._view(("shape", source, shape), source, shape, lambda x: x.reshape(shape))
    self.links.setdefault(new, Link(source, shape, tuple(range(len(shape))), number))
    return new

  def reshape(self, number: int, end: int) -> None:
    """Notes that `end` is a value in its own shape; what is reshaped twice is reshaped once."""
    number, shape = self.number(number), self.shape(end)
    self.links[end] = Link(self.root(number), shape, tuple(range(len(shape))), number)

  def root(self, number: int) -> int:
    """Returns the number of the value that another one is in another shape, or its own."""
    number = self.number(number)
    link = self.links.get(number)
    while link is not None and ordered(link.permutation):
      number = self.number(link.source)
      link = self.links.get(number)
    return number

  def itself(self, number: int) -> int:
    """Returns the number of the value that another one is after reshapes that undo each other."""
    root = self.root(number)
    return root if self.shape(root) == self.shape(number) else self.number(number)

  def origin(self, number: int, node: Node) -> tuple[int, tuple[int, ...]]:
    """Returns the value that another one is with its axes in another order, and that order."""
    number = self.number(number)
    link = self.links.get(number)
    if link is not None and self.shape(link.source) == link.shape:
      return self.finished(link.source, node), link.permutation
    if link is None or link.permutation[0] == 0:
      source = self.finished(number, node)
      return source, tuple(range(len(self.shape(source))))
    return self.shaped(link.source, link.shape, node), link.permutation

  def _view(self, key: Any, number: int, shape: Sequence[int], see: Any) -> int:
    if key not in self._views:
      self._views[key] = self.traced.view(number, shape, see)
    return self._views[key]

  def per_example(self, constant: np.ndarray, node: Node) -> np.ndarray:
    """Returns a constant whose first axis is the batch's with one entry there.

    Raises:
      UserError: its entries differ.
    """
    if not np.array_equal(
      constant, np.broadcast_to(constant[:1], constant.shape), equal_nan=constant.dtype.kind == "f"
    ):
      raise self.traced.refuse(node, "a constant has other numbers for each example of the batch")
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

  def start_linked(self, draft: Draft, own: Sequence[int], shape: Sequence[int], permutation: Sequence[int]) -> None:
    """Starts a draft that makes its end in the shape `own`; the end is that in `shape` and then transposed."""
    if tuple(own) != tuple(shape) or not ordered(permutation):
      self._link(draft, draft.end, Link(draft.end, tuple(shape), tuple(permutation), draft.end), tuple(own))
    self.start(draft)

  def start_elements(self, draft: Draft, node: Node) -> None:
    """Starts a draft of numbers at the same place, whose inputs need not be finished: it follows their links."""
    numbers = [one for one in draft.inputs if isinstance(one, int)]
    turns = {self.turn(number) for number in numbers}
    link = self.links.get(self.number(numbers[0]))
    if link is None or None in turns or len(turns) > 1 or len(numbers) < len(draft.inputs):
      draft.inputs = tuple(self.finished(one, node) if isinstance(one, int) else one for one in draft.inputs)
      self.start(draft)
    else:
      draft.inputs = tuple(self.finished(self.links[self.number(one)].source, node) for one in numbers)
      self.start_linked(draft, link.shape, link.shape, link.permutation)

  def turn(self, number: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the shape and the order of axes of a value that only has those of another one in another order."""
    link = self.links.get(self.number(number))
    if link is None or ordered(link.permutation) or self.shape(link.source) != link.shape:
      return None
    return link.shape, link.permutation

  def _link(self, draft: Draft, end: int, link: Link, own: tuple[int, ...]) -> None:
    """Makes `end` a link to what a draft makes."""
    new = self.traced.view(end, own, link.back(own))
    draft.end = new
    self.links[end] = link._replace(source=new, parent=new)

  def extend(self, draft: Draft, node: Node) -> None:
    """Moves the end of the draft behind this equation."""
    del self.ends[draft.end]
    end, before = node.outputs[0], [self.number(n) for n in self.traced.data(node)]
    for link in (self.links[n] for n in before if n in self.links):
      if link.source == draft.end:
        self._link(draft, end, link, self.shape(draft.end))
        break
    else:
      draft.end = end
    self.ends[draft.end] = draft

  def open(self, number: int, *kinds: Any) -> Draft | None:
    """Returns the open draft that ends at this value: of these kinds, without its ReLU yet, and read once."""
    if not self.sole(number):
      return None
    draft = self.ends.get(self.behind(number))
    return None if draft is None or draft.relu or not issubclass(draft.kind, kinds) else draft

  def behind(self, number: int) -> int:
    """Returns the number of the value that another one is a link to, or its own."""
    number = self.number(number)
    if number in self.links and number not in self.ends:
      return self.number(self.links[number].source)
    return number
