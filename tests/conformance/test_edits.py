"""Every kind of edit of graph, found by walking the package, through one battery, on networks of several frameworks.

The oracle of an edit is a model written by hand: the function itself on variables changed in float64 numpy, with zeros
for readers of removed channels, without the norms that were folded, or with a head behind an activation.
"""

import dataclasses
import functools
import itertools
import json
import pkgutil
from collections.abc import Callable
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import map_named
from leanax.graph import edits
from leanax.graph.edit import runs
from tests.conformance.networks import EPSILON, NETWORKS, Network
from tests.graph.test_containers import Module, Pair

KEY = jax.random.key(3)
NOT_AN_EDIT = {"kind"}  # the type of what an edit changes


class Case(NamedTuple):
  """An edit in the battery.

  Attributes:
    make: `make(net, network) -> net`; reads sizes from the net's variables, so that it may follow other edits.
    oracle: `oracle(network, x, train, key) -> (variables, (out, state))` of the edited model, by hand.
    small: `small(net, site) -> net` of relu(x @ a * g) @ b, four channels wide, in any containers.
    result: `result(features, b)` of that net afterwards; `features` are relu(x @ a * g).
    kept: `kept(before, after)`, whether the containers of its parameters came back.
    mistakes: (call of a net of `dense`, words of the sentence).
    joined: whether two of one kind share a trace.
  """

  make: Callable[[graph.Net, Network], graph.Net]
  oracle: Callable[..., Any]
  small: Callable[[graph.Net, str], graph.Net]
  result: Callable[[np.ndarray, np.ndarray], np.ndarray] = np.matmul
  kept: Callable[[Any, Any], bool] = lambda before, after: jax.tree.structure(before) == jax.tree.structure(after)
  mistakes: tuple[tuple[Callable[[graph.Net], Any], str], ...] = ()
  joined: bool = True


def same_type(before, after):
  return type(before) is type(after)


def at(leaf, indices, axes):
  for axis in axes:
    leaf = jnp.take(leaf, indices, axis)
  return leaf


def size_of(network, variables):
  name = f"params/{network.site}"
  return flatten_dict(variables, sep="/")[name].shape[network.channels[name][0]]


# fold_batch_norm


def fold(net, network):
  return graph.fold_batch_norms(net)


def folded(network):
  """The variables without norms, in float64 from the definition."""
  flat = {name: np.float64(leaf) for name, leaf in flatten_dict(network.variables, sep="/").items()}
  for norm in network.norms:
    scale, offset, mean, var = (flat.pop(name) for name in norm[2:])
    slope, kernel = scale / np.sqrt(var + EPSILON), flat[f"{norm.layer}/kernel"]
    wide = [-1 if axis == norm.axis else 1 for axis in range(kernel.ndim)]
    flat[f"{norm.layer}/kernel"] = kernel * slope.reshape(wide)
    flat[f"{norm.layer}/bias"] = (flat.get(f"{norm.layer}/bias", 0) - mean) * slope + offset
  return unflatten_dict({name: jnp.float32(leaf) for name, leaf in flat.items()}, sep="/")


def without_norms(network, x, train, key):
  return folded(network), network.model(folded(network), x, train=train, key=key, norm=False)


# depthwise


def with_depthwise_convolutions(network, x, train, key):
  flat = flatten_dict(network.variables, sep="/")
  for norm in network.norms:
    scale, offset, mean, var = (np.float64(flat.pop(name)) for name in norm[2:])
    slope = scale / np.sqrt(var + EPSILON)
    flat |= {norm.scale: jnp.float32(slope), norm.bias: jnp.float32(offset - mean * slope)}
  return unflatten_dict(flat, sep="/"), without_norms(network, x, train, key)[1]


def small_depthwise(net, site):
  leaves = graph.leaves_read(net.infer, net.variables, *net.example)
  return graph.depthwise(net, next(name for name in leaves if name.rpartition("/")[2] == "g"))


# keep_channels


def keep(net, network):
  kept = [i for i in range(size_of(network, net.variables)) if i != 1]
  return graph.keep_channels(net, {network.site: kept})


