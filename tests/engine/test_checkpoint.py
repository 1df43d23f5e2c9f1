"""Checkpoints: exact round trips, and every kind of damage and mix-up that users meet, on real files."""

import gc
import json
import os
import shutil
import sys
import time
import warnings
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import struct
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.store.checkpoint import Checkpoints


class Pair(NamedTuple):
  a: object
  b: object


class State(struct.PyTreeNode):
  step: object
  params: object
  opt: object
  rest: object


def make_state(seed=0):
  keys = jax.random.split(jax.random.key(seed), 3)
  params = {"Dense_0": {"kernel": jax.random.normal(keys[0], (17, 33)), "bias": jnp.zeros((33,), jnp.bfloat16)}}
  rest = {
    "pair": Pair(np.arange(3, dtype=np.int64), (jnp.array(True), None)),
    "keys": keys,
    "int4": jnp.arange(-4, 4, dtype=jnp.int4),
    "uint4": jnp.arange(8, dtype=jnp.uint4),
    "float8": jnp.linspace(-1, 1, 5).astype(jnp.float8_e4m3fn),
    "empty": jnp.zeros((0, 3)),
    "mask": jnp.arange(6, dtype=jnp.uint8).reshape(2, 3),
    "number": 3 + seed,
    "rate": 0.1,
  }
  return State(jnp.int32(seed), params, optax.adamw(1e-3).init(params), rest)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (name, x), y in zip(named_leaves(a).items(), jax.tree.leaves(b)):
    if hasattr(x, "dtype") and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    assert isinstance(x, jax.Array) == isinstance(y, jax.Array), name
    assert np.asarray(x).dtype == np.asarray(y).dtype, name
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), name
    assert np.shape(x) == np.shape(y), name


def small(step):
  return {"w": jnp.arange(2000.0) + step, "n": jnp.int32(step)}


def save_steps(directory, steps=(1, 2, 3), **options):
  with Checkpoints(directory, **options) as checkpoints:
    if checkpoints.latest() is not None:
      checkpoints.restore(small(0))
    for step in steps:
      checkpoints.save(step, small(step), extra={"epoch": step})


def data_files(directory):
  """The files that hold array bytes, largest first."""
  files = [p for p in directory.rglob("d/*") if p.is_file()]
  return sorted(files, key=lambda p: -p.stat().st_size)


def flip(path, where=0.5, bit=3):
  data = bytearray(path.read_bytes())
  data[int(len(data) * where)] ^= 1 << bit
  path.write_bytes(data)


def test_round_trip_is_exact(tmp_path):
  state = make_state(1)
  with Checkpoints(tmp_path / "c") as checkpoints:
    assert checkpoints.latest() is None
    checkpoints.save(7, state, extra={"names": ["a", "b"], "x": 0.1})
    restored = checkpoints.restore(make_state(2))
  assert restored.step == 7
  assert restored.extra == {"names": ["a", "b"], "x": 0.1}
  assert_same(restored.state, state)
  with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
    abstract = jax.eval_shape(lambda: make_state(2).params)
    assert_same(checkpoints.restore(make_state(2).replace(params=abstract)).state, state)


def test_save_writes_the_values_at_the_call(tmp_path):
  state = {"w": jnp.ones((1000, 1000)), "host": np.zeros(4_000_000)}
  change = jax.jit(lambda w: w + 1, donate_argnums=0)
  with Checkpoints(tmp_path / "c") as checkpoints:
    checkpoints.save(1, state)
    state["host"][:] = 5
    state["w"] = change(state["w"])
    for _ in range(20):
      state["w"] = change(state["w"])
    restored = checkpoints.restore({"w": jnp.zeros((1000, 1000)), "host": np.ones(4_000_000)}).state
  assert np.all(np.asarray(restored["w"]) == 1)
  assert np.all(restored["host"] == 0)


def test_shardings_come_from_the_target(tmp_path):
  mesh = Mesh(np.array(jax.devices()), ("d",))
  split, whole = NamedSharding(mesh, P("d")), NamedSharding(mesh, P())
  value = jnp.arange(64.0).reshape(8, 8)
  target = {"a": jax.ShapeDtypeStruct((8, 8), jnp.float32), "k": jax.random.split(jax.random.key(0), 4)}
  with Checkpoints(tmp_path / "c") as checkpoints:
    checkpoints.save(1, {"a": jax.device_put(value, split), "k": jax.device_put(target["k"], whole)})
    one = checkpoints.restore(target).state
    free = checkpoints.restore({**target, "a": jnp.zeros((8, 8))}).state
    many = checkpoints.restore({"a": jax.device_put(value * 0, whole), "k": jax.device_put(target["k"], split)}).state
    abstract = {**target, "a": jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=split)}
    parts = checkpoints.restore(abstract).state
    checkpoints.save(2, {"a": value, "k": target["k"]})
  for state in (one, many, parts, free):
    np.testing.assert_array_equal(state["a"], value)
    np.testing.assert_array_equal(jax.random.key_data(state["k"]), jax.random.key_data(target["k"]))
  assert not one["a"].committed
  assert not free["a"].committed  # a committed array could not meet a batch that is split over devices
  assert many["a"].sharding == whole
  assert many["k"].sharding == split
  assert parts["a"].sharding == split
  crcs = [json.loads((tmp_path / "c" / s / "about" / "metadata").read_text())["leaves"]["a"][2] for s in "12"]
  assert crcs[0] == crcs[1]


