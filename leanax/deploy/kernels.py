"""Grids of kernels as layers hold them: from the leaf's axes and the slice that a site reads to output channels."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft
from leanax.deploy.lifting.traced import Traced
from quant.grid import Grid, splits
from quant.sharing import Use, of_operand, written


def of_sites(traced: Traced, drafts: Iterable[Draft], grids: Mapping[str, Grid]) -> dict[str, Grid]:
  """Returns the grids, and by each site's name that of its kernel, with a scale per output channel or one for all.

  That of a kernel in groups has a scale for each block of the kernel as the layer holds it. A grid without a shape is
  taken for that kernel too.
  """
  found = dict(grids)
  for draft in drafts:
    site = traced.graph.analysis.at.get(draft.node.index)
    if site is None or site.op.kernel_index is None:
      continue
    op, operand = site.op, site.op.inputs[site.op.kernel_index]
    if draft.kernel is None and draft.kind is ir.MatMul and (op.name in grids or operand.leaf in grids):
      why = "no format has integers for a kernel for each head; leave it in float (a policy rule for its path)"
      raise traced.refuse(draft.node, why)
    if draft.kernel is None:
      continue
    grid, view = grids.get(op.name, grids.get(operand.leaf or op.name)), operand.view
    shape = None if grid is None else grid.shape
    if grid is None or shape is None or view is None or not splits(view.shape, shape):
      continue
    scale, axes = np.asarray(grid.scale), () if grid.axis is None else np.atleast_1d(grid.axis).tolist()
    if scale.shape != tuple(shape[i] for i in axes):
      continue
    scales, every = written(view.shape, shape, axes), tuple(range(len(view.axes)))
    own, whole = (np.asarray(of_operand(scale, scales, Use(view, kept))) for kept in (op.channel_axes, every))
    if not np.array_equal(np.broadcast_to(own, whole.shape), whole):
      if draft.layout is None or whole.shape != tuple(operand.shape):
        raise UserError(
          f"the kernel of {op.name!r} has scales in groups, which no file has for a transposed convolution or a kernel "
          "that is repeated; leave it in float or quantize it without groups (a policy rule for its path)"
        )
      own = blocks(draft.layout(whole))
    else:
      own = own.reshape(-1 if own.size > 1 or own.ndim > len(view.scans) else ())
    zeros = grid.zero_point if np.any(grid.zero_point) else np.zeros(own.shape, np.int32)  # others are refused later
    numbers: dict[str, Any] = {"scale": own, "zero_point": zeros}
    found[op.name] = dataclasses.replace(grid, **numbers, axis=None, shape=None)
  return found


def blocks(whole: np.ndarray) -> np.ndarray:
  """Returns an array of equal blocks with one number for each block; each axis has as few of them as it can."""
  for axis, length in enumerate(whole.shape):
    for count in range(1, length + 1):
      few = whole.take(range(0, length, max(length // count, 1)), axis)
      if length % count == 0 and np.array_equal(few.repeat(length // count, axis), whole):
        whole = few
        break
  return whole