def nobody_reads(network, x, train, key):
  """The whole model in which the removed channel is read with weight zero, and of its variables what is left."""
  count = size_of(network, network.variables)
  kept = np.delete(np.arange(count), 1)

  def zeroed(name, leaf):
    axis = network.readers.get(name)
    return leaf if axis is None else leaf * jnp.ones(count).at[1].set(0).reshape([-1] + [1] * (leaf.ndim - axis - 1))

  def left(name, leaf):
    return at(leaf, kept, network.channels.get(name, ()))

  out, state = network.model(map_named(zeroed, network.variables), x, train=train, key=key)
  return map_named(left, network.variables), (out, map_named(left, state))


# permute


def permute(net, network):
  name = f"params/{network.site}"
  size = size_of(network, net.variables)
  return graph.permute(net, network.site, network.channels[name][0], np.roll(np.arange(size), 2))


def in_another_order(network, x, train, key):
  order = np.roll(np.arange(size_of(network, network.variables)), 2)

  def moved(name, leaf):
    return at(leaf, order, network.channels.get(name, ()))

  out, state = network.model(network.variables, x, train=train, key=key)
  return map_named(moved, network.variables), (out, map_named(moved, state))


# replace_head

STEPS = [["mean"], ["layer", "one"], ["relu"], ["layer", "two"]]


def head_params(width):
  draw = np.random.default_rng(5).normal
  sizes = {"one": (width, 5), "two": (5, 2)}
  return {k: {"kernel": jnp.float32(draw(size=s)), "bias": jnp.float32(draw(size=s[1:]))} for k, s in sizes.items()}


def replace_head(net, network):
  name = "head" if "head" not in net.variables["params"] else "another"
  found = jax.eval_shape(graph.taps(net.infer, [network.tap]), net.variables, network.x)[1]
  return graph.replace_head(net, network.tap, STEPS, head_params(found[network.tap].shape[-1]), name)


def with_a_head(network, x, train, key):
  features, state = network.model(network.variables, x, train=train, key=key, head=False)
  p = head_params(features.shape[-1])
  y = jnp.mean(features, tuple(range(1, features.ndim - 1)))
  y = jnp.maximum(y @ p["one"]["kernel"] + p["one"]["bias"], 0) @ p["two"]["kernel"] + p["two"]["bias"]
  last = [name for name in network.variables["params"] if name in ("last", "Dense_0")]
  params = {name: tree for name, tree in network.variables["params"].items() if name not in last}
  return {**network.variables, "params": {**params, "head": p}}, (y, state)


# add_bias


def biased_site(net, network):
  """The last layer, or the first where the last has a bias or is gone."""
  found = flatten_dict(net.variables["params"], sep="/")
  free = [layer for layer in ("last", "Dense_0") if f"{layer}/kernel" in found and f"{layer}/bias" not in found]
  return f"{free[0]}/kernel" if free else network.site


def add_bias(net, network):
  """The new bias gets numbers, for zeros would hide where they are added."""
  net = graph.add_bias(net, biased_site(net, network))
  name = "params/" + net.edits[-1]["bias"]

  def leaf(path, old):
    if path != name:
      return old
    assert not np.any(old)
    return jnp.linspace(0.5, 1.5, old.size, dtype=old.dtype)

  return dataclasses.replace(net, variables=map_named(leaf, net.variables))


def with_a_bias(network, x, train, key):
  out, state = network.model(network.variables, x, train=train, key=key)
  layer = biased_site(network.net, network).removesuffix("/kernel")
  bias = jnp.linspace(0.5, 1.5, 3)
  params = network.variables["params"]
  variables = {**network.variables, "params": {**params, layer: {**params[layer], "bias": bias}}}
  return variables, (out + bias, state)


# scale


def scale(net, network):
  """The factors start at the first norm, or at the layer where that is folded or there is none."""
  found, name = flatten_dict(net.variables, sep="/"), f"params/{network.site}"
  axis = network.channels[name][0]
  if network.norms and network.norms[0].scale in found:
    name, axis = network.norms[0].scale, 0
  factors = np.linspace(0.5, 2.0, size_of(network, net.variables))
  return graph.move_scale(net, name.removeprefix("params/"), axis, factors)


