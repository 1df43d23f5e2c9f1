"""Whatever containers the variables are in, they come back as they were."""

import collections
import dataclasses
import json
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from leanax import graph
from leanax.core.errors import UserError
from tests.graph import models


class Pair(NamedTuple):
  a: Any
  b: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Module:
  """As an equinox module is: arrays, other modules, None, and what is static."""

  weight: Any
  inner: Any
  empty: Any = None
  name: str = dataclasses.field(default="module", metadata={"static": True})


def in_dict(a, b):
  return {"params": {"a": a, "b": b}, "state": {}, "none": None, "list": [], "tuple": ()}


def get_dict(v):
  assert v["state"] == {} and v["none"] is None and v["list"] == [] and v["tuple"] == ()
  return v["params"]["a"], v["params"]["b"]


def get_stax(v):
  assert isinstance(v, tuple) and [type(layer) for layer in v] == [tuple, tuple, list, type(None)]
  return v[0][0], v[2][0]


def get_module(v):
  assert isinstance(v, Module) and isinstance(v.inner, Module) and v.name == "outer" and v.empty is None
  return v.weight, v.inner.weight


def get_state(v):
  assert isinstance(v, nnx.State) and isinstance(v["a"]["w"], nnx.Param)
  return v["a"]["w"][...], v["b"]["w"][...]


# Makers of a tree of two kernels, the readers by which a model finds them in it, and their names.
CONTAINERS = {
  "dict": (in_dict, get_dict, ("a", "b")),
  "stax": (lambda a, b: ((a,), (), [b], None), get_stax, ("0/0", "2/0")),
  "namedtuple": (lambda a, b: Pair({"x": a, "y": ()}, Pair(b, None)), lambda v: (v.a["x"], v.b.a), ("a/x", "b/a")),
  "module": (lambda a, b: Module(a, Module(b, ()), name="outer"), get_module, ("weight", "inner/weight")),
  "struct": (lambda a, b: Struct(a=a, b=b), lambda v: (v.a, v.b), ("a", "b")),
  "frozen": (
    lambda a, b: flax.core.freeze({"params": {"a": a, "b": b}, "state": {}}),
    lambda v: (v["params"]["a"], v["params"]["b"]),
    ("a", "b"),
  ),
  "state": (
    lambda a, b: nnx.State({"a": {"w": nnx.Param(a)}, "b": {"w": nnx.Param(b)}}),
    get_state,
    ("a/w/value", "b/w/value"),
  ),
}


@flax.struct.dataclass
class Struct:
  a: Any
  b: Any
  kind: str = flax.struct.field(pytree_node=False, default="kind")


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_come_back_as_they_were(name):
  make, get, names = CONTAINERS[name]
  v, x = make(models.normal(0, 3, 4), models.normal(1, 4, 2)), models.normal(2, 5, 3)

  def fn(v, x):
    a, b = get(v)
    return jax.nn.relu(x @ a) @ b

  fn2, small, edits = models.cut(fn, v, {names[0]: [0, 3]}, x)
  assert jax.tree.structure(small) == jax.tree.structure(v)
  assert [leaf.shape for leaf in jax.tree.leaves(small)] == [(3, 2), (2, 2)]
  a, b = (np.asarray(leaf) for leaf in get(v))
  expected = np.maximum(np.asarray(x) @ a[:, [0, 3]], 0) @ b[[0, 3]]
  np.testing.assert_allclose(jax.jit(fn2)(small, x), expected, rtol=1e-5, atol=1e-6)
  again = graph.edit(fn, json.loads(json.dumps(edits)), jax.eval_shape(lambda: v))
  np.testing.assert_array_equal(again(small, x), fn2(small, x))
  if name in ("dict", "stax"):
    stored = json.loads(json.dumps(graph.shapes(v)))
    np.testing.assert_array_equal(graph.edit(fn, edits, stored)(small, x), fn2(small, x))


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_of_folded_norms_come_back_too(name):
  make, get, _ = CONTAINERS[name]
  v, x = make({"k": models.normal(0, 3, 4)}, models.normal(1, 4, 2)), models.normal(2, 5, 3)
  if name == "state":
    v = make(models.normal(0, 3, 4), models.normal(1, 4, 2))
  v = Pair(v, {"gain": Module(jnp.arange(1.0, 5.0), ()), "other": ()})

  def fn(v, x):
    a, b = get(v.a)
    y = x @ (a["k"] if name != "state" else a) * v.b["gain"].weight
    return jax.nn.relu(y) @ b

  fn2, folded, edits = models.folded(fn, v, x)
  assert [e["bias"].endswith("/bias") for e in edits] == ([] if name == "state" else [True])
  np.testing.assert_allclose(fn2(folded, x), fn(v, x), rtol=1e-5, atol=1e-6)
  assert isinstance(folded, Pair) and type(folded.a) is type(v.a)
  if edits:
    assert folded.b == {"gain": Module(None, ()), "other": ()}
  else:  # a variable has no place for a bias beside it
    assert jax.tree.structure(folded) == jax.tree.structure(v)


