"""Views against the moves themselves, run on a leaf that holds its own indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.graph.layout import View


def indices(view: View) -> np.ndarray:
  """The index into the flat leaf that each element of the operand has by the view, behind the axes of scans."""
  digits = [digit for digits in (*view.scans, *view.axes) for digit in digits]
  at = [np.asarray(first) for first in view.start]
  for place, (axis, stride, length) in enumerate(digits):
    if axis is not None:
      at[axis] = at[axis] + np.arange(length).reshape([-1 if i == place else 1 for i in range(len(digits))]) * stride
  lengths = tuple(d.length for d in digits)
  at = [np.broadcast_to(a, lengths) for a in at]
  shape = [int(np.prod([d.length for d in axis])) for axis in (*view.scans, *view.axes)]
  return np.asarray(np.ravel_multi_index(tuple(at), view.shape)).reshape(shape)


def view_of(move, shape):
  """The view of a kernel that was moved, and its true indices."""

  def fn(v, x):
    w = move(v["w"])
    return jnp.tensordot(x, w, ((0,), (0,)))

  leaf = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
  true = np.asarray(move(leaf))
  sites = graph.trace(fn, {"w": leaf}, np.ones(true.shape[:1], np.float32)).sites
  return sites["w"].inputs[sites["w"].kernel_index].view, true.astype(int)


MOVES = {
  "itself": (lambda w: w, (4, 6)),
  "transposed": (lambda w: w.transpose(2, 0, 1), (2, 3, 4)),
  "split axis": (lambda w: w.reshape(4, 2, 3), (4, 6)),
  "merged axes": (lambda w: w.reshape(4, 6), (4, 2, 3)),
  "flat": (lambda w: w.reshape(4, 6), (24,)),
  "merged and split again": (lambda w: w.reshape(24).reshape(6, 4), (6, 2, 2)),
  "merged after a transpose": (lambda w: w.transpose(1, 0, 2).reshape(4, 6), (2, 4, 3)),
  "index": (lambda w: w[1], (3, 4, 6)),
  "negative index": (lambda w: w[:, -1], (4, 3, 6)),
  "slice": (lambda w: w[1:, 2:5], (4, 6)),
  "steps": (lambda w: w[::2, 1::3], (4, 6)),
  "backwards": (lambda w: w[::-1, ::-2], (4, 6)),
  "reversed merged axes": (lambda w: w.transpose(1, 0, 2).reshape(6, 4)[::-1], (2, 3, 4)),
  "a slice of merged axes": (lambda w: w.transpose(1, 0, 2).reshape(6, 4)[2:4], (2, 3, 4)),
  "a part of one merged axis": (lambda w: w.transpose(1, 0, 2).reshape(12, 4)[5:7], (4, 3, 4)),
  "one of merged axes": (lambda w: w.transpose(1, 0, 2).reshape(6, 4)[::2], (2, 3, 4)),
  "a traced constant index": (lambda w: w[jnp.array(2)], (3, 4, 6)),
  "dynamic slice, clamped": (lambda w: jax.lax.dynamic_slice(w, (3, 9), (2, 3)), (4, 6)),
  "take": (lambda w: jnp.take(w, 1, axis=1), (4, 3, 6)),
  "take in steps": (lambda w: jnp.take(w, jnp.array([5, 3, 1]), axis=1), (4, 6)),
  "split": (lambda w: jnp.split(w, [2, 3], axis=1)[2], (4, 6)),
  "unstack": (lambda w: jnp.unstack(w, axis=1)[2], (4, 3, 6)),
  "new axes": (lambda w: w[None, :, None].squeeze(0), (4, 6)),
  "broadcast": (lambda w: jnp.broadcast_to(w[:, None], (4, 3, 6)), (4, 6)),
  "broadcast and merged": (lambda w: jnp.broadcast_to(w[:, None], (4, 3, 6)).reshape(12, 6), (4, 6)),
  "casts": (lambda w: w.astype(jnp.bfloat16).astype(jnp.float32), (4, 6)),
  "length 1": (lambda w: w.reshape(1, 4, 1, 6, 1)[0], (4, 1, 6)),
  "diagonal blocks": (lambda w: w.reshape(2, 2, 2, 3)[1].swapaxes(0, 1).reshape(4, 3), (4, 6)),
}


@pytest.mark.parametrize("name", MOVES)
def test_a_view_maps_each_number_to_its_leaf(name):
  view, true = view_of(*MOVES[name])
  assert view is not None
  np.testing.assert_array_equal(indices(view), true)


NONE = {
  "a reshape that mixes axes": (lambda w: w.T.reshape(4, 6), (4, 6)),
  "a slice across merged axes": (lambda w: w.transpose(1, 0, 2).reshape(6, 4)[1:4], (2, 3, 4)),
  "indices at random": (lambda w: jnp.take(w, jnp.array([0, 3, 1]), axis=1), (4, 6)),
  "an index outside": (lambda w: jnp.take(w, jnp.array([5, 6, 7]), axis=1, fill_value=0), (4, 6)),
  "a sum": (lambda w: w + w.T, (4, 4)),
  "a stack": (lambda w: jnp.stack([w, w], 1), (4, 6)),
}


@pytest.mark.parametrize("name", NONE)
def test_operations_without_a_view_have_none(name):
  assert view_of(*NONE[name])[0] is None


def test_chains_of_moves_at_random():
  rng, served = np.random.default_rng(0), 0
  for _ in range(150):
    steps, shape = [], tuple(rng.choice([1, 2, 3, 4, 6], size=rng.integers(1, 4)))
    now = np.empty(shape)
    for _ in range(rng.integers(1, 5)):
      step = random_move(rng, now.shape)
      steps.append(step)
      now = np.asarray(step(now))
    view, true = view_of(lambda w, steps=steps: run_all(steps, w), shape)
    if view is not None:
      served += 1
      np.testing.assert_array_equal(indices(view), true, err_msg=str(shape))
  assert served > 100


def run_all(steps, w):
  for step in steps:
    w = step(w)
  return w


def random_move(rng, shape):
  kind, axis = rng.integers(5), int(rng.integers(len(shape)))
  if kind == 0:
    order = tuple(int(i) for i in rng.permutation(len(shape)))
    return lambda w: w.transpose(order)
  if kind == 1:
    size, new = int(np.prod(shape)), []
    while size > 1:
      new.append(int(rng.choice([n for n in range(2, size + 1) if size % n == 0])))
      size //= new[-1]
    return lambda w: w.reshape(new or (1,))
  if kind == 2 and shape[axis] > 1:
    low = int(rng.integers(shape[axis] - 1))
    high, step = int(rng.integers(low + 1, shape[axis] + 1)), int(rng.choice([1, 1, 2]))
    return lambda w: w[(slice(None),) * axis + (slice(low, high, step),)]
  if kind == 3:
    return lambda w: w[(slice(None),) * axis + (slice(None, None, -1),)]
  return lambda w: w[(slice(None),) * axis + (None,)]
