"""Forms of stored logits: what comes back, how far off, and in how many bytes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leanax.core.errors import UserError
from leanax.engine.store import logit_codes
from leanax.engine.store.logit_codes import bytes_needed, decode, encode

CLASSES = 7
FINITE = st.floats(-1e4, 1e4, width=32)
LOGITS = arrays.arrays(np.float32, (4, CLASSES), elements=FINITE)
back = jax.jit(decode, static_argnums=1)


def round_trip(logits, form, top_k=None):
  return np.asarray(back(encode(logits, form, top_k), logits.shape[1]))


def log_softmax(x):
  x = np.asarray(x, np.float64)
  x = x - x.max(-1, keepdims=True)
  return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_by_hand():
  logits = np.array([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0]], np.float32)
  codes = encode(logits, "int8")
  assert codes["teacher_codes"].tolist() == [[-127, 0, 127], [0, 0, 0]]
  np.testing.assert_array_equal(codes["teacher_offset"], np.float32([1, 5]))
  np.testing.assert_array_equal(codes["teacher_scale"], np.float32([1 / 127, 0]))
  np.testing.assert_allclose(round_trip(logits, "int8"), logits, rtol=1e-6, atol=1e-6)

  top = encode(np.log(np.float32([[0.1, 0.5, 0.1, 0.3]])), "float32", 2)
  assert top["teacher_classes"].tolist() == [[1, 3]]
  np.testing.assert_allclose(np.exp(top["teacher_values"]), [[0.5, 0.3]], rtol=1e-6)
  np.testing.assert_allclose(np.exp(top["teacher_tail"]), [0.2], rtol=1e-6)
  np.testing.assert_allclose(np.exp(back(top, 4)), [[0.1, 0.5, 0.1, 0.3]], rtol=1e-6)
  tied = encode(np.float32([[1, 2, 2, 2]]), "float32", 2)  # of equal logits the lower class
  assert tied["teacher_classes"].tolist() == [[1, 2]]


@given(arrays.arrays(np.float32, (3, 5), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@settings(max_examples=50, deadline=None)
def test_float32_is_bitwise(logits):
  stored = encode(logits, "float32")
  assert stored["teacher_logits"].tobytes() == logits.tobytes()  # on the device subnormal numbers may become zero
  normal = np.where(np.abs(logits) < np.finfo(np.float32).tiny, np.float32(0), logits)
  assert round_trip(normal, "float32").tobytes() == normal.tobytes()


@given(LOGITS)
@settings(max_examples=50, deadline=None)
def test_errors_stay_within_their_bounds(logits):
  exact = logits.astype(np.float64)
  span, most = np.ptp(exact, axis=1, keepdims=True), np.abs(exact).max(1, keepdims=True)
  rounding = 2**-22 * most + np.finfo(np.float32).tiny * 300
  assert (np.abs(round_trip(logits, "int8") - exact) <= span / 254 / 2 + rounding).all()
  assert (np.abs(round_trip(logits, "float16") - exact) <= np.abs(exact) * 2**-11 + 2**-24).all()


def test_large_logits_that_differ_by_little_have_the_rounding_of_float32():
  logits = np.float32(1e4) + np.random.default_rng(0).uniform(-0.1, 0.1, (100, 10)).astype(np.float32)
  exact = logits.astype(np.float64)
  gap, span = np.abs(round_trip(logits, "int8") - exact), np.ptp(exact, axis=1, keepdims=True)
  assert (gap > span / 508).any() and (gap <= span / 508 + 2**-22 * np.abs(exact).max(1, keepdims=True)).all()


@given(LOGITS, LOGITS, st.integers(1, CLASSES - 1))
@settings(max_examples=50, deadline=None)
def test_bucketed_distribution(teacher, student, top_k):
  teacher, student = teacher / 500, student / 500
  stored = encode(teacher, "float32", top_k)
  chosen = stored["teacher_classes"].astype(int)

  def bucketed(logits):
    p = np.exp(log_softmax(logits))
    kept = np.take_along_axis(p, chosen, 1)
    rest = p.copy()
    np.put_along_axis(rest, chosen, 0.0, 1)
    return np.concatenate([kept, rest.sum(1, keepdims=True)], 1)

  def kl(p, q):
    return (p * (np.log(p) - np.log(q))).sum(1)

  decoded = np.asarray(back(stored, CLASSES))
  np.testing.assert_allclose(bucketed(decoded), bucketed(teacher), rtol=1e-4)
  for row in range(len(teacher)):  # the rest share evenly
    assert len(np.unique(np.delete(decoded[row], chosen[row]))) == 1
  full = kl(np.exp(log_softmax(teacher)), np.exp(log_softmax(student)))
  assert (kl(bucketed(decoded), bucketed(student)) <= full * (1 + 1e-4) + 1e-4).all()


@pytest.mark.parametrize("classes, dtype", [(256, "uint8"), (257, "uint16"), (65537, "int32")])
def test_classes_take_the_fewest_bytes_that_hold_them(classes, dtype):
  logits = np.zeros((1, classes), np.float32)
  logits[0, -1] = 9
  stored = encode(logits, "float16", 1)
  assert stored["teacher_classes"].dtype == dtype
  assert int(np.argmax(back(stored, classes))) == classes - 1


@pytest.mark.parametrize(
  "form, top_k, each",
  [("float32", None, 400), ("float16", None, 200), ("int8", None, 108), ("float32", 5, 29), ("float16", 5, 19)],
)
def test_bytes(form, top_k, each):
  assert bytes_needed(60_000, 100, 4, form, top_k) == 240_000 * each
  assert bytes_needed(60_000, 100, 4, form, top_k, mixed=True) == 240_000 * (each + 8)
  stored = encode(np.zeros((3, 100), np.float32), form, top_k)
  assert sum(array.nbytes for array in stored.values()) == 3 * each
  assert stored.keys() == logit_codes.fields(100, form, top_k).keys()


def test_refusals():
  for arguments, words in (
    (("flaot16", None), "unknown form of stored logits 'flaot16'; did you mean 'float16'"),
    (("int8", 2), "top_k stores values as float32 or float16"),
    (("float32", 0), "top_k is 0; expected 1 to 6"),
    (("float32", 7), "top_k is 7; expected 1 to 6"),
  ):
    with pytest.raises(UserError, match=words):
      logit_codes.fields(7, *arguments)
  with pytest.raises(UserError, match="logit of 70000 is too large for float16"):
    encode(np.float32([[7e4, 0]]), "float16")
  with pytest.raises(UserError, match="holds no stored logits"):
    decode({"image": jnp.zeros(2)}, 3)
