"""Texts of others, as they stand in a sentence."""

from leanax.core.texts import quoted


def test_what_another_program_says_is_one_printable_line():
  assert quoted(ValueError("two\n  lines\tand \x07 a \x7f bell")) == "two lines and ? a ? bell"
  assert quoted("\ud800 of half a letter") == "? of half a letter"
  assert quoted("x" * 500) == 300 * "x" and quoted("abc", 2) == "ab"
  assert quoted(ValueError()) == "no reason given"
