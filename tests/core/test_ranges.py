"""The numbers of a range, and the sentence for all others."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core import ranges
from leanax.core.errors import UserError

HAS = {  # a range: some in it, at its ends too, and some that are not
  ranges.FINITE: ((-1e18, 0, 5), ()),
  ranges.POSITIVE: ((1e-18, 7), (0, -1)),
  ranges.NOT_NEGATIVE: ((0, 0.5), (-1e-9,)),
  ranges.SHARE: ((0, 1, 0.5), (-0.1, 1.1)),
  ranges.INSIDE: ((0.5, 0.999), (0, 1)),
  ranges.BELOW_ONE: ((0, 0.999), (1, -0.1)),
  ranges.at_least(1): ((1, 1.5), (0.99,)),
  ranges.between(1e-6, 2): ((1e-6, 1, 2.0), (0, 2.1)),
  ranges.or_zero(ranges.between(1, 2)): ((0, 0.0, 1, 2), (0.5, -1)),
  ranges.whole(2): ((2, np.int64(3), 2**31 - 1), (1, 2.5, 3.0)),
  ranges.whole(2, 4): ((2, 4), (1, 5)),
}
NEVER = ("4", (4.0,), [4.0], None, True, np.True_, math.nan, math.inf, -math.inf, {}, 2j, np.ones(2), lambda step: 1.0)


@pytest.mark.parametrize("expected", HAS, ids=lambda expected: expected.words)
def test_members_of_ranges(expected):
  inside, outside = HAS[expected]
  for value in inside:
    ranges.check("a: b", value, expected)
    ranges.check("a: b", np.asarray(value), expected)
  for value in (*outside, *NEVER):
    with pytest.raises(UserError) as caught:
      ranges.check("a: b", value, expected)
    assert str(caught.value).startswith("a: b is ") and str(caught.value).endswith(f"; expected {expected.words}")


def test_the_sentence_shows_the_value_as_it_was_given():
  for value, shown in (("4", "'4'"), (np.float32(0), "0.0"), (jnp.float32(-1), "-1.0"), (abs, "a function")):
    with pytest.raises(UserError) as caught:
      ranges.check("hinton: temperature", value, ranges.POSITIVE)
    assert str(caught.value) == f"hinton: temperature is {shown}; expected a number above 0"


@pytest.mark.parametrize("expected", [ranges.FINITE, ranges.POSITIVE, ranges.at_least(1)])
def test_what_float32_cannot_compute_with_is_in_no_range(expected):
  for value in (1.1e18, 1e20, 1e308, 10**400):
    with pytest.raises(UserError, match="; expected a .*, and its magnitude at most 1e18$"):
      ranges.check("a: b", value, expected)


def test_what_int32_does_not_hold_is_in_no_range():
  ranges.check("a: b", int(np.iinfo(np.int32).max), ranges.whole(0))
  for value in (2**31, 2**63, 10**400):
    with pytest.raises(UserError, match="; expected a whole number, 0 or more, and at most 2147483647$"):
      ranges.check("a: b", value, ranges.whole(0))


def test_the_squares_of_what_can_be_computed_with_are_normal_float32():
  tiny, large = np.finfo(np.float32).tiny, np.finfo(np.float32).max
  assert np.float32(ranges.LEAST) ** 2 >= tiny and np.float32(ranges.MOST) ** 2 <= large
  for value in (1e-19, -1e-30, 5e-324):
    with pytest.raises(UserError, match=r"; expected a finite number, and its magnitude at least 1e-18$"):
      ranges.check("a: b", value, ranges.FINITE)


def test_a_long_number_is_not_written_out():
  with pytest.raises(UserError, match=r"a: b is a whole number of about 10\^5000; expected a whole number, 0 or more"):
    ranges.check("a: b", 10**5000, ranges.whole(0))


def test_short_ends():
  words = {ranges.between(*ends).words for ends in ((1e-6, 1e6), (0, 1), (1e-10, 1000), (0.5, 1e18))}
  assert words == {f"a number from {text}" for text in ("1e-6 to 1e6", "0 to 1", "1e-10 to 1000", "0.5 to 1e18")}
