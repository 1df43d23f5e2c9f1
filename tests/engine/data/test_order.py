import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from leanax.core.errors import UserError
from leanax.core.keys import step_key
from leanax.engine.data import order


def swap_or_not(keys, places, examples):
  """The paper's figure 1 in plain integers, one place at a time."""

  def coin(word):
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
      word = (word ^ (word >> shift)) * factor & 0xFFFFFFFF
    return (word ^ (word >> 16)) >> 31

  rows = []
  for row in places:
    for first, second in keys:
      partner = (first - row) % examples
      if coin(max(row, partner) ^ second):
        row = partner
    rows.append(row)
  return rows


@pytest.mark.parametrize("examples", [1, 2, 7, 1078, 5000])
def test_each_row_once(examples):
  for epoch in range(3):
    assert sorted(order.permutation(5, epoch, examples).tolist()) == list(range(examples))


def test_equals_the_papers_cipher():
  keys = np.asarray(jax.random.bits(step_key(3, 8, "order"), (order.ROUNDS, 2), jnp.uint32)).tolist()
  places = list(range(0, 1000, 37))
  got = order.shuffled(3, 8, jnp.asarray(places), 1000)
  # first % examples - row and (first - row) % examples are the same partner
  assert got.tolist() == swap_or_not(keys, places, 1000)


def test_as_even_as_a_fair_shuffle():
  examples, epochs = 9, 9000
  orders = np.asarray(jax.jit(jax.vmap(lambda e: order.permutation(0, e, examples)))(jnp.arange(epochs)))
  places = np.stack([np.bincount(orders[:, place], minlength=examples) for place in range(examples)])
  statistic = ((places - epochs / examples) ** 2 / (epochs / examples)).sum()
  assert 0.001 < stats.chi2.sf(statistic, (examples - 1) ** 2) < 0.999
  pairs = np.bincount((orders[:, :-1] * examples + orders[:, 1:]).ravel(), minlength=examples**2)
  off = pairs.reshape(examples, examples)[~np.eye(examples, dtype=bool)]
  assert stats.chisquare(off).pvalue > 0.001


def test_seeds_and_epochs_differ():
  first = order.permutation(0, 0, 500)
  for other in (order.permutation(0, 1, 500), order.permutation(1, 0, 500)):
    assert (first == other).mean() < 0.02


def test_steps_walk_along_the_permutation_and_drop_the_rest():
  examples, size = 103, 10
  rows = jax.jit(functools.partial(order.batch_rows, examples=examples, batch_size=size))
  for epoch in range(2):
    whole = order.permutation(7, epoch, examples)
    for k in range(10):
      np.testing.assert_array_equal(rows(7, epoch * 10 + k), whole[k * size : (k + 1) * size])
  assert order.steps_per_epoch(examples, size) == 10
  assert [int(order.epoch_of(step, examples, size)) for step in (0, 9, 10, 29)] == [0, 0, 1, 2]


def test_never_changes():
  assert order.batch_rows(0, 12345, 60000, 6).tolist() == [26264, 51888, 35382, 58628, 43398, 10298]


def test_parts_make_up_the_batch():
  whole = order.batch_rows(1, 4, 100, 12)
  parts = [order.batch_rows(1, 4, 100, 12, (k, 4)) for k in range(4)]
  np.testing.assert_array_equal(jnp.concatenate(parts), whole)
  with pytest.raises(UserError, match="cannot be divided evenly over 5 devices"):
    order.batch_rows(1, 4, 100, 12, (0, 5))


@pytest.mark.parametrize("size", [0, 11])
def test_batch_that_does_not_fit(size):
  with pytest.raises(UserError, match=f"batch_size is {size}; expected 1 to the 10 examples"):
    order.batch_rows(0, 0, 10, size)


def test_batch_gathers_every_array_inside_scan():
  arrays = {
    "image": jnp.arange(40, dtype=jnp.uint8).reshape(20, 2),
    "id": jnp.arange(20) + 100,
    "extra": jnp.arange(20.0),
  }

  def body(step, _):
    return step + 1, order.batch_at(arrays, 3, step, 5)

  _, batches = jax.jit(lambda start: jax.lax.scan(body, start, None, length=4))(jnp.int32(4))
  rows = np.asarray(batches["id"]) - 100
  assert sorted(rows.ravel().tolist()) == list(range(20))
  np.testing.assert_array_equal(batches["image"], np.asarray(arrays["image"])[rows])
  np.testing.assert_array_equal(batches["extra"], rows.astype(np.float32))


def test_evaluation_shows_every_example_once():
  arrays = {"id": jnp.arange(11)}
  seen = []
  for step in range(3):
    batch, where = order.padded_batch_at(arrays, step, 4)
    assert batch["id"].shape == (4,)
    seen += np.asarray(batch["id"])[np.asarray(where)].tolist()
  assert seen == list(range(11))


CLASSES = (3, 40, 17)
order_of = jax.jit(order.of_classes, static_argnums=3)


def test_a_balanced_epoch_draws_every_class_equally_often():
  """60 rows of three classes: 20 places each; the few rows again and again, and others of the many in each epoch."""
  epochs = [np.asarray(order_of(3, epoch, jnp.arange(60), CLASSES)) for epoch in range(4)]
  label = np.repeat([0, 1, 2], CLASSES)
  for rows in epochs:
    assert np.bincount(label[rows]).tolist() == [20, 20, 20]
    times = np.bincount(rows, minlength=60)
    assert sorted(times[:3]) == [6, 7, 7] and sorted(times[43:]) == [1] * 14 + [2] * 3
    assert set(times[3:43]) == {0, 1}  # the many: none twice
    assert len(set(label[rows[:6]])) > 1  # mixed over the epoch
  assert not np.array_equal(epochs[0], epochs[1]) and set(epochs[0]) != set(epochs[1])
  drawn = np.concatenate([np.asarray(order_of(3, epoch, jnp.arange(60), CLASSES)) for epoch in range(60)])
  assert np.bincount(drawn, minlength=60)[3:43].min() > 12  # 30 on average: every row comes up
  np.testing.assert_array_equal(order_of(3, jnp.int32(2), jnp.arange(20, 30), CLASSES), epochs[2][20:30])


def test_balanced_batches_are_parts_of_the_epoch():
  rows = np.asarray(order_of(3, 1, jnp.arange(60), CLASSES))
  for step in (3, 4):
    whole = order.batch_rows(3, step, 60, 20, (0, 1), CLASSES)
    np.testing.assert_array_equal(whole, rows[(step - 3) * 20 : (step - 2) * 20])
    parts = [order.batch_rows(3, step, 60, 20, (part, 4), CLASSES) for part in range(4)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
