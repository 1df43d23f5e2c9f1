"""Magnitude pruning: what is kept, and when."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from tests.sparsity import nets

KERNELS = ("Conv_0", "Dense_0")


def after(tx, tree, steps=1):
  *_, (_, tree, state) = nets.train(tx, tree, steps)
  return tree, nets.masks(state)


def test_worked_case():
  w = {"kernel": jnp.array([[3.0, -1.0], [1.0, 0.5]])}
  tx = sparsity.magnitude(optax.sgd(0.5), density=0.5)
  updates, state = tx.update({"kernel": jnp.ones((2, 2))}, tx.init(w), w, step=0)
  # 2 of 4 are kept: 3, and the first of the two ones. Kept entries move by -0.5, pruned ones by -w.
  np.testing.assert_array_equal(updates["kernel"], [[-0.5, -0.5], [-1.0, -0.5]])
  np.testing.assert_array_equal(nets.masks(state)["kernel"], [[True, True], [False, False]])


@pytest.mark.parametrize(
  "allocation", ["uniform", "erk", lambda shapes, d: {"Conv_0/kernel": d, "Dense_0/kernel": 1.0}]
)
def test_exact_counts_by_layer(allocation):
  tree = nets.params()
  _, masks = after(sparsity.magnitude(optax.sgd(0.1), density=0.3, allocation=allocation), tree)
  shapes = {f"{name}/kernel": tree[name]["kernel"].shape for name in KERNELS}
  densities = {"uniform": sparsity.uniform, "erk": sparsity.erk}.get(allocation, allocation)(shapes, 0.3)
  for name in KERNELS:
    w, density = tree[name]["kernel"], densities[f"{name}/kernel"]
    want = nets.oracle_mask(w, max(1, round(w.size * density)))
    mask = masks[name]["kernel"]
    np.testing.assert_array_equal(np.ones(w.shape, bool) if mask is None else mask, want)
    assert masks[name]["bias"] is None


def test_global_ranks_all_layers_as_one():
  tree = nets.params()
  tree["Conv_0"]["kernel"] *= 0.25
  _, masks = after(sparsity.magnitude(optax.sgd(0.1), density=0.3, allocation="global"), tree)
  both = np.concatenate([np.ravel(tree[name]["kernel"]) for name in KERNELS])
  got = np.concatenate([np.ravel(masks[name]["kernel"]) for name in KERNELS])
  np.testing.assert_array_equal(got, nets.oracle_mask(both, round(both.size * 0.3)))
  assert np.mean(masks["Conv_0"]["kernel"]) < 0.2 < np.mean(masks["Dense_0"]["kernel"])


def test_by_threshold():
  tree = nets.params()
  _, masks = after(sparsity.magnitude(optax.sgd(0.1), threshold=0.5), tree)
  for name in KERNELS:
    np.testing.assert_array_equal(masks[name]["kernel"], np.abs(tree[name]["kernel"]) >= 0.5)
  _, masks = after(sparsity.magnitude(optax.sgd(0.1), threshold=100.0), tree)
  assert all(np.sum(masks[name]["kernel"]) == 1 for name in KERNELS)  # a leaf's largest is always kept


def test_threshold_rises_with_the_schedule():
  tx = sparsity.magnitude(optax.sgd(0.0), threshold=0.8, schedule=sparsity.schedules.cubic(0, 4, 2))
  tree = nets.params()
  for step, _, state in nets.train(tx, tree, 6):
    level = np.float32(0.8 * (1 - [1, 1, 1 / 8, 1 / 8, 0, 0][step]))
    np.testing.assert_array_equal(nets.masks(state)["Dense_0"]["kernel"], np.abs(tree["Dense_0"]["kernel"]) >= level)


def test_cubic_counts_at_every_step():
  schedule = sparsity.cubic(3, 13, every=4, initial=0.9)
  tx = sparsity.magnitude(optax.sgd(0.1, momentum=0.9), density=0.2, schedule=schedule)
  start = nets.params()
  for step, tree, state in nets.train(tx, start, 18):
    for name in KERNELS:
      n = start[name]["kernel"].size
      mask = nets.masks(state)[name]["kernel"]
      want = n if step < 3 else round(n * (0.2 + 0.7 * (1 - min(step - 3 - (step - 3) % 4, 10) / 10) ** 3))
      assert np.sum(mask) == (round(n * 0.2) if step >= 13 else want)
      nets.assert_bit_zero(mask, tree[name]["kernel"])


def test_pruned_weights_do_not_come_back():
  tx = sparsity.magnitude(optax.adam(0.3), density=0.2, schedule=sparsity.cubic(0, 8, every=2))
  masks = [nets.masks(state)["Dense_0"]["kernel"] for _, _, state in nets.train(tx, nets.params(), 10)]
  assert all(np.all(np.asarray(old) | ~np.asarray(new)) for old, new in itertools.pairwise(masks))


def test_rules_choose_leaves_and_densities():
  tree = {"params": nets.params(), "aux": {"kernel": jnp.ones((4, 4))}, "qparams": {"Dense_0/kernel": jnp.ones(3)}}
  rules = (("Conv_0/*", False), ("Dense_0/kernel", 0.25), ("*/bias", True))
  out, masks = after(sparsity.magnitude(optax.sgd(0.1), density=0.5, rules=rules), tree)
  assert masks["params"]["Conv_0"]["kernel"] is None and masks["aux"]["kernel"] is None
  assert np.sum(masks["params"]["Dense_0"]["kernel"]) == round(17 * 9 * 0.25)
  assert np.sum(masks["params"]["Dense_0"]["bias"]) == 4  # 4.5, to even
  np.testing.assert_array_equal(out["aux"]["kernel"], 1 - 0.1 * nets.gradients(tree, 0)["aux"]["kernel"])
  _, masks = after(sparsity.magnitude(optax.sgd(0.1), density=0.5), tree)  # the kernels of params, no others
  assert jax.tree.map(lambda m: m.shape, masks) == {
    "params": {n: {"kernel": tree["params"][n]["kernel"].shape, "bias": None} for n in KERNELS},
    "aux": {"kernel": None},
    "qparams": {"Dense_0/kernel": None},
  }


def test_own_density_is_outside_the_global_ranking():
  tree = nets.params()
  rules = (("Conv_0/kernel", 0.5), ("*kernel", True))
  _, masks = after(sparsity.magnitude(optax.sgd(0.1), density=0.1, allocation="global", rules=rules), tree)
  assert [int(np.sum(masks[name]["kernel"])) for name in KERNELS] == [36, 15]


def test_pack_axis_changes_storage_only():
  tree = nets.params()
  states = [sparsity.magnitude(optax.sgd(0.1), density=0.3, pack_axis=axis).init(tree) for axis in (-1, 0)]
  assert [s.masks["Dense_0"]["kernel"].bits.shape for s in states] == [(17, 2), (3, 9)]
  a, b = (after(sparsity.magnitude(optax.sgd(0.1), density=0.3, pack_axis=axis), tree) for axis in (-1, 0))
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_a_stage_that_starts_late_prunes_at_once():
  tx = sparsity.magnitude(optax.sgd(0.1), density=0.3, schedule=sparsity.cubic(0, 10, every=5))
  _, _, state = next(iter(nets.train(tx, nets.params(), 1, start=500)))
  assert np.sum(nets.masks(state)["Dense_0"]["kernel"]) == round(153 * 0.3) and state.done == 3


def test_bfloat16_parameters():
  tree = jax.tree.map(lambda p: p.astype(jnp.bfloat16), nets.params())
  for tx in (sparsity.magnitude(optax.sgd(0.1), density=0.3), sparsity.magnitude(optax.sgd(0.1), threshold=0.5)):
    out, masks = after(tx, tree, 3)
    nets.assert_bit_zero(masks["Dense_0"]["kernel"], out["Dense_0"]["kernel"])
    assert out["Dense_0"]["kernel"].dtype == jnp.bfloat16 and 0 < np.mean(masks["Dense_0"]["kernel"]) < 1


@pytest.mark.parametrize(
  ("keywords", "sentence"),
  [
    ({}, "either density= or threshold="),
    ({"density": 0.5, "threshold": 0.1}, "either density= or threshold="),
    ({"density": 0.0}, "density is 0.0; expected a density, the part that is kept, above 0 and at most 1"),
    ({"density": "0.5"}, "density is '0.5'; expected a density"),
    ({"density": True}, "density is True; expected a density"),
    ({"density": float("nan")}, "density is nan; expected a density"),
    ({"density": [0.5]}, r"density is \[0.5\]; expected a density"),
    ({"threshold": -1.0}, "threshold is -1.0; expected a number, 0 or more"),
    ({"threshold": "1"}, "threshold is '1'; expected a number"),
    ({"density": 0.5, "pack_axis": 0.5}, "pack_axis is 0.5; expected a whole number"),
    (
      {"density": 0.5, "allocation": 1},
      "unknown allocation 1; expected one of er, erk, global, global_normalised, lamp, uniform",
    ),
    ({"density": 0.5, "schedule": 100}, "schedule is 100; expected such as sparsity.cubic"),
    ({"density": 0.5, "schedule": sparsity.Schedule((0, 5), (1.0, 0.5))}, "the last of them 0"),
    ({"density": 0.5, "schedule": sparsity.Schedule((5, 5), (1.0, 0.0))}, "has to have rising steps"),
    ({"threshold": 1.0, "allocation": "erk"}, "shares out a density"),
    ({"density": 0.5, "allocation": "ekr"}, "unknown allocation 'ekr'; did you mean 'er' or 'erk'"),
  ],
)
def test_mistakes(keywords, sentence):
  with pytest.raises(UserError, match=sentence):
    sparsity.magnitude(optax.sgd(0.1), **keywords)


@pytest.mark.parametrize("inner", [None, optax.adam])
def test_objects_that_are_not_optimizers_are_refused(inner):
  with pytest.raises(UserError, match="the inner optimizer is .*; expected one of optax"):
    sparsity.magnitude(inner, density=0.5)


def test_a_schedule_beyond_int32_is_refused():
  with pytest.raises(UserError, match=f"one_shot: at is {2**40}; expected a whole number"):
    sparsity.magnitude(optax.sgd(0.1), density=0.5, schedule=sparsity.one_shot(2**40))


@pytest.mark.parametrize(
  ("keywords", "sentence"),
  [
    ({"rules": None}, "sparsity rules are None; expected"),
    ({"allocation": lambda shapes, density: None}, "the allocation gives None; expected a dict"),
  ],
)
def test_no_rules_and_no_densities(keywords, sentence):
  with pytest.raises(UserError, match=sentence):
    sparsity.magnitude(optax.sgd(0.1), density=0.5, **keywords).init(nets.params())


def test_a_step_that_is_text_is_refused():
  tree = nets.params()
  tx = sparsity.magnitude(optax.sgd(0.1), density=0.5)
  with pytest.raises(UserError, match="step= is '1'; expected"):
    tx.update(tree, tx.init(tree), tree, step="1")


def test_mistakes_found_at_init():
  tree = nets.params()
  with pytest.raises(UserError, match="'Dense_9/kernel' matches nothing; names near it: Dense_0/kernel"):
    sparsity.magnitude(optax.sgd(0.1), density=0.5, rules=[("Dense_9/kernel", True)]).init(tree)
  for own in (2, "0.2"):
    with pytest.raises(UserError, match=f"the density of 'Conv_0/kernel' is {own!r}; expected a density"):
      sparsity.magnitude(optax.sgd(0.1), density=0.5, rules=[("Conv_0/kernel", own)]).init(tree)
  with pytest.raises(UserError, match="number for 'Conv_0/kernel' is '1'; expected a number, 0 or more"):
    sparsity.magnitude(optax.sgd(0.1), threshold=0.5, rules=[("Conv_0/kernel", "1")]).init(tree)
  with pytest.raises(UserError, match="the allocation gives 'Dense_0/kernel' no density"):
    sparsity.magnitude(optax.sgd(0.1), density=0.5, allocation=lambda shapes, d: {"Conv_0/kernel": d}).init(tree)
  with pytest.raises(UserError, match="'temperature', a scalar"):
    sparsity.magnitude(optax.sgd(0.1), density=0.5, rules=[("*", True)]).init({"temperature": jnp.ones(())})
  tx = sparsity.magnitude(optax.sgd(0.1), density=0.5)
  with pytest.raises(UserError, match=r"sparsity rule '\*' is no pair; expected \(glob, setting\)"):
    sparsity.magnitude(optax.sgd(0.1), density=0.5, rules="*kernel").init(tree)
  for step in (0.5, jnp.zeros(2, jnp.int32)):
    with pytest.raises(UserError, match="expected the number of optimizer updates so far, a scalar of an integer type"):
      tx.update(tree, tx.init(tree), tree, step=step)
  with pytest.raises(UserError, match="needs the parameters"):
    tx.update(tree, tx.init(tree), step=0)
