"""Weights of other programs: three formats, key maps, and every way in which they may not fit."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from flax import serialization

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.store.pretrained import CONV, LINEAR, Rename, load
from leanax.engine.store.weight_files import read

RNG = np.random.default_rng(0)


def target():
  return {
    "params": {
      "Conv_0": {"kernel": jnp.zeros((3, 3, 2, 4)), "bias": jnp.zeros(4)},
      "head": {"kernel": jnp.zeros((4, 5), jnp.bfloat16), "bias": jnp.ones(5)},
    },
    "batch_stats": {"BatchNorm_0": {"mean": jnp.zeros(4)}},
  }


def random_like(tree):
  return jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(x.dtype), tree)


def write_orbax(path, tree):
  import orbax.checkpoint as ocp

  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)


def write_orbax_step(path, tree):
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(path.parent / "run") as manager:
    manager.save(7, args=ocp.args.Composite(weights=ocp.args.StandardSave(tree), notes=ocp.args.JsonSave({"a": 1})))
    manager.wait_until_finished()
  (path.parent / "run" / "7").rename(path)


WRITERS = {
  "w.safetensors": lambda path, tree: safetensors.numpy.save_file(named_leaves(tree), path),
  "w.msgpack": lambda path, tree: path.write_bytes(serialization.to_bytes(tree)),
  "orbax": write_orbax,
  "orbax_step": write_orbax_step,
}


def test_a_path_may_be_relative(tmp_path, monkeypatch):
  tree = random_like(target())
  write_orbax(tmp_path / "orbax", tree)
  monkeypatch.chdir(tmp_path)
  for path in ("orbax", "./orbax"):
    jax.tree.map(np.testing.assert_array_equal, load(path, target()), tree)


@pytest.mark.parametrize("kind", WRITERS)
def test_formats(tmp_path, kind):
  tree = random_like(target())
  WRITERS[kind](tmp_path / kind, tree)
  loaded = load(tmp_path / kind, target())
  assert jax.tree.structure(loaded) == jax.tree.structure(target())
  for name, leaf in named_leaves(loaded).items():
    assert isinstance(leaf, jax.Array)
    want = named_leaves(tree)[name]
    assert leaf.dtype == want.dtype
    np.testing.assert_array_equal(leaf, want)


TORCH = [
  Rename(r"num_batches_tracked$", None),
  Rename(r"^backbone\.conv(\d)\.weight$", r"Conv_\1/kernel", CONV),
  Rename(r"^backbone\.conv(\d)\.bias$", r"Conv_\1/bias"),
  Rename(r"^bn\.running_mean$", "batch_stats/BatchNorm_0/mean"),
  Rename(r"^fc\.weight$", "fc.kernel", LINEAR),
  (r"^fc\.", "head/"),
]


def torch_file(path, **changes):
  arrays = {
    "backbone.conv0.weight": RNG.normal(size=(4, 2, 3, 3)).astype(np.float32),
    "backbone.conv0.bias": RNG.normal(size=4).astype(np.float16),
    "bn.running_mean": RNG.normal(size=4),
    "bn.num_batches_tracked": np.array(3),
    "fc.weight": RNG.normal(size=(5, 4)).astype(ml_dtypes.bfloat16),
    "fc.bias": RNG.normal(size=5).astype(np.float32),
  }
  arrays = {name: array for name, array in {**arrays, **changes}.items() if array is not None}
  safetensors.numpy.save_file(arrays, path)
  return arrays


def test_key_map_and_transposes(tmp_path):
  arrays = torch_file(tmp_path / "w.safetensors")
  loaded = load(tmp_path / "w.safetensors", target(), TORCH)
  for i, o, y, x in [(0, 0, 0, 1), (1, 3, 2, 0)]:
    assert loaded["params"]["Conv_0"]["kernel"][y, x, i, o] == arrays["backbone.conv0.weight"][o, i, y, x]
  np.testing.assert_array_equal(loaded["params"]["head"]["kernel"], arrays["fc.weight"].T)
  np.testing.assert_array_equal(loaded["params"]["Conv_0"]["bias"], arrays["backbone.conv0.bias"].astype(np.float32))
  mean = loaded["batch_stats"]["BatchNorm_0"]["mean"]
  assert mean.dtype == jnp.float32
  np.testing.assert_array_equal(mean, arrays["bn.running_mean"].astype(np.float32))


@pytest.mark.parametrize(
  ("changes", "options", "says"),
  [
    ({"fc.bias": None}, {}, "w.safetensors has no array for 'head/bias' of the model"),
    ({"extra": np.ones(2)}, {}, "w.safetensors holds 'extra', which the model does not use"),
    ({"fc.bias": None, "extra": np.ones(2)}, {}, "no array for 'head/bias' of the model; .* holds 'extra', which"),
    ({"fc.bias": np.ones(6, np.float32)}, {}, r"'head/bias' has shape \(6,\); the model's has \(5,\)"),
    ({"fc.weight": np.ones((4, 5))}, {}, r"'head/kernel' has shape \(5, 4\); the model's has \(4, 5\)"),
    ({"fc.bias": np.ones(5, np.int32)}, {}, "'head/bias' has dtype int32; the model's has float32"),
    ({"head/bias": np.ones(5)}, {}, "'fc.bias' and 'head/bias' of .* both become 'head/bias'"),
    ({"fc.weight": np.ones((5, 4, 1))}, {}, r"axes \(1, 0\) do not fit 'fc.weight' of \(5, 4, 1\)"),
    (
      {"bn.num_batches_tracked": None},
      {},
      r"rule 'num_batches_tracked\$' matches nothing in .*there: 'backbone.conv0.bias', '",
    ),
    ({}, {"keep": ["heat/*"]}, r"keep rule 'heat/\*' matches nothing; names near it"),
    ({}, {"ignore": ["extra*"]}, r"ignore rule 'extra\*' matches nothing"),
    ({"fc.weight": np.ones((7, 4))}, {}, r"'head/kernel' has shape \(4, 7\); the model's has \(4, 5\); .*'head/\*'"),
    ({"fc.bias": np.array([1, 2, np.nan, 4, 5])}, {}, "'head/bias' holds NaN"),
    ({"fc.weight": np.full((5, 4), 1e39)}, {}, "'head/kernel' holds numbers that bfloat16 has not"),
    (
      {"fc.bias": None, "fc.bais": np.ones(5)},
      {},
      r"'head/bias' of the model \(the nearest name there is 'head/bais'\)",
    ),
  ],
)
def test_mismatches_are_named(tmp_path, changes, options, says):
  torch_file(tmp_path / "w.safetensors", **changes)
  with pytest.raises(UserError, match=says) as caught:
    load(tmp_path / "w.safetensors", target(), TORCH, **options)
  assert "\n" not in str(caught.value)


def test_a_new_head(tmp_path):
  shapes = {"fc.weight": np.ones((7, 4), np.float32), "fc.bias": np.ones(7, np.float32)}
  arrays = torch_file(tmp_path / "w.safetensors", **shapes)
  loaded = load(tmp_path / "w.safetensors", target(), TORCH, keep=["head/*"])
  np.testing.assert_array_equal(loaded["params"]["head"]["bias"], np.ones(5))
  np.testing.assert_array_equal(loaded["params"]["Conv_0"]["bias"], arrays["backbone.conv0.bias"].astype(np.float32))


def test_files_that_cannot_be_read(tmp_path):
  with pytest.raises(UserError, match="there are no weights at .*none.safetensors"):
    read(tmp_path / "none.safetensors")
  for name, says in [
    ("w.h5", "expected weights as .safetensors, .msgpack, .pth, .* or a directory that Orbax wrote"),
    ("w.safetensors", "w.safetensors is damaged or no safetensors file"),
    ("w.msgpack", "w.msgpack is damaged or no msgpack file of flax"),
  ]:
    (tmp_path / name).write_bytes(b"\xc1 nonsense")
    with pytest.raises(UserError, match=says):
      read(tmp_path / name)
  (tmp_path / "folder").mkdir()
  with pytest.raises(UserError, match="expected a directory with one tree that Orbax wrote, found 0"):
    read(tmp_path / "folder")
  for step in ("9", "10", "11.orbax-checkpoint-tmp-0"):
    (tmp_path / "folder" / step / "default").mkdir(parents=True)
    (tmp_path / "folder" / step / "default" / "_METADATA").touch()
  (tmp_path / "folder" / "12").mkdir()
  with pytest.raises(UserError, match=r"Orbax wrote, found 0; its newest step is .*/folder/10$"):
    read(tmp_path / "folder")
  safetensors.numpy.save_file({}, tmp_path / "empty.safetensors")
  with pytest.raises(UserError, match="holds no arrays"):
    read(tmp_path / "empty.safetensors")


@pytest.mark.parametrize(
  ("rule", "says"),
  [
    (("(", "x"), "key map rule .*: expected \\(regular expression, replacement or None"),
    (("x", 3), "key map rule .*: expected"),
    (("x", "y", (1, 0), 5), "key map rule .*: expected"),
    ((), "key map rule .*: expected"),
    (("a", r"\2"), r"key map rule 'a': '\\\\2' does not fit it \(invalid group reference"),
  ],
)
def test_rules_are_checked(tmp_path, rule, says):
  safetensors.numpy.save_file({"a": np.ones(2)}, tmp_path / "w.safetensors")
  with pytest.raises(UserError, match=says):
    load(tmp_path / "w.safetensors", target(), [rule])
