from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from leanax.core.errors import UserError
from leanax.engine.data import Augment, Input, Preprocess, augment, batches, device_arrays, load, order
from leanax.engine.data.augment import mix_draw

TRAIN = load("synthetic", shape=(6, 6, 1), train=50, classes=3).train
ARRAYS = device_arrays(TRAIN)
SPEC = Input(8, seed=1, preprocess=Preprocess((0.5,), (0.25,)), augment=Augment(crop=1, flip=True, mixup=0.4, seed=2))
WIDER = replace(SPEC, augment=Augment(crop=2, flip=True, seed=2, views=2))
batch_of = jax.jit(batches.train_batch_at, static_argnums=(2,))
rows_of = jax.jit(order.batch_rows, static_argnums=(2, 3))


@jax.jit
def mixed_at(step):
  """A batch of SPEC, that with mixup alone, and what both draw: in one program, for these numbers compile slowly."""
  alone = replace(SPEC, augment=Augment(mixup=0.4, seed=2))
  rows = order.batch_rows(1, step, 50, 8)
  drawn = mix_draw(ARRAYS["id"][rows], step // 6, alone.augment, 50, (6, 6))[:2]
  return *(batches.train_batch_at(ARRAYS, step, spec) for spec in (SPEC, alone)), rows, drawn


@jax.jit
def wider_at(view):
  """Every example in one view of WIDER."""
  return batches.examples_at(ARRAYS, jnp.arange(50), view, WIDER)["image"]


def close(left, right):
  for key in left:
    np.testing.assert_allclose(left[key], right[key], rtol=1e-6, atol=1e-6)
  assert left.keys() == right.keys()


def test_without_changes_it_is_the_normalised_split():
  spec = Input(8, preprocess=SPEC.preprocess)
  batch = batch_of(ARRAYS, 3, spec)
  close(batch_of(ARRAYS, jnp.int32(3), spec), batch)
  rows = np.asarray(rows_of(0, 3, 50, 8))
  np.testing.assert_allclose(batch["image"], (TRAIN.images[rows] / 255 - 0.5) / 0.25, atol=1e-6)
  np.testing.assert_array_equal(batch["label"], TRAIN.labels[rows])
  np.testing.assert_array_equal(batch["id"], TRAIN.ids[rows])


def test_a_step_gives_the_same_batch_in_any_order():
  batch, *_ = mixed_at(9)
  mixed_at(2)
  close(mixed_at(9)[0], batch)


def test_devices_make_their_own_parts_under_shard_map():
  mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
  arrays = device_arrays(TRAIN, NamedSharding(mesh, PartitionSpec()))

  def local(arrays, step):
    return batches.train_batch_at(arrays, step, SPEC, (jax.lax.axis_index("d"), 4))

  mapped = jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec("d"))
  close(jax.jit(mapped)(arrays, 9), mixed_at(9)[0])


def test_mixup_equals_numpy():
  _, batch, rows, (others, weights) = jax.tree.map(np.asarray, mixed_at(11))
  pixels = (TRAIN.images / 255 - 0.5) / 0.25
  weight = weights[:, None, None, None]
  np.testing.assert_allclose(batch["image"], weight * pixels[rows] + (1 - weight) * pixels[others], atol=1e-5)
  np.testing.assert_array_equal(batch["mix_label"], TRAIN.labels[others])
  np.testing.assert_array_equal(batch["mix"], weights)


def test_a_mixup_partner_is_augmented_as_its_own_example():
  spec = replace(WIDER, augment=replace(WIDER.augment, mixup=0.4))
  alone = np.asarray(wider_at(1))

  @jax.jit
  def run():
    mixed = batches.examples_at(ARRAYS, jnp.arange(50), 1, spec)
    return mixed, mix_draw(ARRAYS["id"], 1, spec.augment, 50, (6, 6))[:2]

  mixed, (others, weights) = jax.tree.map(np.asarray, run())
  weight = weights[:, None, None, None]
  want = weight * alone + (1 - weight) * alone[others]
  np.testing.assert_allclose(mixed["image"], want, atol=1e-5)


ALL = Augment(
  crop=1, flip=True, mixup=0.4, cutmix=1.0, resized_crop=(0.3, 1.0), brightness=0.4, contrast=0.4, saturation=0.4,
  hue=0.1, erase=0.5, erase_fill="random", seed=3,
)  # fmt: skip


