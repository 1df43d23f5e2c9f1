"""The checks of the batteries that a method does not pass, with reasons. Everything that is not here must pass.

An exception must be true: a listed check that passes after all fails the tests, so the table cannot grow stale.
"""

from collections.abc import Iterable
from typing import Any

import pytest

# (package, method, check) -> reason
EXCEPTIONS: dict[tuple[str, str, str], str] = {
  ("kd", "hard_labels", "reads_the_teacher"): "it is the classification loss, and reads labels only",
  ("kd", "hard_labels", "zero_at_the_teacher"): "it is the classification loss, and reads labels only",
  ("kd", "hard_labels", "flat_at_the_teacher"): "it is the classification loss, and reads labels only",
  ("kd", "soft_labels", "zero_at_the_teacher"): "a cross-entropy: its least value is the teacher's entropy",
  ("kd", "logit_l2", "shift_invariant"): "it regresses the logits themselves (arXiv:1312.6184, equation 1)",
  ("kd", "nkd", "zero_at_the_teacher"): "two cross-entropies: the least value is not 0",
  ("kd", "nkd", "flat_at_the_teacher"): "its first part asks for certainty of the label, whatever the teacher says",
  ("kd", "wsld", "zero_at_the_teacher"): "a cross-entropy: its least value is the teacher's entropy",
  ("kd", "wsld", "gradient_is_the_finite_difference"): "an example's weight is a constant of the gradient",
  ("kd", "label_smoothing", "reads_the_teacher"): "it is a classification loss, and reads labels only",
  ("kd", "label_smoothing", "zero_at_the_teacher"): "it is a classification loss, and reads labels only",
  ("kd", "label_smoothing", "flat_at_the_teacher"): "it is a classification loss, and reads labels only",
  ("kd", "ctkd", "gradient_of_aux_is_the_finite_difference"): "its temperature is trained against the loss",
  ("kd", "byot", "the_student_learns"): "the deepest tap is what the branches learn from, a constant",
  ("kd", "byot", "gradient_is_the_finite_difference"): "its own logits and its deepest tap are constants",
  (
    "kd",
    "ft",
    "gradient_of_aux_is_the_finite_difference",
  ): "its factors are constants of the student's part",
  ("kd", "kdsvd", "float32_is_float64"): "a derivative of eigenvectors divides the rounding by the eigenvalues' gaps",
  ("kd", "tf_kd", "reads_the_teacher"): "its teacher is a virtual one, made of the labels",
  ("kd", "tf_kd", "zero_at_the_teacher"): "its teacher is a virtual one, made of the labels",
  ("kd", "tf_kd", "flat_at_the_teacher"): "its teacher is a virtual one, made of the labels",
  ("kd", "bernoulli_kl", "shift_invariant"): "a sigmoid of one logit, which a shift changes",
  ("kd", "sigmoid_cross_entropy", "shift_invariant"): "a sigmoid of one logit, which a shift changes",
  ("kd", "squared_error", "shift_invariant"): "it regresses the outputs themselves",
  ("kd", "absolute_error", "shift_invariant"): "it regresses the outputs themselves",
  ("kd", "huber", "shift_invariant"): "it regresses the outputs themselves",
  ("kd", "logit_l2", "one_class_is_refused"): "it compares outputs one by one, and one is enough",
  ("kd", "bernoulli_kl", "one_class_is_refused"): "it compares outputs one by one, and one is enough",
  ("kd", "sigmoid_cross_entropy", "one_class_is_refused"): "it compares outputs one by one, and one is enough",
  ("kd", "squared_error", "one_class_is_refused"): "it compares outputs one by one, and one is enough",
  ("kd", "absolute_error", "one_class_is_refused"): "it compares outputs one by one, and one is enough",
  ("kd", "huber", "one_class_is_refused"): "it compares outputs one by one, and one is enough",
  ("kd", "sigmoid_cross_entropy", "reads_the_teacher"): "it is a classification loss, and reads labels only",
  ("kd", "sigmoid_cross_entropy", "zero_at_the_teacher"): "it is a classification loss, and reads labels only",
  ("kd", "sigmoid_cross_entropy", "flat_at_the_teacher"): "it is a classification loss, and reads labels only",
  ("quant", "ema", "observer_does_not_depend_on_the_order"): "a moving average weighs batches by their order",
  ("kd", "hard_labels", "a_broken_teacher_is_not_a_perfect_student"): "it reads no teacher",
  ("kd", "label_smoothing", "a_broken_teacher_is_not_a_perfect_student"): "it reads no teacher",
  ("kd", "sigmoid_cross_entropy", "a_broken_teacher_is_not_a_perfect_student"): "it reads no teacher",
  ("kd", "tf_kd", "a_broken_teacher_is_not_a_perfect_student"): "it reads no teacher",
}


def cases(package: str, methods: Iterable[str], check: str) -> list[Any]:
  """The parameters of one check: every method, the excepted ones marked to fail with their reason."""
  return [
    pytest.param(
      name, marks=pytest.mark.xfail(reason=EXCEPTIONS[package, name, check], strict=True, raises=AssertionError)
    )
    if (package, name, check) in EXCEPTIONS
    else name
    for name in methods
  ]
