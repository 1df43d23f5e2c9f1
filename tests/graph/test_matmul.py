"""A kernel as matrices: rows @ matrix^T is the operation, and what is put back is where it was taken."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models


def product(op, rows, matrices):
  """The operation's output from its rows, in float64; the axes are those of the equation."""
  out = np.einsum("gni,goi->gno", np.asarray(rows, np.float64), np.asarray(matrices, np.float64))
  shape = op.outputs[0].shape
  if op.kind == "conv":
    spec = op.params["dimension_numbers"].out_spec
    batch, channels, *spatial = (shape[axis] for axis in spec)
    out = out.reshape(out.shape[0], batch, *spatial, -1)
    out = np.moveaxis(out, 0, -2).reshape(batch, *spatial, channels)
    return np.moveaxis(out, -1, 1).transpose(np.argsort(spec))
  side, (contract, batch) = op.kernel_index, op.params["dimension_numbers"]
  sizes = [
    [n for axis, n in enumerate(op.inputs[i].shape) if axis not in (*contract[i], *batch[i])] for i in (1 - side, side)
  ]
  groups = [op.inputs[side].shape[axis] for axis in batch[side]]
  out = out.reshape(*groups, *sizes[0], *sizes[1])
  if side == 0:  # the kernel's axes come first
    first, count = len(groups), len(sizes[0])
    out = np.moveaxis(out, range(first, first + count), range(-count, 0)) if count else out
  return out


class Layers(nn.Module):
  """One layer by name."""

  name_of: str

  @nn.compact
  def __call__(self, x):
    return {
      "dense": lambda: nn.Dense(5, name="layer"),
      "conv": lambda: nn.Conv(6, (3, 2), strides=(2, 1), name="layer"),
      "grouped": lambda: nn.Conv(6, (3, 3), feature_group_count=2, kernel_dilation=2, name="layer"),
      "depthwise": lambda: nn.Conv(8, (3, 3), feature_group_count=4, padding="VALID", name="layer"),
      "transposed": lambda: nn.ConvTranspose(3, (3, 3), strides=(2, 2), name="layer"),
      "flipped": lambda: nn.ConvTranspose(3, (3, 2), strides=(2, 1), transpose_kernel=True, name="layer"),
      "general": lambda: nn.DenseGeneral((2, 3), axis=(-2, -1), name="layer"),
      "heads": lambda: nn.DenseGeneral((2, 3), axis=-1, name="layer"),
      "batched": lambda: nn.DenseGeneral(3, axis=-1, batch_dims=(0,), name="layer"),
      "einsum": lambda: nn.Einsum((4, 2, 5), "bhwc,cke->bkhwe", name="layer"),
    }[self.name_of]()(x)


LAYERS = ("dense", "conv", "grouped", "depthwise", "transposed", "flipped", "general", "heads", "batched", "einsum")


@pytest.mark.parametrize("layer", LAYERS)
def test_rows_times_the_matrix_are_the_operation_in_every_layer(layer):
  model, x = Layers(layer), models.normal(0, 2, 5, 6, 4)
  variables = models.fill(jax.eval_shape(model.init, jax.random.key(0), x))
  traced = graph.trace(model.apply, variables, x)
  op = traced.sites["layer/kernel"]
  kernel = variables["params"]["layer"]["kernel"]
  form = graph.matmul(op)

  @jax.jit
  def run(variables, x):
    """What is taken, put back, and put back with one number changed; and the operation's rows and output."""
    kernel = variables["params"]["layer"]["kernel"]
    matrices = form.take(kernel)
    changed = form.put(kernel, matrices.at[..., 0, 0, 1].add(1.0))
    operand = x.reshape(op.inputs[1 - op.kernel_index].shape) if layer != "batched" else x
    _, found = graph.taps(model.apply, ["layer/kernel"])(variables, x)
    put = form.put(kernel, matrices), changed, form.take(changed)
    return matrices, put, graph.rows(op, operand), found["layer/kernel"]

  matrices, (same, changed, again), rows, out = run(variables, x)
  assert form.leaf == "layer/kernel" and matrices.shape == form.shape
  np.testing.assert_allclose(product(op, rows, matrices), out, atol=1e-5)
  np.testing.assert_array_equal(same, kernel)
  assert np.count_nonzero(np.asarray(changed) != np.asarray(kernel)) == 1
  expected = np.array(matrices)
  expected[..., 0, 0, 1] += 1
  np.testing.assert_array_equal(again, expected)


def drawn(*shape):
  return models.normal(4, *shape)


