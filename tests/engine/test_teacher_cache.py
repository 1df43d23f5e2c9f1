"""The cache of a teacher's logits: the same numbers for every reader, however often its build was killed."""

import fcntl
import functools
import io
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.data import Augment, Input, Preprocess, batches, device_arrays, load, order
from leanax.engine.store import logit_codes, teacher_cache
from leanax.engine.store.teacher_key import data_hash, key_of, teacher_hash

EXAMPLES, CLASSES = 50, 6
ARRAYS = device_arrays(load("synthetic", shape=(4, 4, 1), train=EXAMPLES, classes=3).train)
MOVED = Augment(crop=1, flip=True, seed=2, views=3)
SPEC = Input(8, seed=1, preprocess=Preprocess((0.5,), (0.25,)), augment=MOVED)
STILL = replace(SPEC, augment=Augment())
MIXED = replace(SPEC, augment=replace(MOVED, mixup=0.4))
CUT = replace(SPEC, augment=replace(MOVED, cutmix=1.0, erase=0.5))
WEIGHTS = np.random.default_rng(0).normal(size=(16, CLASSES)).astype(np.float32)


@functools.cache
def key_for(spec, form="float32", top_k=None, weight=1.0):
  return key_of(teacher_hash({"kernel": WEIGHTS * np.float32(weight)}, "dense"), ARRAYS, spec, CLASSES, form, top_k)


@functools.cache
def mix_of(spec):
  return teacher_cache.mixing(ARRAYS, spec)


@functools.cache
def live(spec):
  """A teacher that looks at images as a spec shows them."""

  @jax.jit
  def run(rows, view):
    images = batches.examples_at(ARRAYS, rows, view, spec)["image"]
    return images.reshape(len(images), -1) @ WEIGHTS

  return run


def made_up(rows, view):
  """Numbers in place of a teacher's logits."""
  return np.sin(np.outer(rows + 50.0 * view, np.arange(1, CLASSES + 1))).astype(np.float32)


def asker(limit=None, logits_of=made_up):
  """`logits_of` that fails after `limit` calls; its `calls` says which were made."""
  calls = []

  def ask(rows, view):
    if limit is not None and len(calls) == limit:
      raise KeyboardInterrupt
    calls.append((rows.tolist(), view))
    return logits_of(rows, view)

  ask.calls = calls
  return ask


def build(path, spec=SPEC, form="float32", top_k=None, logits_of=made_up, **more):
  more = {"batch": 8, "chunk": 16, "stream": io.StringIO(), "mix_of": mix_of(spec), **more}
  return teacher_cache.build(path, key_for(spec, form, top_k), logits_of, **more)


