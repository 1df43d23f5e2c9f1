"""The axes of a kernel's grid in its leaf. The oracle rounds leaves in numpy, along axes written here by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import map_named
from tests.numbers import array

BITS, TOP = 4, 7  # codes from -7 to 7


def data(shape, seed=0):
  return array(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def rounded(w, kept, shape=None):
  """A leaf on a narrow symmetric grid with a scale for each combination of the kept axes of `shape`, in float64."""
  x = np.asarray(w, np.float64).reshape(shape or np.shape(w))
  others = tuple(i for i in range(x.ndim) if i not in kept)
  s = np.abs(x).max(others, keepdims=True) / TOP
  return (np.clip(np.round(x / s), -TOP, TOP) * s).reshape(np.shape(w))


@jax.jit
def restored(w, grid):
  """The values of a leaf's codes, and those that training uses."""
  return quant.dequantize(quant.codes(w, grid), grid), quant.fake_quant(w, grid)


def decibels(float_, found):
  float_, found = np.asarray(float_, np.float64), np.asarray(found, np.float64)
  return 10 * np.log10(np.sum(float_**2) / np.sum((float_ - found) ** 2))


def weights_only(fn, variables, *x, spec=f"w{BITS}"):
  model = quant.quantize(fn, quant.policy(spec, ends=None))
  qparams, state = model.init(variables, *x)
  return model, qparams, state


STACK = jnp.concatenate([data((1, 6, 6), 1), 0.01 * data((1, 6, 6), 2), 30 * data((1, 6, 6), 3)])
QKV = jnp.concatenate([data((6, 8), 1), 0.05 * data((6, 8), 2), 10 * data((6, 8), 3)], axis=1)
ROWS = jnp.concatenate([data((6, 6), 1), 0.02 * data((6, 6), 2)])


def unrolled(v, x):
  for i in range(3):
    x = jnp.tanh(x @ v["w"][i])
  return x


def at_constant_indices(v, x):
  w = v["w"]
  x = jnp.tanh(x @ w[jnp.array(0)])
  x = jnp.tanh(x @ jax.lax.dynamic_index_in_dim(w, 1, keepdims=False))
  return x @ jnp.take(w, -1, axis=0)


def taken_apart(v, x):
  a, b, c = v["w"]
  return jnp.tanh(jnp.tanh(x @ a) @ b) @ c


def split(v, x):
  q, k, u = jnp.split(v["w"], 3, axis=1)
  return jnp.concatenate([x @ q, x @ k, x @ u], axis=1)


def reshaped(v, x):
  w = v["w"].reshape(6, 3, 2, 4)
  return jnp.stack([jnp.einsum("bd,dhk->bhk", x, w[:, i]) for i in range(3)])


def halves(v, x):
  return jnp.tanh(x @ v["w"][:6]) @ v["w"][6:]


def strided(v, x):
  return jnp.tanh(x @ v["w"].reshape(6, 2, 6)[:, 0]) @ v["w"][1::2]


def broadcast(v, x):
  return jnp.einsum("bd,ndh->bnh", x, jnp.broadcast_to(v["w"], (3, 6, 4)))