def with_moved_scale(network, x, train, key):
  factors = np.linspace(0.5, 2.0, size_of(network, network.variables))
  before = {name for norm in network.norms[:1] for name in (f"{norm.layer}/kernel", norm.mean, norm.var)}

  def leaf(name, old):
    new = np.float64(old)
    for axis in network.channels.get(name, ()) if name not in before else ():
      power = -1 if network.readers.get(name) == axis else 1
      new = new * (factors**power).reshape([-1 if a == axis else 1 for a in range(new.ndim)])
    return jnp.float32(new)

  return map_named(leaf, network.variables), network.model(network.variables, x, train=train, key=key)


HEAD = {"one": {"kernel": jnp.ones((4, 2)), "bias": jnp.zeros(2)}}
CASES = {
  "add_bias": Case(
    add_bias,
    with_a_bias,
    graph.add_bias,
    kept=same_type,
    mistakes=(
      (lambda net: graph.add_bias(net, "aa"), "unknown site 'aa'; did you mean 'a'"),
      (lambda net: graph.add_bias(net, np.nan), "unknown site 'nan'"),
      (lambda net: graph.add_bias(net, ["a"]), "unknown site"),
      (lambda net: graph.add_bias(graph.add_bias(net, "a"), "a"), "'a' cannot be given a bias: it has one"),
    ),
  ),
  "depthwise": Case(
    lambda net, network: graph.depthwise_batch_norms(net),
    with_depthwise_convolutions,
    small_depthwise,
    kept=same_type,
    mistakes=(
      (lambda net: graph.depthwise(net, "aa"), "unknown leaf 'aa'; did you mean 'a'"),
      (lambda net: graph.depthwise(net, np.nan), "unknown leaf 'nan'"),
      (
        lambda net: graph.depthwise(net, "a"),
        "'a' cannot be the kernel of a depthwise convolution; expected the scale",
      ),
    ),
  ),
  "fold_batch_norm": Case(fold, without_norms, lambda net, site: graph.fold_batch_norms(net), kept=same_type),
  "keep_channels": Case(
    keep,
    nobody_reads,
    lambda net, site: graph.keep_channels(net, {site: [0, 2, 3]}),
    lambda features, b: features[:, [0, 2, 3]] @ b[[0, 2, 3]],
    mistakes=(
      (lambda net: graph.keep_channels(net, {"aa": [0]}), "unknown site 'aa'; did you mean 'a'"),
      (lambda net: graph.keep_channels(net, {"a": [0, 4]}), r"ascending indices below 4, got \[0, 4\]"),
      (lambda net: graph.keep_channels(net, {"a": [-1, 2]}), r"ascending indices below 4, got \[-1, 2\]"),
      (lambda net: graph.keep_channels(net, {"a": [0, 2**31]}), "ascending indices below 4"),
      (lambda net: graph.keep_channels(net, {"a": [[0, 1], [2]]}), "ascending indices below 4"),
      (lambda net: graph.keep_channels(net, {"a": [np.nan]}), r"ascending indices below 4, got \[nan\]"),
      (lambda net: graph.keep_channels(net, {"b": [0]}), "'b' cannot be removed: the function returns them"),
      (lambda net: graph.keep_channels(net, [0]), r"what is kept is \[0\]; expected a dict"),
    ),
  ),
  "permute": Case(
    permute,
    in_another_order,
    lambda net, site: graph.permute(net, site, 1, [1, 0, 3, 2]),
    mistakes=(
      (lambda net: graph.permute(net, "aa", 1, [0]), "unknown leaf 'aa'; did you mean 'a'"),
      (lambda net: graph.permute(net, "a", 2, [0, 1, 2, 3]), "'a' has 2 axes; expected one of them, got 2"),
      (lambda net: graph.permute(net, "a", np.nan, [0, 1, 2, 3]), "'a' has 2 axes; expected one of them, got nan"),
      (lambda net: graph.permute(net, "a", 1, [0, 1, 2, 4]), "expected each of 0 to 3 once"),
      (lambda net: graph.permute(net, "a", 1, [0, 1, 2, 2**40]), "expected each of 0 to 3 once"),
      (lambda net: graph.permute(net, "a", 1, [0, 1, 2, np.nan]), "expected each of 0 to 3 once"),
      (lambda net: graph.permute(net, "a", 1, []), "expected each of 0 to 3 once"),
      (lambda net: graph.permute(net, "a", 1, [[0, 1], [2]]), "expected each of 0 to 3 once"),
    ),
  ),
  "replace_head": Case(
    replace_head,
    with_a_head,
    lambda net, site: graph.replace_head(net, f"{site}:out", [["layer", "one"]], HEAD),
    lambda features, b: features @ np.asarray(HEAD["one"]["kernel"]),
    kept=lambda before, after: "head" in after,
    mistakes=(
      (lambda net: graph.replace_head(net, "c", [["relu"]], {}), "unknown activation or operation 'c'"),
      (lambda net: graph.replace_head(net, "a", [["rel"]], {}), "unknown step of a head 'rel'; did you mean 'relu'"),
      (lambda net: graph.replace_head(net, "a", [["layer", "on"]], HEAD), "unknown layer of a head 'on'"),
      (lambda net: graph.replace_head(net, "b", [["layer", "one"]], HEAD), "'one' of a head reads 4 channels and gets"),
      (lambda net: graph.replace_head(net, "a", [["relu"]], {}, "a"), "the head's name 'a' is taken"),
      (lambda net: graph.replace_head(net, "a", "relu", {}), "the steps of a head are 'relu'; expected a list"),
      (lambda net: graph.replace_head(net, "a", ["relu"], {}), "a step of a head is 'relu'; expected"),
      (lambda net: graph.replace_head(net, "a", [["layer"]], HEAD), r"a step of a head is \['layer'\]; expected"),
      (lambda net: graph.replace_head(net, "a", [["mean", 2]], HEAD), r"a step of a head is \['mean', 2\]; expected"),
      (
        lambda net: graph.replace_head(net, "a", [["pool", [1, 1]]], HEAD),
        "pools an activation of shape .* expected maps",
      ),
      (
        lambda net: graph.replace_head(net, "a", [["layer", "l"]], {"l": {"bias": 0}}),
        "'l' of a head holds no 'kernel'",
      ),
      (lambda net: graph.replace_head(net, "a", [["layer", "l"]], {"l": jnp.ones((4, 2))}), "holds no 'kernel'"),
      (lambda net: graph.replace_head(net, "a", [["layer", "on"]], None), "unknown layer of a head 'on'"),
    ),
    joined=False,
  ),
  "scale": Case(
    scale,
    with_moved_scale,
    lambda net, site: graph.move_scale(net, site, 1, [0.5, 1, 2, 3]),
    mistakes=(
      (lambda net: graph.move_scale(net, "aa", 1, np.ones(4)), "unknown leaf 'aa'; did you mean 'a'"),
      (lambda net: graph.move_scale(net, "a", 2, np.ones(4)), "'a' has 2 axes; expected one of them, got 2"),
      (lambda net: graph.move_scale(net, "a", None, np.ones(4)), "'a' has 2 axes; expected one of them, got None"),
      (
        lambda net: graph.move_scale(net, "a", 1, np.ones(3)),
        r"are \[1.0, 1.0, 1.0\]; expected 4 finite numbers above 0",
      ),
      (lambda net: graph.move_scale(net, "a", 1, [1, 1, 1, 0]), "expected 4 finite numbers above 0"),
      (lambda net: graph.move_scale(net, "a", 1, [1, 1, 1, np.nan]), "expected 4 finite numbers above 0"),
      (lambda net: graph.move_scale(net, "a", 1, [1, 1, 1, np.inf]), "expected 4 finite numbers above 0"),
      (lambda net: graph.move_scale(net, "a", 1, [[1, 1], [1]]), "expected 4 finite numbers above 0"),
      (lambda net: graph.move_scale(net, "a", 1, ["1"] * 4), "expected 4 finite numbers above 0"),
      (lambda net: graph.move_scale(net, "b", 1, [1, 2]), "'b' cannot be scaled: .* through an output of the function"),
    ),
  ),
}
OF_NORMS = ("depthwise", "fold_batch_norm")  # which leave none of them
NETS = {name: functools.cache(make) for name, make in NETWORKS.items()}
PAIRS = [(kind, name) for kind, case in CASES.items() for name in NETS if kind not in OF_NORMS or name != "plain"]
each = pytest.mark.parametrize(("kind", "name"), PAIRS)


