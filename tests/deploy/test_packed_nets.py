"""Nets in packed files: opened with the original function alone, they compute the same bits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from benchmarks import packed_fuzz
from leanax import graph
from leanax.core.errors import UserError
from leanax.deploy import pack, pack_net, unpack, unpack_net
from leanax.deploy.packed import stored_grids
from tests.deploy.test_packed import bits, refusal, same
from tests.numbers import normal

X = normal(0, (8, 6))


def function(variables, x):
  """A kernel, one that is read in two layouts, one that a sum reads too, and one in a list."""
  p = variables["params"]
  x = jax.nn.relu(x @ p["first"] + 1) @ p["plain"]["kernel"] + p["plain"]["bias"]
  x = jax.nn.relu(x @ p["tied"]) @ p["tied"].T
  x = x @ p["shared"] + jnp.tanh(p["shared"]).sum()
  return x @ p["last"][0]


def variables(seed=0):
  shapes = {
    "first": (6, 8),
    "plain": {"kernel": (8, 5), "bias": (5,)},
    "tied": (5, 4),
    "shared": (5, 7),
    "last": [(7, 3)],
  }
  leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda one: isinstance(one, tuple))
  return {"params": tree.unflatten([normal(seed + i, shape) for i, shape in enumerate(leaves)])}


@pytest.fixture(scope="module")
def quantized():
  net = graph.keep_channels(graph.net(function, variables(), X), {"first": [0, 1, 3, 4, 7]})
  return quant.post_training(net, [X], "w4a8")


def fresh():
  return graph.net(function, variables(9), X)


def test_a_quantized_net_computes_the_same_bits(quantized):
  content = pack_net(quantized, {"classes": ["a"]})
  found, metadata = unpack_net(content, fresh())
  assert metadata == {"classes": ["a"]} and found.edits == tuple(json.loads(json.dumps(quantized.edits)))
  assert bits(jax.jit(found.infer)(found.variables, X)) == bits(jax.jit(quantized.infer)(quantized.variables, X))
  again = quant.grids(found)
  for name, grid in quant.grids(quantized).items():
    assert bits(again[name].scale) == bits(grid.scale), name
  assert pack_net(found, metadata) == content  # what is on the grid stays there


def test_only_kernels_that_nothing_else_reads_are_stored_as_codes(quantized):
  assert set(stored_grids(quantized)) == {"first", "plain/kernel", "last/0"}
  assert set(quant.grids(quantized)) >= {"tied", "shared"}
  read = unpack(pack_net(quantized))
  assert set(read.grids) == {"first", "plain/kernel", "last/0"}
  old, new = quantized.variables["params"], read.variables["params"]
  assert bits(new["tied"]) == bits(old["tied"]) and bits(new["plain"]["bias"]) == bits(old["plain"]["bias"])
  rounded = quant.fake_quant(old["plain"]["kernel"], quant.grids(quantized)["plain/kernel"])
  np.testing.assert_array_equal(new["plain"]["kernel"], rounded)
  assert stored_grids(fresh()) == {}


def test_a_float_net_comes_back_in_the_users_containers():
  @jax.tree_util.register_dataclass
  @dataclasses.dataclass
  class Box:
    kernel: jax.Array
    rest: tuple = ()

  net = graph.net(lambda box, x: x @ box.kernel * box.rest[0], Box(normal(0, (6, 2)), (jnp.ones(2),)), X)
  other = dataclasses.replace(net, variables=Box(normal(1, (6, 2)), (jnp.zeros(2),)))
  found, metadata = unpack_net(pack_net(net), other)
  assert isinstance(found.variables, Box) and metadata == {}
  assert bits(found.apply(found.variables, X)[0]) == bits(net.apply(net.variables, X)[0])


def test_a_net_of_another_function_is_refused(quantized):
  content = pack_net(quantized)
  other = variables()
  other["params"]["tied"] = jnp.ones((5, 9))
  with pytest.raises(UserError, match=r"leaf 'tied' is float32\[5,4\] there, and float32\[5,9\] of the net given"):
    unpack_net(content, graph.net(function, other, X))
  other["params"]["more"] = other["params"].pop("tied")
  with pytest.raises(UserError, match="leaf 'more' is none there"):
    unpack_net(content, graph.net(function, other, X))
  with pytest.raises(UserError, match="the packed file: unknown site 'first'"):
    unpack_net(content, graph.net(lambda v, x: x, variables(), X))
  with pytest.raises(UserError, match="opened for a net with edits"):
    unpack_net(content, quantized)


@pytest.mark.parametrize(
  "net",
  [None, 3, {}, {"edits": 3, "original": {}}, {"edits": [], "original": []}, {"edits": [{"edit": "no"}]}],
)
def test_files_that_hold_no_net_are_refused(net):
  with pytest.raises(UserError, match="holds no net; expected a file of pack_net|is of another net"):
    unpack_net(pack({"params": {}}, metadata={"net": net}), fresh())


def test_edits_that_are_none_are_refused(quantized):
  read, net = unpack(pack_net(quantized)), fresh()
  for edits in (3, [3], [{"edit": "no"}], [{"edit": "keep_channels"}]):
    content = pack({"params": {}}, metadata={"net": {**read.metadata["net"], "edits": edits}})
    with pytest.raises(UserError) as caught:
      unpack_net(content, net)
    assert "the packed file" in str(caught.value) and "\n" not in str(caught.value)


def test_the_name_of_the_edits_is_taken(quantized):
  with pytest.raises(UserError, match="the key 'net'"):
    pack_net(quantized, {"net": 1})


def test_mutated_files_are_read_or_refused():
  found = packed_fuzz.run(300, seed=1)
  assert found["cases"] == sum(found["outcomes"].values()) and len(found["outcomes"]) > 10
  assert found["slowest"] < 5 and found["grown_mib"] < 256


# A file of a kernel on a grid, a sparse leaf and metadata, as the first version of this program wrote it.
GOLDEN = (
  "4c45414e4158504b01000000e30000009236525078da5550d16ac3300cfc173d0b96381b0bf9956086daa899a96307d965cd8aff7d72d3d1"
  "0d1b73271da7936f4022b42518c6114e3e52ee0ce0685e1b7cb308c73871aabcef954d2f6796c01e2cfe15b7a669b4bb503af3a4fcdd60df"
  "3d6edbdbffe2eaba7a0abb2ddecf5de2c25370d8f2deb7da8259dca4016fcff98ae9eab4d6aad665051dc229ca421986eac4330b20045d2e"
  "7ec190e5c208e9489e61308a3e6955142ede2b7173d0dc0fd1374bfc58a37aa86929ba16679a28531d7ad8d4de3305ba82b6b230d7f24a42"
  "cb9eb03ebf211b95d48f05ef52066c6d29e507d216727203100351481964b0330001002f57f512bd84131f089dccfc727ff378a206fab46d"
  "0d77c78962cb0f2bdc7b79c46c764ba5c3e5f562669a72b3f2e6db31efa65cd4b735225fe467c5a0e5d5f9723c46c4c7a8a2bb2d3735ed52"
  "c55189f5fbc31a7dd3691b883b3f0af36e71d469a8df7e0c328eb4a1da3332e916a2c911db8bc8c0d6686285d8179aef09f6d4a78873278f"
  "815b4990ad2273075ebe06fbf3445b8eccdebee1c453eb1181372dfbddb727141868fb5f47d8b0be3eabc02d7382cda4f5de0c563a92b9e6"
  "ea64a772649bd888e941ebb01dfc717d28501ffbfae4402191cafd9cc1078b1c8c121f823cb615551da4409effc43bcbcc9dbfa4ee70b17c"
  "2f8a737b2be62a367c90157526113fe5779c2516ffa97141e0799cdcac9fa6031100407716030059560a00679c5f02b5710400ec3b0cd098"
  "fd19c25da59859048f8536fa79e52e86f6993876074429db8e9eb64bb67cfaedc5a90e1ef866aa41b91fc3196592310141f8f841049045bc"
  "2b8400b1833bc81f025e5a346be106df2f571d01838409d35a5a6404105a5a1004645a5ad3098483011d572fdf06e16b345a5e021fc83b83"
  "b100842bbc45900441f8f841049045bc2b8401c55454c511fde1302b9900757e55cc22ff72c148db8ed7a1e9f60c1f2efd554aa1c15411da"
  "a1a1da1154c1a14a55fd2e1f0cf6e9a1d78edb48c172ff22cc557e7500992b30e1fd11c55454c511fde1302b9901d99b9bd9add195a8a3ef"
  "d0fbc18af9b400f6e6e1edddc7c3c9d3f3e384cd3f879866f12dd71818d72df16698873fcd84e3f3d3c9c3c7ddede1e6f600b4f98ac1fbd0"
  "efa3a895d1add99b9bd9add195a8a3ef031541e07c002c0000000100512cac0072c8000000000080003e0000"
)


def golden():
  place = np.arange(1200)
  mixed = (place * place * 7919 + place * 104729) % 1009  # by rule, and without a pattern that zlib finds
  kernel = (np.array([0, 0, 0, 0, 0, 0, 1, -1, 1, 2, -3])[mixed % 11] * np.float32(0.25)).astype(np.float32)
  grid = quant.Grid(np.full(5, 0.25, np.float32), np.zeros(5, np.int32), 3, narrow=True, axis=1)
  sparse = np.where(mixed % 13, 0, np.sqrt(mixed)).astype(np.float32)
  return {"params": {"d": {"kernel": kernel.reshape(240, 5)}, "s": [sparse]}}, {"d/kernel": grid}, {"by": "leanax"}


def test_the_bytes_of_a_file_stay():
  tree, grids, metadata = golden()
  content = bytes.fromhex(GOLDEN)
  read = unpack(content)
  assert same(read.variables, tree) and read.metadata == metadata and read.grids.keys() == grids.keys()
  _, streams = packed_fuzz.header.read(content)
  _, now = packed_fuzz.header.read(pack(tree, grids, metadata))
  assert bytes(now) == bytes(streams)  # zlib may compress a header in other ways
  assert "is damaged" in refusal(content[:-1])
