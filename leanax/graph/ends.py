"""Where the layer of an operation of interest ends: what it takes up behind itself, and who reads its result.

A dot or a convolution takes up its bias and an unfolded batch norm: equations that scale and shift its channels by
numbers made of the variables, in training mode by the batch's statistics. Every layer takes up a ReLU, or another clip
at constants around 0. Nothing else may read what lies between. In training mode there may be more equations, which are
looked through: those that multiply by, add or select at random, such as dropout, and statistics of the batch.
"""

from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core as jex

from leanax.graph.affine import AFFINE, out_axes
from leanax.graph.batch_statistics import axes_after
from leanax.graph.ops import ELEMENTWISE
from leanax.graph.program import Body, Node
from leanax.graph.sites import Analysis, Site

KINDS = ("dot", "conv", "add", "mean", "avg_pool")  # what a runtime computes in integers, and hands on as codes
_RANDOM = ("random_", "threefry", "rng_")  # how the names of equations that make random bits begin
_SCALES = (("mul", 0), ("mul", 1), ("div", 0))  # and which operand is scaled
_CLIPS = {"max": (0, 1), "min": (0, 1), "clamp": (1,)}  # and which operand is clipped


class Uses(NamedTuple):
  """The readers of a value, and of what is only moved, max-pooled or looked through.

  Attributes:
    other: something else than operations of interest reads it.
    padded: it is read with zeros around it.
    scans: the scans in which its readers stand.
  """

  other: bool
  padded: bool
  scans: frozenset[tuple[int, ...]]


