"""The numbers that a user gives: a range says which are meant, and one check refuses all others in a sentence.

Text, bools, NaN and infinities are in no range. This file imports the standard library only.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

from leanax.core.errors import UserError


class Range(NamedTuple):
  """A set of numbers.

  Attributes:
    words: the words after "expected" in errors.
    has: whether a finite number is in it.
    kind: of the number.
  """

  words: str
  has: Callable[[Any], bool]
  kind: type = numbers.Real


FINITE = Range("a finite number", lambda x: True)
POSITIVE = Range("a number above 0", lambda x: x > 0)
NOT_NEGATIVE = Range("a number, 0 or more", lambda x: x >= 0)
SHARE = Range("a number from 0 to 1", lambda x: 0 <= x <= 1)
INSIDE = Range("a number above 0 and below 1", lambda x: 0 < x < 1)
BELOW_ONE = Range("a number from 0 to below 1", lambda x: 0 <= x < 1)


def at_least(least: float) -> Range:
  """Numbers from `least` on."""
  return Range(f"a number, {least} or more", lambda x: x >= least)


def whole(least: int) -> Range:
  """Returns the range of whole numbers from `least` on."""
  return Range(f"a whole number, {least} or more", lambda x: x >= least, numbers.Integral)


def check(where: str, value: Any, expected: Range, varies: bool = False) -> None:
  """Refuses what is not in a range.

  Args:
    where: names the number, such as "hinton: temperature".
    value: anything. An array without axes, such as a scalar of numpy or jax, is the number that it holds.
    expected: the range.
    varies: whether it may be a function of the number of updates, too. One that says its `ends`, as every schedule of
      `kd.schedules` does, has both in the range.

  Raises:
    UserError: it is not.
  """
  ends = getattr(value, "ends", None)
  if varies and callable(value):
    if not all(_is_in(end, expected) for end in ends or ()):
      raise UserError(f"{where} is {value}; expected {expected.words} at both ends")
  elif not _is_in(value, expected):
    shown = value if ends is not None else "a function" if callable(value) else repr(_number(value))
    raise UserError(f"{where} is {shown}; expected {expected.words}")


def check_switch(where: str, value: Any) -> None:
  """Raises a UserError where a value is no True or False: a text, such as "False", would count as True."""
  if not isinstance(_number(value), bool):
    raise UserError(f"{where} is {value!r}; expected True or False")


def _number(value: Any) -> Any:
  try:
    return value.item() if getattr(value, "ndim", None) == 0 else value
  except TypeError:  # a traced value has no number yet
    return value


def _is_in(value: Any, expected: Range) -> bool:
  x = _number(value)
  return isinstance(x, expected.kind) and not isinstance(x, bool) and math.isfinite(x) and expected.has(x)
