"""The grids of the kernels of a traced model: one per leaf, wherever one array of scales serves all of its uses."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leanax.core.errors import UserError
from leanax.graph import Graph, Op
from quant.quantizer import Quantizer
from quant.sharing import Use, overlap, share
from quant.spec import Setting, Spec


class _Group(NamedTuple):
  """Operands with one grid: the first site, its spec, where each of them stands, and where it lies in the leaf."""

  op: Op
  spec: Spec
  places: list[tuple[str, int]]
  uses: list[Use]


def kernels(graph: Graph, chosen: Mapping[str, Setting]) -> dict[tuple[str, int], tuple[Quantizer, Use | None]]:
  """Returns the quantizer of each kernel's operand; one for all uses of a leaf that one array of scales serves."""
  groups: dict[Any, list[_Group]] = {}
  for site in graph.analysis.sites:
    op, index = site.op, site.op.kernel_index
    spec = chosen[op.name].weights if op.name in chosen else None
    if spec is None or index is None:
      continue
    view, channels = op.inputs[index].view, op.channel_axes if spec.per_channel else ()
    along = _along(op, index, spec)
    channels = channels if along is None else (*channels, along)
    use = None if view is None else Use(view, channels, along, spec.group or 0)
    leaf = None if use is None or share([use]) is None else op.inputs[index].leaf
    if along is not None and leaf is None:
      raise UserError(
        f"the kernel of {op.name!r} is computed, or a part of a leaf or another shape of it, and cannot have groups"
      )
    # What is no part of a leaf has a grid of its own, or that of the same value.
    found = groups.setdefault(leaf if leaf is not None else (graph.resolve(site.refs[index]), channels), [])
    for group in found:
      joined = [*group.uses, use] if leaf is not None and use is not None else []
      if group.spec == spec and (not joined or share(joined) is not None):
        group.places.append((op.name, index))
        group.uses[:] = joined
        break
    else:
      found.append(_Group(op, spec, [(op.name, index)], [use] if leaf is not None and use is not None else []))
  return {
    place: (_quantizer(group, leaf if isinstance(leaf, str) else None, first=group is found[0]), use)
    for leaf, found in groups.items()
    for group in found
    for place, use in zip(group.places, group.uses or [None] * len(group.places), strict=True)
  }


def _along(op: Op, index: int, spec: Spec) -> int | None:
  """Returns the axis of a kernel's operand that is cut into groups, of input channels; None where there are none."""
  if spec.group is None:
    return None
  numbers = op.params["dimension_numbers"]
  if op.kind == "conv":
    axes, what = (numbers.rhs_spec[1:2] if index == 1 else ()), "input channels"
    why = "it holds images, which a kernel made of the inputs is moved over"
  else:
    axes, what = numbers[0][index], "inputs"
    why = f"it sums over {len(numbers[0][index])} axes; expected one"
  if len(axes) != 1:
    raise UserError(f"{op.name!r} cannot have groups of {spec.group}: {why}")
  length = op.inputs[index].shape[axes[0]]
  if length % spec.group:
    raise UserError(f"the kernel of {op.name!r} has {length} {what}, which groups of {spec.group} do not divide")
  return axes[0]


def _quantizer(group: _Group, leaf: str | None, first: bool) -> Quantizer:
  op, spec = group.op, group.spec
  key = leaf if leaf is not None and first else op.name
  assert op.kernel_index is not None
  start = (key, spec, spec.make_estimator(), True)
  scales = share(group.uses) if leaf is not None else None
  if scales is not None:
    return Quantizer(*start, leaf, scales.shape, scales.axis, scales.apart, scales)
  return Quantizer(*start, None, op.inputs[op.kernel_index].shape, op.channel_axes if spec.per_channel else ())


def notes(
  at: Mapping[tuple[str, int], Any], uses: Mapping[tuple[str, int], Use], results: Mapping[str, str]
) -> dict[str, str]:
  """Returns how a file stores each kernel's grid, where that is not simply one axis of scales, and what it rounds.

  `results` has each tensor that is rounded where it is made, and its site.
  """
  found: dict[str, str] = {}
  for tensor, site in results.items():
    text = f"its result {tensor!r} is rounded where it is made"
    found[site] = f"{found[site]}; {text}" if site in found else text
  before: dict[str, list[tuple[Quantizer, Use]]] = {}
  for (name, index), quantizer in at.items():
    if not quantizer.kernel:
      continue
    texts: list[str] = []
    use, leaf = uses.get((name, index)), quantizer.leaf
    if leaf is not None and use is not None:
      others = [(q, u) for q, u in before.get(leaf, []) if q.key != quantizer.key]
      before.setdefault(leaf, []).append((quantizer, use))
      twice = next((q.key for q, u in others if overlap(u.view, use.view)), None)
      if twice is not None:
        texts.append(f"a grid of its own beside that of {twice!r}: a file stores {leaf!r} once for each")
      elif others:
        texts.append(f"a grid of its own for its part of {leaf!r}")
    if leaf is None:
      texts.append(
        "a grid for the kernel as the site reads it: it is computed, or cut out unevenly, and no leaf is on it"
      )
    channels = [n for i, n in zip(quantizer.axis, _lengths(quantizer), strict=True) if i not in quantizer.apart]
    if quantizer.spec.group is not None:
      texts.append(f"a scale for each {quantizer.spec.group} inputs: .onnx files hold its codes, in a layer of floats")
    elif len(channels) > 1:
      texts.append(
        f"a scale for each of {'x'.join(map(str, channels))} output channels and batches of kernels: a file "
        "with one quantized axis must split or flatten it"
      )
    if texts:
      found[name] = "; ".join([*texts, *filter(None, [found.get(name)])])
  return found


def _lengths(quantizer: Quantizer) -> Sequence[int]:
  return [quantizer.shape[i] for i in quantizer.axis]