class Ends:
  """The readers of a program's values, of those nodes that its outputs depend on."""

  def __init__(self, analysis: Analysis, alive: set[int], readers: Collection[str] | None = None):
    self._analysis = analysis
    self._flat = [node for node in analysis.flat if node.index in alive]
    sites = [site for site in analysis.sites if readers is None or site.op.name in readers or site.op.kind not in KINDS]
    self._inside = {analysis.flat[place].index for site in sites for place in site.op.nodes}
    self._readers: dict[int, list[tuple[Node | None, int]]] = defaultdict(list)
    self._read()
    self._random = self._made_of(lambda node: node.primitive.startswith(_RANDOM))
    self._statistics = self._made_of(lambda node: _over_batch(analysis, node))
    self._for_statistics = self._only_statistics()

  def ends(self, site: Site) -> list[int]:
    """Returns the value that a site's layer makes; several where nothing but ReLUs reads it, each one's result."""
    end = self._end(site)
    readers = self._besides_statistics(end)
    relus = [node.outputs[0] for node, place in readers if node is not None and self._is_clip(node, place, False)]
    return relus if relus and len(relus) == len(readers) else [end]

  def _end(self, site: Site) -> int:
    number = found = site.node.outputs[0]
    kernel = site.op.kind in ("dot", "conv") and site.op.kernel_index is not None
    axes = frozenset(out_axes(site)) if kernel else None  # of channels; None where only ReLUs are taken up
    pending = False  # behind equations that are taken up only if one with the variables' numbers follows
    while (only := self._sole(number)) is not None:
      node, place = only
      number = node.outputs[0]
      if self.hands_on(node):
        axes = None if axes is None else axes_after(self._analysis, node, place, axes)
      elif self.passes(node, place):
        axes = None if node.primitive == "pad" else axes
      elif self._is_clip(node, place) and not pending:
        found, axes = number, None
      elif self._adds_bias(node, site) or (axes is not None and self._of_channels(node, place, axes)):
        pending = not self._reads_model(node, place)
        found = found if pending else number
      else:
        break
    return found

  def uses(self, value: int) -> Uses:
    """Returns what reads a value."""
    todo, other, padded, scans = [value], False, False, set()
    while todo:
      for node, place in self._readers[todo.pop()]:
        if node is None or node.index in self._for_statistics:
          continue
        scans.add(self._analysis.scopes[node.index].scans)
        if self.hands_on(node) or self.passes(node, place):
          todo.append(node.outputs[0])
          padded |= node.primitive == "pad"
        elif node.index not in self._inside and not node.bodies:
          other = True
    return Uses(other, padded, frozenset(scans))

  def undropped(self, value: int) -> list[int]:
    """Returns a value, and what is made of it by moves and by what training alone has, such as dropout."""
    found = [value]
    for one in found:
      for node, place in self._readers[one]:
        if node is not None and node.primitive != "pad" and (self.hands_on(node) or self.passes(node, place)):
          found.append(node.outputs[0])
    return found

  def readers(self, value: int) -> list[tuple[Node, int]]:
    """Returns the nodes that read a value, and as which operand, besides statistics of the batch."""
    return [(node, place) for node, place in self._besides_statistics(value) if node is not None]

  def _read(self) -> None:
    for node in self._flat:
      operands = node.inputs[:1] if node.form == "cond" else node.inputs  # its branches read the others themselves
      for place, ref in enumerate(operands):
        self._reads(node, place, ref)
      for body in node.bodies:
        self._results(body)
    self._results(self._analysis.program.body)

  def _results(self, body: Body) -> None:
    for place, ref in enumerate(body.outputs):
      self._reads(None, place, ref)

  def _reads(self, node: Node | None, place: int, ref: Any) -> None:
    same = self._analysis.resolve(ref)
    if not isinstance(same, jex.Literal):
      self._readers[same].append((node, place))

  def _made_of(self, starts: Callable[[Node], bool]) -> set[int]:
    """Returns the values that depend on the inputs at most through equations that such ones follow."""
    analysis, found = self._analysis, set()
    for node in self._flat:
      operands = [analysis.resolve(ref) for ref in node.inputs]
      numbers = [ref for ref in operands if not isinstance(ref, jex.Literal)]
      inside = any(n in found for n in numbers) and all(n in found for n in numbers if analysis.values[n].data)
      if starts(node) or inside:
        found.update(node.outputs)
    return found

  def _only_statistics(self) -> set[int]:
    """Returns the nodes whose results are only summed over the batch."""
    found: set[int] = set()
    for node in reversed(self._flat):
      readers = [reader for number in node.outputs for reader, _ in self._readers[number]]
      through = node.primitive in ELEMENTWISE or self.hands_on(node)
      inside = bool(readers) and all(reader is not None and reader.index in found for reader in readers)
      if _over_batch(self._analysis, node) or (through and inside):
        found.add(node.index)
    return found

  def _sole(self, number: int) -> tuple[Node, int] | None:
    """Returns the one reader of a value, besides statistics of the batch; None with others."""
    (node, place), *more = self._besides_statistics(number) or [(None, 0)]
    return None if node is None or more or node.bodies else (node, place)

  def _besides_statistics(self, number: int) -> list[tuple[Node | None, int]]:
    return [(node, i) for node, i in self._readers[number] if node is None or node.index not in self._for_statistics]

  def hands_on(self, node: Node) -> bool:
    """Returns whether a value keeps its name: it is moved, or max-pooled."""
    analysis = self._analysis
    if not node.inputs or node.bodies:
      return False
    base = analysis.value(node.inputs[0]).base
    return base >= 0 and any(analysis.values[number].base == base for number in node.outputs)

  def passes(self, node: Node, place: int) -> bool:
    """Returns whether a file holds nothing of this reader, or zeros around the value."""
    analysis = self._analysis
    if node.primitive == "name":
      return True
    if node.primitive == "pad":
      known = analysis.known(node.inputs[1])
      return place == 0 and known is not None and not np.any(known)
    if self._at_random(node, place):
      return True
    if (node.primitive, place) not in _SCALES or self._reads_model(node, place):
      return False
    readers = self._readers[node.outputs[0]]
    before = bool(readers) and all(reader is not None and self._at_random(reader, i) for reader, i in readers)
    return before or self._from_random(node.inputs[place])

  def _at_random(self, node: Node, place: int) -> bool:
    others = [self._analysis.resolve(ref) for i, ref in enumerate(node.inputs) if i != place]
    drawn = [not isinstance(ref, jex.Literal) and ref in self._random for ref in others]
    plain = all(random or not self._depends(ref) for random, ref in zip(drawn, others, strict=True))
    return node.primitive in ELEMENTWISE and any(drawn) and plain

  def _from_random(self, ref: Any) -> bool:
    maker = self._analysis.value(ref).producer
    return maker is not None and any(self._at_random(maker, place) for place in range(len(maker.inputs)))

  def _depends(self, ref: Any) -> bool:
    known = self._analysis.value(ref)
    return known.data or bool(known.leaves)

  def _adds_bias(self, node: Node, site: Site) -> bool:
    found = self._analysis.at.get(node.index)
    return found is not None and found.op.kind == "bias" and found.op.site == site.op.name

  def _reads_model(self, node: Node, place: int) -> bool:
    """Returns whether another operand depends on the variables, or is a statistic of the batch."""
    return any(self._depends(ref) for i, ref in enumerate(node.inputs) if i != place)

  def _of_channels(self, node: Node, place: int, axes: frozenset[int]) -> bool:
    """Returns whether a node scales or shifts channels by numbers of the variables or by statistics of the batch."""
    analysis = self._analysis
    if node.primitive not in AFFINE or axes_after(analysis, node, place, axes) is None:
      return False
    for ref in (ref for i, ref in enumerate(node.inputs) if i != place):
      data = analysis.value(ref).data
      if data and analysis.resolve(ref) not in self._statistics:
        return False
      along = varying(analysis, ref)
      channels = {axis for axis in axes if analysis.program.avals[node.outputs[0]].shape[axis] > 1}
      if not along <= channels or (data and along != channels):
        return False
    return True

  def _is_clip(self, node: Node, place: int, every: bool = True) -> bool:
    """Returns whether a value is clipped at constants around 0, as codes are, too: a ReLU, or `every` such as ReLU6."""
    if node.primitive not in (_CLIPS if every else ("max",)):
      return False
    known = [self._analysis.known(ref) for i, ref in enumerate(node.inputs) if i != place]
    bounds = [one for one in known if one is not None]
    if place not in _CLIPS[node.primitive] or len(bounds) < len(known):
      return False
    low = node.primitive == "min" or np.all(bounds[0] <= 0 if every else bounds[0] == 0)
    high = node.primitive == "max" or np.all(bounds[-1] >= 0)
    return bool(low and high)


def varying(analysis: Analysis, ref: Any) -> set[int]:
  """Returns the axes along which a coefficient may vary."""
  ref = analysis.resolve(ref)
  if isinstance(ref, jex.Literal):
    return set()
  known = analysis.values[ref]
  node = known.producer
  if node is not None and node.primitive == "broadcast_in_dim":
    return {node.params["broadcast_dimensions"][axis] for axis in varying(analysis, node.inputs[0])}
  if node is not None and node.primitive in ELEMENTWISE:
    return set().union(*(varying(analysis, one) for one in node.inputs))
  return {axis for axis, size in enumerate(known.aval.shape) if size > 1}


def _over_batch(analysis: Analysis, node: Node) -> bool:
  """Returns whether a node reduces over the batch and all else but the channels."""
  axes = node.params.get("axes", ()) if node.primitive.startswith("reduce_") else ()
  return 0 in axes and len(analysis.program.avals[node.outputs[0]].shape) <= 1