def test_keep_and_best(tmp_path):
  with Checkpoints(tmp_path / "c", keep=2, best="loss", mode="min") as checkpoints:
    for step, loss in [(1, 3.0), (2, 1.0), (3, 2.0), (4, float("nan"))]:
      checkpoints.save(step, small(step), metrics={"loss": loss})
    checkpoints.wait()
    assert (checkpoints.steps(), checkpoints.best(), checkpoints.latest()) == ([2, 3, 4], 2, 4)
  # the best is remembered by another process, too
  with Checkpoints(tmp_path / "c", keep=2, best="loss", mode="min") as checkpoints:
    assert checkpoints.restore(small(0)).step == 4
    for step, loss in [(5, 1.5), (6, 1.2)]:
      checkpoints.save(step, small(step), metrics={"loss": loss})
    checkpoints.wait()
    assert (checkpoints.steps(), checkpoints.best()) == ([2, 5, 6], 2)
    checkpoints.save(7, small(7), metrics={"loss": 0.5})
    checkpoints.save(8, small(8))
    checkpoints.wait()
    assert (checkpoints.steps(), checkpoints.best()) == ([7, 8], 7)
    assert checkpoints.restore(small(0), step=7).extra == {}


@pytest.mark.parametrize("seed", range(6))
def test_any_flipped_bit_is_found(tmp_path, seed):
  """Flips one random bit in a random file of the newest step: what is restored is right, or the step before."""
  save_steps(tmp_path / "c", (1, 2))
  rng = np.random.default_rng(seed)
  if seed == 0:
    flip(data_files(tmp_path / "c" / "2")[0])
  else:
    files = sorted(p for p in (tmp_path / "c" / "2").rglob("*") if p.is_file() and p.stat().st_size)
    flip(files[rng.integers(len(files))], rng.random(), rng.integers(8))
  with Checkpoints(tmp_path / "c") as checkpoints, warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    restored = checkpoints.restore(small(0))
  assert_same(restored.state, small(restored.step))
  assert restored.extra == {"epoch": restored.step}
  assert (restored.step == 1) == any("2 is damaged" in str(w.message) for w in caught)
  assert seed != 0 or restored.step == 1


