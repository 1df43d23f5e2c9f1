"""The texts that name file formats with options."""

import functools

import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.core.texts import elements


def platforms(text):
  write = deploy.file_format(text).write
  assert isinstance(write, functools.partial)
  return write.keywords["platforms"]


def test_options_may_be_lists():
  for text in (
    "stablehlo(platforms=(cpu, rocm))",
    "stablehlo(platforms=[cpu,rocm])",
    ".stablehlo(platforms=(cpu, rocm,))",
  ):
    assert platforms(text) == ("cpu", "rocm")
  assert platforms("stablehlo(platforms=cpu)") == platforms("stablehlo(platforms=(cpu))") == ("cpu",)
  assert platforms("stablehlo") == ("cpu", "cuda", "tpu")


@pytest.mark.parametrize(
  "text, reason",
  [
    ("stablehlo(platforms=(cpu, gpu))", "unknown platform 'gpu'"),
    ("stablehlo(platforms=())", "a .stablehlo file is for no platform; expected one or more of cpu, cuda, tpu, rocm"),
    ("stablehlo(platforms=(cpu, cuda)", "has parentheses without a counterpart; expected a text such as"),
    ("stablehlo(platforms=(cpu, cuda])", "has parentheses without a counterpart; expected a text such as"),
    ("litert(weights=(int8, float16))", "unknown weights \\('int8', 'float16'\\)"),
    ("onnx(groups=(values, blocked))", "unknown form of groups \\('values', 'blocked'\\)"),
    ("litert(sparse=(0.5, 0.9))", "is no share of zeros"),
  ],
)
def test_mistakes_in_lists_are_one_sentence(text, reason):
  with pytest.raises(UserError, match=reason):
    deploy.file_format(text)


def test_a_text_is_split_at_its_own_commas():
  assert elements("a, b(c, d=[e, f]) ,,g") == ["a", "b(c, d=[e, f])", "g"]
  for text in ("a(b", "a)b", "(a]"):
    with pytest.raises(ValueError):
      elements(text)
