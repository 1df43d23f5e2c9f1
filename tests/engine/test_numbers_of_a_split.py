"""Numbers about a model's logits on a split: what they cannot be of is refused, and never counted as something else."""

import numpy as np
import pytest

from leanax import engine
from leanax.core.errors import UserError

LOGITS = np.array([[2.0, 0.0, 1.0], [0.0, 3.0, 1.0]])
LABELS = np.array([0, 2])


@pytest.mark.parametrize("number", [engine.accuracy, engine.calibration_error])
@pytest.mark.parametrize("label", [3, 255])
def test_labels_out_of_range_are_refused(number, label):
  """A label 255 that nothing ignores would count as a mistake of the model."""
  labels = np.array([0, label])
  with pytest.raises(UserError, match=f"labels are from 0 to 2 .*; got {label} in 1 of 2 places.*'ignore_label'"):
    number(LOGITS, labels)
  assert number(LOGITS, labels, ignore_label=label) == number(LOGITS[:1], labels[:1])
  assert number(LOGITS, np.array([0, -1])) == number(LOGITS[:1], labels[:1])


@pytest.mark.parametrize("row", [[np.inf, 0.0, 0.0], [-np.inf] * 3])
def test_logits_without_a_softmax_have_no_confidence(row):
  """Their confidence is NaN, which is in no bin and would count as calibrated."""
  logits = np.array([row, LOGITS[1]])
  for f in (engine.calibration_error, engine.divergence):
    with pytest.raises(UserError, match="logits are infinite, or -inf of all classes, in 1 of 2 places"):
      f(logits, LABELS if f is engine.calibration_error else LOGITS)
  with pytest.raises(UserError, match="logits are infinite, or -inf of all classes, in 1 of 2 places"):
    engine.divergence(LOGITS, logits)
  excluded = np.array([[2.0, -np.inf, 1.0], [0.0, -np.inf, 1.0]])
  assert engine.divergence(excluded, excluded) == 0 and np.isfinite(engine.calibration_error(excluded, LABELS))


@pytest.mark.parametrize("among", [0, -1, 1.5, "2", True])
def test_invalid_among(among):
  with pytest.raises(UserError, match="agreement: among is .*; expected a whole number, 1 or more"):
    engine.agreement(LOGITS, LOGITS, among)


@pytest.mark.parametrize("logits", [np.zeros((0, 3)), np.zeros((2, 0)), 1.0, [[1.0], [1.0, 2.0]], None])
def test_nothing_to_compare(logits):
  for f in (engine.agreement, engine.divergence):
    with pytest.raises(UserError, match="logits are .*; expected"):
      f(logits, logits)
  with pytest.raises(UserError, match="logits are .*; expected"):
    engine.accuracy(logits, LABELS)


@pytest.mark.parametrize("size", [0, -2, 1.5])
def test_invalid_batch_size(size):
  with pytest.raises(UserError, match="logits: batch_size is .*; expected a whole number, 1 or more"):
    engine.logits(lambda v, x: x * v, 2.0, np.ones((3, 2), np.float32), batch_size=size)