def cut(step):
  path = data_files(step)[0]
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE = {
  "flipped data": lambda step: flip(data_files(step)[0]),
  "cut data": cut,
  "deleted data": lambda step: data_files(step)[0].unlink(),
  "no arrays": lambda step: shutil.rmtree(step / "state"),
  "no description": lambda step: shutil.rmtree(step / "about"),
  "empty description": lambda step: (step / "about" / "metadata").write_text(""),
  "changed description": lambda step: (step / "about" / "metadata").write_text(
    (step / "about" / "metadata").read_text().replace('"epoch": 3', '"epoch": 9')
  ),
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_and_is_replaced(tmp_path, damage):
  save_steps(tmp_path / "c")
  DAMAGE[damage](tmp_path / "c" / "3")
  with Checkpoints(tmp_path / "c") as checkpoints:
    with pytest.warns(UserWarning, match=r"c/3 is damaged \(.*\); taking the one before"):
      restored = checkpoints.restore(small(0))
    assert restored.step == 2
    assert_same(restored.state, small(2))
    with pytest.raises(UserError, match=r"there is no sound checkpoint in .* \(step 3: "):
      checkpoints.restore(small(0), step=3)
    checkpoints.restore(small(0), step=2)
    checkpoints.save(3, small(3))
    assert checkpoints.restore(small(0)).step == 3
    assert checkpoints.steps() == [1, 2, 3]


def test_a_step_under_another_number_is_damaged(tmp_path):
  save_steps(tmp_path / "c")
  (tmp_path / "c" / "3").rename(tmp_path / "c" / "5")
  with Checkpoints(tmp_path / "c") as checkpoints:
    with pytest.warns(
      UserWarning, match=r"c/5 is damaged \(it is step 3 under another number\); taking the one before"
    ):
      assert checkpoints.restore(small(0)).step == 2
    with pytest.raises(UserError, match=r"no sound checkpoint in .* \(step 5: .*\); remove it to begin again"):
      checkpoints.restore(small(0), step=5)


def test_a_damaged_step_is_one_sentence(tmp_path, capfd):
  """Orbax writes nothing of its own; where it gives up at one leaf, others find its event loop closed."""
  state = {f"w{i}": jnp.arange(2000.0) for i in range(12)}
  with Checkpoints(tmp_path / "c") as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state)
  data, meta = data_files(tmp_path / "c" / "2" / "state")[0], tmp_path / "c" / "2" / "_CHECKPOINT_METADATA"
  whole, hook = data.read_bytes(), sys.unraisablehook
  capfd.readouterr()
  for content in (whole[: len(whole) // 2], b""):
    data.write_bytes(content)
    meta.write_text("{")
    with Checkpoints(tmp_path / "c") as checkpoints, pytest.warns(UserWarning, match="c/2 is damaged") as caught:
      assert checkpoints.restore(state).step == 1
    assert len(caught) == 1
  gc.collect()
  assert capfd.readouterr() == ("", "")
  sys.unraisablehook = hook


def test_no_sound_checkpoint(tmp_path):
  save_steps(tmp_path / "c", (1, 2))
  for step in "12":
    flip(data_files(tmp_path / "c" / step)[0])
  says = r"there is no sound checkpoint in .*c \(step 1: leaf 'w' does not match its checksum\)"
  with (
    Checkpoints(tmp_path / "c") as checkpoints,
    pytest.warns(UserWarning, match="c/2 is damaged"),
    pytest.raises(UserError, match=says),
  ):
    checkpoints.restore(small(0))


@pytest.mark.parametrize(
  ("change", "says"),
  [
    (lambda s: s | {"v": jnp.zeros(2)}, "has no leaf 'v', which this run needs"),
    (lambda s: {"ww": s["w"], "n": s["n"]}, "has no leaf 'ww', which this run needs; it has 'w'"),
    (lambda s: {"w": s["w"]}, "has the leaf 'n', which this run does not have"),
    (lambda s: s | {"w": jnp.zeros(2001)}, r"leaf 'w' has shape \(2000,\) there and \(2001,\) in this run"),
    (lambda s: s | {"w": np.zeros(2001, np.float32)}, r"leaf 'w' has shape \(2000,\) there and \(2001,\) in this run"),
    (lambda s: s | {"w": jnp.zeros(2000, jnp.float16)}, "leaf 'w' has dtype float32 there and float16 in this run"),
    (lambda s: s | {"n": jax.random.key(0)}, "leaf 'n' has dtype int32 there and key<fry> in this run"),
  ],
)
def test_another_tree_is_refused(tmp_path, change, says):
  save_steps(tmp_path / "c", (1,))
  with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(UserError, match=says) as caught:
    checkpoints.restore(change(small(0)))
  assert str(tmp_path / "c" / "1") in str(caught.value)
  assert "\n" not in str(caught.value)


def test_another_config_is_refused(tmp_path):
  config = {"opt": {"lr": 0.1, "betas": (0.9, 0.99)}, "steps": 5}
  save_steps(tmp_path / "c", config=config)
  Checkpoints(tmp_path / "c", config=config).close()
  with pytest.raises(UserError, match=r"checkpoints of another config: 'opt.lr' was 0.1 and is 0.2 here; choose"):
    Checkpoints(tmp_path / "c", config={**config, "opt": {"lr": 0.2, "betas": (0.9, 0.99)}})
  with pytest.raises(UserError, match="'warmup' is set here only"):
    Checkpoints(tmp_path / "c", config={**config, "warmup": 1})


def test_directories_without_checkpoints_are_refused(tmp_path):
  (tmp_path / "file").write_text("x")
  with pytest.raises(UserError, match="file is a file; expected a directory for checkpoints"):
    Checkpoints(tmp_path / "file")
  with pytest.raises(UserError, match="is no directory of checkpoints: it holds 'file'"):
    Checkpoints(tmp_path)
  with pytest.raises(UserError, match="there is no checkpoint directory"):
    Checkpoints(tmp_path / "none", read_only=True)
  assert not (tmp_path / "none").exists()
  with Checkpoints(tmp_path / "new") as checkpoints, pytest.raises(UserError, match="there is no checkpoint in"):
    checkpoints.restore(small(0))
  save_steps(tmp_path / "c", (1, 2))
  with (
    Checkpoints(tmp_path / "c") as checkpoints,
    pytest.raises(UserError, match="no checkpoint of step 5 .*; there are 1, 2"),
  ):
    checkpoints.restore(small(0), step=5)
  import orbax.checkpoint as ocp

  with ocp.CheckpointManager(tmp_path / "other") as manager:
    manager.save(1, args=ocp.args.StandardSave({"w": np.ones(3)}))
  with pytest.raises(UserError, match="holds checkpoints that another program wrote; choose another directory"):
    Checkpoints(tmp_path / "other")


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
  monkeypatch.setattr("leanax.engine.store.checkpoint.FORMAT", 2)
  save_steps(tmp_path / "c", (1,))
  monkeypatch.undo()
  with pytest.raises(UserError, match="c/1 has format 2, newer than this program's 1; update the program"):
    Checkpoints(tmp_path / "c")


def test_an_unfinished_step_is_not_there(tmp_path):
  save_steps(tmp_path / "c", (1, 2))
  os.rename(tmp_path / "c" / "2", tmp_path / "c" / "2.orbax-checkpoint-tmp")
  with Checkpoints(tmp_path / "c", read_only=True) as checkpoints:
    assert checkpoints.steps() == [1]
    with pytest.raises(ValueError, match="read only"):
      checkpoints.save(2, small(2))
  with Checkpoints(tmp_path / "c") as checkpoints:
    with pytest.raises(ValueError, match="restore one before saving"):
      checkpoints.save(2, small(2))
    checkpoints.restore(small(0))
    with pytest.raises(ValueError, match="step 1 does not come after step 1"):
      checkpoints.save(1, small(1))
    checkpoints.save(2, small(2))
    checkpoints.wait()
    assert checkpoints.steps() == [1, 2]
  assert sorted(p.name for p in (tmp_path / "c").iterdir() if "tmp" in p.name) == []


def test_options_are_checked(tmp_path):
  with pytest.raises(UserError, match="expected keep >= 1 and mode 'max' or 'min', not keep=0"):
    Checkpoints(tmp_path / "c", keep=0)
  with Checkpoints(tmp_path / "c") as checkpoints, pytest.raises(ValueError, match="two leaves"):
    checkpoints.save(1, {"a.b": np.ones(2), "a": {"b": np.ones(2)}})


def full(*_):
  raise OSError(28, os.strerror(28))


def test_a_save_that_fails_in_the_background_is_one_sentence(tmp_path, monkeypatch, capfd, caplog):
  checkpoints = Checkpoints(tmp_path / "c")
  checkpoints.save(1, small(1))
  checkpoints.wait()
  monkeypatch.setattr(os, "fsync", full)
  checkpoints.save(2, small(2))
  with pytest.raises(UserError) as failed:
    for _ in range(3000):
      checkpoints.check()
      time.sleep(0.01)
  assert str(failed.value) == (
    f"the checkpoint of step 2 cannot be written into {str(tmp_path / 'c')!r}: No space left on device; "
    "the last good one is of step 1"
  )
  checkpoints.close()
  monkeypatch.undo()
  assert (capfd.readouterr().err, caplog.records) == ("", [])
  with Checkpoints(tmp_path / "c") as again:
    assert again.restore(small(0)).step == 1
    again.save(3, small(3))
  assert sorted(path.name for path in (tmp_path / "c").iterdir()) == ["1", "3"]


def test_a_directory_that_cannot_be_made_fails_at_once(tmp_path, capfd):
  with Checkpoints(tmp_path / "c") as checkpoints:
    (tmp_path / "c").rmdir()
    (tmp_path / "c").touch()
    with pytest.raises(UserError, match=r"step 1 cannot be written into .*: No.* directory; there is no earlier one"):
      checkpoints.save(1, small(1))
  assert capfd.readouterr().err == ""


def test_a_step_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
  synced, fsync = [], os.fsync
  monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.readlink(f"/proc/self/fd/{file}")), fsync(file)))
  save_steps(tmp_path / "c", [1])
  written = {str(path.relative_to(tmp_path / "c/1")) for path in (tmp_path / "c/1").rglob("*")}
  before = {path.partition("1.orbax-checkpoint-tmp/")[2] for path in synced}
  after = {path.partition("/c/1/")[2] for path in synced}
  assert written - before == {"commit_success.txt"} and written - after == set() and synced[-1] == str(tmp_path / "c")


@pytest.mark.parametrize("name", ["a[1]", "a\\b", "a*?", "gs:", " ü\n"])
def test_any_name_of_a_directory(tmp_path, name):
  save_steps(tmp_path / name / "c", [1, 2])
  with Checkpoints(tmp_path / name / "c", read_only=True) as checkpoints:
    assert checkpoints.restore(small(0)).step == 2
  assert [path.name for path in tmp_path.iterdir()] == [name]