def files_of(path):
  return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  "spec", [STILL, SPEC, MIXED, pytest.param(CUT, marks=pytest.mark.slow)], ids=["still", "moved", "mixed", "cut"]
)
def test_batches_get_the_teachers_own_bits(tmp_path, spec):
  logits_of = asker(logits_of=live(spec))
  cache = build(tmp_path, spec, logits_of=logits_of)
  views = spec.augment.views or 1
  parts = [np.arange(k, k + 8).clip(max=EXAMPLES - 1) for k in range(0, EXAMPLES, 8)]
  want = np.stack([np.concatenate([live(spec)(part, v) for part in parts])[:EXAMPLES] for v in range(views)], 1)
  assert cache.arrays["teacher_logits"].tobytes() == want.tobytes()
  assert cache.arrays["teacher_logits"].shape == (want[:, 0].shape if spec is STILL else want.shape)
  assert len({len(rows) for rows, _ in logits_of.calls}) == 1  # one compiled program

  # what a training step sees
  spec = replace(spec, per_view=cache.per_view)
  data = {**ARRAYS, **jax.device_put(cache.arrays)}
  if spec.per_view:
    batches.check(spec, data)

  @jax.jit
  def of_step(data, step):
    batch = batches.train_batch_at(data, step, spec)
    return cache.decode(batch), batch

  for step in (0, 7, 20):
    logits, batch = of_step(data, step)
    where = np.asarray(order.batch_rows(spec.seed, step, EXAMPLES, 8))
    assert np.asarray(logits).tobytes() == want[where, step // 6 % views].tobytes()
    np.testing.assert_allclose(logits, batch["image"].reshape(8, -1) @ WEIGHTS, rtol=1e-4, atol=1e-4)
    if spec.augment.mixes:
      view = step // 6 % views
      np.testing.assert_allclose(batch["mix"], cache.mix["mix_weight"][where, view], atol=1e-6)
      np.testing.assert_array_equal(batch["mix_label"], ARRAYS["label"][cache.mix["mix_partner"][where, view]])
  assert bool(cache.mix) == spec.augment.mixes


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form, top_k", [("float16", None), ("int8", None), ("float16", 2)])
def test_compact_forms_in_batches(tmp_path, form, top_k):
  cache = build(tmp_path, SPEC, form, top_k)
  spec = replace(SPEC, per_view=cache.per_view)
  batch = jax.jit(functools.partial(batches.train_batch_at, spec=spec))({**ARRAYS, **cache.arrays}, 9)
  got = np.asarray(jax.jit(cache.decode)(batch))
  where = np.asarray(order.batch_rows(spec.seed, 9, EXAMPLES, 8))
  want = logit_codes.decode(jax.device_put(logit_codes.encode(made_up(where, 1), form, top_k)), CLASSES)
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
  assert "teacher_logits" not in batch or batch["teacher_logits"].dtype == jnp.float16


@pytest.mark.parametrize("calls", [0, 1, 6, 7, 20])
@pytest.mark.parametrize("spec, form, top_k", [(SPEC, "int8", None), (MIXED, "float32", 2)], ids=["int8", "mixed"])
def test_killed_build_ends_in_the_same_bytes(tmp_path, spec, form, top_k, calls):
  build(tmp_path / "whole", spec, form, top_k)
  with pytest.raises(KeyboardInterrupt):
    build(tmp_path / "killed", spec, form, top_k, asker(calls))
  for file in (tmp_path / "killed").glob("*.npy"):  # and died while it wrote a chunk
    file.write_bytes(file.read_bytes() + b"half a chunk")
  with pytest.raises(UserError, match="is not finished: . of 4 chunks"):
    teacher_cache.read(tmp_path / "killed", key_for(spec, form, top_k))
  rest, stream = asker(), io.StringIO()
  build(tmp_path / "killed", spec, form, top_k, rest, chunk=8, stream=stream)  # its own chunks are kept
  assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
  done = calls // 6 * 6
  assert len(rest.calls) == 21 - done
  assert f"step {done + 1}/21" in stream.getvalue()
  never = asker(0)
  build(tmp_path / "killed", spec, form, top_k, never)
  assert not never.calls


def test_disk_full_between_files_of_a_chunk(tmp_path, monkeypatch):
  """One array has the chunk, the other not: the chunk does not count."""
  build(tmp_path / "whole", form="int8")
  put, done = teacher_cache.files._put, []

  def failing(*arguments):
    done.append(1)
    if len(done) == 5:
      raise UserError("full")
    put(*arguments)

  monkeypatch.setattr(teacher_cache.files, "_put", failing)
  with pytest.raises(UserError, match="full"):
    build(tmp_path / "killed", form="int8")
  monkeypatch.undo()
  build(tmp_path / "killed", form="int8")
  assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


@pytest.mark.parametrize(
  "spec, form, top_k", [(STILL, "float16", None), (SPEC, "int8", None), (MIXED, "float32", 2)], ids=["16", "8", "top"]
)
def test_the_printed_size_is_the_size_on_disk(tmp_path, spec, form, top_k):
  stream = io.StringIO()
  build(tmp_path, spec, form, top_k, stream=stream)
  views = spec.augment.views or 1
  needed = logit_codes.bytes_needed(EXAMPLES, CLASSES, views, form, top_k, mixed=spec is MIXED)
  found = [file.stat().st_size - 128 for file in tmp_path.glob("*.npy")]
  assert sum(found) == needed
  what = f"the {top_k} largest in {form}" if top_k else form
  line = f"50 examples x {views} view{'s' * (views > 1)} x 6 classes as {what}: "
  assert stream.getvalue().startswith(f"teacher cache: {line}{teacher_cache.size_text(needed)} in {tmp_path}\n")
  for file in tmp_path.glob("*.npy"):  # any reader can read them
    assert np.load(file).shape[:2] == (EXAMPLES, 3) or spec is STILL


def test_size_text():
  texts = ["812 B", "1 MB", "4.8 MB", "1.23 GB", "2 TB"]
  assert [teacher_cache.size_text(n) for n in (812, 999_600, 4_800_000, 1_230_000_000, 2 * 10**12)] == texts


def test_a_full_disk_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(teacher_cache.shutil, "disk_usage", lambda path: type("", (), {"free": 1000}))
  with pytest.raises(UserError, match=r"needs 3\.6 kB of disk; 1 kB are free"):
    build(tmp_path)


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
  "changes, words",
  [
    ({"weight": 2.0}, "of another teacher: [0-9a-f]{16}, expected [0-9a-f]{16}$"),
    ({"spec": replace(SPEC, augment=replace(MOVED, seed=3))}, "of another augmentation: seed=2, expected seed=3"),
    ({"spec": replace(SPEC, augment=replace(MOVED, flip=False))}, "augmentation: flip=True, expected flip=False"),
    ({"spec": STILL}, "of another augmentation: crop=1, .*, expected none"),
    ({"spec": replace(SPEC, preprocess=Preprocess((0.5,), (0.5,)))}, r"another preprocessing: std=\[0.25\], expected"),
    ({"spec": replace(SPEC, dtype=jnp.bfloat16)}, "dtype=float32, expected dtype=bfloat16"),
    ({"spec": replace(SPEC, augment=replace(MOVED, views=4))}, "of another number of views: 3, expected 4"),
    ({"form": "int8"}, "of another form: float32, expected int8"),
    ({"top_k": 2}, "of another top_k: None, expected 2"),
  ],
)
def test_other_key(tmp_path, changes, words):
  build(tmp_path, chunk=64)
  key = key_for(**{"spec": SPEC, **changes})
  with pytest.raises(UserError, match=words) as caught:
    teacher_cache.read(tmp_path, key)
  assert str(caught.value).startswith(f"the cache at {tmp_path} is ")
  with pytest.raises(UserError, match=words):
    teacher_cache.build(tmp_path, key, asker(0))
  assert key.name != key_for(SPEC).name


