"""Weights and activations with an estimator, a format and a start of their own, against numpy and each alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import deploy, graph
from leanax.core.errors import UserError
from quant.spec import Setting, Spec, parse

V = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(9, 6)), jnp.float32)

SPLIT = [
  ("w4 learned, a8 tqt", Setting(Spec(4, "lsq"), Spec(8, "tqt"))),
  ("w4, a8 learned", Setting(Spec(4), Spec(8, "lsq"))),
  ("w4g32 learned per_tensor, a8 percentile(q=99.0)", None),
  ("w4 power_of_two, a4 power_of_two", Setting(Spec(4, format="power_of_two"), Spec(4, format="power_of_two"))),
  ("w4, a4 power_of_two", None),
  ("w4 learned start=range, a4 learned start=lsq", None),
  ("float, a4 power_of_two", Setting(None, Spec(4, format="power_of_two"))),
]


@pytest.mark.parametrize("text, expected", SPLIT)
def test_a_comma_gives_each_its_own_words(text, expected):
  setting = parse(text)
  assert str(setting) == text and parse(str(setting)) == setting == parse(setting)
  assert expected is None or setting == expected


@pytest.mark.parametrize(
  "text, same",
  [
    ("w4 lsq, a8 lsq", "w4a8 learned"),
    ("a8 tqt , w4 tqt", "w4a8 tqt"),
    ("w4 per_tensor, a8 ema(rate=0.1)", "w4a8 per_tensor ema(rate=0.1)"),
    ("w4 power_of_two, a8", "w4a8 power_of_two"),
    ("w8, float", "w8"),
    ("float, a8 static", "a8"),
    ("float, float", "float"),
    ("w8a8 ema( rate = 0.1 )", "w8a8 ema(rate=0.1)"),
    # What concerns no tensor of the setting says nothing.
    ("w8 ema(rate=0.1)", "w8"),
    ("a8 per_tensor power_of_two", "a8"),
    ("float learned", "float"),
  ],
)
def test_what_means_the_same_prints_the_same(text, same):
  assert parse(text) == parse(same) and str(parse(text)) == same


def test_dicts_give_each_its_own_keys():
  expected = Setting(Spec(4, "lsq", group=2), Spec(8, "tqt", observer="ema", options=(("rate", 0.1),)))
  of_a = {"bits": 8, "estimator": "tqt", "observer": "ema", "options": {"rate": 0.1}}
  assert parse({"weights": {"bits": 4, "learned": True, "group": 2}, "activations": of_a}) == expected
  assert parse({"weights": 4, "group": 2, "learned": True, "activations": of_a}) == expected
  given = json.loads(json.dumps({"weights": 4, "activations": 8, "observer": "ema", "options": [["rate", 0.1]]}))
  assert parse(given) == parse("w4a8 ema(rate=0.1)") and hash(parse(given)) == hash(parse("w4a8 ema(rate=0.1)"))


@pytest.mark.parametrize(
  "spec, sentence",
  [
    ("w4 lsq, tqt", "does not begin with widths"),
    ("w4, a8, a8", "has a comma; expected it between weights and activations"),
    ("w4, w8", "has a comma"),
    ("w4a8 lsq, a8", "has a comma"),
    ("w4, float lsq", "has a comma"),
    ("w4a8,", "does not begin with widths"),
    ("w4, a8 per_tensor", "gives activations 'per_channel'; expected only bits, estimator, format, start, observer"),
    ("w4 ema(rate=0.1), a8", "gives weights 'observer'; expected only bits, estimator"),
    ("w4, a8 power_of_two", "powers of two with the codes -127 to 127"),
    ("w4, a4 tqt power_of_two", "the estimator 'tqt' serves integer grids"),
    ({"weights": {"bit": 4}}, "unknown key of the weights of a quantization setting 'bit'; did you mean 'bits'"),
    ({"weights": {"estimator": "lsq"}}, "the weights of a quantization setting have no 'bits'"),
    ({"activations": {"bits": 8, "group": 4}}, "unknown key of the activations of a quantization setting 'group'"),
    (
      {"weights": {"bits": 8, "learned": True, "estimator": "tqt"}},
      "the weights of a quantization setting has learned",
    ),
    ({"bits": 8}, "unknown key of a quantization setting 'bits'"),
    ({"weights": 8, "options": 3}, "a quantization setting has options=3; expected a dict"),
    ({"weights": 8, "observer": "ema", "options": {"rat": 1}}, "observer 'ema' does not take"),
  ],
)
def test_mistakes_are_named(spec, sentence):
  with pytest.raises(UserError, match=sentence):
    parse(spec)


def test_a_setting_of_numbers_is_refused():
  with pytest.raises(UserError, match="has weights=4; expected a Spec"):
    Setting(4, 8)
  with pytest.raises(UserError, match="a grid of 9 bits"):
    Spec(9)


def made(setting, fn=lambda v, x: x @ v["w"]):
  model = quant.quantize(fn, quant.policy(setting, ends=None))
  return model, *model.init(V, X)


def test_each_tensor_is_trained_by_its_own_estimator():
  model, qparams, state = made("w4 learned start=range per_tensor, a8 tqt")
  grids = model.grids(qparams, state, V, X)
  assert {name: (grid.bits, grid.scale.shape) for name, grid in grids.items()} == {
    "input": (8, ()),
    "w": (4, ()),
    "w:out": (8, ()),
  }
  w = np.asarray(V["w"], np.float64)
  np.testing.assert_allclose(np.exp(qparams["w"]), np.abs(w).max() / 7, rtol=1e-6)  # the range, not LSQ's start
  fraction = np.log2(float(grids["w:out"].scale))
  assert fraction == round(fraction)  # TQT's, a power of two

  def by_hand(q, v):
    w_grid = quant.Grid(jnp.exp(q["w"]), jnp.int32(0), 4, True, True)
    out_grid = quant.Grid(jnp.exp(q["w:out"]), state["w:out"]["used"]["zero_point"], 8)
    y = quant.fake_quant(X, grids["input"]) @ quant.lsq()(v["w"], w_grid)
    return jnp.sum(quant.tqt()(y, out_grid) ** 2)

  found = jax.grad(lambda q, v: jnp.sum(model.apply(q, state, v, X)[0] ** 2), (0, 1))(qparams, V)
  expected = jax.grad(by_hand, (0, 1))(qparams, V)
  assert found[0].keys() == {"w", "w:out"} and all(np.any(leaf) for leaf in jax.tree.leaves(found))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)


@pytest.mark.parametrize("x", [X, jnp.abs(X), -jnp.abs(X)], ids=["signed", "positive", "negative"])
def test_activations_have_formats(x):
  """Symmetric grids of the largest magnitude; the kernel's format is its own."""
  model = quant.quantize(lambda v, x: x @ v["w"], quant.policy("w4, a3 power_of_two", ends=None))
  qparams, state = model.init(V, x)
  grids = model.grids(qparams, state, V, x)
  assert {name: grid.format for name, grid in grids.items()} == {
    "input": "power_of_two",
    "w": "integer",
    "w:out": "power_of_two",
  }
  assert quant.labels(state)["input/grid"] == "a3 power_of_two"

  def rounded(values):
    values = np.asarray(values, np.float64)
    levels = np.array([-1, -0.5, -0.25, 0, 0.25, 0.5, 1]) * np.abs(values).max()
    return levels[np.argmin(np.abs(values[..., None] - levels), -1)]

  w, scale = np.asarray(V["w"], np.float64), np.abs(np.asarray(V["w"], np.float64)).max(0) / 7
  y = rounded(x) @ (np.round(w / scale) * scale)
  seen = np.abs(np.asarray(x @ V["w"], np.float64)).max()  # calibration sees floats
  levels = np.array([-1, -0.5, -0.25, 0, 0.25, 0.5, 1]) * seen
  expected = levels[np.argmin(np.abs(y[..., None] - levels), -1)]
  found = np.asarray(model.apply(qparams, state, V, x)[0])
  assert np.mean(np.abs(found - expected) < 1e-5) > 0.97  # but for ties
  np.testing.assert_allclose(grids["w:out"].scale, seen, rtol=1e-6)
  assert np.all(grids["input"].zero_point == 0) and grids["input"].levels[0] == -1


