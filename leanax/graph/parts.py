"""The parts of the axes of leaves: the axes that were flattened into one, and whether their order is known.

A kernel that reads a flattened map has an axis of height * width * channels numbers. The reshape in the traced function
says so, and so the leading channels are found at every place, whatever layout the model's author chose.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from leanax.graph.linking import Links
from leanax.graph.program import read
from leanax.graph.units import Product, Tree, seen, units


class Made(NamedTuple):
  """An axis.

  Attributes:
    sizes: of the axes that it is made of, outermost first; its own size where it is one.
    lost: for each of them an equation after which its leading entries are not those of what reads it, or "".
  """

  sizes: tuple[int, ...]
  lost: tuple[str, ...] = ("",)


def axis_parts(fn: Callable[..., Any], variables: Any, *inputs: Any) -> dict[str, tuple[Made, ...]]:
  """Returns the parts of each axis of each leaf, by the leaf's name.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    variables: a tree of arrays or `jax.ShapeDtypeStruct`.
    *inputs: example inputs, or their shapes.
  """
  program = read(fn, variables, *inputs)
  links = Links(program)
  return {
    name: tuple(_made(seen(tree)) for tree in links.of(number))
    for name, number in zip(program.leaves, program.body.inputs, strict=False)
  }


def _made(tree: Tree) -> Made:
  parts = tree.parts if isinstance(tree, Product) else (tree,)
  return Made(tuple(part.size for part in parts), tuple(map(_lost, parts)))


def _lost(part: Tree) -> str:
  """Of equations that a part is not followed through the first by name; a scan goes through its layers in order."""
  names = {name for one in units(part) for name in (*one.reasons, *one.joined)}
  return min(names - {"scan"}, default="")
