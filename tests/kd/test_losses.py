"""Each distillation loss against the paper's equation in float64 numpy, by hand, and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import kd
from leanax.core.errors import UserError

BATCH, CLASSES = 6, 5


def pair(seed=0, scale=3.0):
  rng = np.random.default_rng(seed)
  return scale * rng.normal(size=(BATCH, CLASSES)), scale * rng.normal(size=(BATCH, CLASSES))


def labels():
  return np.arange(BATCH) % CLASSES


def hinton64(s, t, temperature):
  p = scipy.special.softmax(t / temperature, axis=-1)
  return temperature**2 * scipy.special.rel_entr(p, scipy.special.softmax(s / temperature, axis=-1)).sum(-1)


def hard64(s, t):
  return -np.log(scipy.special.softmax(s, axis=-1))[np.arange(BATCH), labels()]


def soft64(s, t, temperature):
  p = scipy.special.softmax(t / temperature, axis=-1)
  return -(temperature**2) * (p * np.log(scipy.special.softmax(s / temperature, axis=-1))).sum(-1)


LOSSES = {
  "hinton": (kd.hinton(4.0), lambda s, t: hinton64(s, t, 4.0)),
  "hinton_1": (kd.hinton(1.0), lambda s, t: hinton64(s, t, 1.0)),
  "hard_labels": (kd.hard_labels(), hard64),
  "soft_labels": (kd.soft_labels(2.0), lambda s, t: soft64(s, t, 2.0)),
  "logit_l2": (kd.logit_l2(), lambda s, t: 0.5 * ((s - t) ** 2).sum(-1)),
  "logit_l2_mean": (kd.logit_l2("mean"), lambda s, t: 0.5 * ((s - t) ** 2).mean(-1)),
}
SHIFT_INVARIANT = [name for name in LOSSES if not name.startswith("logit_l2")]
READS_TEACHER = [name for name in LOSSES if name != "hard_labels"]


def value(loss, s, t, **kwargs):
  return loss(jnp.asarray(s), jnp.asarray(t), {"label": jnp.asarray(labels(), jnp.int32)}, **kwargs)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_value_is_the_papers(name):
  loss, oracle = LOSSES[name]
  s, t = pair()
  got = value(loss, s.astype(np.float32), t.astype(np.float32))
  assert got.shape == (BATCH,) and got.dtype == jnp.float32
  np.testing.assert_allclose(got, oracle(s, t), rtol=1e-5, atol=0)
  with jax.enable_x64(True):
    np.testing.assert_allclose(value(loss, s, t), oracle(s, t), rtol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_is_the_oracles_finite_difference(name):
  loss, oracle = LOSSES[name]
  s, t = pair(1, 1.0)
  with jax.enable_x64(True):
    got = jax.grad(lambda s: value(loss, s, t).sum())(jnp.asarray(s))
  h, expected = 1e-6, np.zeros_like(s)
  for c in range(CLASSES):
    step = np.zeros_like(s)
    step[:, c] = h
    expected[:, c] = (oracle(s + step, t) - oracle(s - step, t)) / (2 * h)
  np.testing.assert_allclose(got, expected, atol=1e-8)


def test_hinton_by_hand():
  # p = (3/4, 1/4), q = (1/2, 1/2), T = 2: KL = 3/4 log(3/2) + 1/4 log(1/2), times 4.
  per_example = kd.hinton(2.0)(jnp.zeros((1, 2)), jnp.asarray([[2 * np.log(3.0), 0.0]], jnp.float32))[0]
  np.testing.assert_allclose(per_example, [4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))], rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_hinton_gradient_is_t_times_difference(temperature):
  s, t = pair(2)
  got = jax.grad(lambda s: value(kd.hinton(temperature), s, t.astype(np.float32)).sum())(jnp.asarray(s, jnp.float32))
  q, p = scipy.special.softmax(s / temperature, -1), scipy.special.softmax(t / temperature, -1)
  np.testing.assert_allclose(got, temperature * (q - p), atol=2e-5)


def test_hinton_tends_to_centred_regression():
  s, t = pair(3)
  s, t = s - s.mean(-1, keepdims=True), t - t.mean(-1, keepdims=True)
  with jax.enable_x64(True):
    np.testing.assert_allclose(value(kd.hinton(1e4), s, t), value(kd.logit_l2("mean"), s, t), rtol=1e-3)


def test_soft_labels_are_hinton_plus_entropy():
  s, t = pair(4)
  p = scipy.special.softmax(t / 3.0, -1)
  with jax.enable_x64(True):
    gap = value(kd.soft_labels(3.0), s, t) - value(kd.hinton(3.0), s, t)
    np.testing.assert_allclose(gap, 9 * scipy.special.entr(p).sum(-1), rtol=1e-12)


def test_soft_labels_of_one_class_are_hard_labels():
  s, _ = pair(5)
  s = jnp.asarray(s, jnp.float32)
  batch = {"label": jnp.asarray(labels(), jnp.int32), "soft_label": jax.nn.one_hot(labels(), CLASSES)}
  soft, hard = kd.soft_labels(source="batch")(s, None, batch)[0], kd.hard_labels()(s, None, batch)[0]
  np.testing.assert_allclose(soft, hard, rtol=1e-6)


def test_a_mixed_example_has_two_labels():
  s = jnp.asarray(pair(5)[0], jnp.float32)
  batch = {"label": jnp.asarray(labels(), jnp.int32), "mix_label": jnp.asarray((labels() + 1) % CLASSES, jnp.int32)}
  batch["mix"] = jnp.linspace(0.0, 1.0, BATCH)
  one_hot = lambda k: jax.nn.one_hot(batch[k], CLASSES)
  target = batch["mix"][:, None] * one_hot("label") + (1 - batch["mix"][:, None]) * one_hot("mix_label")
  soft = kd.soft_labels(source="batch")(s, None, {"soft_label": target})[0]
  np.testing.assert_allclose(kd.hard_labels()(s, None, batch)[0], soft, rtol=1e-5)


@pytest.mark.parametrize("name", ["hinton", "hinton_1", "logit_l2", "logit_l2_mean"])
def test_zero_with_zero_gradient_where_student_is_teacher(name):
  _, t = pair(6)
  t = jnp.asarray(t, jnp.float32)
  per_example, grad = jax.value_and_grad(lambda s: value(LOSSES[name][0], s, t).sum())(t)
  assert per_example == 0
  np.testing.assert_allclose(grad, 0.0, atol=1e-6)  # the rounding of a sum of probabilities


@pytest.mark.parametrize("name", SHIFT_INVARIANT)
def test_shift_of_an_examples_logits_changes_nothing(name):
  s, t = pair(7)
  shift = np.arange(BATCH)[:, None] * 2.0
  with jax.enable_x64(True):
    np.testing.assert_allclose(value(LOSSES[name][0], s + shift, t - shift), value(LOSSES[name][0], s, t), rtol=1e-10)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("name", LOSSES)
def test_finite_at_a_gap_of_ten_thousand(name, dtype):
  t = np.zeros((BATCH, CLASSES))
  t[:, 0] = 1e4
  s = np.roll(t, 1, axis=-1)
  s, t = jnp.asarray(s, dtype), jnp.asarray(t, dtype)
  per_example, grad = jax.value_and_grad(lambda s: value(LOSSES[name][0], s, t).sum())(s)
  assert grad.dtype == jnp.dtype(dtype)
  assert bool(jnp.isfinite(per_example)) and bool(jnp.isfinite(grad).all())
  if name == "hinton":  # 16 * 1e4 / 4 an example
    np.testing.assert_allclose(per_example, BATCH * 4e4, rtol=1e-2)


@pytest.mark.parametrize("name", READS_TEACHER)
def test_teacher_receives_exactly_zero(name):
  s, t = (jnp.asarray(a, jnp.float32) for a in pair(8))
  s_grad, t_grad = jax.grad(lambda s, t: value(LOSSES[name][0], s, t).sum(), (0, 1))(s, t)
  np.testing.assert_array_equal(t_grad, 0.0)
  assert bool((s_grad != 0).any())


@pytest.mark.parametrize("fill", [0.0, 1e30, -np.inf, np.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_masked_classes_are_as_if_cut_out(name, fill):
  s, t = pair(9)
  class_mask = np.array([True, True, True, True, False])
  loss = LOSSES[name][0]
  batch = {"label": jnp.asarray(np.arange(BATCH) % 4, jnp.int32)}
  small = loss(jnp.asarray(s[:, :4], jnp.float32), jnp.asarray(t[:, :4], jnp.float32), batch)[0]
  s[:, 4], t[:, 4] = fill, fill
  s, t = jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32)
  for mask in (class_mask, np.broadcast_to(class_mask, s.shape)):
    full = loss(s, t, batch, class_mask=jnp.asarray(mask))[0]
    np.testing.assert_allclose(full, small, rtol=1e-6)
    grad = jax.grad(lambda s, mask=mask: loss(s, t, batch, class_mask=jnp.asarray(mask))[0].sum())(s)
    assert bool(jnp.isfinite(grad).all())
    np.testing.assert_array_equal(grad[:, 4], 0.0)


@pytest.mark.parametrize("name", ["hinton", "soft_labels"])
def test_a_class_excluded_by_minus_infinity(name):
  s, t = pair(10)
  small = value(LOSSES[name][0], s[:, :4].astype(np.float32), t[:, :4].astype(np.float32))
  s[:, 4], t[:, 4] = -np.inf, -np.inf
  s, t = jnp.asarray(s, jnp.float32), jnp.asarray(t, jnp.float32)
  full, grad = value(LOSSES[name][0], s, t), jax.grad(lambda s: value(LOSSES[name][0], s, t).sum())(s)
  np.testing.assert_allclose(full, small, rtol=1e-6)
  assert bool(jnp.isfinite(grad).all())


ALONE = {  # what each is where the teacher excludes a class alone, and where the student does
  "bernoulli_kl": (np.isfinite, np.isposinf),
  "ctkd": (np.isfinite, np.isposinf),
  "dist": (np.isfinite, np.isfinite),
  "dkd": (np.isfinite, np.isposinf),
  "hinton": (np.isfinite, np.isposinf),
  "absolute_error": (np.isposinf, np.isposinf),
  "huber": (np.isposinf, np.isposinf),
  "jsd": (np.isfinite, np.isfinite),
  "logit_l2": (np.isposinf, np.isposinf),
  "logit_standardisation": (np.isnan, np.isnan),
  "mlkd": (np.isfinite, np.isposinf),
  "nkd": (np.isfinite, np.isposinf),
  "reverse_kl": (np.isposinf, np.isfinite),
  "skew_kl": (np.isfinite, np.isfinite),
  "soft_labels": (np.isfinite, np.isposinf),
  "squared_error": (np.isposinf, np.isposinf),
  "topk": (np.isfinite, np.isposinf),
  "total_variation": (np.isfinite, np.isfinite),
  "wsld": (np.isfinite, np.isposinf),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", ALONE)
def test_a_class_that_one_network_excludes_alone(name):
  """The loss is what its equation says, and where that is finite so is every gradient."""
  loss, aux = getattr(kd, name)(), {"temperature": jnp.ones(())} if name == "ctkd" else None
  s, t = (jnp.asarray(x, jnp.float32) for x in pair(10))
  data = {"label": jnp.zeros(BATCH, jnp.int32)}

  def run(s, aux, t):
    per_example = loss(s, t, data, aux=aux)[0]
    return per_example.sum(), per_example

  out = lambda x: x.at[:, 4].set(-jnp.inf)
  for (student, teacher), is_so in zip(((s, out(t)), (out(s), t)), ALONE[name], strict=True):
    gradients, per_example = jax.grad(run, (0, 1), has_aux=True)(student, aux, teacher)
    assert is_so(per_example).all()
    assert is_so is not np.isfinite or all(np.isfinite(x).all() for x in jax.tree.leaves(gradients))


def test_a_row_of_which_every_class_is_excluded_has_no_distribution():
  gone, mask = jnp.full((2, 3), -jnp.inf), jnp.asarray([True, True, False])
  for class_mask in (None, mask):
    assert bool(jnp.isnan(kd.hinton()(gone, gone, class_mask=class_mask)[0]).all())
    assert not bool(
      jnp.isfinite(kd.hard_labels()(gone, None, {"label": jnp.zeros(2, jnp.int32)}, class_mask=class_mask)[0]).any()
    )


def test_a_function_of_logits_gives_one_number_per_example():
  with pytest.raises(
    UserError, match=r"the loss 'l1' gives numbers \(\) for logits \(4, 3\); expected one per example, \(4,\)"
  ):
    kd.loss(lambda s, t: jnp.abs(s - t).sum(), "l1")(jnp.ones((4, 3)), jnp.ones((4, 3)))


def test_a_function_that_reads_the_batch_reads_no_positions():
  loss = kd.loss(lambda s, t, batch: jnp.abs(s - t).sum(-1) * batch["weight"], "l1", reads=("batch",), classes=1)
  weight = jnp.asarray([1.0, 2.0])
  np.testing.assert_array_equal(loss(jnp.ones((2, 1)), jnp.zeros((2, 1)), {"weight": weight})[0], weight)
  with pytest.raises(
    UserError, match=r"'l1' reads the batch itself, so its logits are \(batch, classes\).* got \(2, 2, 1\)"
  ):
    loss(jnp.ones((2, 2, 1)), jnp.zeros((2, 2, 1)), {"weight": weight})


def test_byot_refuses_positions():
  taps = {"a": jnp.ones((2, 3)), "b": jnp.ones((2, 3))}
  flat, s = kd.Outputs(jnp.zeros((2, 4)), taps), kd.Outputs(jnp.zeros((2, 3, 4)), taps)
  loss = kd.byot(("a", "b"))
  aux, _ = loss.init(jax.random.key(0), flat, None, None)
  refused = r"'byot' reads logits \(batch, classes\), .* of the student; got float32 \(2, 3, 4\)"
  with pytest.raises(UserError, match=refused):
    loss.init(jax.random.key(0), s, None, None)
  with pytest.raises(UserError, match=refused):
    loss(s, None, {"label": jnp.zeros((2, 3), jnp.int32)}, aux=aux)


def test_outputs_and_logits_mean_the_same():
  s, t = (jnp.asarray(a, jnp.float32) for a in pair(11))
  a = kd.hinton()(s, t)
  b = kd.hinton()(kd.Outputs(s, {"x": s}), kd.Outputs(t), aux_state={"kept": 1})
  np.testing.assert_array_equal(a[0], b[0])
  assert b[1] == {"kept": 1} and b[2] == {}


def test_a_users_function():
  loss = kd.loss(lambda s, t: jnp.abs(s - t).sum(-1), "l1")
  s, t = (jnp.asarray(a, jnp.float32) for a in pair(12))
  np.testing.assert_allclose(loss(s, t)[0], np.abs(s - t).sum(-1), rtol=1e-6)
  np.testing.assert_array_equal(jax.grad(lambda t: loss(s, t)[0].sum())(t), 0.0)
  with pytest.raises(UserError, match="'l1' does not support masked classes"):
    loss(s, t, class_mask=jnp.ones(CLASSES, bool))


def test_mistakes_are_one_sentence():
  s = jnp.zeros((2, 3))
  with pytest.raises(UserError, match="'hinton' needs a teacher"):
    kd.hinton()(s, None)
  with pytest.raises(UserError, match=r"got \(2, 3\) of the student, \(2, 4\) of the teacher"):
    kd.hinton()(s, jnp.zeros((2, 4)))
  with pytest.raises(UserError, match="temperature is 0"):
    kd.hinton(0)
  with pytest.raises(UserError, match="did you mean 'mean'"):
    kd.logit_l2("meen")
  with pytest.raises(UserError, match="did you mean 'teacher'"):
    kd.soft_labels(source="teachr")
  with pytest.raises(UserError, match="'hard_labels' needs labels, and the batch has no 'label'"):
    kd.hard_labels()(s)
  with pytest.raises(UserError, match="'soft_label'"):
    kd.soft_labels(source="batch")(s)
