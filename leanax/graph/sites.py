"""The operations among the equations of a program, and their names.

Names come from the variables' leaves, which every framework has. They are the same in a training and in an evaluation
trace, and inside and outside of shard_map, because only operations that all of these have are counted.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax.extend import core as jex

from leanax.graph import bias, ops, versions
from leanax.graph.flow import FAR, Flow, Scope, Value
from leanax.graph.ops import VARIES, Op, Operand, is_float, kernel_axes
from leanax.graph.program import Node, Program, Ref
from leanax.graph.readers import Readers


class Site(NamedTuple):
  """An operation, the node where it ends (None for "output"), and the numbers of its inputs in that node's body."""

  op: Op
  node: Any
  refs: tuple[Ref, ...]


class Analysis(Flow):
  """The operations of a program.

  Attributes:
    sites: every operation whose kind is not "other", in order; the last one is "output".
    at: the same by the index of the node where they end.
    tensors: names of activations by the number of the value.
    skipped: what is no operation although it multiplies by a kernel, by the leaf's name: why.
    scan_names: for each scan's node the operations' and tensors' names inside it.
  """

  def __init__(self, program: Program):
    super().__init__(program)
    self.sites: list[Site] = []
    self.at: dict[int, Site] = {}
    self.tensors: dict[int, str] = {}
    self.scan_names: dict[int, set[str]] = defaultdict(set)
    self.skipped: dict[str, str] = {}
    self._alone: list[str] = []
    self._readers = Readers(program)
    self._names: Counter[str] = Counter()
    self._tensor_counts: Counter[str] = Counter()
    self._site_scopes: list[Scope] = []
    self.run()
    self._output(program.body.outputs)
    names = {site.op.name for site in self.sites}
    for leaf in self._alone:
      self.skipped[f"{leaf}:parameters" if leaf in names else leaf] = "reads parameters alone"

  def recognise(self, node: Node, operands: list[Value]) -> None:
    found = _RECOGNISE.get(node.primitive)
    if found is not None:
      found(self, node, operands)

  def every_site(self) -> dict[int, Site]:
    """Returns every operation by the index of the node where it ends, those of kind "other" too, in order."""
    counts: Counter[str] = Counter()
    found: dict[int, Site] = {}
    for place, node in enumerate(self.flat):
      if node.index in self.at:
        found[node.index] = self.at[node.index]
        continue
      scope = self.scope = self.scopes[node.index]
      values = [self.value(ref) for ref in node.inputs]
      producer = self.label(frozenset().union(*(v.roots for v in values)))
      name = f"{producer}|{node.primitive}" if producer else node.primitive
      counts[name] += 1
      name = f"{name}#{counts[name] - 1}" if counts[name] > 1 else name
      inputs = tuple(self.operand(r, self.tensors.get(v.base)) for r, v in zip(node.inputs, values, strict=True))
      outputs = tuple(self.operand(number, None) for number in node.outputs)
      more = {
        "repeats": scope.repeats,
        "frozen": scope.frozen,
        "branches": scope.branches,
        "call": _binder(node),
        "nodes": (place,),
      }
      found[node.index] = Site(Op(name, "other", inputs, outputs, node.params, name, **more), node, node.inputs)
      for scan in scope.scans:
        self.scan_names[scan].add(name)
    self.scope = Scope()
    return found

  # Naming.

  def label(self, roots: frozenset[int]) -> str | None:
    """Returns the name of the latest operation among the roots; outside of a scan, one inside of it is marked."""
    if not roots:
      return None
    last = max(roots)
    if last >= 0:
      scans = self._site_scopes[last].scans
      name = self.sites[last].op.name
      return name if scans == self.scope.scans[: len(scans)] else f"{name}:scanned"
    if last > FAR:
      return "input" if last == -1 else f"input_{-last - 1}"
    return self.labels.get(last)

  def _unique(self, name: str) -> str:
    count = self._names[name]
    self._names[name] += 1
    return f"{name}#{count}" if count else name

  def _in_scope(self, name: str) -> None:
    for scan in self.scope.scans:
      self.scan_names[scan].add(name)

  def _leaf(self, known: Value) -> int | None:
    if known.data or not known.leaves:
      return None
    if known.exact is not None:
      return known.exact
    sizes = {leaf: math.prod(self.program.avals[self.program.body.inputs[leaf]].shape) for leaf in known.leaves}
    return min(sizes, key=lambda leaf: (-sizes[leaf], leaf))

  def _tensor(self, ref: Ref, reader: str) -> str | None:
    known = self.value(ref)
    if not known.data:
      return None
    if known.base not in self.tensors:
      label = self.label(known.roots)
      if label is None:
        name = f"{reader}:in"
      else:
        name = label if label.startswith("input") and max(known.roots) < 0 else f"{label}:out"
      count = self._tensor_counts[name]
      self._tensor_counts[name] += 1
      self.tensors[known.base] = f"{name}#{count}" if count else name
    name = self.tensors[known.base]
    self._in_scope(name)
    return name

  def operand(self, ref: Ref, tensor: str | None) -> Operand:
    known = self.value(ref)
    leaf = self._leaf(known)
    return Operand(
      None if leaf is None else self.program.leaves[leaf],
      tensor,
      tuple(getattr(known.aval, "shape", ())),
      getattr(known.aval, "dtype", None),
      known.exact is not None,
      known.view,
    )

  # Operations.

  def _add_site(
    self, kind: str, node: Node, refs: Sequence[Ref], name: str, tensors: dict[int, str] | None = None, **more: Any
  ) -> Op:
    """Records an operation; `tensors` gives names of inputs that are not to be named by the usual rule."""
    name = self._unique(name)
    given = tensors or {}
    tensor_names = [given.get(i) or self._tensor(ref, f"{name}:{i}" if i else name) for i, ref in enumerate(refs)]
    inputs = tuple(self.operand(ref, tensor) for ref, tensor in zip(refs, tensor_names, strict=True))
    outputs = tuple(self.operand(number, None) for number in node.outputs)
    more.setdefault("site", name)
    more.setdefault("params", node.params)
    more.setdefault("nodes", (len(self.flat) - 1,))
    call = more.pop("call", None) or _binder(node)
    scope = self.scope
    more |= {"repeats": scope.repeats, "frozen": scope.frozen, "branches": scope.branches, "call": call}
    op = Op(name, kind, inputs, outputs, **more)
    self._in_scope(name)
    site = Site(op, node, tuple(refs))
    self.at[node.index] = site
    self.sites.append(site)
    self._site_scopes.append(self.scope)
    return op

  def _new_root(self, node: Node) -> None:
    for number in node.outputs:
      self.values[number].roots = frozenset((len(self.sites) - 1,))

  def _contraction(self, node: Node, operands: list[Value]) -> None:
    """Dots and convolutions that the inputs reach; those of parameters alone are arithmetic on parameters."""
    if not any(v.data for v in operands[:2]):
      leaf = self._leaf(operands[1])
      leaf = self._leaf(operands[0]) if leaf is None else leaf
      if leaf is not None:
        self._alone.append(self.program.leaves[leaf])
      return
    kernels = [i for i, v in enumerate(operands[:2]) if not v.data]
    kernel = kernels[0] if kernels else None
    out, (lhs, rhs) = self.program.avals[node.outputs[0]], (operands[0].aval, operands[1].aval)
    if node.primitive == "ragged_dot_general":
      kind, macs, axis = "ragged_dot", ops.ragged_macs(node.params, lhs, rhs), None
    elif node.primitive == "dot_general":
      kind, macs = "dot", ops.dot_macs(node.params, lhs, rhs)
    else:
      kind, macs = "conv", ops.conv_macs(node.params, lhs, rhs, out)
    axis, axes = None, ()
    if kernel is not None:
      axis, axes = kernel_axes(node.primitive, node.params, kernel, len(operands[kernel].aval.shape))
    leaf = None if kernel is None else self._leaf(operands[kernel])
    if leaf is None:
      producer = self.label(frozenset().union(*(v.roots for v in operands)))
      name = f"{producer}:{kind}" if producer else kind
    else:
      name = self.program.leaves[leaf]
    more = {"channel_axis": axis, "channel_axes": axes, "kernel_index": kernel, "macs": macs * self.scope.repeats}
    self._add_site(kind, node, node.inputs, name, **more)
    self._new_root(node)

  def _sum(self, node: Node, operands: list[Value]) -> None:
    """A bias, or two activations added."""
    a, b = operands
    if a.data and b.data:
      # x + f(x) with an elementwise f (gelu) has one root; a residual joins two, or a value and itself or its ReLU.
      joins = a.roots != b.roots or self._rectified(a, b) or self._rectified(b, a)
      if a.aval.shape == b.aval.shape and is_float(a.aval) and joins and a.aval.shape:
        producer = self.label(a.roots | b.roots)
        self._add_site("add", node, node.inputs, f"{producer}:add" if producer else "add")
        self._new_root(node)
      return
    place = 0 if a.data else 1
    data, other = operands[place], operands[1 - place]
    source = self.values[data.base].producer if data.data else None
    site = self.at.get(source.index) if source is not None else None
    if other.exact is None or site is None:
      return
    channels = bias.moves(self, site, node, place)
    if channels is None:
      return
    name, tensors = self.program.leaves[other.exact], {place: f"{site.op.name}:acc"}
    more = {"site": site.op.name, "moves": channels, "bias": bias.reader(self, node.inputs[1 - place], channels)}
    self._add_site("bias", node, node.inputs, name, tensors, **more)

  def _rectified(self, a: Value, b: Value) -> bool:
    """Returns whether `a` is `b` itself, or max(b, constant)."""
    source = None if a.base == b.base else self.values[a.base].producer
    if source is None:
      return a.base == b.base
    read = [self.value(ref) for ref in source.inputs]
    return source.primitive == "max" and any(v.base == b.base for v in read) and not all(v.data for v in read)

  def _max_pool(self, node: Node, operands: list[Value]) -> None:
    if operands[0].data and len(node.outputs) == 1:
      producer = self.label(operands[0].roots)
      self._add_site("max_pool", node, node.inputs, f"{producer}:max_pool" if producer else "max_pool")
      self.values[node.outputs[0]].base = operands[0].base

  def _mean(self, node: Node, operands: list[Value]) -> None:
    """A sum over positions or windows divided by their number."""
    summed, divisor = operands
    source, spread = self._summed(node.inputs[0])
    if source is None or source.home is not node.home or not summed.data or divisor.data or divisor.leaves:
      return
    over, (by, casts) = self.value(source.inputs[0]), self._literal(node.inputs[1])
    if source.primitive == "reduce_window_sum":
      kind = "avg_pool"
    elif source.primitive == "reduce_sum" and ops.is_spatial_mean(source.params, over.aval.shape, by):
      if self._readers.only_sum(node.outputs[0], 0):  # an example's share of a batch norm's statistics, under vmap
        return
      kind = "mean"
    else:
      return
    producer = self.label(over.roots)
    name = f"{producer}:{kind}" if producer else kind
    refs = source.inputs[:1] if by is not None else (source.inputs[0], node.inputs[1])

    def call(x: Any, count: Any = None) -> tuple[Any, ...]:
      if by is not None:
        count = by.val
        for cast in casts:
          (count,) = versions.rebind(cast.eqn, (count,))
      total = versions.rebind(source.eqn, (x,))
      for one in spread:
        total = versions.rebind(one.eqn, total)
      return versions.rebind(node.eqn, (*total, count))

    places = tuple(map(self._place, (source, *spread, node)))
    self._add_site(kind, node, refs, name, params=source.params, call=call, nodes=places)
    self._new_root(node)

  def _summed(self, ref: Ref) -> tuple[Node | None, list[Node]]:
    """Returns the nodes that make a sum and give it back its axes, of length 1 (keepdims)."""
    source = self.value(ref).producer
    if source is None or source.primitive not in ("broadcast_in_dim", "reshape", "expand_dims"):
      return source, []
    before = self.value(source.inputs[0]).producer
    if before is None or before.primitive != "reduce_sum" or before.home is not source.home:
      return source, []
    over, axes = self.value(before.inputs[0]).aval.shape, before.params["axes"]
    kept = tuple(1 if axis in axes else length for axis, length in enumerate(over))
    return (before, [source]) if self.program.avals[source.outputs[0]].shape == kept else (source, [])

  def _literal(self, ref: Ref) -> tuple[jex.Literal | None, list[Node]]:
    """Returns the literal that a value is, and the nodes between: casts, and inside shard_map `pvary`."""
    casts: list[Node] = []
    while not isinstance(ref := self.resolve(ref), jex.Literal):
      node = self.values[ref].producer
      if node is None or node.primitive not in (*VARIES, "convert_element_type"):
        return None, []
      casts.insert(0, node)
      ref = node.inputs[0]
    return ref, casts

  def _place(self, node: Node) -> int:
    """Returns the place of a node in `flat`, searched from the end because it was just there."""
    return next(place for place in range(len(self.flat) - 1, -1, -1) if self.flat[place] is node)

  def _output(self, refs: Sequence[Ref]) -> None:
    leaves = {name: index for index, name in enumerate(self.program.leaves)}
    inputs = []
    for path, ref in zip(self.program.out_names, refs, strict=True):
      updated = next((leaf for leaf in _endings(path) if leaf in leaves), None)
      operand = self.operand(ref, None)
      if updated is None:
        operand = operand._replace(tensor=self._tensor(ref, "output"))
      else:
        operand = operand._replace(leaf=updated)
      inputs.append(operand)
    op = Op("output", "output", tuple(inputs), tuple(inputs), {}, "output")
    self.sites.append(Site(op, None, tuple(refs)))


def _endings(path: str) -> list[str]:
  """`1/params/a/b` as itself, `params/a/b`, `a/b`, `b`: the names it may have among the variables."""
  parts = path.split("/")
  return ["/".join(parts[i:]) for i in range(len(parts))]


def _binder(node: Node) -> Any:
  return lambda *inputs, **changed: versions.rebind(node.eqn, inputs, changed)


_RECOGNISE = {
  "dot_general": Analysis._contraction,
  "ragged_dot_general": Analysis._contraction,
  "conv_general_dilated": Analysis._contraction,
  "add": Analysis._sum,
  "add_any": Analysis._sum,
  "reduce_window_max": Analysis._max_pool,
  "div": Analysis._mean,
}
