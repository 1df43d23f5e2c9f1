"""Edits as data: a function that is traced again at each call and evaluated with parts replaced.

An edit is a dict that JSON can hold. The original function is traced at the caller's batch size and at the original
shapes of the variables, so a model's hard-coded widths do not matter; what the edits leave without a reader is dropped.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from leanax.core.errors import UserError, unknown
from leanax.graph import cut, fold
from leanax.graph.affine import Users
from leanax.graph.emit import Emitter, Replacement
from leanax.graph.program import Body, Missing, Node, inside, leaf_name, read, touched
from leanax.graph.shapes import Shapes, leaves_by_name, structs
from leanax.graph.sites import Analysis

Edit = dict[str, Any]
EDITS = ("fold_batch_norm", "keep_channels")


def edit(fn: Callable[..., Any], edits: Sequence[Edit], original: Shapes | Any) -> Callable[..., Any]:
  """The edited function: `fn2(variables, *inputs) -> out` of the edited variables.

  Args:
    fn: the original function of the original variables.
    edits: what to change, as `fold_batch_norms` returns it.
    original: the original variables, or their shapes in the same containers, or `shapes(variables)`, which is data.

  Raises:
    UserError: an unknown edit; or, when it is called, a function that is not the one the edits were made for.
  """
  if not isinstance(edits, Sequence) or not all(isinstance(one, Mapping) for one in edits):
    raise UserError(f"the edits are {edits!r}; expected a list of dicts, as fold_batch_norms returns it")
  for one in edits:
    if one.get("edit") not in EDITS:
      raise unknown("edit", str(one.get("edit")), EDITS)
  keep = next((one["keep"] for one in edits if one["edit"] == "keep_channels"), None)
  if keep is not None and len(edits) > 1:
    raise UserError("an edit that keeps channels stands alone; make the other edits first, and cut their function")

  whole = structs(original)

  def edited(variables: Any, *inputs: Any) -> Any:
    given = leaves_by_name(variables)

    def cast(path: Any, leaf: Any) -> jax.ShapeDtypeStruct:
      now = given.get(leaf_name(path))  # the caller may have cast the variables
      dtype = getattr(now, "dtype", leaf.dtype)
      return leaf if dtype == leaf.dtype else jax.ShapeDtypeStruct(leaf.shape, dtype)

    traced = jax.tree_util.tree_map_with_path(cast, whole)
    analysis = Analysis(read(fn, traced, *inputs))
    program = analysis.program
    values = [given.get(name, Missing(name)) for name in program.leaves] + jax.tree.leaves(inputs)
    if keep is not None:
      return jax.tree.unflatten(program.out_tree, cut.run(analysis, keep, values))
    users, replaced = Users(analysis), {}
    for one in edits:
      replaced.update(fold.replacement(users, one, given))
    live, _ = needed(analysis, replaced)
    emitter = Emitter(analysis, edits=replaced, live=live, touched=touched(program, replaced))
    out, _ = emitter.run(program.body, values, {})
    lost = next((v for v in out if isinstance(v, Missing)), None)
    if lost is not None:
      raise UserError(f"{lost.leaf!r} was removed by an edit, but the function returns it")
    return jax.tree.unflatten(program.out_tree, out)

  return edited


def needed(
  analysis: Analysis,
  replaced: Mapping[int, Replacement],
  opened: Collection[int] = (),
  outputs: Sequence[Any] | None = None,
) -> tuple[set[int], set[int]]:
  """The nodes and the values that the outputs depend on after these replacements.

  Calls are looked into where a replacement is in them, or where they are among those `opened`; other calls are whole.
  By default the outputs are those of the function, and what has effects is needed too.
  """
  opened = touched(analysis.program, {*replaced, *opened})
  back = _Backwards(analysis, replaced, opened, set(), set(), outputs is None)
  for ref in analysis.program.body.outputs if outputs is None else outputs:
    back.need(ref)
  back.body(analysis.program.body)
  return back.nodes, back.values


class _Backwards(NamedTuple):
  analysis: Analysis
  replaced: Mapping[int, Replacement]
  opened: Collection[int]
  nodes: set[int]
  values: set[int]
  effects: bool

  def need(self, ref: Any) -> None:
    for one in (ref, self.analysis.resolve(ref)):
      if not isinstance(one, jex.Literal):
        self.values.add(one)

  def body(self, body: Body) -> None:
    for node in reversed(body.nodes):
      wanted = any(number in self.values for number in node.outputs) or (self.effects and bool(node.eqn.effects))
      if node.form in ("jit", "remat") and node.index in self.opened and node.index not in self.replaced:
        self.through(node, wanted)
      elif wanted:
        self.nodes.add(node.index)
        edit = self.replaced.get(node.index)
        if edit is None:
          self.nodes.update(inside(node))
        for ref in node.inputs if edit is None else edit.refs:
          self.need(ref)

  def through(self, node: Node, wanted: bool) -> None:
    inner = node.bodies[0]
    for number, ref in zip(node.outputs, inner.outputs, strict=True):
      if number in self.values:
        self.need(ref)
    self.body(inner)
    for number, ref in zip(inner.inputs, node.inputs, strict=True):
      if number in self.values:
        self.need(ref)
    if wanted or any(one.index in self.nodes for one in inner.nodes):
      self.nodes.add(node.index)
