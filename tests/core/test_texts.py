"""Texts of others, as they stand in a sentence."""

import pytest

from leanax.core.errors import unknown
from leanax.core.texts import quoted, shown


def test_what_another_program_says_is_one_printable_line():
  assert quoted(ValueError("two\n  lines\tand \x07 a \x7f bell")) == "two lines and ? a ? bell"
  assert quoted("\ud800 of half a letter") == "? of half a letter"
  assert quoted("x" * 500) == 300 * "x" and quoted("abc", 2) == "ab"
  assert quoted(ValueError()) == "no reason given"


@pytest.mark.parametrize(
  ("value", "words"),
  [
    (3, "3"),
    ("a", "'a'"),
    ("x" * 500, f"'{199 * 'x'}..."),
    (-(10**5000), "a whole number of about 10^5000"),
    ((1, 10**5000), "a tuple with a number of thousands of digits"),
  ],
  ids=["number", "text", "long text", "digits", "digits inside"],
)
def test_a_value_in_a_sentence_is_short(value, words):
  assert shown(value) == words


def test_an_unknown_name_of_any_length_is_a_short_sentence():
  for name in ("x" * 5000, 10**5000, ("a",) * 1000):
    assert len(str(unknown("loss", name, ["a", "b"]))) < 300
