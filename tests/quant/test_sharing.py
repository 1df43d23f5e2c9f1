"""Scales shared by uses of one leaf, against a scale for each of the leaf's numbers."""

import numpy as np

from leanax.graph import layout
from quant.grid import broadcast
from quant.sharing import Use, of_operand, overlap, share, written


def moved(rng, shape):
  """A view after a few moves at random, and the leaf's flat indices in it; None where there is no view."""
  view, at = layout.whole(shape), np.arange(np.prod(shape)).reshape(shape)
  for _ in range(rng.integers(4)):
    kind, axis = rng.integers(4), int(rng.integers(at.ndim))
    if kind == 0:
      order = tuple(int(i) for i in rng.permutation(at.ndim))
      at, step = at.transpose(order), ("transpose", {"permutation": order})
    elif kind == 1:
      sizes, size = [], at.size
      while size > 1:
        sizes.append(int(rng.choice([n for n in range(2, size + 1) if size % n == 0])))
        size //= sizes[-1]
      at, step = at.reshape(sizes or [1]), ("reshape", {"dimensions": None})
    elif kind == 2:
      low = int(rng.integers(at.shape[axis]))
      high = int(rng.integers(low, at.shape[axis])) + 1
      starts = [low if i == axis else 0 for i in range(at.ndim)]
      at, step = at[(slice(None),) * axis + (slice(low, high),)], ("slice", {"start_indices": starts, "strides": None})
    else:
      at, step = np.flip(at, axis), ("rev", {"dimensions": (axis,)})
    view = layout.move(step[0], step[1], view, at.shape, 0, lambda: [])
    if view is None:
      return None
  return view, at


def test_each_operand_finds_the_scales_of_its_own_numbers():
  """At random: where scales can be shared, each number has one, and none changes along what is summed over."""
  rng, shared = np.random.default_rng(0), 0
  for _ in range(1500):
    shape = tuple(int(n) for n in rng.choice([1, 2, 3, 4, 6], size=rng.integers(1, 4)))
    views = [found for found in (moved(rng, shape) for _ in range(rng.integers(1, 4))) if found is not None]
    uses = [Use(view, tuple(i for i in range(at.ndim) if rng.random() < 0.5)) for view, at in views]
    scales = share(uses) if uses else None
    if scales is None:
      continue
    shared += 1
    scale = rng.random([scales.shape[i] for i in scales.axis])
    every = np.broadcast_to(broadcast(scale, len(scales.shape), scales.axis), scales.shape).reshape(-1)
    assert written(shape, scales.shape, scales.axis)._replace(apart=scales.apart) == scales
    for use, (_, at) in zip(uses, views, strict=True):
      found = of_operand(scale, scales, use)
      assert all(n == 1 for i, n in enumerate(found.shape) if i not in use.channels)
      np.testing.assert_array_equal(np.broadcast_to(found, at.shape), every[at])
    if len(views) > 1 and set(views[0][1].flat) & set(views[1][1].flat):
      assert overlap(views[0][0], views[1][0])
  assert shared > 300


def test_scales_that_cannot_be_shared():
  view = layout.whole((6, 4))
  assert view is not None
  by_column, by_row = Use(view, (1,)), Use(view, (0,))
  assert share([by_column, by_row]) is None
  assert share([by_column, Use(view, ())]) is None
  both = share([by_column, by_column])
  assert both is not None and (both.shape, both.axis, both.apart) == ((6, 4), (1,), ())


def test_slices_apart_do_not_overlap():
  leaf = layout.whole((6, 4))
  cut = lambda low, high: layout.move(
    "slice", {"start_indices": (low, 0), "strides": None}, leaf, (high - low, 4), 0, lambda: []
  )
  assert not overlap(cut(0, 3), cut(3, 6)) and overlap(cut(0, 4), cut(3, 6))
