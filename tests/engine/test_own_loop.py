"""A step in a training loop of one's own: what does not belong together is refused, and never another number."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
from leanax import engine
from leanax.core.errors import UserError
from leanax.engine.train.forward import plain

TERMS = (kd.Term("hard", kd.hard_labels(), mask="labelled"), kd.Term("left", kd.logit_l2(), 0.5))
RNG = np.random.default_rng(0)
IMAGES, TAUGHT = (RNG.normal(size=(2, 4, n)).astype(np.float32) for n in (3, 5))
LABELS = np.array([[0, -1, 2, -1], [4, 1, 2, 3]], np.int32)
VALID = np.array([[True, True, False, True], [True, True, True, True]])
KERNEL = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)


def linear(variables, x, *, train, key):
  return x @ variables["params"]["kernel"], {}


def halves(**more):
  """The two micro-batches of an update; `more` has keys of each."""
  found = [
    {"image": IMAGES[k], "label": LABELS[k], "valid": VALID[k], "teacher_logits": TAUGHT[k]}
    | {key: value[k] for key, value in more.items()}
    for k in range(2)
  ]
  return [{key: jnp.asarray(value) for key, value in one.items()} for one in found]


def made(terms=TERMS, **keywords):
  init, step = engine.training(plain(linear), kd.weighted(terms), optax.sgd(1.0), **keywords)
  return step, init({"params": {"kernel": jnp.asarray(KERNEL)}})


@pytest.mark.parametrize(("ema", "other"), [(0.9, None), (None, 0.9)])
def test_a_state_of_another_training(ema, other):
  """Averages that nothing moves are plausible and wrong."""
  step, state = made(ema=ema)[0], made(ema=other)[1]
  with pytest.raises(UserError, match=f"this training has ema {ema}, and the state is of another; expected one of"):
    step(state, halves()[0])


def test_a_student_without_averages_cannot_teach_itself():
  """It would agree with itself: a loss of 0 with gradient 0."""
  with pytest.raises(UserError, match="the teacher is the student itself .* expected 'ema'"):
    made(itself=True)
  with pytest.raises(UserError, match="the teacher is the student itself, and there is another; expected one of them"):
    made(itself=True, ema=0.9, teacher=linear)
  state = made()[1]
  norm = engine.term_norm(plain(linear), kd.weighted(TERMS[1:]), itself=True)
  with pytest.raises(UserError, match="the teacher is the student itself .* expected 'ema'"):
    norm(state, {"image": IMAGES[0]}, share=np.ones(1, np.float32))


@pytest.mark.parametrize("decay", [1.0, 1.5, -0.1, float("nan"), "0.9"])
def test_invalid_decay(decay):
  with pytest.raises(UserError, match="ema is .*; expected a number from 0 to below 1"):
    made(ema=decay)


@pytest.mark.parametrize("shape", [(2, 1, 5), (2, 4, 5)])
def test_a_class_mask_for_all_examples_of_a_micro_batch(shape):
  """The micro-batches' parts are those of the whole update, whose masks are written out."""
  mask = np.ones(shape, bool)
  mask[0, :, 4] = False
  parts = halves(class_mask=mask)
  run, state = made(accumulate=2)
  state, metrics = jax.jit(lambda state: run(state, lambda k: jax.tree.map(lambda *a: jnp.stack(a)[k], *parts)))(state)
  assert float(metrics["examples_left"]) == 7
  whole = [{**part, "class_mask": np.broadcast_to(part["class_mask"], (4, 5))} for part in parts]
  step, other = made()
  other, expected = jax.jit(step)(other, jax.tree.map(lambda *a: np.concatenate(a), *whole))
  np.testing.assert_allclose(state.params["kernel"], other.params["kernel"], atol=1e-6)
  for name in expected:
    np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5, err_msg=name)


def test_invalid_batches():
  run, state = made(terms=TERMS[1:])
  part = halves()[0]
  with pytest.raises(UserError, match=r"the batch is a tuple; expected \{'image': .*'label'"):
    run(state, (part["image"], part["label"]))
  with pytest.raises(UserError, match=r"the batch's 'valid' has 3 examples, and its 'image' 4"):
    run(state, {**part, "valid": jnp.ones(3, bool)})
  for variables in ({"kernel": KERNEL}, KERNEL, None):
    with pytest.raises(UserError, match=r"expected \{'params': tree"):
      engine.training(plain(linear), kd.weighted(TERMS), optax.sgd(1.0)).init(variables)
