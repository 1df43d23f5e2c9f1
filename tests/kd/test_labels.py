"""Labels: what names no class is refused or NaN, never another class's number; ignored positions have no part in it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from tests.kd.nets import BATCH, CLASSES, batch, labels, logits

LABELLED = ("dkd", "hard_labels", "label_smoothing", "nkd", "tf_kd", "wsld")
S, T = (jnp.asarray(logits(seed), jnp.float32) for seed in (0, 1))
VALID = np.arange(BATCH) != 1


def of(name, label, **more):
  data = batch(**{**more.pop("data", {}), "label": label})
  return getattr(kd, name)()(S, T, data, **more)[0]


def test_these_are_all():
  made = {name: make() for name, make in inspect.getmembers(kd) if name in LABELLED}
  assert sorted(made) == list(LABELLED)


FORMS = {
  "a column": (labels()[:, None], r"integers \(6,\), one class per example; got int64 \(6, 1\)"),
  "one-hot": (np.eye(CLASSES, dtype=np.int32)[labels()], r"integers \(6,\), .* got int32 \(6, 5\)"),
  "floats": (labels().astype(np.float32), r"integers \(6,\), .* got float32 \(6,\)"),
  "bools": (labels() > 0, r"integers \(6,\), .* got bool \(6,\)"),
  "too few": (labels()[:1], r"integers \(6,\), .* got int64 \(1,\)"),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LABELLED)
def test_another_form_is_refused(name, form):
  label, words = FORMS[form]
  with pytest.raises(UserError, match=rf"the loss '{name}' expects batch\['label'\] to be {words}"):
    of(name, label)


@pytest.mark.parametrize("wrong", [-1, -100, CLASSES, 255, 2**32 + 1])
@pytest.mark.parametrize("name", LABELLED)
def test_a_known_label_of_no_class_is_refused(name, wrong):
  label = np.where(VALID, labels(), wrong)
  with pytest.raises(UserError, match=rf"'{name}' expects batch\['label'\] to be from 0 to 4; got {wrong} in 1 of 6"):
    of(name, label)
  got = of(name, label, data={"valid": jnp.asarray(VALID)})
  np.testing.assert_array_equal(got, np.where(VALID, of(name, labels()), 0))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("wrong", [-1, -100, CLASSES, 255])
@pytest.mark.parametrize("name", LABELLED)
def test_an_unknown_label_of_no_class_is_nan_where_it_counts(name, wrong):
  """Inside jit: value and gradient of that example, and of no other; exactly 0 where it does not count."""

  def run(s, label, valid):
    per_example = getattr(kd, name)()(s, T, {"label": label, "valid": valid})[0]
    return per_example.sum(), per_example

  both = jax.jit(jax.grad(run, has_aux=True))
  right, every = jnp.asarray(labels(), jnp.int32), jnp.ones(BATCH, bool)
  broken = jnp.where(VALID, right, wrong)
  want = [np.asarray(x) for x in both(S, right, every)]
  for numbers, like in zip(both(S, broken, every), want, strict=True):
    assert np.isnan(numbers[1]).all()
    np.testing.assert_array_equal(numbers[VALID], like[VALID])
  for numbers, like in zip(both(S, broken, jnp.asarray(VALID)), want, strict=True):
    assert (np.asarray(numbers[1]) == 0).all()
    np.testing.assert_array_equal(numbers[VALID], like[VALID])


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16])
@pytest.mark.parametrize("name", LABELLED)
def test_labels_of_few_bits_name_classes_of_many(name, dtype):
  rng = np.random.default_rng(0)
  s, t = (jnp.asarray(rng.normal(size=(4, 300)), jnp.float32) for _ in range(2))
  label = np.array([0, 44, 100, 127], dtype)
  for run in ((numbers := lambda x: getattr(kd, name)()(s, t, {"label": x})[0]), jax.jit(numbers)):
    np.testing.assert_array_equal(run(jnp.asarray(label)), run(jnp.asarray(label, jnp.int32)))


@pytest.mark.parametrize("name", LABELLED)
def test_a_label_that_class_mask_leaves_out(name):
  class_mask = jnp.asarray([True, True, True, False, True])
  with pytest.raises(UserError, match="from 0 to 4, a class that class_mask keeps; got 3 in 1 of 6"):
    of(name, labels(), class_mask=class_mask)
  got = jax.jit(lambda label: of(name, label, class_mask=class_mask))(jnp.asarray(labels(), jnp.int32))
  np.testing.assert_array_equal(np.isnan(got), labels() == 3)


MIXED = {
  "alone": ({"mix": np.ones(BATCH, np.float32)}, "'mix' and 'mix_label' together"),
  "a column": ({"mix": np.ones((BATCH, 1), np.float32), "mix_label": labels()}, r"\['mix'\] to be floats \(6,\); got"),
  "integers": ({"mix": np.ones(BATCH, np.int32), "mix_label": labels()}, r"\['mix'\] to be floats \(6,\); got int32"),
  "more than all": ({"mix": np.full(BATCH, 1.5, np.float32), "mix_label": labels()}, "weights from 0 to 1; got 1.5"),
  "no class": ({"mix": np.ones(BATCH, np.float32), "mix_label": labels() - 1}, r"\['mix_label'\] to be from 0 to 4"),
}


@pytest.mark.parametrize("form", MIXED)
@pytest.mark.parametrize("name", [*LABELLED, "sigmoid_cross_entropy"])
def test_mixed_examples_of_another_form(name, form):
  data, words = MIXED[form]
  label = labels()
  if name == "sigmoid_cross_entropy":
    data = {key: np.eye(CLASSES)[x] if key == "mix_label" else x for key, x in data.items()}
    data, label = ({**data, "mix_label": 2 * data["mix_label"]} if form == "no class" else data), np.eye(CLASSES)[label]
    words = r"\['mix_label'\] to be from 0 to 1; got 2" if form == "no class" else words
  with pytest.raises(UserError, match=words):
    of(name, label, data=data)


def test_an_invalid_weight_is_nan():
  run = jax.jit(lambda mix: of("hard_labels", labels(), data={"mix": mix, "mix_label": labels()}))
  np.testing.assert_array_equal(np.isnan(run(jnp.linspace(0.0, 2.0, BATCH))), np.linspace(0, 2, BATCH) > 1)


@pytest.mark.parametrize("ignore", [-1, -100, 255])
def test_ignored_positions_change_nothing(ignore):
  """A masked cross-entropy of words against numpy over the words that have a label."""
  rng = np.random.default_rng(0)
  s, label = rng.normal(size=(2, 3, 5)), np.array([[0, 4, ignore], [ignore, 2, 1]])
  valid = kd.labelled({"label": jnp.asarray(label)}, ignore)
  np.testing.assert_array_equal(valid, label != ignore)

  def mean(s):
    per_position = kd.hard_labels()(s, None, {"label": jnp.asarray(label), "valid": valid})[0]
    return per_position.sum() / 4, per_position

  (value, per_position), gradient = jax.value_and_grad(mean, has_aux=True)(jnp.asarray(s, jnp.float32))
  rows, index = s[label != ignore], label[label != ignore]
  want = np.log(np.exp(rows).sum(-1)) - rows[np.arange(4), index]
  assert per_position.shape == (2, 3)
  np.testing.assert_allclose(value, want.mean(), rtol=1e-6)
  assert (np.asarray(gradient)[label == ignore] == 0).all() and (np.asarray(gradient)[label != ignore] != 0).all()


def test_a_list_of_labels():
  batch = {"label": [0, 1, 2, 3, 4, 0]}
  loss = lambda batch: kd.hard_labels()(S, None, batch)[0]
  np.testing.assert_array_equal(jax.jit(loss)(batch), jax.jit(loss)({"label": jnp.asarray(batch["label"])}))


@pytest.mark.parametrize("ignored", [1.5, None, True, "-1"])
def test_the_ignored_label_is_a_whole_number(ignored):
  with pytest.raises(UserError, match="ignore_label is .*; expected a whole number"):
    kd.labelled({"label": labels()}, ignored)


def test_a_batch_without_labels():
  with pytest.raises(UserError, match=r"kd.labelled reads batch\['label'\]"):
    kd.labelled({})


def test_a_mixed_example_has_a_label_where_both_have():
  data = {"label": jnp.asarray([0, -1, 2]), "mix_label": jnp.asarray([1, 1, -1])}
  np.testing.assert_array_equal(kd.labelled(data), [True, False, False])


@pytest.mark.parametrize("shape", [(5, 1), (1, 5), (5,), (5, 5, 1)])
def test_soft_labels_of_another_shape(shape):
  with pytest.raises(
    UserError, match=r"expects batch\['soft_label'\] to be floats \(5, 5\), as the logits; got float32"
  ):
    kd.soft_labels(source="batch")(jnp.zeros((5, 5)), None, {"soft_label": jnp.full(shape, 0.2)})


def test_soft_labels_of_classes_that_do_not_count_may_hold_anything():
  target, class_mask = jnp.asarray([[0.25, 0.75, jnp.nan]]), jnp.asarray([True, True, False])
  s = jnp.asarray([[0.0, np.log(3), 9.0]], jnp.float32)
  got = kd.soft_labels(source="batch")(s, None, {"soft_label": target}, class_mask=class_mask)[0]
  np.testing.assert_allclose(got, [0.25 * np.log(4) + 0.75 * np.log(4 / 3)], rtol=1e-6)


def test_soft_labels_that_are_not_probabilities():
  target = jnp.full((3, 2), 0.5).at[1, 0].set(-0.1).at[2, 1].set(jnp.nan)
  np.testing.assert_array_equal(
    np.isnan(kd.soft_labels(source="batch")(jnp.zeros((3, 2)), None, {"soft_label": target})[0]), [False, True, True]
  )
  with pytest.raises(UserError, match="to be floats"):
    kd.soft_labels(source="batch")(jnp.zeros((3, 2)), None, {"soft_label": jnp.ones((3, 2), jnp.int32)})


@pytest.mark.parametrize("given", [[[0], [1, 2]], None, [None, 1], object()])
@pytest.mark.parametrize(
  ("loss", "key"),
  [
    (kd.hard_labels(), "label"),
    (kd.sigmoid_cross_entropy(), "label"),
    (kd.soft_labels(source="batch"), "soft_label"),
    (kd.squared_error("batch"), "target"),
    (kd.huber(source="batch"), "target"),
    (kd.absolute_error(source="batch"), "target"),
  ],
)
def test_objects_that_are_not_arrays(loss, key, given):
  name = loss.name
  with pytest.raises(UserError, match=rf"the loss '{name}' expects batch\['{key}'\] to .*; got object"):
    loss(jnp.ones((2, 3)), None, {key: given})
  with pytest.raises(UserError, match=rf"the loss '{name}' expects batch\['valid'\] to be bools .*; got object"):
    loss(jnp.ones((2, 3)), None, {key: given, "valid": [[True], [True, False]]})


def test_labels_alone_are_not_a_batch():
  for given in (np.array([0, -1]), jnp.array([0, -1]), [0, -1]):
    with pytest.raises(UserError, match="kd.labelled reads batch.'label'. of a batch, such as .*; got"):
      kd.labelled(given)
