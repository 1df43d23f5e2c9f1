"""Products of codes against int64 numpy, their gradients against those of the rounded values."""

import functools
import sys
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from leanax import graph
from leanax.core.errors import UserError
from quant.carrier import CARRIERS, Coded, product, serves
from quant.policy import policy
from quant.quantize import quantize
from tests.backends import BITS, PRODUCTS, rounded
from tests.numbers import array, initial


def conv(**more):
  given = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **more}
  return lambda w, x: jax.lax.conv_general_dilated(x, w, **given)


class Case(NamedTuple):
  fn: object
  x: tuple
  w: tuple


CASES = {
  "dense": Case(lambda w, x: x @ w, (3, 20), (20, 7)),
  "transposed": Case(lambda w, x: x @ w.T, (2, 3, 20), (7, 20)),
  "kernel first": Case(lambda w, x: jnp.einsum("ok,bk->ob", w, x), (3, 20), (7, 20)),
  "vector": Case(lambda w, x: x @ w, (3, 20), (20,)),
  "two summed, two out": Case(lambda w, x: jnp.einsum("bnh,nhdk->bdk", x, w), (3, 4, 30), (4, 30, 5, 2)),
  "batched": Case(lambda w, x: jnp.einsum("bgk,gkn->gbn", x, w), (3, 4, 20), (4, 20, 5)),
  "same": Case(conv(), (2, 7, 6, 5), (3, 3, 5, 4)),
  "strided": Case(conv(window_strides=(2, 3)), (2, 9, 8, 5), (3, 2, 5, 4)),
  "dilated kernel": Case(conv(rhs_dilation=(2, 3)), (2, 9, 12, 5), (3, 3, 5, 4)),
  "uneven padding": Case(conv(padding=((4, 1), (0, 3))), (2, 5, 6, 5), (3, 3, 5, 4)),
  "grouped": Case(conv(feature_group_count=3), (2, 5, 5, 12), (3, 3, 4, 6)),
  "depthwise": Case(conv(feature_group_count=6), (2, 5, 5, 6), (3, 3, 1, 6)),
  "dilated input": Case(conv(lhs_dilation=(2, 2), padding=((1, 2), (2, 1))), (2, 4, 5, 3), (3, 3, 3, 4)),
  "NCHW": Case(conv(dimension_numbers=("NCHW", "OIHW", "NCHW")), (2, 5, 7, 6), (4, 5, 3, 3)),
  "1-D": Case(
    lambda w, x: jax.lax.conv_general_dilated(x, w, (2,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")),
    (2, 9, 5),
    (3, 5, 4),
  ),
  "transposed convolution": Case(
    lambda w, x: jax.lax.conv_transpose(x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")),
    (2, 4, 4, 5),
    (3, 3, 5, 4),
  ),
}


@functools.cache
def site(fn, w, x):
  """The one product of a function of arrays of these shapes: (op, index of the kernel)."""
  w, x = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (w, x))
  ops = [op for op in graph.trace(lambda v, x: fn(v["w"], x), {"w": w}, x).sites.values() if op.kind in ("dot", "conv")]
  (op,) = ops
  return op, op.kernel_index


def integers(fn, w, x):
  """The same function in float64, where sums of these codes are exact; it is checked that they are whole."""
  with jax.enable_x64(True):
    out = np.asarray(jax.jit(fn)(np.asarray(w, np.float64), np.asarray(x, np.float64)))
  whole = out.astype(np.int64)
  np.testing.assert_array_equal(whole, out)
  return whole


def operand(op, index, like):
  """Codes as the traced product's operand: its own shape may differ from the leaf's (a transpose before it)."""
  shape = op.inputs[index].shape
  if like.shape == shape:
    return like
  assert like.T.shape == shape
  return like.T


def coded(steps, scale, zero, largest):
  return Coded(array(steps, jnp.float32), array(scale, jnp.float32), zero, largest)


def draw(rng, case, bits_x=8, bits_w=8, worst=False):
  """Codes, less zero for the inputs: (x steps, zero point, w codes, largest of each)."""
  high_w, zero = 2 ** (bits_w - 1) - 1, -(2 ** (bits_x - 1)) + (0 if worst else 3)
  low, high = -(2 ** (bits_x - 1)) - zero, 2 ** (bits_x - 1) - 1 - zero
  if worst:
    # Near the largest, in all of its low bits: a sum beyond 2^24 in float32 alone would be rounded on its way.
    x, w = rng.integers(high - 3, high + 1, case.x), rng.integers(high_w - 3, high_w + 1, case.w)
  else:
    x, w = rng.integers(low, high + 1, case.x), rng.integers(-high_w, high_w + 1, case.w)
  return x, zero, w, (2**bits_x - 1, high_w)


def compiled(op, given, carrier, around=lambda call: call):
  """The product as one program of the operands' steps."""

  def call(*steps):
    return product(op, [g._replace(steps=s) for g, s in zip(given, steps, strict=True)], carrier)

  return np.asarray(jax.jit(around(call))(*(g.steps for g in given)))


def run(case, x, zero, w, largest, carrier, **more):
  op, kernel = site(case.fn, case.w, case.x)
  given = [None, None]
  given[kernel] = coded(operand(op, kernel, w), 1.0, None, largest[1])
  given[1 - kernel] = coded(operand(op, 1 - kernel, x), 1.0, jnp.asarray(zero, jnp.int32), largest[0])
  return compiled(op, given, carrier, **more)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", CASES)
def test_a_product_of_codes_is_that_of_integers(name, carrier):
  case = CASES[name]
  x, zero, w, largest = draw(np.random.default_rng(0), case)
  got = run(case, x, zero, w, largest, carrier)
  np.testing.assert_array_equal(got, integers(case.fn, w, x).astype(np.float32))


@pytest.mark.sampled(4)
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("terms", [20, 600, 4608])
def test_nan_is_nan_in_every_carrier_and_spares_the_others(terms, bits, carrier):
  x, w = np.ones((3, terms)), np.ones((terms, 4))
  op, _ = site(lambda w, x: x @ w, w.shape, x.shape)
  x[1, 2], w[3, 2] = np.nan, np.nan
  given = [coded(x, 1.0, jnp.asarray(-128), 2**bits - 1), coded(w, 1.0, None, 127)]
  expected = np.full((3, 4), float(terms))
  expected[1], expected[:, 2] = np.nan, np.nan
  np.testing.assert_array_equal(compiled(op, given, carrier), expected)


@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", ["grouped", "NCHW", "dilated input"])
def test_nan_in_an_image_is_not_lost_and_spares_the_others(name, carrier):
  case = CASES[name]
  op, kernel = site(case.fn, case.w, case.x)
  given = [coded(np.ones(o.shape), 1.0, None, 127 if i == kernel else 255) for i, o in enumerate(op.inputs)]
  given[0] = given[0]._replace(steps=given[0].steps.at[(0,) * 4].set(jnp.nan), zero_point=jnp.asarray(-128))
  out = compiled(op, given, carrier)
  assert np.isnan(out[0]).any()
  assert np.isfinite(out[1]).all()


LONG = {
  "dense 4608": Case(lambda w, x: x @ w, (2, 4608), (4608, 3)),
  "dense 600": Case(lambda w, x: x @ w, (2, 600), (600, 3)),
  "dense 1032": Case(lambda w, x: x @ w, (2, 1032), (1032, 3)),
  "3x3x512": Case(conv(), (1, 3, 3, 512), (3, 3, 512, 2)),
  "3x3x64": Case(conv(window_strides=(2, 2), rhs_dilation=(1, 2)), (1, 6, 7, 64), (3, 3, 64, 2)),
  "25x23": Case(conv(rhs_dilation=(1, 2), padding=((13, 11), (5, 30))), (1, 16, 30, 2), (25, 23, 2, 2)),
  "grouped 1x1": Case(conv(feature_group_count=2), (1, 2, 2, 1400), (1, 1, 700, 4)),
  "two summed": Case(lambda w, x: jnp.einsum("bnh,nhd->bd", x, w), (2, 40, 33), (40, 33, 3)),
}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize("name", LONG)
def test_long_sums_are_exact_where_operands_are_rounded(name, carrier, worst):
  """Also with the operands of float products rounded to bfloat16, which codes must survive."""
  case = LONG[name]
  x, zero, w, largest = draw(np.random.default_rng(1), case, worst=worst)
  expected = integers(case.fn, w, x).astype(np.float32)
  got = run(case, x, zero, w, largest, carrier, around=lambda call: rounded(call, BITS["bfloat16"]))
  np.testing.assert_array_equal(got, expected)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("worst", [False, True])
@pytest.mark.parametrize("carrier", CARRIERS)
@pytest.mark.parametrize(("bits_x", "bits_w"), [(16, 8), (8, 16), (16, 16), (16, 4)])
def test_codes_of_sixteen_bits_are_exact(bits_x, bits_w, carrier, worst):
  case = LONG["dense 4608"]
  x, zero, w, largest = draw(np.random.default_rng(2), case, bits_x, bits_w, worst)
  got = run(case, x, zero, w, largest, carrier, around=lambda call: rounded(call, BITS["bfloat16"]))
  whole = x.astype(np.int64) @ w.astype(np.int64)
  np.testing.assert_array_equal(got, whole.astype(np.float32))  # numpy rounds int64 once


@pytest.mark.parametrize("carrier", CARRIERS)
def test_two_activations_each_with_a_zero_point(carrier):
  rng = np.random.default_rng(3)
  fn = lambda q, k: jnp.einsum("bqhd,bkhd->bhqk", q, k)
  shapes = (2, 5, 3, 8), (2, 4, 3, 8)
  given = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  op = next(o for o in graph.trace(lambda v, q, k: fn(q, k), {}, *given).sites.values() if o.kind == "dot")
  steps = [rng.integers(-100, 156, op.inputs[i].shape) for i in (0, 1)]
  given = [coded(s, 1.0, jnp.asarray(z, jnp.int32), 255) for s, z in zip(steps, (-28, 5), strict=True)]
  steps[1] = np.clip(steps[1], -133, 122)
  given[1] = given[1]._replace(steps=jnp.asarray(steps[1], jnp.float32))
  got = compiled(op, given, carrier)
  contract, batch = op.params["dimension_numbers"]
  with jax.enable_x64(True):
    wide = [jnp.asarray(s, jnp.float64) for s in steps]
    expected = jax.lax.dot_general(*wide, (contract, batch))
  np.testing.assert_array_equal(got, np.asarray(expected, np.float32))


def with_gradients(call):
  """One program of both operands and a cotangent: the result and both gradients."""

  def run(a, b, cotangent):
    out, transpose = jax.vjp(call, a, b)
    return out, *transpose(cotangent)

  return jax.jit(run)


def scaled_by_hand(op, given, cotangent):
  """The product of the values and its gradients, in float64."""
  values = [np.asarray(g.steps, np.float64) * np.asarray(g.scale, np.float64) for g in given]
  with jax.enable_x64(True):
    bind = lambda p, q: op.bind(p, q, preferred_element_type=np.dtype(np.float64))[0]
    return jax.device_get(with_gradients(bind)(*values, cotangent))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("carrier", ["float32", "int8"])
@pytest.mark.parametrize("name", ["dense", "transposed", "kernel first", "batched", "same", "grouped", "NCHW"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_scales_and_gradients_are_those_of_the_values(name, carrier, per_channel):
  case, rng = CASES[name], np.random.default_rng(4)
  x, zero, w, largest = draw(rng, case)
  op, kernel = site(case.fn, case.w, case.x)
  w = operand(op, kernel, w)
  shape = [1] * w.ndim
  if per_channel:
    from quant.sums import out_axes

    shape = [n if out is not None else 1 for n, out in zip(w.shape, out_axes(op, kernel), strict=True)]
  scale_w, scale_x = rng.uniform(0.01, 0.1, shape).astype(np.float32), np.float32(0.3)
  given = [None, None]
  given[kernel] = coded(w, scale_w, None, largest[1])
  given[1 - kernel] = coded(operand(op, 1 - kernel, x), scale_x, jnp.asarray(zero, jnp.int32), largest[0])
  assert serves(op, [g.scale for g in given])

  def call(a, b):
    return product(op, [g._replace(steps=s) for g, s in zip(given, (a, b), strict=True)], carrier)

  cotangent = rng.normal(size=op.outputs[0].shape)
  out, *found = with_gradients(call)(*(g.steps for g in given), cotangent.astype(np.float32))
  expected, *wanted = scaled_by_hand(op, given, cotangent)
  np.testing.assert_allclose(out, expected, rtol=3e-7, atol=1e-7 * np.abs(expected).max())
  for got, want in zip(found, wanted, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6 * np.abs(want).max())


def test_a_scale_along_the_summed_axis_is_not_served():
  case = CASES["dense"]
  op, kernel = site(case.fn, case.w, case.x)
  assert kernel == 1
  assert serves(op, [jnp.ones(()), jnp.ones((1, 7))])
  assert serves(op, [jnp.ones((3, 1)), jnp.ones((1, 1))])
  assert not serves(op, [jnp.ones(()), jnp.ones((20, 1))])


def test_the_user_s_precision_holds_for_cotangents_and_not_for_codes():
  def fn(w, x):
    return jnp.matmul(x, w, precision="highest")

  op, _ = site(fn, (600, 7), (3, 600))
  given = [coded(np.ones((3, 600)), 0.5, jnp.asarray(0), 255), coded(np.ones((600, 7)), 0.5, None, 127)]

  def call(a, b):
    return product(op, [given[0]._replace(steps=a), given[1]._replace(steps=b)], "bfloat16").sum()

  eqns = [
    e
    for e in all_eqns(jax.make_jaxpr(jax.grad(call, (0, 1)))(*(g.steps for g in given)).jaxpr)
    if "dot" in str(e[0].primitive)
  ]
  forward = [eqn.params for eqn, kinds in eqns if kinds == ["bfloat16"] * 2]
  assert len(forward) == 2  # of the codes, and of ones with the kernel's
  assert all(p["precision"] is None and p["preferred_element_type"] == jnp.float32 for p in forward)
  others = [eqn.params for eqn, kinds in eqns if kinds == ["float32"] * 2]
  assert len(others) >= 2
  assert all(p["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for p in others)


def all_eqns(jaxpr):
  found = []
  for eqn in jaxpr.eqns:
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if inner is not None:
      found += all_eqns(getattr(inner, "jaxpr", inner))
    else:
      found.append((eqn, [str(v.aval.dtype) for v in eqn.invars if hasattr(v.aval, "dtype")]))
  return found


def test_over_devices_under_vmap_scan_and_twice_differentiated():
  case, rng = CASES["dense"], np.random.default_rng(5)
  op, _ = site(case.fn, case.w, case.x)
  w = jnp.asarray(rng.integers(-127, 128, case.w), jnp.float32)
  x = jnp.asarray(rng.integers(0, 256, (4, *case.x)), jnp.float32)

  def loss(w, x, bind=False):
    if bind:
      return (op.bind(x * 0.1, w * 0.2)[0] ** 3).mean()
    given = [Coded(x, jnp.float32(0.1), jnp.asarray(-128), 255), Coded(w, jnp.float32(0.2), None, 127)]
    return (product(op, given, "bfloat16") ** 3).mean()

  slope = jax.jit(jax.grad(loss))
  each = np.stack([slope(w, one) for one in x])
  np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(w, x), each, rtol=1e-5)
  scanned = jax.jit(lambda w, x: jax.lax.scan(lambda c, one: (c, jax.grad(loss)(w, one)), 0, x)[1])(w, x)
  np.testing.assert_allclose(scanned, each, rtol=1e-5)
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))

  def shared(w, x):
    return jax.grad(lambda w: jax.lax.pmean(loss(w, x[0]), "d"))(w)

  spec = PartitionSpec("d")
  over = jax.jit(jax.shard_map(shared, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=PartitionSpec()))(w, x)
  np.testing.assert_allclose(over, each.mean(0), rtol=1e-5)
  # Cotangents are of the values 0.2 w: by the chain rule a derivative by w has another factor 0.2.
  twice = jax.jit(jax.grad(lambda w: (jax.grad(loss)(w, x[0]) ** 2).sum()))(w)
  plain = jax.jit(jax.grad(lambda w: ((jax.grad(lambda w: loss(w, x[0], True))(w) / 0.2) ** 2).sum()))(w) / 0.2
  np.testing.assert_allclose(twice, plain, rtol=1e-4)


class Pair(nn.Module):
  """A product of codes that is left in float by a rule, and one that is not."""

  dtype: object = None

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(6, (3, 3), dtype=self.dtype)(x))
    x = nn.relu(nn.Dense(8, dtype=self.dtype)(x.mean((1, 2))))
    return nn.Dense(5, dtype=self.dtype)(x)


RULES = [("Dense_0/kernel", "float"), ("*", "w8a8 learned")]


def pair():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 6, 6, 3)), jnp.float32)
  return initial(Pair(), x), x


