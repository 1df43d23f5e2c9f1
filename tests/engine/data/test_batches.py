from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from leanax.core.errors import UserError
from leanax.engine.data import Augment, Input, Preprocess, batches, device_arrays, load, order
from leanax.engine.data.augment import mixup_draw

TRAIN = load("synthetic", shape=(6, 6, 1), train=50, classes=3).train
ARRAYS = device_arrays(TRAIN)
SPEC = Input(8, seed=1, preprocess=Preprocess((0.5,), (0.25,)), augment=Augment(crop=1, flip=True, mixup=0.4, seed=2))
batch_of = jax.jit(batches.train_batch_at, static_argnums=(2,))


def close(left, right):
  for key in left:
    np.testing.assert_allclose(left[key], right[key], rtol=1e-6, atol=1e-6)
  assert left.keys() == right.keys()


def test_without_changes_it_is_the_normalised_split():
  spec = Input(8, preprocess=SPEC.preprocess)
  batch = batch_of(ARRAYS, 3, spec)
  rows = np.asarray(order.batch_rows(0, 3, 50, 8))
  np.testing.assert_allclose(batch["image"], (TRAIN.images[rows] / 255 - 0.5) / 0.25, atol=1e-6)
  np.testing.assert_array_equal(batch["label"], TRAIN.labels[rows])
  np.testing.assert_array_equal(batch["id"], TRAIN.ids[rows])


def test_a_step_gives_the_same_batch_in_any_order_and_its_parts_make_it_up():
  batch = batch_of(ARRAYS, 9, SPEC)
  batch_of(ARRAYS, 2, SPEC)
  close(batch_of(ARRAYS, jnp.int32(9), SPEC), batch)
  parts = [batches.train_batch_at(ARRAYS, 9, SPEC, (k, 4)) for k in range(4)]
  close({key: jnp.concatenate([part[key] for part in parts]) for key in batch}, batch)


def test_devices_make_their_own_parts_under_shard_map():
  mesh = Mesh(np.array(jax.devices()[:4]), ("d",))
  arrays = device_arrays(TRAIN, NamedSharding(mesh, PartitionSpec()))

  def local(arrays, step):
    return batches.train_batch_at(arrays, step, SPEC, (jax.lax.axis_index("d"), 4))

  mapped = jax.shard_map(local, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec("d"))
  close(jax.jit(mapped)(arrays, 9), batch_of(ARRAYS, 9, SPEC))


def test_mixup_equals_numpy():
  spec = replace(SPEC, augment=Augment(mixup=0.4, seed=2))
  batch = batch_of(ARRAYS, 11, spec)
  rows = order.batch_rows(1, 11, 50, 8)
  others, weights = map(np.asarray, mixup_draw(ARRAYS["id"][rows], 11 // 6, spec.augment, 50))
  pixels = (TRAIN.images / 255 - 0.5) / 0.25
  weight = weights[:, None, None, None]
  np.testing.assert_allclose(batch["image"], weight * pixels[rows] + (1 - weight) * pixels[others], atol=1e-5)
  np.testing.assert_array_equal(batch["mix_label"], TRAIN.labels[others])
  np.testing.assert_array_equal(batch["mix"], weights)


def test_a_mixup_partner_looks_as_its_own_example_does():
  spec = replace(SPEC, augment=replace(SPEC.augment, crop=2))
  alone = batches.examples_at(ARRAYS, jnp.arange(50), 1, replace(spec, augment=replace(spec.augment, mixup=0.0)))
  mixed = batches.examples_at(ARRAYS, jnp.arange(50), 1, spec)
  others, weights = mixup_draw(ARRAYS["id"], 1, spec.augment, 50)
  weight = weights[:, None, None, None]
  want = weight * alone["image"] + (1 - weight) * alone["image"][others]
  np.testing.assert_allclose(mixed["image"], want, atol=1e-5)


def test_views_repeat_so_that_a_teachers_outputs_can_be_stored():
  spec = replace(SPEC, augment=replace(SPEC.augment, views=2), per_view=("teacher_logits",))
  views = [batches.examples_at(ARRAYS, jnp.arange(50), view, replace(spec, per_view=())) for view in range(2)]
  stored = jnp.stack([view["image"].sum((1, 2, 3)) for view in views], axis=1)[..., None]
  arrays = {**ARRAYS, "teacher_logits": stored}
  batches.check(spec, arrays)
  for step in (0, 7, 13, 20):
    batch = batch_of(arrays, step, spec)
    assert batch["teacher_logits"].shape == (8, 1)
    np.testing.assert_allclose(batch["teacher_logits"][:, 0], batch["image"].sum((1, 2, 3)), rtol=1e-4, atol=1e-3)
  assert [int(batches.view_of(spec, step, 50)) for step in (0, 5, 6, 12)] == [0, 0, 1, 0]
  assert [int(batches.view_of(SPEC, step, 50)) for step in (0, 5, 6, 12)] == [0, 0, 1, 2]


def test_evaluation_is_plain_and_masks_the_end():
  batch = batches.eval_batch_at(ARRAYS, 6, SPEC)
  assert batch["valid"].tolist() == [True] * 2 + [False] * 6
  np.testing.assert_allclose(batch["image"][:2], (TRAIN.images[48:] / 255 - 0.5) / 0.25, atol=1e-6)


def test_bfloat16_input():
  assert batch_of(ARRAYS, 0, replace(SPEC, dtype=jnp.bfloat16))["image"].dtype == jnp.bfloat16


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
