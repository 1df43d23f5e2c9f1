"""Which grids the kernels of a traced model have: one a leaf, wherever one array of scales serves all of its uses."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from leanax.graph import Graph, Op
from quant.estimators import Estimator
from quant.grid import limits
from quant.policy import Setting
from quant.sharing import Scales, Use, overlap, share


class KernelQuantizer(NamedTuple):
  """The grid of a kernel: symmetric, one scale for each combination of output and batch axes, or one for all.

  Attributes:
    key: the leaf's name, for its first grid; otherwise that of the first site.
    bits: width.
    setting: that site's setting.
    estimator: how its rounding is trained.
    leaf: the leaf in whose axes it is written; None where the operand is not simply a part of one: then it is written
      in the operand's axes, and taken from the operand as it is seen there.
    shape: of the leaf, perhaps with axes split, or of the operand.
    axis: the axes of `shape` along which scales vary.
    apart: those of them that number layers or slices.
    scales: how an operand finds its scales in the leaf's.
  """

  key: str
  bits: int
  setting: Setting
  estimator: Estimator
  leaf: str | None
  shape: tuple[int, ...]
  axis: tuple[int, ...]
  apart: tuple[int, ...] = ()
  scales: Scales | None = None

  @property
  def weights_per_scale(self) -> int:
    """How many weights share one scale, the N of LSQ."""
    return math.prod(n for i, n in enumerate(self.shape) if i not in self.axis)

  @property
  def limits(self) -> tuple[int, int]:
    return limits(self.bits, True, self.setting.narrow)


class _Group(NamedTuple):
  """Operands with one grid: the first site, its setting, where each of them stands, and where it lies in the leaf."""

  op: Op
  setting: Setting
  places: list[tuple[str, int]]
  uses: list[Use]


def kernels(graph: Graph, chosen: Mapping[str, Setting]) -> dict[tuple[str, int], tuple[KernelQuantizer, Use | None]]:
  """The quantizer of each kernel's operand; one for all uses of a leaf that one array of scales serves."""
  groups: dict[Any, list[_Group]] = {}
  for site in graph.analysis.sites:
    op, setting, index = site.op, chosen.get(site.op.name), site.op.kernel_index
    if setting is None or setting.weights is None or index is None:
      continue
    view, channels = op.inputs[index].view, op.channel_axes if setting.per_channel else ()
    use = None if view is None else Use(view, channels)
    leaf = None if use is None or share([use]) is None else op.inputs[index].leaf
    # What is no part of a leaf has a grid of its own, or that of the same value.
    found = groups.setdefault(leaf if leaf is not None else (graph.resolve(site.refs[index]), channels), [])
    for group in found:
      joined = [*group.uses, use] if leaf is not None and use is not None else []
      if _weights_of(group.setting) == _weights_of(setting) and (not joined or share(joined) is not None):
        group.places.append((op.name, index))
        group.uses[:] = joined
        break
    else:
      found.append(_Group(op, setting, [(op.name, index)], [use] if leaf is not None and use is not None else []))
  return {
    place: (_quantizer(group, leaf if isinstance(leaf, str) else None, first=group is found[0]), use)
    for leaf, found in groups.items()
    for group in found
    for place, use in zip(group.places, group.uses or [None] * len(group.places), strict=True)
  }


def _weights_of(setting: Setting) -> Setting:
  """What a setting says of a kernel."""
  return dataclasses.replace(setting, activations=None, observer="min_max", options=())


def _quantizer(group: _Group, leaf: str | None, first: bool) -> KernelQuantizer:
  op, setting = group.op, group.setting
  key = leaf if leaf is not None and first else op.name
  assert setting.weights is not None
  assert op.kernel_index is not None
  start = (key, setting.weights, setting, setting.make_estimator())
  scales = share(group.uses) if leaf is not None else None
  if scales is not None:
    return KernelQuantizer(*start, leaf, scales.shape, scales.axis, scales.apart, scales)
  return KernelQuantizer(*start, None, op.inputs[op.kernel_index].shape, op.channel_axes if setting.per_channel else ())


def notes(at: Mapping[tuple[str, int], Any], uses: Mapping[tuple[str, int], Use]) -> dict[str, str]:
  """What a file makes of each kernel's grid, where that is not simply one axis of scales."""
  found: dict[str, str] = {}
  before: dict[str, list[tuple[KernelQuantizer, Use]]] = {}
  for (name, index), quantizer in at.items():
    if not isinstance(quantizer, KernelQuantizer):
      continue
    said: list[str] = []
    use, leaf = uses.get((name, index)), quantizer.leaf
    if leaf is not None and use is not None:
      others = [(q, u) for q, u in before.get(leaf, []) if q.key != quantizer.key]
      before.setdefault(leaf, []).append((quantizer, use))
      twice = next((q.key for q, u in others if overlap(u.view, use.view)), None)
      if twice is not None:
        said.append(f"a grid of its own beside that of {twice!r}: a file stores {leaf!r} once for each")
      elif others:
        said.append(f"a grid of its own for its part of {leaf!r}")
    if leaf is None:
      said.append(
        "a grid for the kernel as the site reads it: it is computed, or cut out unevenly, and no leaf is on it"
      )
    channels = [n for i, n in zip(quantizer.axis, _lengths(quantizer), strict=True) if i not in quantizer.apart]
    if len(channels) > 1:
      said.append(
        f"a scale for each of {'x'.join(map(str, channels))} output channels and batches of kernels: a file "
        "with one quantized axis must split or flatten it"
      )
    if said:
      found[name] = "; ".join(said)
  return found


def _lengths(quantizer: KernelQuantizer) -> Sequence[int]:
  return [quantizer.shape[i] for i in quantizer.axis]