def close(found, expected, **kwargs):
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 2e-5, "atol": 2e-5, **kwargs}), found, expected)


def same(found, expected):
  close(found, expected, rtol=0, atol=0)


@functools.cache
def edited(kind, name):
  return CASES[kind].make(NETS[name]().net, NETS[name]())


def both_modes(apply):
  """Output, state and the gradient by the inputs, in evaluation and in training."""

  def run(variables, x, key):
    def loss(x, train):
      out, state = apply(variables, x, train=train, key=key if train else None)
      return jnp.sum(jnp.sin(out)), (out, state)

    return [jax.grad(loss, has_aux=True)(x, train) for train in (False, True)]

  return run


def test_every_file_of_edits_is_in_the_battery():
  files = {module.name for module in pkgutil.iter_modules(edits.__path__)} - NOT_AN_EDIT
  assert files == set(edits.KINDS) == set(CASES), "every edit belongs into KINDS and into CASES"


@pytest.mark.sampled(3)
@each
def test_it_is_the_model_edited_by_hand(kind, name):
  """Variables, and in both modes output, state and gradient; under jit, at another batch size."""
  net, network = edited(kind, name), NETS[name]()
  x = jnp.concatenate([network.x, network.x[:2] + 0.3])
  found = jax.jit(both_modes(net.apply))(net.variables, x, KEY)

  def by_hand(unused, x, *, train, key):
    del unused
    return CASES[kind].oracle(network, x, train, key)[1]

  variables = jax.jit(lambda: CASES[kind].oracle(network, x, False, None)[0])()
  close(dict(sorted(flatten_dict(net.variables).items())), dict(sorted(flatten_dict(variables).items())))
  close(found, jax.jit(both_modes(by_hand))(None, x, KEY))