# name: fn, the leaf, and the shape and the axes of its scales
SHARED = {
  "unrolled": (unrolled, STACK, (3, 6, 6), (0, 2)),
  "constant indices": (at_constant_indices, STACK, (3, 6, 6), (0, 2)),
  "iterated": (taken_apart, STACK, (3, 6, 6), (0, 2)),
  "unstacked": (lambda v, x: taken_apart({"w": jnp.unstack(v["w"])}, x), STACK, (3, 6, 6), (0, 2)),
  "split": (split, QKV, (6, 24), (1,)),
  "reshaped and indexed": (reshaped, QKV, (6, 24), (1,)),
  "halves of the rows": (halves, ROWS, (2, 6, 6), (0, 2)),
  "every other row": (strided, ROWS, (6, 2, 6), (1, 2)),
  "reversed": (lambda v, x: x @ v["w"][::-1, ::-1], data((6, 5), 1), (6, 5), (1,)),
  "turned": (lambda v, x: x @ v["w"].T, data((5, 6), 1), (5, 6), (0,)),
  "flat": (lambda v, x: x @ v["w"].reshape(6, 5), data((30,), 1), (6, 5), (1,)),
  "cast": (lambda v, x: x @ v["w"].astype(jnp.float16).astype(jnp.float32), jnp.eye(6), (6, 6), (1,)),
  "broadcast": (broadcast, data((6, 4), 1), (6, 4), (1,)),
  "used alike twice": (lambda v, x: jnp.tanh(x @ v["w"]) @ v["w"], data((6, 6), 1), (6, 6), (1,)),
  "a part and the whole": (lambda v, x: x @ v["w"][:, :4] + (x @ v["w"])[:, :4], data((6, 6), 1), (6, 6), (1,)),
  "flipped stack": (lambda v, x: unrolled({"w": v["w"][::-1]}, x), STACK, (3, 6, 6), (0, 2)),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", SHARED)
def test_uses_of_slices_share_one_grid_written_in_the_axes_of_the_leaf(name):
  fn, w, shape, kept = SHARED[name]
  variables, x = {"w": w}, data((5, 6), 9)
  model, qparams, state = weights_only(fn, variables, x)
  grids = model.grids(qparams, state, variables, x)
  assert list(grids) == ["w"] and list(state) == ["w"]
  assert grids["w"].scale.shape == tuple(shape[i] for i in kept)
  expected = rounded(w, kept, shape)
  for values in restored(w, grids["w"]):
    np.testing.assert_allclose(values, expected, rtol=2e-6, atol=1e-9)
  both = jax.jit(lambda q, s, v, w, x: (model.apply(q, s, v, x)[0], fn({"w": w}, x)))
  found, by_hand = both(qparams, state, variables, expected.astype(np.float32), x)
  np.testing.assert_allclose(found, by_hand, rtol=2e-4, atol=1e-5)
  assert quant.kernel_axes(graph.trace(fn, variables, x), f"w{BITS}")["w"].shape == grids["w"].shape


def test_a_matrix_and_its_transpose_have_a_grid_each_and_explain_says_that_a_file_stores_both():
  fn = lambda v, x: jnp.tanh(x @ v["w"]) @ v["w"].T
  w = data((6, 6), 1) * jnp.geomspace(0.01, 10, 6) * jnp.geomspace(0.01, 10, 6)[:, None]
  variables, x = {"w": w}, data((64, 6), 9)
  model, qparams, state = weights_only(fn, variables, x)
  grids = model.grids(qparams, state, variables, x)
  assert list(grids) == ["w", "w#1"]
  by_column, by_row = rounded(w, (1,)), rounded(w, (0,))
  for name, expected in (("w", by_column), ("w#1", by_row)):
    np.testing.assert_allclose(restored(w, grids[name])[1], expected, rtol=2e-6)
  expected = np.tanh(np.asarray(x, np.float64) @ by_column) @ by_row.T
  np.testing.assert_allclose(jax.jit(model.apply)(qparams, state, variables, x)[0], expected, rtol=1e-4, atol=1e-4)
  notes = {site: found.note for site, found in model.explain(variables, x).items()}
  assert notes["w"] == "" and notes["w#1"] == "a grid of its own beside that of 'w': a file stores 'w' once for each"
  with pytest.raises(UserError, match="'w' has two grids, 'w' and 'w#1'"):
    quant.kernel_axes(graph.trace(fn, variables, x), "w4")
  one, qparams, state = weights_only(fn, variables, x, spec="w4 per_tensor")  # one code serves both
  assert list(one.grids(qparams, state, variables, x)) == ["w"]
  assert quant.kernel_axes(graph.trace(fn, variables, x), "w4 per_tensor")["w"].axis == ()


def test_later_uses_of_a_second_grid_find_it():
  fn = lambda v, x: jnp.tanh(jnp.tanh(x @ v["w"]) @ v["w"].T) @ v["w"].T
  variables, x = {"w": data((6, 6), 1)}, data((4, 6), 9)
  model, qparams, state = weights_only(fn, variables, x)
  grids = model.grids(qparams, state, variables, x)
  assert sorted(state) == ["w", "w#1"] and grids["w#2"] is grids["w#1"]


def test_uneven_slices_and_computed_kernels_have_grids_of_their_own():
  def fn(v, x):
    h = jnp.tanh(x @ v["w"][:3]) @ v["w"][3:9]
    return h @ jnp.sin(v["u"]) + h @ jnp.cos(v["u"])

  variables, x = {"w": ROWS.at[3:].multiply(50)[:10], "u": data((6, 6), 4)}, data((5, 3), 9)
  model, qparams, state = weights_only(fn, variables, x)
  grids = model.grids(qparams, state, variables, x)
  assert sorted(grids) == ["u", "u#1", "w", "w#1"]
  w, u = (np.asarray(variables[n], np.float64) for n in "wu")
  h = np.tanh(np.asarray(x) @ rounded(w[:3], (1,))) @ rounded(w[3:9], (1,))
  expected = h @ rounded(np.sin(u), (1,)) + h @ rounded(np.cos(u), (1,))
  np.testing.assert_allclose(jax.jit(model.apply)(qparams, state, variables, x)[0], expected, rtol=1e-4, atol=1e-4)
  with pytest.raises(UserError, match="a grid written for the shape .3, 6. was given an array of shape .10, 6."):
    quant.codes(variables["w"], grids["w"])
  with pytest.raises(UserError, match="the kernel of 'w' is not simply read from 'w'"):
    quant.kernel_axes(graph.trace(fn, variables, x), {"w*": "w4", "*": "float"})


def affine(x):
  """A range on 256 codes, in float64; 0 is a code."""
  low, high = min(x.min(), 0), max(x.max(), 0)
  s = (high - low) / 255
  z = np.round(-low / s)
  return (np.clip(np.round(x / s) + z, 0, 255) - z) * s


def narrow(w, kept):
  s = np.abs(w).max(tuple(i for i in range(w.ndim) if i not in kept), keepdims=True) / 127
  return np.round(w / s) * s


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", ["w8a8", "w8a8 per_tensor", "w8a8 learned start=range"])
@pytest.mark.parametrize("name", ["slices", "tied"])
def test_signal_to_noise_is_that_of_two_leaves(name, spec):
  """`relu(x @ w[0]) @ w[1]` and `relu(x @ w) @ w.T`: with one grid, of the first use, 14 and 4 dB on these."""
  a = data((16, 16), 1) * (jnp.geomspace(0.01, 10, 16) if name == "tied" else 1)
  if name == "slices":
    b = 20 * data((16, 16), 2)
    fn, variables = lambda v, x: jax.nn.relu(x @ v["w"][0]) @ v["w"][1], {"w": jnp.stack([a, b])}
  else:
    b = a.T
    fn, variables = lambda v, x: jax.nn.relu(x @ v["w"]) @ v["w"].T, {"w": a}
  x = data((256, 16), 9)
  model = quant.quantize(fn, spec)
  found = jax.jit(model.apply)(*model.init(variables, x), variables, x)[0]
  x, a, b = (np.asarray(v, np.float64) for v in (x, a, b))
  kept = () if "per_tensor" in spec else (1,)
  expected = affine(affine(np.maximum(affine(x) @ narrow(a, kept), 0)) @ narrow(b, kept))
  float_ = np.maximum(x @ a, 0) @ b
  assert abs(decibels(float_, found) - decibels(float_, expected)) < 0.15
  assert decibels(float_, found) > 30


class Heads(nn.Module):
  @nn.compact
  def __call__(self, x):
    h = nn.DenseGeneral((4, 8), use_bias=False, name="q")(x)
    return nn.DenseGeneral(5, axis=(-2, -1), use_bias=False, name="out")(h)


def conv(rank, numbers=None, **kw):
  return lambda v, x: jax.lax.conv_general_dilated(x, v["w"], (1,) * rank, "SAME", dimension_numbers=numbers, **kw)


def module(m):
  return lambda v, x: m.apply({"params": v}, x)


def grown(leaf, axes, seed=3):
  """A leaf whose scales differ along these axes, so that a grid that misses one is seen."""
  for i, axis in enumerate(axes):
    factors = np.exp(np.random.default_rng(seed + i).normal(size=leaf.shape[axis]))
    leaf = np.asarray(leaf) * factors.astype(np.float32).reshape([-1 if k == axis else 1 for k in range(leaf.ndim)])
  return jnp.asarray(leaf)


# fn, the input's shape, and each leaf's shape and kept axes
LAYERS = {
  "DenseGeneral": (module(Heads()), (3, 6), {"q/kernel": ((6, 4, 8), (1, 2)), "out/kernel": ((4, 8, 5), (2,))}),
  "einsum": (lambda v, x: jnp.einsum("D,NDH->NH", x, v["w"]), (6,), {"w": ((3, 6, 4), (0, 2))}),
  "batched": (lambda v, x: jnp.einsum("nbd,ndh->nbh", x, v["w"]), (3, 2, 6), {"w": ((3, 6, 4), (0, 2))}),
  "vmapped": (lambda v, x: jax.vmap(lambda w, x: x @ w)(v["w"], x), (3, 2, 6), {"w": ((3, 6, 4), (0, 2))}),
  "vmap(W @ x)": (lambda v, x: jax.vmap(lambda x: v["w"] @ x)(x), (5, 6), {"w": ((4, 6), (0,))}),
  "dense on (N, T, C)": (lambda v, x: x @ v["w"], (2, 3, 6), {"w": ((6, 4), (1,))}),
  "kernel first": (lambda v, x: jnp.einsum("oi,bti->bto", v["w"], x), (2, 3, 6), {"w": ((4, 6), (0,))}),
  "vector": (lambda v, x: x @ v["w"], (5, 6), {"w": ((6,), ())}),
  "grouped": (conv(2, ("NHWC", "HWIO", "NHWC"), feature_group_count=2), (2, 5, 5, 4), {"w": ((3, 3, 2, 6), (3,))}),
  "depthwise": (conv(2, ("NHWC", "HWIO", "NHWC"), feature_group_count=4), (2, 5, 5, 4), {"w": ((3, 3, 1, 8), (3,))}),
  "NCHW": (conv(2), (2, 4, 5, 5), {"w": ((6, 4, 3, 3), (0,))}),
  "1-D": (conv(1, ("NWC", "WIO", "NWC")), (2, 7, 4), {"w": ((3, 4, 6), (2,))}),
  "3-D": (conv(3, ("NDHWC", "DHWIO", "NDHWC")), (1, 4, 4, 4, 2), {"w": ((2, 2, 2, 2, 3), (4,))}),
  "vmapped convolution": (
    lambda v, x: jax.vmap(conv(2, ("NHWC", "HWIO", "NHWC")))(v, x),
    (2, 1, 4, 4, 3),
    {"w": ((2, 3, 3, 3, 5), (0, 4))},
  ),
  "ConvTranspose": (module(nn.ConvTranspose(4, (3, 3))), (1, 5, 5, 3), {"kernel": ((3, 3, 3, 4), (3,))}),
  "ConvTranspose, turned": (
    module(nn.ConvTranspose(4, (3, 2), transpose_kernel=True)),
    (1, 5, 5, 3),
    {"kernel": ((3, 2, 4, 3), (2,))},
  ),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", LAYERS)
def test_one_scale_for_each_combination_of_output_and_batch_axes(name):
  fn, shape, leaves = LAYERS[name]
  variables = {}
  for i, (path, (size, kept)) in enumerate(leaves.items()):
    *outer, last = path.split("/")
    place = variables
    for part in outer:
      place = place.setdefault(part, {})
    place[last] = grown(data(size, i), kept)
  if name.startswith("ConvTranspose"):
    variables["bias"] = jnp.zeros(4)
  x = data(shape, 9)
  model, qparams, state = weights_only(fn, variables, x)
  grids = model.grids(qparams, state, variables, x)
  assert list(grids) == list(leaves)
  assert {n: g.scale.shape for n, g in grids.items()} == {n: tuple(s[i] for i in k) for n, (s, k) in leaves.items()}
  expected = map_named(lambda n, w: rounded(w, leaves[n][1]).astype(np.float32) if n in leaves else w, variables)
  found = map_named(lambda n, w: restored(w, grids[n])[0] if n in leaves else w, variables)
  map_named(lambda n, a, b: np.testing.assert_allclose(a, b, rtol=2e-6, err_msg=n), found, expected)
  both = jax.jit(lambda q, s, v, w, x: (model.apply(q, s, v, x)[0], fn(w, x)))
  np.testing.assert_allclose(*both(qparams, state, variables, expected, x), rtol=1e-4, atol=1e-4)
  notes = "".join(found.note for found in model.explain(variables, x).values())
  assert ("a file with one quantized axis must split or flatten it" in notes) == any(
    len(kept) > 1 for _, kept in leaves.values()
  )