def test_a_bias_between_other_formats_stays_a_float():
  v = {**V, "b": jnp.full(4, 0.123456)}
  model = quant.quantize(lambda v, x: x @ v["w"] + v["b"], quant.policy("w4, a4 power_of_two", ends=None))
  qparams, state = model.init(v, X)
  grids = model.grids(qparams, state, v, X)
  y = quant.fake_quant(X, grids["input"]) @ quant.fake_quant(v["w"], grids["w"]) + v["b"]
  expected = quant.fake_quant(y, grids["w:out"])
  assert np.mean(np.abs(model.apply(qparams, state, v, X)[0] - expected) < 1e-5) > 0.97


def test_ends_raise_what_they_say_of_each():
  found = quant.quantize(lambda v, x: x @ v["w"], "w4 tqt, a4 power_of_two").explain(V, X)
  assert {str(one.setting) for one in found.values()} == {"w8 tqt, a8"}
  found = quant.quantize(lambda v, x: x @ v["w"], quant.policy("w2 learned, a2 tqt", ends="w4")).explain(V, X)
  assert str(found["w"].setting) == "w4 learned, a2 tqt"


def test_a_net_and_its_edit_keep_it():
  net = quant.post_training(
    graph.net(lambda v, x: x @ v["w"], V, X), [X], quant.policy("w4 tqt, a4 power_of_two", None)
  )
  edits = json.loads(json.dumps(net.edits))
  assert edits[-1]["rules"] == [["*", "w4 tqt, a4 power_of_two"]]
  again = graph.net(lambda v, x: x @ v["w"], V, X).edited(edits, net.variables, quant.edit.KIND)
  np.testing.assert_array_equal(again.infer(net.variables, X), net.infer(net.variables, X))
  integers = [["*", "w4 tqt, a4"]]
  other = graph.net(lambda v, x: x @ v["w"], V, X).edited(
    [{**edits[0], "rules": integers}], net.variables, quant.edit.KIND
  )
  with pytest.raises(UserError, match="has the grid 'input' as 'a4 power_of_two', and this model needs 'a4'"):
    other.infer(net.variables, X)


def test_a_file_of_integers_refuses_activations_of_others_by_name():
  model = quant.quantize(lambda v, x: x @ v["w"], quant.policy("w8, a4 power_of_two", ends=None))
  qparams, state = model.init(V, X)
  with pytest.raises(UserError, match="the activation 'input' is on a grid of 'power_of_two'"):
    deploy.lift(lambda v, x: x @ v["w"], V, X, grids=model.grids(qparams, state, V, X))