@pytest.mark.sampled(3)
@each
def test_training_mode_keeps_dropout_and_statistics(kind, name):
  net, network = edited(kind, name), NETS[name]()
  keys = jax.random.split(KEY, 2)
  outs, states = jax.jit(jax.vmap(lambda key: net.apply(net.variables, network.x, train=True, key=key)))(keys)
  reads = kind != "replace_head" or name == "scan"  # dropout of the others lies behind the activation
  assert bool(jnp.any(outs[0] != outs[1])) == (network.random and reads)
  before = {part: tree for part, tree in net.variables.items() if part != "params"}
  assert jax.tree.structure(states) == jax.tree.structure(before)
  moved = jax.tree.map(lambda new, old: bool(jnp.any(new[0] != old)), states, before)
  assert all(jax.tree.leaves(moved))
  assert bool(jax.tree.leaves(moved)) == (kind not in OF_NORMS and bool(network.norms))


@each
def test_after_gives_the_shapes_of_the_variables(kind, name):
  net, network = edited(kind, name), NETS[name]()
  shapes = jax.eval_shape(lambda: network.variables)
  assert {one["edit"] for one in net.edits} == {kind}
  assert len(net.edits) == len(network.norms) if kind in OF_NORMS else len(net.edits) == 1
  found = edits.KINDS[kind].after(network.net.infer, list(net.edits), shapes, (network.x,))
  expected = jax.eval_shape(lambda: net.variables)
  assert jax.tree.structure(found) == jax.tree.structure(expected)
  assert [(a.shape, a.dtype) for a in jax.tree.leaves(found)] == [(a.shape, a.dtype) for a in jax.tree.leaves(expected)]