# name: (function of the leaf and an input, the leaf's shape, the input's, the matrix in numpy)
VIEWS = {
  "as it is": (lambda w, x: x @ w, (4, 5), (3, 4), lambda w: w.T[None]),
  "on the left": (lambda w, x: (w @ x.T).T, (5, 4), (3, 4), lambda w: w[None]),
  "transposed": (lambda w, x: x @ w.T, (5, 4), (3, 4), lambda w: w[None]),
  "reshaped": (lambda w, x: x @ w.reshape(4, 6), (4, 2, 3), (3, 4), lambda w: w.reshape(4, 6).T[None]),
  "a third of a fused kernel": (lambda w, x: x @ w[:, 3:6], (4, 9), (3, 4), lambda w: w[:, 3:6].T[None]),
  "interleaved heads": (
    lambda w, x: x @ w.reshape(4, 2, 3, 5)[:, :, 1].reshape(4, 10),
    (4, 30),
    (3, 4),
    lambda w: w.reshape(4, 2, 3, 5)[:, :, 1].reshape(4, 10).T[None],
  ),
  "a layer of a stack": (lambda w, x: x @ w[2], (3, 4, 5), (3, 4), lambda w: w[2].T[None]),
  "turned round": (lambda w, x: x @ w[::-1, ::2], (4, 6), (3, 4), lambda w: w[::-1, ::2].T[None]),
  "cast": (lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16), (4, 5), (3, 4), lambda w: w.T[None]),
  "one of each": (lambda w, x: x @ w, (1, 1), (3, 1), lambda w: w.T[None]),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_kernel_that_is_part_of_a_leaf(name):
  fn, leaf, x, matrix = VIEWS[name]
  w = np.asarray(drawn(*leaf))
  traced = graph.trace(lambda v, x: fn(v["w"], x), {"w": w}, drawn(*x))
  form = graph.matmul(traced.sites["w"])
  np.testing.assert_array_equal(form.take(w), matrix(w))
  sevens = np.full(form.shape, 7.0, np.float32)
  taken, put = jax.jit(lambda w, sevens: (form.take(w), form.put(w, sevens)))(w, sevens)
  np.testing.assert_array_equal(taken, matrix(w))
  new = form.put(w, np.full(form.shape, 7.0))
  assert isinstance(new, np.ndarray) and new.dtype == w.dtype
  np.testing.assert_array_equal(form.take(new), np.full(form.shape, 7.0, np.float32))
  assert np.count_nonzero(new != w) == np.prod(form.shape)
  np.testing.assert_array_equal(put, new)


def test_layers_of_a_scan_and_a_scan_in_a_scan():
  def fn(variables, x):
    def outer(x, w):
      return jax.lax.scan(lambda x, one: (x @ one, None), x, w)[0], None

    return jax.lax.scan(outer, x, variables["w"])[0]

  w = drawn(2, 3, 4, 4)
  form = graph.matmul(graph.trace(fn, {"w": w}, drawn(5, 4)).sites["w"])
  assert form.shape == (2, 3, 1, 4, 4)
  np.testing.assert_array_equal(form.take(w)[:, :, 0], w.transpose(0, 1, 3, 2))


def test_a_kernel_that_all_turns_of_a_scan_share_has_one_matrix():
  def fn(variables, x):
    return jax.lax.scan(lambda x, _: (x @ variables["w"], None), x, None, length=3)[0]

  w = drawn(4, 4)
  form = graph.matmul(graph.trace(fn, {"w": w}, drawn(5, 4)).sites["w"])
  assert form.shape == (1, 4, 4)
  np.testing.assert_array_equal(form.take(w)[0], w.T)


def test_second_moments_have_the_order_of_the_matrix():
  """A layer's mean squared output is the trace of W M W^T."""
  model, x = Layers("grouped"), models.normal(0, 3, 5, 6, 4)
  variables = models.fill(jax.eval_shape(model.init, jax.random.key(0), x))
  found = graph.observe(model.apply, variables, [x], {"layer/kernel": [graph.second_moment()]})
  moment = found["layer/kernel"]["second_moment"]
  form = graph.matmul(graph.trace(model.apply, variables, x).sites["layer/kernel"])
  w = np.asarray(form.take(variables["params"]["layer"]["kernel"]), np.float64)
  _, out = graph.taps(model.apply, ["layer/kernel"])(variables, x)
  squared = np.mean(np.asarray(out["layer/kernel"], np.float64) ** 2, (0, 1, 2))
  np.testing.assert_allclose(np.einsum("goi,gij,goj->go", w, moment, w).reshape(-1), squared, rtol=1e-5)


def refused(fn, **leaves):
  traced = graph.trace(fn, leaves, drawn(3, 4))
  op = next(op for op in traced.sites.values() if op.kind in ("dot", "conv", "ragged_dot"))
  with pytest.raises(UserError) as caught:
    graph.matmul(op)
  return str(caught.value)


def test_kernels_that_are_not_a_matrix_are_refused():
  w = drawn(4, 4)
  assert refused(lambda v, x: x @ jnp.tanh(v["w"]), w=w) == (
    "the kernel of 'w' is no matrix: its kernel is computed from 'w'"
  )
  assert "it multiplies two activations" in refused(lambda v, x: x @ x.T * v["w"][0, 0], w=w)
  assert "its kernel is a constant" in refused(lambda v, x: x @ jnp.ones((4, 2)) * v["w"][0, 0], w=w)
  assert "more than once" in refused(lambda v, x: x @ jnp.broadcast_to(v["w"][0, :, None], (4, 3)), w=w)
  assert "cannot be followed" in refused(lambda v, x: x @ v["w"].T.reshape(4, 6), w=drawn(4, 6))
  form = graph.matmul(graph.trace(lambda v, x: x @ v["w"], {"w": w}, drawn(3, 4)).sites["w"])
  with pytest.raises(UserError, match=r"the leaf 'w' has the shape \(4, 5\); expected \(4, 4\)"):
    form.take(drawn(4, 5))
  with pytest.raises(UserError, match=r"as matrices, the kernel 'w' has the shape \(4, 4\); expected \(1, 4, 4\)"):
    form.put(w, w)