def test_bfloat16_products_leave_scales_master_weights_and_inputs_of_grids_in_float32():
  variables, x = pair()
  model, half = quantize(Pair().apply, RULES), quantize(Pair().apply, RULES, "bfloat16", half=True)
  qparams, state = model.init(variables, x)
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), (qparams, state), half.init(variables, x)))

  def loss(trees, model):
    qparams, variables = trees
    return (model.apply(qparams, state, variables, x)[0] ** 2).mean()

  grads = {one: jax.jit(jax.grad(lambda t, one=one: loss(t, one)))((qparams, variables)) for one in (model, half)}
  assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(grads[half]))
  # Gradients of scales are sums of rounding errors: the site in float moves codes, and these another way.
  got, want = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(grads[one][1])]) for one in (half, model))
  assert 0 < np.linalg.norm(got - want) < 0.1 * np.linalg.norm(want)
  found = all_eqns(jax.make_jaxpr(lambda v: half.apply(qparams, state, v, x)[0])(variables).jaxpr)
  products = [(kinds, e.params["preferred_element_type"]) for e, kinds in found if e.primitive.name in PRODUCTS]
  assert [kinds for kinds, _ in products] == [["bfloat16"] * 2] * 3
  assert [str(np.dtype(kind)) for _, kind in products] == ["float32", "bfloat16", "float32"]
  others = {k for e, kinds in found if e.primitive.name in ("add", "max", "round") for k in kinds}
  assert others <= {"float32", "int32"}


