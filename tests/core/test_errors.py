import pytest

from leanax.core.errors import UserError, nearest, shown, unknown


def test_unknown_name_offers_the_nearest():
  error = unknown("loss", "hintn", ["hinton", "logit_l2"])
  assert isinstance(error, UserError)
  assert str(error) == "unknown loss 'hintn'; did you mean 'hinton'?"


def test_unknown_name_without_a_near_one_lists_all():
  assert str(unknown("loss", "zzz", ["b", "a"])) == "unknown loss 'zzz'; expected one of a, b"


def test_an_unlike_name_among_many_has_the_nearest_only():
  names = [f"method_{index}" for index in range(40)]
  message = str(unknown("loss", "zzz", names, "docs/methods.md"))
  assert message.startswith("unknown loss 'zzz'; the nearest of 40 are '") and message.endswith(": see docs/methods.md")
  assert message.count("method_") == 3
  assert str(unknown("loss", 3, ["b", "a"])) == "unknown loss 3; expected one of a, b"


def test_nearest_falls_back_to_the_last_segment():
  assert nearest("optimiser.learnin_rate", ["stages.teacher.optimizer.learning_rate", "data.name"])[0].endswith(
    "learning_rate"
  )


def test_what_a_sentence_quotes_can_be_printed():
  """Half a pair of UTF-16, as JSON may hold, would end the program that prints it."""
  text = str(UserError("'\ud800', \x1b[31m and \x7f of Zürich: 中文"))
  assert text == r"'\ud800', \x1b[31m and \x7f of Zürich: 中文"
  text.encode()


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
