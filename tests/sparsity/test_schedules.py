"""Schedules against the paper's formula."""

import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from tests.sparsity import nets


def test_one_shot():
  schedule = sparsity.one_shot(at=5)
  assert [schedule.density(t, 0.2) for t in (0, 4, 5, 6, 1000)] == [1, 1, 0.2, 0.2, 0.2]


@pytest.mark.parametrize(("initial", "final"), [(1.0, 0.1), (0.7, 0.25)])
def test_cubic_is_the_papers(initial, final):
  schedule = sparsity.cubic(100, 200, every=20, initial=initial)
  assert schedule.steps == (100, 120, 140, 160, 180, 200)
  s_i, s_f = 1 - np.float64(initial), 1 - np.float64(final)
  for k, step in enumerate(schedule.steps):
    s_t = s_f + (s_i - s_f) * (1 - k * 20 / (5 * 20)) ** 3
    assert schedule.density(step, final) == pytest.approx(1 - s_t, abs=1e-12)
    assert schedule.density(step + 19, final) == schedule.density(step, final)
  assert schedule.density(99, final) == 1 and schedule.density(10**9, final) == final


def test_worked_case():
  # Half way, (1/2)^3 = 1/8 of the way is left: 0.2 + 0.8 / 8.
  assert sparsity.cubic(0, 10, 5).density(5, 0.2) == pytest.approx(0.3)


def test_the_end_is_reached_off_the_grid():
  schedule = sparsity.cubic(0, 99, 50)
  assert schedule.steps == (0, 50, 99) and schedule.density(99, 0.1) == 0.1
  assert sparsity.cubic(7, 7).steps == (7,) and sparsity.cubic(7, 7).density(7, 0.1) == 0.1


def test_a_layer_that_stays_denser_than_the_start():
  assert sparsity.cubic(0, 10, 5, initial=0.5).densities(0.8) == [0.8, 0.8, 0.8]


@pytest.mark.parametrize(
  ("keywords", "sentence"),
  [
    (dict(start=-1, end=4), "cubic: start is -1; expected a whole number, 0 or more"),
    (dict(start=5, end=4), "cubic: start is 5 and end 4; expected it to end no earlier"),
    (dict(start=0, end=4, every=0), "cubic: every is 0; expected a whole number, 1 or more"),
    (dict(start=0, end=4, initial=0), "cubic: initial is 0; expected a density"),
    (dict(start=0.2, end=0.7), "cubic: start is 0.2; expected a whole number"),
    (dict(start=0, end="9"), "cubic: end is '9'; expected a whole number"),
    (dict(start=0, end=float("nan")), "cubic: end is nan; expected a whole number"),
  ],
)
def test_refuses(keywords, sentence):
  with pytest.raises(UserError, match=sentence):
    sparsity.cubic(**keywords)


def test_one_shot_refuses():
  for at in (-1, 0.5, "0", True):
    with pytest.raises(UserError, match=f"one_shot: at is {at!r}; expected a whole number"):
      sparsity.one_shot(at)


def test_numbers_of_numpy():
  assert sparsity.cubic(np.int32(0), np.int64(10), every=np.int8(5)).steps == (0, 5, 10)


def test_periodic():
  assert sparsity.schedules.periodic(3, 10).steps == (3, 6, 9) and sparsity.schedules.periodic(3, 9, start=0).steps == (
    0,
    3,
    6,
  )
  for given, sentence in (((0, 5), "every is 0"), ((2, 2), "start is 2 and end 2"), ((1, 1.5), "end is 1.5")):
    with pytest.raises(UserError, match=sentence):
      sparsity.schedules.periodic(*given)


def test_linear():
  """In five steps of 0.16 from 1 to 0.2, and the end off the grid."""
  schedule = sparsity.schedules.linear(10, 60, every=10)
  assert [schedule.density(t, 0.2) for t in range(10, 61, 10)] == pytest.approx([1, 0.84, 0.68, 0.52, 0.36, 0.2])
  assert sparsity.schedules.linear(0, 99, 50).densities(0.1) == pytest.approx([1, 0.1 + 0.9 * 49 / 99, 0.1])
  with pytest.raises(UserError, match="linear: start is 5 and end 4; expected it to end no earlier"):
    sparsity.schedules.linear(5, 4)


def test_cyclic():
  """Two cycles of the cubic, of five updates each; the second starts at the initial density again."""
  schedule = sparsity.schedules.cyclic(0, 9, cycles=2, initial=0.9)
  cubic = [0.1 + 0.8 * (1 - k / 4) ** 3 for k in range(5)]
  assert [schedule.density(t, 0.1) for t in range(10)] == pytest.approx(2 * cubic)
  assert schedule.density(10**6, 0.1) == 0.1
  assert sparsity.schedules.cyclic(3, 40, 7, cycles=1) == sparsity.cubic(3, 40, 7)
  assert sparsity.schedules.cyclic(0, 100, 7, cycles=3).steps[-1] == 100
  with pytest.raises(UserError, match="cyclic: 4 cycles from update 0 to 5 .*expected at most 3 cycles"):
    sparsity.schedules.cyclic(0, 5, cycles=4)
  assert len(sparsity.schedules.cyclic(0, 5, cycles=3).steps) == 6


def test_alternating():
  """Pruned and dense in turns, and the last mask stays."""
  schedule = sparsity.schedules.alternating(10, 55, 10)
  assert [schedule.density(t, 0.2) for t in (0, 10, 19, 20, 29, 30, 40, 50, 54, 55, 999)] == [
    *(1, 0.2, 0.2, 1, 1, 0.2, 1, 0.2, 0.2, 0.2, 0.2)
  ]
  with pytest.raises(UserError, match="between start 10 and end 20 a phase of 10 updates leaves no dense phase"):
    sparsity.schedules.alternating(10, 20, 10)


def test_ac_dc_in_training():
  """Dense phases train what was pruned, from zero, and the last phase keeps the largest of all, at the exact count."""
  tx = sparsity.magnitude(optax.sgd(0.5, momentum=0.9), density=0.2, schedule=sparsity.schedules.alternating(1, 5, 2))
  before, masks = nets.params(), []
  for step, tree, state in nets.train(tx, before, 7):
    mask, w = (np.asarray(t["Dense_0"]["kernel"]) for t in (nets.masks(state), tree))
    if step in (1, 5):
      np.testing.assert_array_equal(mask, nets.oracle_mask(before["Dense_0"]["kernel"], round(w.size * 0.2)))
    if step == 3:
      gradient = np.asarray(nets.gradients(before, step)["Dense_0"]["kernel"])
      np.testing.assert_allclose(w[~masks[-1]], -0.5 * gradient[~masks[-1]], rtol=1e-6)  # no old momentum
    masks.append(mask)
    nets.assert_bit_zero(mask, w)
    before = tree
  assert [mask.all() for mask in masks] == [True, False, False, True, True, False, False]
  assert np.any(masks[1] != masks[5]) and np.array_equal(masks[5], masks[6])