def test_codes_are_the_same_with_bfloat16_products():
  variables, x = pair()
  model, half = (quantize(Pair().apply, "w8a8", *more) for more in ((), ("bfloat16", True)))
  qparams, state = model.init(variables, x)
  one, other = (jax.jit(m.apply)(qparams, state, variables, x)[0] for m in (model, half))
  np.testing.assert_array_equal(one, other)


def test_a_model_that_rounds_in_half_precision_is_refused():
  variables, x = pair()
  with pytest.raises(UserError, match="'Conv_0/kernel' is computed in bfloat16.*half=True"):
    quantize(Pair(jnp.bfloat16).apply, "w8a8").init(variables, x)
  quantize(Pair(jnp.bfloat16).apply, "w8").init(variables, x)
  with pytest.raises(UserError, match="unknown carrier of codes 'float16'"):
    quantize(Pair().apply, "w8a8", "float16")


class Early(nn.Module):
  """Every kind of site, and sums that the products and others read: those are on their grids before they are read."""

  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.relu(nn.Conv(8, (3, 3))(x)), (2, 2), (2, 2))
    y = nn.Conv(8, (3, 3), feature_group_count=8)(x)
    x = nn.Conv(8, (1, 1), use_bias=False)(nn.relu(y)) + y + x
    return nn.Dense(5)(nn.relu(x).mean((1, 2)))


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  ("setting", "carrier"), [("w8a8", "int8"), ("w8a8 learned", "float32"), ("w4a4 learned", "bfloat16")]
)
def test_gradients_are_those_of_products_of_the_rounded_values(monkeypatch, setting, carrier):
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(8, 8, 8, 3)), jnp.float32)
  variables = initial(Early(), x)
  qparams, state = quantize(Early().apply, setting).init(variables, x)

  def value_and_grads():
    model = quantize(Early().apply, setting, carrier)

    def loss(trees):
      qparams, variables, x = trees
      return (model.apply(qparams, state, variables, x)[0] ** 2).mean()

    return jax.jit(jax.value_and_grad(loss))((qparams, variables, x))

  found, others = value_and_grads()
  monkeypatch.setattr(sys.modules["quant.quantize"], "serves", lambda op, scales: False)
  value, grads = value_and_grads()
  np.testing.assert_allclose(found, value, rtol=1e-5)
  for got, want in zip(*map(jax.tree.leaves, (others, grads)), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5 * max(float(np.abs(want).max()), 1e-3))


