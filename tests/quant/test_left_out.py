"""Sites that a policy for everything leaves in float, with the reason in `explain`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from quant.policy import policy
from quant.quantize import quantize
from quant.spec import Spec
from tests.quant.test_calibration import X, calibrated, data, decibels

FREQUENCIES = 1 / 10000 ** (jnp.arange(16.0) / 16)
POSITIONS = jnp.arange(512.0)[None]


def rotary(v, positions):
  return jnp.sin(jnp.einsum("bt,k->btk", positions, FREQUENCIES)) @ v["w"]


def blurred(v, x):
  kernel = jnp.ones((3, 3, 1, 1)) / 9
  y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  return y.reshape(x.shape[0], -1) @ v["w"]


def spectral(v, x):
  return jnp.abs(jnp.fft.fft(x) @ v["w"].astype(jnp.complex64)) @ v["u"]


def counted(v, x):
  return (jnp.round(4 * x).astype(jnp.int32) @ v["n"]).astype(jnp.float32) @ v["u"]


def routed(v, x):
  return jax.lax.ragged_dot(x, v["experts"], jnp.array([6, 6, 4])) @ v["u"]


SQUARE = {"w": data((4, 4)), "u": data((4, 3)), "n": jnp.arange(16).reshape(4, 4), "experts": data((3, 4, 4))}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
  "fn, variables, x, site, why",
  [
    (rotary, {"w": data((16, 4))}, POSITIONS, "input:dot", "its kernel is a constant"),
    (blurred, {"w": data((64, 4))}, data((2, 8, 8, 1)), "input:conv", "its kernel is a constant"),
    (spectral, SQUARE, X, "w", "it multiplies complex64 numbers"),
    (counted, SQUARE, X, "n", "it multiplies int32 numbers"),
    (routed, SQUARE, X, "experts", "ragged dots are not served"),
  ],
  ids=["rotary", "blur", "complex", "integer", "ragged"],
)
def test_it_stays_in_float_with_its_reason(fn, variables, x, site, why):
  model, qparams, state = calibrated(fn, variables, [x])
  explained = model.explain(variables, x)
  assert str(explained[site].setting) == "float" and explained[site].rule == f"*, but {why}"
  assert [name for name, one in explained.items() if one.setting.weights == Spec(8) and name != "output"] in (
    ["u"],
    ["w"],
  )
  both = jax.jit(lambda q, s, v, x: (fn(v, x), model.apply(q, s, v, x)[0]))
  assert decibels(*both(qparams, state, variables, x)) > 30


def test_a_constant_is_quantized_where_a_rule_names_it():
  variables = {"w": data((16, 4))}
  model, qparams, state = calibrated(rotary, variables, [POSITIONS], policy({"input:*": "w8a8", "*": "w8a8"}))
  assert {"input", "input:dot"} <= set(state)
  assert decibels(rotary(variables, POSITIONS), model.apply(qparams, state, variables, POSITIONS)[0]) < 25


@pytest.mark.parametrize("fn, rule", [(spectral, "w"), (counted, "n"), (routed, "exp*")])
def test_a_rule_that_means_nothing_else_is_refused(fn, rule):
  with pytest.raises(UserError, match=f"quantization rule '{rule.replace('*', '[*]')}' means .* cannot be quantized"):
    calibrated(fn, SQUARE, [X], policy({rule: "w8a8", "*": "w8a8"}))
  calibrated(fn, SQUARE, [X], policy({rule: "float", "*": "w8a8"}))


def test_products_of_parameters_alone_are_named():
  def fn(v, x):
    queries = jnp.tanh(v["queries"] @ v["project"])
    return queries @ (x @ v["w"]).T

  variables = {**SQUARE, "queries": data((3, 4)), "project": data((4, 4))}
  model, qparams, state = calibrated(fn, variables, [X])
  explained = model.explain(variables, X)
  assert explained["project:parameters"].rule == "*, but reads parameters alone"
  assert decibels(fn(variables, X), model.apply(qparams, state, variables, X)[0]) > 30


def test_a_product_of_parameters_is_not_an_end():
  """The first site with a kernel gets 8 bits: the one after what stays in float."""
  model = quantize(rotary, "w4a4")
  assert model.explain({"w": data((16, 4))}, POSITIONS)["w"].rule == "* (ends)"


def test_a_column_of_positions_is_not_a_bias():
  """Not even where its length is that of the channels by chance."""
  variables = {"w": data((4, 5)), "positions": data((16,), 5) * 100}
  square = {"w": data((4, 16)), "positions": variables["positions"]}
  for v in (variables, square):
    fn = lambda v, x: x @ v["w"] + v["positions"][:, None]
    model, qparams, state = calibrated(fn, v, [X])
    found = model.apply(qparams, state, v, X)[0]
    step = float(model.grids(qparams, state, v, X)["w:out"].scale)
    np.testing.assert_allclose(found, fn(v, X), atol=0.75 * step)
