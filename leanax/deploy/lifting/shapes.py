"""Equations that move numbers without changing them: reshapes, transposes, spreads, paddings, joins and copies."""

from collections.abc import Sequence

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting import picks
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.deploy.lifting.views import Link, composed, ordered
from leanax.graph.program import Node


def reshape(lifter: Lifter, node: Node) -> None:
  """Notes a value in another shape; equations that only add or drop axes of length 1 are reshapes too."""
  traced, end = lifter.traced, node.outputs[0]
  x = lifter.number(lifter.operand(node))
  before, after = lifter.shape(x), lifter.shape(end)
  if _keeps_axes(lifter, node, x):
    return
  if before == after:
    lifter.same[end] = x
    return
  link = lifter.links.get(x)
  if link is not None and link.permutation[0] != 0:
    axes = picks.kept(after, before)
    if axes is None:
      lifter.finished(x, node)  # refuses it
    else:
      lifter.links[end] = _without(link, axes, x)
      return
  if x in lifter.spread and picks.repeats(lifter, node, lifter.spread[x]):
    return
  if before[0] != after[0]:
    raise traced.refuse(node, f"it mixes the examples of a batch: {before} to {after}")
  lifter.reshape(x, end)


def unstack(lifter: Lifter, node: Node) -> None:
  """Takes the entries along an axis, each without that axis."""
  x, axis = lifter.operand(node), int(node.params["axis"])
  for place, end in enumerate(node.outputs):
    one = picks.part(lifter, node, x, {axis: np.array([place])})
    lifter.traced.holds[one] = end
    link = lifter.links.get(one)
    if link is None or link.permutation[0] == 0:
      lifter.reshape(one, end)
    else:
      lifter.links[end] = _without(link, [k for k in range(len(link.shape)) if k != axis], one)


def _without(link: Link, axes: Sequence[int], parent: int) -> Link:
  """Returns a link of which only these axes, of what it makes, stay; the others have length 1."""
  stay = sorted(link.permutation[axis] for axis in axes)
  permutation = tuple(stay.index(link.permutation[axis]) for axis in axes)
  return Link(link.source, tuple(link.shape[axis] for axis in stay), permutation, parent)


def _keeps_axes(lifter: Lifter, node: Node, x: int) -> bool:
  """Lets the reduction that makes a value keep its axes, where an equation puts them back; returns whether it does."""
  draft = lifter.ends.get(x)
  if draft is None or lifter.open(x, ir.Mean, ir.Reduce) is not draft or draft.fields["keep_dims"]:
    return False
  kept = list(lifter.shape(lifter.read(draft)))
  for axis in draft.fields.get("axes", (1, 2)):
    kept[axis] = 1
  if lifter.shape(node.outputs[0]) != tuple(kept) or (draft.kind is ir.Mean and draft.share is None):
    return False
  draft.fields["keep_dims"] = True
  lifter.extend(draft, node)
  return True


def transpose(lifter: Lifter, node: Node) -> None:
  """Notes a value with its axes in another order, which becomes a layer where another one reads it as it is."""
  x, order = lifter.number(lifter.operand(node)), tuple(map(int, node.params["permutation"]))
  if ordered([axis for axis in order if lifter.shape(x)[axis] != 1]) and order[0] == 0:
    lifter.reshape(x, node.outputs[0])
    return
  link = lifter.links.get(x, Link(x, lifter.shape(x), tuple(range(len(order))), x))
  lifter.links[node.outputs[0]] = link._replace(permutation=composed(link.permutation, order), parent=x)


def broadcast(lifter: Lifter, node: Node) -> None:
  """Adds axes of length 1; notes a value whose axes are spread, which a layer that broadcasts need not have spread."""
  end, axes = node.outputs[0], tuple(map(int, node.params["broadcast_dimensions"]))
  x = lifter.number(lifter.operand(node))
  before, after = lifter.shape(x), lifter.shape(end)
  if axes[:1] != (0,):
    raise lifter.traced.refuse(node, f"the batch is not the first axis of what it makes: {before} to {after}")
  if np.prod(before) == np.prod(after):
    reshape(lifter, node)
    return
  x = lifter.spread.get(x, x)
  shape = [lifter.shape(x)[axes.index(axis)] if axis in axes else 1 for axis in range(len(after))]
  lifter.spread[end] = lifter.reshaped(x, shape)


def pad(lifter: Lifter, node: Node) -> None:
  """Notes zeros around an image, which become part of the convolution that reads it; other paddings are layers."""
  traced, end = lifter.traced, node.outputs[0]
  x, config = lifter.number(lifter.operand(node)), node.params["padding_config"]
  if traced.is_data(node.inputs[1]):
    raise traced.refuse(node, "the number it pads with depends on the input")
  if tuple(config[0]) != (0, 0, 0):
    raise traced.refuse(node, "it adds examples to the batch")
  if any(inside for _, _, inside in config):
    raise traced.refuse(node, "it puts entries between those that are there; pad at the ends only")
  value = float(traced.constant(node.inputs[1]))
  if np.isnan(value):
    raise traced.refuse(node, "it pads with NaN; a file needs numbers")
  widths = tuple((int(low), int(high)) for low, high, _ in config)
  # Negative widths cut.
  sizes = traced.aval(x).shape
  cuts = {
    axis: np.arange(size)[max(-low, 0) : size - max(-high, 0)]
    for axis, (size, (low, high)) in enumerate(zip(sizes, widths, strict=True))
    if min(low, high) < 0
  }
  widths = tuple((max(low, 0), max(high, 0)) for low, high in widths)
  if cuts and not any(map(any, widths)):
    return picks.pick(lifter, node, x, cuts, end)
  if cuts:
    x = picks.part(lifter, node, x, cuts)
  x = lifter.finished(x, node)
  if len(widths) == 4 and widths[3] == (0, 0) and value == 0:
    lifter.pads[end] = (x, widths[1:3])
  else:
    lifter.start(Draft(ir.Pad, "", (x,), end, node, fields={"padding": widths, "value": value}))
  return None


