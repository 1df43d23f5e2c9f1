"""Grids of kernels as layers hold them: from the leaf's axes and the slice that a site reads to output channels."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy.drafts import Draft
from leanax.deploy.traced import Traced
from quant.grid import splits
from quant.sharing import Use, of_operand, written


def of_sites(traced: Traced, drafts: Iterable[Draft], grids: Mapping[str, Any]) -> dict[str, Any]:
  """The grids, and by each site's name the one of its kernel, with a scale an output channel or one for all.

  A grid that does not say for which shape it is written is taken as it is.
  """
  found = dict(grids)
  for draft in drafts:
    site = traced.graph.analysis.at.get(draft.node.index)
    if draft.kernel is None or site is None or site.op.kernel_index is None:
      continue
    op, operand = site.op, site.op.inputs[site.op.kernel_index]
    grid = grids.get(op.name, grids.get(operand.leaf or op.name))
    shape, view = getattr(grid, "shape", None), operand.view
    if grid is None or shape is None or view is None or not splits(view.shape, shape):
      continue
    scale, axes = np.asarray(grid.scale), () if grid.axis is None else np.atleast_1d(grid.axis).tolist()
    if scale.shape != tuple(shape[i] for i in axes):
      continue
    scales, every = written(view.shape, shape, axes), tuple(range(len(view.axes)))
    own, whole = (np.asarray(of_operand(scale, scales, Use(view, kept))) for kept in (op.channel_axes, every))
    if not np.array_equal(np.broadcast_to(own, whole.shape), whole):
      raise UserError(
        f"the kernel of {op.name!r} has several scales along what it sums over; a file of integers has one"
      )
    own = own.reshape(-1 if own.size > 1 or own.ndim > len(view.scans) else ())
    found[op.name] = dataclasses.replace(
      grid, scale=own, zero_point=np.zeros(own.shape, np.int32), axis=None, shape=None
    )
  return found