def test_no_arrays():
  with pytest.raises(UserError, match="'f' of the variables is <built-in function abs>; expected arrays, which equi"):
    models.cut(lambda v, x: v["f"](x @ v["w"]), {"f": abs, "w": jnp.ones((3, 2))}, {"w": [0]}, jnp.ones((1, 3)))
  v = {"params": {"w": jnp.ones((3, 2))}, "w": jnp.ones((2, 2))}
  with pytest.raises(UserError, match="two leaves of the variables are named 'w'; expected names that differ"):
    models.cut(lambda v, x: x @ v["params"]["w"] @ v["w"], v, {"w": [0]}, jnp.ones((1, 3)))


def test_a_new_bias_fills_a_field_that_was_none():
  v, x = (
    Pair(Module(models.normal(0, 3, 4), None, None), {"g": jnp.arange(1.0, 5.0), "more": {"w": None}}),
    jnp.ones((2, 3)),
  )

  def fn(v, x):
    return x @ v.a.weight * v.b["g"] + 0.5

  assert models.folded(fn, v, x)[2] == []  # it has no field "bias"
  v = {"kernel": v.a.weight, "bias": None, "g": v.b["g"]}

  def flat(v, x):
    return x @ v["kernel"] * v["g"] + 0.5

  fn2, folded, _ = models.folded(flat, collections.OrderedDict(v), x)
  assert isinstance(folded, collections.OrderedDict) and list(folded) == ["kernel", "bias"]
  np.testing.assert_allclose(fn2(folded, x), flat(v, x), rtol=1e-6)

  @jax.tree_util.register_dataclass
  @dataclasses.dataclass(frozen=True)
  class Conv:
    weight: Any
    bias: Any = None

  v = [Conv(v["kernel"]), v["g"]]
  fn2, folded, edits = models.folded(lambda v, x: x @ v[0].weight * v[1] + 0.5, v, x)
  assert edits[0]["bias"] == "0/bias" and folded[1] is None
  np.testing.assert_array_equal(folded[0].bias, jnp.zeros(4))
  np.testing.assert_allclose(fn2(folded, x), x @ v[0].weight * v[1] + 0.5, rtol=1e-6)


class Bare(NamedTuple):
  weight: Any


class Layer(NamedTuple):
  weight: Any
  bias: Any = None


# How a layer holds its kernel, how a model finds it in there, and the name of a bias beside it, where there is a place.
PLACES = {
  "a tuple": (lambda w: (w,), lambda layer: layer[0], None),
  "a tuple with None": (lambda w: (w, None), lambda layer: layer[0], None),
  "a field fewer": (Bare, lambda layer: layer.weight, None),
  "a field that is None": (Layer, lambda layer: layer.weight, "0/bias"),
  "a dict": (lambda w: {"w": w}, lambda layer: layer["w"], "0/bias"),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_new_bias_lies_beside_its_kernel_or_the_edit_is_not_made(place):
  make, get, bias = PLACES[place]
  v, x = [make(models.normal(0, 3, 4)), {"var": jnp.arange(1.0, 5.0)}], models.normal(2, 5, 3)

  def fn(v, x):
    return x @ get(v[0]) / jnp.sqrt(v[1]["var"]) + 0.5

  net, site = graph.net(fn, v, x), next(iter(graph.trace(fn, v, x).sites))
  folded = graph.fold_batch_norms(net)
  assert [one["bias"] for one in folded.edits] == ([] if bias is None else [bias])
  if bias is None:
    (norm,) = graph.batch_norms(fn, v, x)
    assert norm.reason == f"the kernel of {site!r} has no place beside it for a bias"
    with pytest.raises(UserError, match=f"{site!r} cannot be given a bias: .* expected the kernel in a dict, or in a "):
      graph.add_bias(net, site)
  else:
    biased = graph.add_bias(net, site)
    assert biased.edits[0]["bias"] == bias and type(biased.variables[0]) is type(v[0])
    np.testing.assert_array_equal(biased.infer(biased.variables, x), fn(v, x))
  np.testing.assert_allclose(folded.infer(folded.variables, x), fn(v, x), rtol=1e-6)