def concatenate(lifter: Lifter, node: Node) -> None:
  """Starts a join, of constants too; parts of one value that are joined are a choice of its entries."""
  traced, axis = lifter.traced, int(node.params["dimension"])
  shapes = [traced.graph.analysis.value(ref).aval.shape for ref in node.inputs]
  refs = [ref for ref, shape in zip(node.inputs, shapes, strict=True) if 0 not in shape]
  parts = [traced.graph.resolve(ref) if traced.is_data(ref) else traced.constant(ref) for ref in refs]
  join(lifter, node, parts, axis)


def stack(lifter: Lifter, node: Node) -> None:
  """Starts a join along a new axis; one in front of the batch is made behind it, and the result is a link to that."""
  traced, axis = lifter.traced, int(node.params["axis"])
  if axis == 0:
    _stack_first(lifter, node)
    return
  parts: list[int | np.ndarray] = []
  for ref in node.inputs:
    if traced.is_data(ref):
      x = traced.graph.resolve(ref)
      shape = lifter.shape(x)
      parts.append(lifter.reshaped(x, (*shape[:axis], 1, *shape[axis:])))
    else:
      parts.append(np.expand_dims(traced.constant(ref), axis))
  join(lifter, node, parts, axis)


def _stack_first(lifter: Lifter, node: Node) -> None:
  traced, end = lifter.traced, node.outputs[0]
  inputs: list[int | np.ndarray] = []
  for ref in node.inputs:
    if traced.is_data(ref):
      x = lifter.finished(traced.graph.resolve(ref), node)
      inputs.append(lifter.shaped(x, (lifter.shape(x)[0], 1, *lifter.shape(x)[1:]), node))
    else:
      inputs.append(lifter.per_example(traced.constant(ref), node)[:, None])
  turns, batch, *rest = lifter.shape(end)
  made = (batch, turns, *rest)
  draft = Draft(ir.Concat, "", tuple(inputs), end, node, fields={"axis": 1})
  lifter.start_linked(draft, made, made, (1, 0, *range(2, len(made))))


def join(lifter: Lifter, node: Node, parts: Sequence[int | np.ndarray], axis: int) -> None:
  """Joins values and constants, none of them empty."""
  numbers = [part for part in parts if isinstance(part, int)]
  if len(parts) == 1:
    lifter.same[node.outputs[0]] = numbers[0]
  elif axis == 0:
    raise lifter.traced.refuse(node, "it joins batches; the batch is the caller's to choose")
  elif len(numbers) < len(parts) or not picks.joined(lifter, node, numbers, axis):
    inputs = tuple(lifter.finished(p, node) if isinstance(p, int) else lifter.per_example(p, node) for p in parts)
    lifter.start(Draft(ir.Concat, "", inputs, node.outputs[0], node, fields={"axis": axis}))


def convert(lifter: Lifter, node: Node) -> None:
  """Hands the operand on, or starts a layer that changes its type."""
  x, end = lifter.operand(node), node.outputs[0]
  before, after = (str(lifter.traced.aval(n).dtype) for n in (x, end))
  if before == after:
    lifter.same[end] = x
  elif after not in ("float32", "int32", "bool") or before.startswith(("bfloat", "float16")):
    raise lifter.traced.refuse(node, f"it turns {before} into {after}; lift a float32 function")
  elif before == "float32" and after == "bool":
    fields = {"operation": "ne"}
    zero = np.zeros((1,) * len(lifter.traced.aval(x).shape), np.float32)
    lifter.start(Draft(ir.Compare, "", (lifter.finished(x, node), zero), end, node, fields=fields))
  else:
    lifter.start(Draft(ir.Cast, "", (lifter.finished(x, node),), end, node))


def hand_on(lifter: Lifter, node: Node) -> None:
  """Hands the operand on unchanged."""
  lifter.same[node.outputs[0]] = lifter.operand(node)


TABLE = {
  "reshape": reshape,
  "squeeze": reshape,
  "expand_dims": reshape,
  "broadcast_in_dim": broadcast,
  "transpose": transpose,
  "unstack": unstack,
  "pad": pad,
  "concatenate": concatenate,
  "stack": stack,
  "copy": hand_on,
  "copy_p": hand_on,
  "name": hand_on,
  "stop_gradient": hand_on,
  "sharding_constraint": hand_on,
  "convert_element_type": convert,
}