@pytest.mark.parametrize(
  ("terms", "zero_point", "parts"),
  # 255 * 127 * 518 < 2^24 <= 255 * 127 * 519, and 128 * 127 * 1032 < 2^24 <= 128 * 127 * 1033
  [(518, True, [518]), (519, True, [519, 519]), (1032, True, [1032, 1032]), (519, False, [260, 259])],
)
def test_a_sum_twice_as_long_is_one_product_of_codes_and_one_of_ones(terms, zero_point, parts):
  op, kernel = site(lambda w, x: x @ w, (terms, 3), (2, terms))
  zero = jnp.asarray(-128, jnp.int32) if zero_point else None
  given = [coded(np.ones((2, terms)), 1.0, zero, 255), coded(np.ones((terms, 3)), 1.0, None, 127)]
  assert kernel == 1
  traced = jax.make_jaxpr(lambda: product(op, given, "float32"))()
  dots = [eqn for eqn, _ in all_eqns(traced.jaxpr) if eqn.primitive.name == "dot_general"]
  assert [eqn.invars[1].aval.shape[0] for eqn in dots] == parts


@pytest.mark.parametrize(("carrier", "terms"), [("float32", 600), ("int8", 20)])
def test_sums_of_one_operand_alone_are_taken_on_each_device(carrier, terms):
  """Such as the kernel's codes that a zero point meets; two activations have three of them."""
  rng = np.random.default_rng(6)
  mesh = jax.make_mesh((4,), ("d",), axis_types=(AxisType.Auto,))
  x, w = (array(rng.integers(0, 128, shape), np.float32) for shape in ((4, 3, terms), (4, terms, 7)))
  one = jnp.float32(1.0)
  op, _ = site(lambda w, x: jnp.einsum("bik,bkj->bij", x, w), (1, *w.shape[1:]), (1, *x.shape[1:]))
  for zero in (None, jnp.asarray(-100)):
    for spec in (PartitionSpec(), PartitionSpec("d")):
      held = w if spec else w[:1]

      def call(x, w, zero=zero):
        return product(op, [Coded(x, one, jnp.asarray(-128), 255), Coded(w, one, zero, 255)], carrier)

      run = jax.shard_map(call, mesh=mesh, in_specs=(PartitionSpec("d"), spec), out_specs=PartitionSpec("d"))
      expected = np.einsum("bik,bkj->bij", np.asarray(x, np.int64), np.broadcast_to(held, w.shape).astype(np.int64))
      np.testing.assert_array_equal(jax.jit(run)(x, held), expected.astype(np.float32))


@pytest.mark.parametrize(("carrier", "sign"), [("float32", 1), ("int8", -1)])
def test_sums_beyond_int32_are_right(carrier, sign):
  """70,000 products of 255 and 127, of one sign, are 2.27e9."""
  x, v = np.full((1, 70_000), sign, np.float32), {"w": np.ones((70_000, 2), np.float32)}
  model = quantize(lambda v, x: x @ v["w"], policy({"output": "float", "*": "w8a8"}), carrier)
  qparams, state = model.init(v, x)
  found = jax.jit(model.apply)(qparams, state, v, x)[0]
  np.testing.assert_allclose(found, sign * 70_000 * np.ones((1, 2)), rtol=1e-6)


def test_a_sum_of_sixteen_bits_that_is_too_long_is_refused():
  x, v = np.ones((1, 70_000), np.float32), {"w": np.ones((70_000, 2), np.float32)}
  model = quantize(lambda v, x: x @ v["w"], policy({"output": "float", "*": "w16a16"}))
  with pytest.raises(UserError, match="'w' sums 70000 products of 16-bit codes, more than are exact"):
    model.apply(*model.init(v, x), v, x)
