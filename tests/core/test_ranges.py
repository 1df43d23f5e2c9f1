"""The numbers of a range, and the sentence for all others."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core import ranges
from leanax.core.errors import UserError

HAS = {  # a range: some in it, at its ends too, and some that are not
  ranges.FINITE: ((-1e30, 0, 5), ()),
  ranges.POSITIVE: ((1e-30, 7), (0, -1)),
  ranges.NOT_NEGATIVE: ((0, 0.5), (-1e-9,)),
  ranges.SHARE: ((0, 1, 0.5), (-0.1, 1.1)),
  ranges.INSIDE: ((0.5, 0.999), (0, 1)),
  ranges.BELOW_ONE: ((0, 0.999), (1, -0.1)),
  ranges.at_least(1): ((1, 1.5), (0.99,)),
  ranges.whole(2): ((2, np.int64(3)), (1, 2.5, 3.0)),
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
