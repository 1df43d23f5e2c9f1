"""Nets in packed files: opened with the original function alone, they compute the same bits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import graph
from leanax.core.errors import UserError
from leanax.deploy import pack, pack_net, unpack, unpack_net
from leanax.deploy.packed import header, stored_grids
from scripts.drills.fuzz import drill
from tests.deploy.test_packed import bits, same
from tests.deploy.test_packed_refused import refusal
from tests.numbers import normal

X = normal(0, (8, 6))


def function(variables, x):
  """Kernels: in a dict, in a scan, read in two layouts, read by a sum too, and in a list."""
  p = variables["params"]
  x = jax.nn.relu(x @ p["first"] + 1) @ p["plain"]["kernel"] + p["plain"]["bias"]
  x, _ = jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, p["stack"])
  x = jax.nn.relu(x @ p["tied"]) @ p["tied"].T
  x = x @ p["shared"] + jnp.tanh(p["shared"]).sum()
  return x @ p["last"][0]


def variables(seed=0):
  shapes = {
    "first": (6, 8),
    "plain": {"kernel": (8, 5), "bias": (5,)},
    "stack": (2, 5, 5),
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
  assert set(stored_grids(quantized)) == {"first", "plain/kernel", "stack", "last/0"}
  assert set(quant.grids(quantized)) >= {"tied", "shared"}
  read = unpack(pack_net(quantized))
  assert set(read.grids) == {"first", "plain/kernel", "stack", "last/0"}
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
  found = drill.run("packed", range(300), seed=1)
  assert len(found) == 300 and len({line["outcome"] for line in found}) > 10
  assert [line for line in found if line["failed"]] == []


# A file of a kernel on a grid, a sparse leaf and metadata, as the first version of this program wrote it.
GOLDEN = (
  "4c45414e4158504b01000000e3000000c21d0a4478da5550d16ac3300cfc173d0b96381bb4f99510865aab99a96307d9a5cd8aff7d72d3d1"
  "0d1b73271da793ef4022b426e887014e3e52ee0ce060de1bfc18118ed172aa7c6f94d9b7334b600f23fe15b7a669b43b533ab355be33b8eb"
  "9eb7dd8fffc5d575f114365b7c9c87c48597e0b0e6ad3f6a0b26715603de5ff315d3cd69ad55adcb0a3a8453949932f4d58927164008ba5c"
  "bc429fe5c208e9489ea1378abe6851142ede2b7153d0dc4fd1374bfc5ca27aa86929ba1667b294a90e3dac6aef9902dd405b59986b7921a1"
  "794b589fdf908d4aeac782772903b66329e507cddf726f03100351481964b0330002008eac06003a1d7a0095bd3dcec42b1429d03c60ecb5"
  "7845d3e84133d63b15fab21b8e7df672d0a04159f1089340ffbf8770d6591ea22c4669356b73433943965fde9f15e38a97891ee2e63bb844"
  "4966380168d35733c7b20761b6265ee31b808167430ad5bb752ffec9b33993b845df3047d1a01e7d26933c1df0198c143c939ea67f207890"
  "850984b1891674572fae2c419e78dc498bb9b1fd5c7e326e80420cd84976ae54b80a5fa5430d617f2e31fb291b8d6330e6e3a67641540ed9"
  "7aa1d1302fb6cf0e12835d6fa6816fb96f97c9d4e7eafc05fdecf2d56b6576d4dfe2233268c17876062e8ed3928bba515e395135267a7878"
  "98e17907b9289fb56df62a958efe3044782cacb5f6c2fdd3c45b550908a08d80f55ba80311004077160600a6920200b6530100b32eb332be"
  "1302000c243701a6861b0056f8679ed541442f42d3c361fdc00a43ef10f97b12dc0e76215837766cbdcf3d3563fe7d4d7558a910e6c52a16"
  "5cdfae389e0141f8f841049045bc2b8400b1833bc81f025e5a346be106df2f571d01838409d35a5a6404105a5a1004645a5ad3098483011d"
  "572fdf06e16b345a5e021fc83b83b100842bbc45900441f8f841049045bc2b8401c55454c511fde1302b9900757e55cc22ff72c148db8ed7"
  "a1e9f60c1f2efd554aa1c15411daa1a1da1154c1a14a55fd2e1f0cf6e9a1d78edb48c172ff22cc557e7500992b30e1fd11c55454c511fde1"
  "302b9901d99b9bd9add195a8a3efd0fbc18af9b400f6e6e1edddc7c3c9d3f3e384cd3f879866f12dd71818d72df16698873fcd84e3f3d3c9"
  "c3c7ddede1e6f600b4f98ac1fbd0efa3a895d1add99b9bd9add195a8a3ef02789c737444070e182258014e6500603114d100000000008000"
  "3e0000"
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
  head, streams = header.read(content)
  _, now = header.read(pack(tree, grids, metadata))
  (length,) = head["arrays"][0][3]
  assert head["arrays"][0][2] == "codes" and streams[0] == 3  # by rANS; zlib may write other bytes on another machine
  assert bytes(now[:length]) == bytes(streams[:length])
  assert "is damaged" in refusal(content[:-1])