def test_other_data_or_random_numbers(tmp_path):
  build(tmp_path, chunk=64)
  key = key_for(SPEC)
  images = np.array(ARRAYS["image"])
  images[3, 0, 0, 0] ^= 1
  other = key._replace(data=data_hash({**ARRAYS, "image": images}))
  with pytest.raises(UserError, match="is of another data set: "):
    teacher_cache.read(tmp_path, other)
  with pytest.raises(UserError, match="perhaps those of another version of jax"):
    teacher_cache.read(tmp_path, key._replace(pixels="0"))


def test_students_that_differ_in_their_own_seed_share_a_cache():
  assert key_for(replace(SPEC, seed=9, batch_size=4)) == key_for(SPEC)
  # where nothing is changed, neither views nor the seed say anything
  assert key_for(replace(SPEC, augment=Augment(seed=5, views=2))) == key_for(STILL)


def test_students_with_other_labels_share_a_cache():
  assert data_hash({**ARRAYS, "label": ARRAYS["label"] * 0 - 1}) == data_hash(ARRAYS)


def test_mixing_of_other_weights(tmp_path):
  build(tmp_path, MIXED, chunk=64)
  draw = mix_of(MIXED)
  for wrong in (lambda r, v: (draw(r, v)[0] + 1, draw(r, v)[1]), lambda r, v: (draw(r, v)[0], draw(r, 2)[1])):
    with pytest.raises(UserError, match="mixes other random changes"):
      build(tmp_path, MIXED, mix_of=wrong)
  with pytest.raises(ValueError, match="mix_of is needed"):
    build(tmp_path, MIXED, mix_of=None)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["teacher_codes.npy", "teacher_scale.npy", "key.json", "chunks.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "lost"])
def test_damage_is_named_with_its_cure(tmp_path, name, damage, finished):
  if finished:
    build(tmp_path, form="int8")
  else:
    with pytest.raises(KeyboardInterrupt):
      build(tmp_path, form="int8", logits_of=asker(13))
  file = tmp_path / name
  data = bytearray(file.read_bytes())
  data[0 if name.endswith("json") else -1] ^= 128 if name.endswith("json") else 1
  file.write_bytes({"flipped": data, "cut": data[:-5], "lost": b""}[damage])
  if damage == "lost":
    file.unlink()
  if (name, damage) == ("key.json", "lost"):
    build(tmp_path, form="int8")  # a cache without its key is none, and is made again
    return
  with pytest.raises(UserError, match=rf"{name} is damaged: .*; delete .* is built again") as caught:
    build(tmp_path, form="int8")
  assert "\n" not in str(caught.value)


def test_entries_that_do_not_fit(tmp_path):
  build(tmp_path)
  file = tmp_path / "chunks.json"
  good = json.loads(file.read_text())
  for bad in ({"rows": 16}, {**good, "rows": 0}, {**good, "rows": 50}, {**good, "crc32": []}, []):
    file.write_text(json.dumps(bad))
    with pytest.raises(UserError, match=r"chunks\.json is damaged"):
      build(tmp_path)
  file.write_text(json.dumps(good))
  array = tmp_path / "teacher_logits.npy"
  array.write_bytes(array.read_bytes() + b"x")
  with pytest.raises(UserError, match="is longer than it should be"):
    build(tmp_path)


@pytest.mark.parametrize("form", ["float32", "float16", "int8"])
def test_an_excluded_class_is_stored_where_each_logit_is(tmp_path, form):
  def excluding(rows, view):
    return np.where(np.arange(CLASSES) == 2, -np.inf, np.float32(np.asarray(rows)[:, None]))

  key = key_for(SPEC, form=form)
  if form == "int8":
    with pytest.raises(UserError, match="not finite for row 0 in view 0"):
      teacher_cache.build(tmp_path, key, excluding)
    return
  stored = teacher_cache.build(tmp_path, key, excluding)
  rows = np.arange(key.examples)
  np.testing.assert_array_equal(stored.arrays["teacher_logits"][:, 0], excluding(rows, 0))
  none = lambda rows, view: np.full((len(rows), CLASSES), -np.inf)
  with pytest.raises(UserError, match="not finite for row 0"):
    teacher_cache.build(tmp_path / "none", key, none)


def test_logits_that_cannot_be_stored(tmp_path):
  def with_nan(rows, view):
    return np.where(np.asarray(rows)[:, None] == 21, np.nan, np.ones((len(rows), CLASSES)))

  with pytest.raises(UserError, match="the logits of 'big' are not finite for row 21 in view 0; expected .* -inf"):
    build(tmp_path, logits_of=with_nan, teacher="'big'")
  with pytest.raises(UserError, match=r"logits have shape \(8, 5\); expected \(8, 6\)"):
    build(tmp_path / "b", logits_of=lambda rows, view: np.ones((len(rows), 5)))
  with pytest.raises(UserError, match="there is no cache of a teacher's logits at"):
    teacher_cache.read(tmp_path / "c", key_for(SPEC))
  with pytest.raises(UserError, match="augment.views is None"):
    key_for(replace(SPEC, augment=replace(MOVED, views=None)))
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="file cannot be written: "):
    build(tmp_path / "file")