@pytest.mark.sampled(3)
@each
def test_json_gives_the_same_function(kind, name):
  net, network = edited(kind, name), NETS[name]()
  stored = tuple(json.loads(json.dumps(net.edits)))
  again = graph.Net(net.fn, net.variables, net.example, net.original, stored)
  rows = json.loads(json.dumps(graph.shapes(network.variables)))
  infer = graph.edit(network.net.infer, stored, rows)

  @jax.jit
  def run(v, x, key):
    modes = ((False, None), (True, key))
    trained = [[one.apply(v, x, train=train, key=key) for train, key in modes] for one in (again, net)]
    return trained, [infer(v, x), net.infer(v, x)]

  for found, expected in run(net.variables, network.x, KEY):
    same(found, expected)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["linen", pytest.param("scan", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("first", "second"), list(itertools.product(CASES, CASES)))
def test_edits_follow_each_other(first, second, name):
  """Two edits, joined in one trace where they are of one kind, are the second edit of the edited function."""
  network = NETS[name]()
  before = edited(first, name)
  net = CASES[second].make(before, network)
  assert net.edits[: len(before.edits)] == before.edits
  assert len(net.edits) > len(before.edits) or {first, second} <= {*OF_NORMS}
  anew = CASES[second].make(graph.net_of(before.apply, before.variables, network.x), network)
  same(net.variables, anew.variables)

  def run(v, x, key):
    return [[one.apply(v, x, train=mode, key=key if mode else None) for mode in (False, True)] for one in (net, anew)]

  found, expected = jax.jit(run)(net.variables, network.x, KEY)
  close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", CASES)
def test_edits_that_join_share_a_trace(kind):
  network = NETS["linen"]()
  net = CASES[kind].make(edited(kind, "linen"), network)
  assert len(net.edits) == 2 and len(runs(net.edits)) == (1 if CASES[kind].joined else 2)


# Makers of a tree of two kernels and a norm's gain, and the readers by which a model finds them in it.
CONTAINERS = {
  "dict": (lambda a, b, g: {"a": a, "b": b, "g": g}, lambda v: (v["a"], v["b"], v["g"])),
  "lists": (lambda a, b, g: ((a, {}), [b, None], ({"g": g}, ())), lambda v: (v[0][0], v[1][0], v[2][0]["g"])),
  "named tuple": (lambda a, b, g: Pair(a, Pair(b, {"g": g})), lambda v: (v.a, v.b.a, v.b.b["g"])),
  "dataclass": (
    lambda a, b, g: Module(a, Module(b, {"g": g}), name="outer"),
    lambda v: (v.weight, v.inner.weight, v.inner.inner["g"]),
  ),
  "frozen": (
    lambda a, b, g: flax.core.freeze({"a": a, "b": b, "norm": {"g": g}}),
    lambda v: (v["a"], v["b"], v["norm"]["g"]),
  ),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", CASES)
def test_containers_come_back(kind, container):
  make, get = CONTAINERS[container]
  x, a, b, g = (jnp.float32(np.random.default_rng(i).normal(size=s)) for i, s in enumerate([(5, 3), (3, 4), (4, 2), 4]))
  variables = {"params": make({"kernel": a}, {"kernel": b}, g), "other": ()}

  def fn(v, x):
    a, b, g = get(v["params"])
    return jax.nn.relu(x @ a["kernel"] * g) @ b["kernel"]

  net = graph.net(fn, variables, x)
  site = next(iter(graph.trace(fn, variables, x).sites))
  made = CASES[kind].small(net, site)
  assert made.edits and made.variables["other"] == ()
  assert CASES[kind].kept(variables["params"], made.variables["params"])
  expected = CASES[kind].result(np.maximum(np.asarray(x @ a * g), 0), np.asarray(b))
  close(made.infer(made.variables, x), expected)


MISTAKES = [
  pytest.param(*mistake, id=f"{kind}-{i}") for kind, case in CASES.items() for i, mistake in enumerate(case.mistakes)
]


@pytest.mark.parametrize(("call", "words"), MISTAKES)
def test_a_mistake_is_one_sentence(call, words):
  net = graph.net(
    lambda v, x: jax.nn.relu(x @ v["params"]["a"]) @ v["params"]["b"],
    {"params": {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}},
    jnp.ones((5, 3)),
  )
  with pytest.raises(UserError, match=words) as caught:
    call(net)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", CASES)
def test_an_edit_of_another_function_is_refused(kind):
  """Its names are unknown there, or its variables have other shapes."""
  net = edited(kind, "linen")
  other = NETS["scan"]()
  stray = graph.Net(other.model, other.variables, (other.x,), other.net.original, net.edits)
  with pytest.raises(UserError):
    stray.infer(stray.variables, other.x)
