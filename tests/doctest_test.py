"""The examples in docstrings run, and print what they say; every public namespace opens with one."""

import ast
import doctest
import importlib
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMESPACES = ("kd", "sparsity", "leanax.core", "leanax.deploy", "leanax.engine", "leanax.graph", "leanax.zoo", "quant")


def _name(path: pathlib.Path) -> str:
  return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = [path for package in ("kd", "leanax", "quant", "sparsity") for path in sorted((ROOT / package).rglob("*.py"))]
MODULES = [_name(path) for path in FILES if ">>> " in path.read_text("utf-8")]


@pytest.mark.parametrize("name", MODULES)
def test_examples_print_their_output(name):
  module = importlib.import_module(name)
  runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.FAIL_FAST)
  found = [test for test in doctest.DocTestFinder(exclude_empty=True).find(module, name) if test.examples]
  printed: list[str] = []
  for test in found:
    runner.run(test, out=printed.append)
  assert found and not runner.summarize(verbose=False).failed, "".join(printed)


@pytest.mark.parametrize("name", NAMESPACES)
def test_a_namespace_opens_with_an_example(name):
  path = ROOT.joinpath(*name.split("."), "__init__.py")
  assert doctest.DocTestParser().get_examples(ast.get_docstring(ast.parse(path.read_text("utf-8"))))