@pytest.mark.slow  # for time only
def test_all_changes_together_are_a_function_of_the_step_alone():
  """On one device and four, and row by row: every integer is the same, and mixed pixels are close."""
  train = load("synthetic", shape=(6, 6, 3), train=50, classes=3).train
  mesh, spec = Mesh(np.array(jax.devices()[:4]), ("d",)), Input(8, seed=1, augment=ALL)
  arrays = device_arrays(train, NamedSharding(mesh, PartitionSpec()))

  def local(arrays, step):
    return batches.train_batch_at(arrays, step, spec, (jax.lax.axis_index("d"), 4))

  @jax.jit
  def parts(arrays, step):
    rows = order.batch_rows(1, step, 50, 8)
    drawn = mix_draw(arrays["id"][rows], 1, ALL, 50, (6, 6))
    moved = [augment.move(arrays["image"][at], arrays["id"][at], 1, ALL) for at in (rows, drawn.rows)]
    return batches.train_batch_at(arrays, step, spec), drawn, moved

  whole, drawn, (own, others) = parts(arrays, jnp.int32(9))
  mapped = jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec("d"))
  close(jax.jit(mapped)(arrays, jnp.int32(9)), whole)
  pixels, others = (np.asarray(one) / 255 for one in (own, others))
  inside = np.asarray(drawn.boxes.inside(6, 6))
  share = np.asarray(drawn.shares)[:, None, None, None]
  np.testing.assert_allclose(whole["image"], np.where(inside, others, share * pixels + (1 - share) * others), atol=1e-5)
  kept = 1 - inside.mean((1, 2, 3))
  np.testing.assert_allclose(whole["mix"], np.asarray(drawn.shares) * kept, rtol=1e-6)
  assert {bool(box) for box in inside.any((1, 2, 3))} == {True, False}  # both are on: one of them each
  assert ((share.ravel() == 1) | ~inside.any((1, 2, 3))).all()


def test_views_repeat_so_that_a_teachers_outputs_can_be_stored():
  spec = replace(WIDER, per_view=("teacher_logits",))
  stored = np.stack([np.asarray(wider_at(view)).sum((1, 2, 3)) for view in range(2)], axis=1)[..., None]
  arrays = {**ARRAYS, "teacher_logits": jnp.asarray(stored)}
  batches.check(spec, arrays)
  for step in (0, 7, 13, 20):
    batch = jax.tree.map(np.asarray, batch_of(arrays, step, spec))
    assert batch["teacher_logits"].shape == (8, 1)
    np.testing.assert_allclose(batch["teacher_logits"][:, 0], batch["image"].sum((1, 2, 3)), rtol=1e-4, atol=1e-3)
  assert [int(batches.view_of(spec, step, 50)) for step in (0, 5, 6, 12)] == [0, 0, 1, 0]
  assert [int(batches.view_of(SPEC, step, 50)) for step in (0, 5, 6, 12)] == [0, 0, 1, 2]


def test_evaluation_is_plain_and_masks_the_end():
  batch = batches.eval_batch_at(ARRAYS, 6, SPEC)
  assert batch["valid"].tolist() == [True] * 2 + [False] * 6
  np.testing.assert_allclose(batch["image"][:2], (TRAIN.images[48:] / 255 - 0.5) / 0.25, atol=1e-6)


def test_bfloat16_input():
  spec = replace(SPEC, dtype=jnp.bfloat16)
  batch = jax.eval_shape(lambda arrays: batches.train_batch_at(arrays, 0, spec), ARRAYS)
  assert batch["image"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
  ("spec", "sentence"),
  [
    (Input(51), "batch_size is 51"),
    (Input(8, preprocess=Preprocess(mean=(0.0, 1.0))), r"preprocess\.mean has 2 numbers; expected 1"),
    (Input(8, augment=Augment(crop=6)), r"augment\.crop"),
    (Input(8, augment=Augment(views=2), per_view=("teacher_logits",)), "array 'teacher_logits' of shape None"),
  ],
)
def test_specs_that_do_not_fit(spec, sentence):
  with pytest.raises(UserError, match=sentence):
    batches.check(spec, ARRAYS)
