"""The numbers that a user gives: a range says which are meant, and one check refuses all others in a sentence.

Text, bools, NaN and infinities are in no range, nor is what training cannot compute with: a whole number that int32
does not hold, and any other whose square float32 does not hold, which is too large or too near to 0. This file imports
the standard library only.
"""

import numbers
from collections.abc import Callable
from typing import Any, NamedTuple

from leanax.core.errors import UserError, shown


class Range(NamedTuple):
  """A set of numbers.

  Attributes:
    words: the words after "expected" in errors.
    has: whether a number that can be computed with is in it.
    kind: of the number.
  """

  words: str
  has: Callable[[Any], bool]
  kind: type = numbers.Real


WHOLE = 2**31 - 1  # int32 holds the whole numbers up to it
LEAST, MOST = 1e-18, 1e18  # of these, of numbers between them, and of their negatives float32 holds the squares

FINITE = Range("a finite number", lambda x: True)
POSITIVE = Range("a number above 0", lambda x: x > 0)
NOT_NEGATIVE = Range("a number, 0 or more", lambda x: x >= 0)
SHARE = Range("a number from 0 to 1", lambda x: 0 <= x <= 1)
INSIDE = Range("a number above 0 and below 1", lambda x: 0 < x < 1)
BELOW_ONE = Range("a number from 0 to below 1", lambda x: 0 <= x < 1)


def at_least(least: float) -> Range:
  """Numbers from `least` on."""
  return Range(f"a number, {least} or more", lambda x: x >= least)


def between(least: float, most: float) -> Range:
  """Returns the range of numbers from `least` to `most`."""
  return Range(f"a number from {_short(least)} to {_short(most)}", lambda x: least <= x <= most)


def or_zero(other: Range) -> Range:
  """Returns a range and 0 with it."""
  return Range(f"0 or {other.words}", lambda x: x == 0 or other.has(x), other.kind)


def whole(least: int, most: int = WHOLE) -> Range:
  """Returns the range of whole numbers from `least` on, or to `most`."""
  words = f", {least} or more" if most == WHOLE else f" from {least} to {most}"
  return Range(f"a whole number{words}", lambda x: least <= x and (most == WHOLE or x <= most), numbers.Integral)


def _short(number: float) -> str:
  return f"{number:g}".replace("e+", "e").replace("e0", "e").replace("e-0", "e-")


# Of a softmax: below it logits are no longer told apart by float32, and above it all of them are the same.
TEMPERATURE = between(1e-3, 1e4)
# Of a term of an objective: a sum with a larger one is that term alone.
WEIGHT = between(0, 1e6)


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
    words = value if ends is not None else "a function" if callable(value) else shown(_number(value))
    raise UserError(f"{where} is {words}; expected {expected.words}{_limits(_number(value), expected)}")


def check_switch(where: str, value: Any) -> None:
  """Raises a UserError where a value is no True or False: a text, such as "False", would count as True."""
  if not isinstance(_number(value), bool):
    raise UserError(f"{where} is {shown(value)}; expected True or False")


def _number(value: Any) -> Any:
  try:
    return value.item() if getattr(value, "ndim", None) == 0 else value
  except TypeError:  # a traced value has no number yet
    return value


def _is_in(value: Any, expected: Range) -> bool:
  x = _number(value)
  return _is_number(x, expected) and _is_computable(x, expected) and bool(expected.has(x))


def _is_number(x: Any, expected: Range) -> bool:
  return isinstance(x, expected.kind) and not isinstance(x, bool)


def _is_computable(x: Any, expected: Range) -> bool:
  """Returns whether training can compute with a number; of NaN no comparison holds."""
  if expected.kind is numbers.Integral:
    return abs(x) <= WHOLE
  return x == 0 or LEAST <= abs(x) <= MOST


def _limits(x: Any, expected: Range) -> str:
  """Returns the words on the limit of computing that a number is beyond; "" where it is within."""
  if not _is_number(x, expected) or not abs(x) < float("inf") or not expected.has(x) or _is_computable(x, expected):
    return ""
  if expected.kind is numbers.Integral:
    return f", and at most {WHOLE}"
  return f", and its magnitude {f'at most {_short(MOST)}' if abs(x) > MOST else f'at least {_short(LEAST)}'}"