def test_a_second_builder_waits(tmp_path, monkeypatch):
  """While it waits the first one finishes, so that nothing is left to do."""
  flock, stream, never = fcntl.flock, io.StringIO(), asker(0)

  def busy(file, how):
    if how & fcntl.LOCK_NB:
      raise BlockingIOError
    monkeypatch.undo()
    build(tmp_path)
    flock(file, how)

  monkeypatch.setattr(fcntl, "flock", busy)
  assert build(tmp_path, logits_of=never, stream=stream).arrays["teacher_logits"].shape == (EXAMPLES, 3, CLASSES)
  assert stream.getvalue() == f"teacher cache: another program builds {tmp_path}; waiting for it\n"
  assert not never.calls


def test_teacher_hash():
  tree = {"a": {"w": np.arange(4.0)}, "b": [np.zeros(3, np.int8)], "key": jax.random.key(1)}
  same = {"key": jax.random.key(1), "b": [jnp.zeros(3, jnp.int8)], "a": {"w": np.arange(4.0)}}
  assert teacher_hash(tree, {"x": 1, "y": 2}) == teacher_hash(same, {"y": 2, "x": 1})
  others = [
    {**tree, "a": {"v": np.arange(4.0)}},
    {**tree, "a": {"w": np.arange(4.0).reshape(2, 2)}},
    {**tree, "a": {"w": np.arange(4.0).view(np.int64)}},
    {**tree, "a": {"w": np.array([0.0, 1, 2, 4])}},
    {**tree, "key": jax.random.key(2)},
    {name: tree[name] for name in ("a", "b")},
  ]
  hashes = [teacher_hash(tree, {"x": 1}), teacher_hash(tree), *(teacher_hash(other) for other in others)]
  assert len(set(hashes)) == len(hashes)
