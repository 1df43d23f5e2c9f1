"""The rows that a site multiplies, against windows taken by hand: rows @ kernel^T is the operation."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError


def drawn(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def op_of(fn, kernel, x):
  traced = graph.trace(lambda v, x: fn(v["w"], x), {"w": kernel}, x)
  (op,) = [op for op in traced.sites.values() if op.kind in ("dot", "conv")]
  return op


def windows(x, sizes, strides, pads, dilations=None, gaps=None, groups=1):
  """Patches (groups, positions, channels of a group * places) of (N, *spatial, C), by their definition."""
  n, *spatial, channels = x.shape
  dilations, gaps = dilations or [1] * len(sizes), gaps or [1] * len(sizes)
  wide = np.zeros((n, *((length - 1) * gap + 1 for length, gap in zip(spatial, gaps)), channels))
  wide[(slice(None), *(slice(None, None, gap) for gap in gaps))] = x
  wide = np.pad(wide, [(0, 0), *pads, (0, 0)])
  counts = [
    (length - (size - 1) * step - 1) // stride + 1
    for length, size, stride, step in zip(wide.shape[1:-1], sizes, strides, dilations)
  ]
  found = np.zeros((groups, n, *counts, channels // groups, *sizes))
  for group, place in itertools.product(range(groups), itertools.product(*map(range, counts))):
    for tap in itertools.product(*map(range, sizes)):
      at = tuple(o * s + t * d for o, s, t, d in zip(place, strides, tap, dilations))
      per = channels // groups
      found[(group, slice(None), *place, slice(None), *tap)] = wide[
        (slice(None), *at, slice(group * per, (group + 1) * per))
      ]
  return found.reshape(groups, n * int(np.prod(counts)), -1)


# sizes, strides, padding, kernel dilation, input dilation, groups
CONVOLUTIONS = {
  "valid": ((3, 3), (1, 1), [(0, 0), (0, 0)], (1, 1), (1, 1), 1),
  "same": ((3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), (1, 1), 1),
  "strided and uneven": ((3, 2), (2, 3), [(0, 1), (2, 0)], (1, 1), (1, 1), 1),
  "dilated": ((3, 3), (1, 2), [(2, 2), (2, 2)], (2, 2), (1, 1), 1),
  "transposed": ((3, 3), (1, 1), [(2, 1), (1, 2)], (1, 1), (2, 2), 1),
  "grouped": ((3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), (1, 1), 2),
  "depthwise": ((3, 3), (2, 2), [(1, 1), (1, 1)], (1, 1), (1, 1), 4),
  "cropped": ((3, 3), (1, 1), [(-1, 1), (1, -2)], (1, 1), (1, 1), 1),
  "one axis": ((4,), (2,), [(1, 1)], (1,), (1,), 2),
  "three axes": ((2, 1, 2), (1, 1, 1), [(0, 0), (0, 0), (1, 0)], (1, 1, 1), (1, 1, 1), 1),
}
LAYOUTS = {1: ("NHC", "HIO", "NHC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NHWDC", "HWDIO", "NHWDC")}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_of_a_convolution(name):
  sizes, strides, pads, dilations, gaps, groups = CONVOLUTIONS[name]
  x = drawn(0, 2, *(7, 6, 3)[: len(sizes)], 4)
  kernel = drawn(1, *sizes, 4 // groups, 8)

  def conv(w, x):
    return jax.lax.conv_general_dilated(
      x, w, strides, pads, gaps, dilations, LAYOUTS[len(sizes)], feature_group_count=groups
    )

  op = op_of(conv, kernel, x)
  expected = (
    windows(np.pad(x, 0), sizes, strides, pads, dilations, gaps, groups)
    if name != "cropped"
    else windows(x[:, 1:, :-2], sizes, strides, [(0, 1), (1, 0)], dilations, gaps, groups)
  )
  found = graph.rows(op, jnp.asarray(x))
  np.testing.assert_array_equal(found, expected.astype(np.float32))
  matrix = np.moveaxis(kernel.astype(np.float64), (-1, -2), (0, 1)).reshape(groups, 8 // groups, -1)
  product = np.einsum("gni,goi->ngo", expected, matrix)
  result = np.asarray(conv(kernel, x))
  np.testing.assert_allclose(product.reshape(result.shape), result, atol=1e-5)


def test_channels_first_and_another_batch():
  def conv(w, x):
    return jax.lax.conv_general_dilated(x, w, (1, 2), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))

  kernel = drawn(1, 5, 3, 3, 3)
  op = op_of(conv, kernel, drawn(0, 1, 3, 4, 6))
  x = drawn(2, 4, 3, 4, 6)
  expected = windows(x.transpose(0, 2, 3, 1), (3, 3), (1, 2), [(1, 1), (0, 1)])
  np.testing.assert_array_equal(graph.rows(op, jnp.asarray(x)), expected.astype(np.float32))


@pytest.mark.parametrize(
  ("equation", "kernel", "x"),
  [
    ("nc,cd->nd", (3, 5), (4, 3)),
    ("nc,dc->nd", (5, 3), (4, 3)),
    ("nsc,chd->nshd", (3, 2, 5), (4, 6, 3)),
    ("nshd,hdc->nsc", (2, 5, 3), (4, 6, 2, 5)),
    ("ngc,gcd->ngd", (2, 3, 5), (4, 2, 3)),
    ("nchw,oc->nohw", (5, 3), (2, 3, 4, 2)),
  ],
)
def test_rows_of_a_dot(equation, kernel, x):
  """Each element of the rows times the kernel's matrix, in float64, is the einsum."""
  w, x = drawn(1, *kernel), drawn(0, *x)
  op = op_of(lambda w, x: jnp.einsum(equation, x, w), w, x)
  found = np.asarray(graph.rows(op, jnp.asarray(x)), np.float64)
  (left, right), out = equation.split("->")[0].split(","), equation.split("->")[1]
  shared = [c for c in right if c in left and c in out]
  summed = [c for c in left if c not in out]
  (contract, batch), side = op.params["dimension_numbers"], op.kernel_index
  names = [right[axis] for axis in contract[side]]  # the equation's own order of what is summed
  assert sorted(names) == sorted(summed) and [right[axis] for axis in batch[side]] == shared
  free = "".join(c for c in right if c not in left)
  matrix = np.einsum(f"{right}->{''.join(shared)}{free}{''.join(names)}", w.astype(np.float64))
  matrix = matrix.reshape(found.shape[0], -1, found.shape[2])
  product = np.einsum("gni,goi->gno", found, matrix)
  positions = "".join(c for c in left if c in out and c not in shared)
  sizes = dict(zip(left + right, x.shape + w.shape))
  product = product.reshape([sizes[c] for c in (*shared, *positions, *free)])
  expected = np.einsum(f"{left},{right}->{''.join(shared)}{positions}{free}", x, w)
  np.testing.assert_allclose(product, expected, atol=1e-5)


def test_no_examples_have_no_rows():
  op = op_of(lambda w, x: x @ w, drawn(1, 3, 5), drawn(0, 2, 3))
  assert graph.rows(op, jnp.zeros((0, 3))).shape == (1, 0, 3)


def test_operations_without_a_kernel_are_refused():
  traced = graph.trace(lambda v, x: jax.nn.relu(x @ x.T) + v["b"], {"b": jnp.ones(2)}, drawn(0, 2, 3))
  (op,) = [op for op in traced.sites.values() if op.kind == "dot"]
  with pytest.raises(UserError, match="multiplies no rows by a kernel: it multiplies two activations"):
    graph.rows(op, jnp.ones((2, 3)))
