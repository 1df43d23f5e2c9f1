"""The arguments of the losses: numbers out of range are refused, in one sentence, where the loss is made."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

import kd
from kd import schedules
from leanax.core.errors import UserError

ONE, TWO = ("a", "b"), (("a", "c"), ("b", "d"))
VARY = {  # what may be a schedule
  "byot": ((("a", "c"),), "temperature"),
  "cwd": (ONE, "temperature"),
  "dist": ((), "tau"),
  "dkd": ((), "temperature"),
  "hinton": ((), "temperature"),
  "jsd": ((), "temperature"),
  "logit_standardisation": ((), "temperature"),
  "nkd": ((), "temperature"),
  "reverse_kl": ((), "temperature"),
  "skew_kl": ((), "temperature"),
  "soft_labels": ((), "temperature"),
  "tf_kd": ((), "temperature"),
  "topk": ((), "temperature"),
  "total_variation": ((), "temperature"),
  "wsld": ((), "temperature"),
}
FIXED = {  # what may not: the taps, and for each number one that is out of its range
  "ab": (ONE, {"margin": 0}),
  "at": (ONE, {"power": 0.5}),
  "byot": ((("a", "c"),), {"alpha": 1.5, "lam": -1}),
  "cc": (ONE, {"gamma": 0, "order": 1.5, "width": -1}),
  "crd": (ONE, {"examples": 2.5, "negatives": 0.5, "width": 0, "temperature": 0, "momentum": 1}),
  "ctkd": ((), {"steps": 0, "low": 0, "span": 0, "largest": -1}),
  "dist": ((), {"beta": -1, "gamma": -1}),
  "dkd": ((), {"alpha": -1, "beta": -1}),
  "ft": (ONE, {"rate": 0, "reconstruction": 0, "pretrain": 0.5}),
  "jsd": ((), {"beta": 1}),
  "kdsvd": (TWO, {"vectors": 1.5}),
  "label_smoothing": ((), {"smoothing": 1}),
  "logit_standardisation": ((), {"eps": 0}),
  "mgd": (ONE, {"hidden": 1}),
  "mlkd": ((), {"instance": -1, "batch_gram": -1, "class_gram": -1}),
  "nkd": ((), {"gamma": -1}),
  "review": (TWO, {"width": 0.5}),
  "rkd": (ONE, {"distance": -1, "angle": -1}),
  "skew_kl": ((), {"alpha": 0}),
  "srrl": (ONE, {"matching": -1, "regression": -1}),
  "tf_kd": ((), {"correct": 1}),
  "topk": ((), {"k": 1.5}),
  "vid": (ONE, {"variance": 0, "eps": 0}),
}
NO_NUMBER = ("4", (4.0,), True, math.nan, math.inf, -math.inf)


def refused(name, taps, key, value):
  """The sentence for a value; it names the loss and the argument."""
  with pytest.raises(UserError) as caught:
    getattr(kd, name)(*taps, **{**({"examples": 10} if name == "crd" else {}), key: value})
  message = str(caught.value)
  assert message.startswith(f"{name}: {key} is ") and "; expected a" in message and "\n" not in message
  return message


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, (_, keys) in FIXED.items() for key in keys])
def test_a_number_out_of_range(name, key):
  taps, keys = FIXED[name]
  for value in (*NO_NUMBER, keys[key]):
    assert f" is {value!r}; " in refused(name, taps, key, value)
  assert " is a schedule from 0.5 to 0.6; " in refused(name, taps, key, schedules.linear(0.5, 0.6, 0, 9))


@pytest.mark.parametrize("name", VARY)
def test_a_temperature_and_its_schedule(name):
  taps, key = VARY[name]
  for value in (*NO_NUMBER, None, 0, -1.0):
    assert refused(name, taps, key, value) == f"{name}: {key} is {value!r}; expected a number from 0.001 to 10000"
  for made in (schedules.linear(4.0, 0.0, 0, 9), schedules.cosine(-1.0, 4.0, 0, 9), schedules.switch(0.0, 4.0, 5)):
    assert (
      refused(name, taps, key, made) == f"{name}: {key} is {made}; expected a number from 0.001 to 10000 at both ends"
    )
  getattr(kd, name)(*taps, **{key: schedules.linear(4.0, 1.0, 0, 9)})
  getattr(kd, name)(*taps, **{key: lambda step: 4.0})  # its ends are not known


@pytest.mark.parametrize("value", [4.0, "44", (), None, schedules.linear(4.0, 1.0, 0, 9)])
def test_temperatures_are_a_sequence(value):
  with pytest.raises(UserError, match=r"mlkd: temperatures is .*; expected a sequence of one or more, such as \(2.0, "):
    kd.mlkd(temperatures=value)


def test_one_of_several():
  for value in (*NO_NUMBER, 0):
    with pytest.raises(UserError, match=r"mlkd: temperatures\[1\] is .*; expected a number from 0.001 to 10000"):
      kd.mlkd(temperatures=(2.0, value))


@pytest.mark.parametrize("value", [3, None, (3,), ("a", 3), {"a": 1}])
@pytest.mark.parametrize(
  ("name", "taps", "key"),
  [
    ("fitnet", {"teacher": "b"}, "student"),
    ("fitnet", {"student": "a"}, "teacher"),
    ("byot", {}, "student"),
    ("crd", {"teacher": "b", "examples": 10}, "student"),
    ("ofd", {"student": "a", "teacher": "b"}, "batch_norm"),
  ],
)
def test_taps_that_are_not_names(name, taps, key, value):
  if key == "batch_norm" and value is None:
    return
  with pytest.raises(UserError) as caught:
    getattr(kd, name)(**taps, **{key: value})
  assert str(caught.value).startswith(f"{name}: {key} is {value!r}; expected a name such as 'Conv_1/kernel:out'")


@pytest.mark.parametrize("key", ["momentum", "delta"])
@pytest.mark.parametrize("value", [*NO_NUMBER, None, 1.5])
def test_of_dot(key, value):
  with pytest.raises(UserError, match=f"dot: .*{key} "):
    kd.dot(0.1, **{key: value})


@pytest.mark.parametrize("batch", [np.zeros(2, int), jnp.zeros(2, jnp.int32), (1, 2), "label"])
def test_an_invalid_batch(batch):
  x = jnp.ones((2, 3))
  for loss, outputs in ((kd.hard_labels(), x), (kd.hinton(), x), (kd.sp("a", "a"), kd.Outputs(x, {"a": x}))):
    with pytest.raises(UserError, match="expects a batch as its third argument, such as {'label': labels}; got"):
      loss(outputs, outputs, batch)


def test_one_logit_is_sent_to_the_losses_of_outputs():
  with pytest.raises(UserError, match="logits .2, 1. have 1: .* expected two or more, .* as sigmoid_cross_entropy, b"):
    kd.hard_labels()(jnp.ones((2, 1)), None, {"label": jnp.zeros(2, jnp.int32)})


@pytest.mark.parametrize("value", ["False", "", 0, 1.0, None, np.array([True])])
@pytest.mark.parametrize(
  ("name", "taps", "key"),
  [
    ("at", ONE, "paper"),
    ("dist", (), "squared"),
    ("fitnet", ONE, "normalise"),
    ("fsp", TWO, "paper"),
    ("skew_kl", (), "reverse"),
    ("tf_kd", (), "soften_student"),
  ],
)
def test_a_text_is_not_a_bool(name, taps, key, value):
  """ "False" would count as True, and another form of the loss be minimised."""
  with pytest.raises(UserError) as caught:
    getattr(kd, name)(*taps, **{key: value})
  assert str(caught.value) == f"{name}: {key} is {value!r}; expected True or False"
  assert getattr(kd, name)(*taps, **{key: np.bool_(True)})
