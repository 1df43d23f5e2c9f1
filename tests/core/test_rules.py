import pytest

from leanax.core.errors import UserError
from leanax.core.rules import match

NAMES = ["stem/conv/kernel", "block/conv/kernel", "head/kernel", "head/bias"]


def test_first_match_wins_and_star_crosses_slashes():
  found = match([("head/*", "a"), ("*kernel", "b")], NAMES)
  assert {name: m.setting for name, m in found.items()} == {
    "stem/conv/kernel": "b",
    "block/conv/kernel": "b",
    "head/kernel": "a",
    "head/bias": "a",
  }
  assert found["stem/conv/kernel"].index == 1 and found["stem/conv/kernel"].glob == "*kernel"


def test_names_without_a_rule_are_left_out():
  assert list(match([("head/*", 1)], NAMES)) == ["head/kernel", "head/bias"]


def test_a_rule_that_matches_nothing_is_named_with_near_names():
  with pytest.raises(UserError, match=r"rule 'haed/\*' matches nothing; names near it: .*head/"):
    match([("haed/*", 1)], NAMES)


def test_a_rule_that_is_wholly_shadowed_is_named_with_the_earlier_one():
  with pytest.raises(UserError, match=r"rule 'head/\*' never applies: an earlier rule, '\*', takes head/kernel"):
    match([("*", 1), ("head/*", 2)], NAMES)
