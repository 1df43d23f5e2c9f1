"""Values that hold entries of another value: slices, splits, flips, repetitions, indexing by constants, mirrored edges.

What is picked of a pick is one pick, and parts of one value that are joined again are one too; its layers are made when
a layer reads it. So a mirrored padding, which is traced to slices, flips and joins, is one layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.deploy.lifting.views import Link, Pick
from leanax.graph.program import Node
from leanax.graph.versions import rebind

Entries = Mapping[int, np.ndarray]


def pick(lifter: Lifter, node: Node, x: int, entries: Entries, end: int) -> None:
  """Notes that `end` holds these entries of a value along these axes, and all along the others."""
  link = lifter.links.get(lifter.number(x))
  if link is not None and link.permutation[0] != 0:  # the batch lies behind other axes
    inner = lifter.reshaped(link.source, link.shape)
    made = part(lifter, node, inner, {link.permutation[axis]: some for axis, some in entries.items()})
    whole = lifter.number(made)  # another one where all of its entries are taken
    if whole == made or lifter.traced.tensor(whole) is None:
      lifter.traced.holds[whole] = end
    lifter.links[end] = Link(made, lifter.shape(made), link.permutation, lifter.number(x))
    return
  if 0 in entries and not np.array_equal(entries[0], np.arange(lifter.traced.aval(x).shape[0])):
    raise lifter.traced.refuse(node, "it chooses among the examples of a batch")
  source, whole = of(lifter, x)
  sizes = lifter.traced.aval(source).shape
  found = {**whole, **{axis: whole[axis][some] if axis in whole else some for axis, some in entries.items()}}
  found = {axis: some for axis, some in found.items() if not np.array_equal(some, np.arange(sizes[axis]))}
  if not found:
    lifter.same[end] = source
    lifter.shared.add(end)
    return
  lifter.picks[end] = Pick(source, found)
  lifter.later[end] = lambda: _layers(lifter, node, end)


def part(lifter: Lifter, node: Node, x: int, entries: Entries) -> int:
  """Returns the number of these entries of a value, where no equation makes them."""
  end = _view(lifter, x, entries)
  pick(lifter, node, x, entries, end)
  return end


def _view(lifter: Lifter, x: int, entries: Entries) -> int:
  """Returns the number of a view of a value that holds these entries."""

  def see(value: np.ndarray) -> np.ndarray:
    for axis, some in entries.items():
      value = value.take(some, axis)
    return value

  return lifter.traced.view(x, [len(entries.get(k, range(n))) for k, n in enumerate(lifter.shape(x))], see)


def of(lifter: Lifter, number: int) -> Pick:
  """Returns a value as entries of another one; one that is none of these holds all of its own."""
  number = lifter.itself(number)
  return lifter.picks.get(number, Pick(number, {}))


def joined(lifter: Lifter, node: Node, numbers: Sequence[int], axis: int) -> bool:
  """Notes a join of parts of one value as a pick; returns whether it is one."""
  parts = [of(lifter, number) for number in numbers]
  source, size = parts[0].source, lifter.traced.aval(parts[0].source).shape
  others = [{k: some for k, some in part.entries.items() if k != axis} for part in parts]
  alike = all(
    part.source == source
    and other.keys() == others[0].keys()
    and all(np.array_equal(other[k], others[0][k]) for k in other)
    for part, other in zip(parts, others, strict=True)
  )
  if alike:
    along = np.concatenate([part.entries.get(axis, np.arange(size[axis])) for part in parts])
    pick(lifter, node, source, {**others[0], axis: along}, node.outputs[0])
  return alike


def repeats(lifter: Lifter, node: Node, narrow: int) -> bool:
  """Notes a spread value whose spread axes are merged with others (`jnp.repeat`); returns whether it is a pick.

  Args:
    lifter: the drafts.
    node: the reshape.
    narrow: the value before it was spread, with length 1 along these axes.
  """
  before, after = lifter.shape(lifter.operand(node)), lifter.shape(node.outputs[0])
  source = lifter.root(narrow)
  own, axes = lifter.shape(source), kept(lifter.shape(source), lifter.shape(narrow))
  if axes is None:
    source, own, axes = narrow, lifter.shape(narrow), tuple(range(len(before)))
  groups, places, entries = _groups(before, after), {at: axis for axis, at in enumerate(axes)}, {}
  if groups is None or len(groups) != len(own):
    return False
  for group in groups:
    inside = [places[at] for at in group if at in places]
    if len(inside) != 1:
      return False
    along = np.arange(own[inside[0]]).reshape([own[inside[0]] if at in places else 1 for at in group])
    entries[inside[0]] = np.broadcast_to(along, [before[at] for at in group]).reshape(-1)
  pick(lifter, node, source, entries, node.outputs[0])
  return True


def kept(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...] | None:
  """Returns the places of axes in a shape with more of length 1 between them; None for another reshape."""
  axes = []
  for axis, size in enumerate(after):
    if len(axes) < len(before) and before[len(axes)] == size:
      axes.append(axis)
    elif size != 1:
      return None
  return tuple(axes) if len(axes) == len(before) else None


def _groups(before: Sequence[int], after: Sequence[int]) -> list[list[int]] | None:
  """Returns the axes that a reshape merges into each axis; None where it splits some."""
  groups, at = [], 0
  for place, size in enumerate(after):
    group, count = [], 1
    while at < len(before) and (count < size or (before[at] == 1 and (place == len(after) - 1 or not group))):
      group.append(at)
      count *= before[at]
      at += 1
    if count != size:
      return None
    groups.append(group)
  return groups if at == len(before) else None


def slices(lifter: Lifter, node: Node) -> None:
  """Takes a slice, with steps."""
  params = node.params
  steps = params["strides"] or (1,) * len(params["start_indices"])
  entries = {
    axis: np.arange(start, stop, step)
    for axis, (start, stop, step) in enumerate(
      zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    )
  }
  pick(lifter, node, lifter.operand(node), entries, node.outputs[0])


def dynamic_slice(lifter: Lifter, node: Node) -> None:
  """Takes a slice whose start is known."""
  traced = lifter.traced
  if any(traced.is_data(ref) for ref in node.inputs[1:]):
    raise traced.refuse(node, "where it starts depends on the input")
  x, sizes = lifter.operand(node), node.params["slice_sizes"]
  entries = {}
  for axis, (ref, size, length) in enumerate(zip(node.inputs[1:], sizes, traced.aval(x).shape, strict=True)):
    start = int(np.clip(traced.constant(ref), 0, length - size))
    entries[axis] = np.arange(start, start + size)
  pick(lifter, node, x, entries, node.outputs[0])


def split(lifter: Lifter, node: Node) -> None:
  """Takes several slices that follow each other."""
  x, axis, start = lifter.operand(node), int(node.params["axis"]), 0
  for size, end in zip(node.params["sizes"], node.outputs, strict=True):
    pick(lifter, node, x, {axis: np.arange(start, start + int(size))}, end)
    start += int(size)


def flip(lifter: Lifter, node: Node) -> None:
  """Takes all entries from the end."""
  x = lifter.operand(node)
  entries = {int(axis): np.arange(lifter.traced.aval(x).shape[axis])[::-1] for axis in node.params["dimensions"]}
  pick(lifter, node, x, entries, node.outputs[0])


def tile(lifter: Lifter, node: Node) -> None:
  """Takes all entries several times."""
  x = lifter.operand(node)
  shape, times = lifter.traced.aval(x).shape, tuple(node.params["reps"])
  if len(times) != len(shape):
    raise lifter.traced.refuse(node, "it adds axes before the batch")
  entries = {axis: np.tile(np.arange(size), times[axis]) for axis, size in enumerate(shape) if times[axis] != 1}
  pick(lifter, node, x, entries, node.outputs[0])


def by_constants(lifter: Lifter, node: Node) -> None:
  """Takes entries at known indices: where each comes from is read off the equation itself, run on coordinates."""
  traced = lifter.traced
  x, end = lifter.number(lifter.operand(node)), node.outputs[0]
  shape, out = traced.aval(x).shape, traced.aval(end).shape
  indices = traced.constant(node.inputs[1])
  coordinates = [
    _moved(node, np.broadcast_to(_along(np.arange(n), k, len(shape)), shape), indices) for k, n in enumerate(shape)
  ]
  if any((c < 0).any() or (c >= n).any() for c, n in zip(coordinates, shape, strict=True)):
    raise traced.refuse(node, f"an index is beyond the shape {tuple(shape)}")
  entries = {axis: _separate(c, out) for axis, c in enumerate(coordinates)}
  places = [some[0] for some in entries.values() if some is not None and some[0] is not None]
  if any(some is None for some in entries.values()) or places != sorted(set(places)):
    # Not axis by axis: the whole as one axis, of which entries are picked.
    if not all(np.array_equal(coordinates[0][n], np.full(out[1:], n)) for n in range(shape[0])):
      raise traced.refuse(node, "it chooses among the examples of a batch")
    x = lifter.reshaped(x, (shape[0], int(np.prod(shape[1:]))))
    entries = {1: (1, np.ravel_multi_index([c[0] for c in coordinates[1:]], shape[1:]).reshape(-1))}
  chosen = {axis: some[1] for axis, some in entries.items() if some is not None}
  if tuple(len(chosen.get(axis, range(size))) for axis, size in enumerate(lifter.shape(x))) == tuple(out):
    pick(lifter, node, x, chosen, end)
  else:
    lifter.reshape(part(lifter, node, x, chosen), end)


def _along(values: np.ndarray, axis: int, rank: int) -> np.ndarray:
  return values.reshape([-1 if place == axis else 1 for place in range(rank)])


def _moved(node: Node, x: np.ndarray, indices: np.ndarray) -> np.ndarray:
  return np.asarray(rebind(node.eqn, (x.astype(np.int32), indices), {"fill_value": -1})[0])


def _separate(coordinate: np.ndarray, out: Sequence[int]) -> tuple[int | None, np.ndarray] | None:
  """Returns along which axis a coordinate varies (None for a constant) and how; None where it varies along several."""
  first = coordinate[(0,) * len(out)]
  if (coordinate == first).all():
    return None, np.array([first])
  for axis in range(len(out)):
    some = coordinate[tuple(slice(None) if place == axis else 0 for place in range(len(out)))]
    if np.array_equal(coordinate, np.broadcast_to(_along(some, axis, len(out)), out)):
      return axis, some
  return None


def _layers(lifter: Lifter, node: Node, end: int) -> None:
  """Starts the layers of a pick: slices first, then what repeats entries."""
  source, entries = lifter.picks[end]
  x, shape = lifter.finished(source, node), list(lifter.shape(source))
  *first, last = _steps(shape, entries)
  for kind, axes, constants, fields in first:
    made = _view(lifter, x, {axis: entries[axis] for axis in axes})
    lifter.start(Draft(kind, "", (x, *constants), made, node, fields=fields))
    x = made
  kind, _, constants, fields = last
  lifter.start(Draft(kind, "", (x, *constants), end, node, fields=fields))


def _steps(
  shape: Sequence[int], entries: Entries
) -> list[tuple[type[ir.Layer], list[int], tuple[Any, ...], dict[str, Any]]]:
  """Returns for each layer of a pick its class, the axes that it serves, its constants and its fields."""
  steps, left = [], dict(entries)

  def serve(kind: type[ir.Layer], axes: list[int], *constants: np.ndarray, **fields: Any) -> None:
    if axes:
      steps.append((kind, axes, constants, fields))
      for axis in axes:
        del left[axis]

  even = {axis: (some[0], some[-1] + 1, some[1] - some[0] if len(some) > 1 else 1) for axis, some in left.items()}
  even = {axis: one for axis, one in even.items() if one[2] > 0 and np.array_equal(left[axis], np.arange(*one))}
  starts, stops, strides = (
    tuple(int(even[axis][k]) if axis in even else whole for axis in range(len(shape)))
    for k, whole in ((0, 0), (1, None), (2, 1))
  )
  stops = tuple(shape[axis] if stop is None and axis else stop for axis, stop in enumerate(stops))
  serve(ir.Slice, list(even), starts=starts, stops=stops, strides=strides)
  serve(ir.Broadcast, [axis for axis in left if shape[axis] == 1])
  for mode in ("reflect", "symmetric"):
    widths = {axis: found for axis, some in left.items() if (found := _mirrored(some, shape[axis], mode)) is not None}
    padding = tuple(widths.get(axis, (0, 0)) for axis in range(len(shape)))
    serve(ir.Pad, list(widths), padding=padding, mode=mode)
  near = [axis for axis in left if len(shape) == 4 and axis in (1, 2) and _nearest(left[axis], shape[axis])]
  serve(ir.Resize, near, method="nearest")
  for axis in list(left):
    serve(ir.Gather, [axis], left[axis].astype(np.int32), axis=axis)
  return steps


def _mirrored(some: np.ndarray, size: int, mode: str) -> tuple[int, int] | None:
  """Returns by how much a whole axis is mirrored at its ends to give these entries."""
  for low in (int(some[0]), int(some[0]) + 1):
    high, most = len(some) - size - low, size - (mode == "reflect")
    wide = np.pad(np.arange(size), (low, high), mode=mode) if 0 <= high <= most and low <= most else None  # pyrefly: ignore
    if wide is not None and np.array_equal(some, wide):
      return low, high
  return None


def _nearest(some: np.ndarray, size: int) -> bool:
  """Returns whether these entries are the nearest ones of an axis at another size, in float32 as runtimes find them."""
  scale = np.float32(size) / np.float32(len(some))
  found = np.floor((np.arange(len(some), dtype=np.float32) + np.float32(0.5)) * scale).astype(int)
  return np.array_equal(some, np.minimum(found, size - 1))


TABLE = {"slice": slices, "dynamic_slice": dynamic_slice, "split": split, "rev": flip, "tile": tile}
