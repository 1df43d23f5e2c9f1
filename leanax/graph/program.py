"""A traced function as plain data: nodes with numbered values, nested where the jaxpr is nested.

Every value of every call gets its own number, also when a jaxpr object is shared between calls (each `relu` of a model
is the same object), so numbers can be compared across the whole program.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from leanax.core.errors import UserError
from leanax.core.trees import path_name
from leanax.graph import versions

Ref = Any  # the number of a value (int), or a Literal


@dataclass(slots=True, eq=False)
class Body:
  """A jaxpr: numbers of its arguments and constants, its nodes in order, what it returns."""

  inputs: tuple[int, ...]
  consts: tuple[tuple[int, Any], ...]
  nodes: list["Node"]
  outputs: tuple[Ref, ...]


@dataclass(slots=True, eq=False)
class Node:
  """An equation. `bodies` are the jaxprs inside it; `index` is its place in `Program.nodes` (inner nodes come
  first).
  """

  eqn: Any
  form: str
  inputs: tuple[Ref, ...]
  outputs: tuple[int, ...]
  bodies: tuple[Body, ...]
  split: tuple[int, ...]
  home: Body | None = field(default=None, repr=False)
  index: int = -1

  @property
  def primitive(self) -> str:
    return self.eqn.primitive.name

  @property
  def params(self) -> dict[str, Any]:
    return self.eqn.params


class Program(NamedTuple):
  """A function traced at given shapes.

  Attributes:
    body: the outermost body; its inputs are the leaves of the variables, then of the inputs.
    nodes: every node, inner ones before the one that holds them.
    avals: shape and dtype of each value by number.
    leaves: names of the variables' leaves, in the order of `body.inputs`.
    out_names: the paths of the outputs' leaves; `out_tree` their structure.
  """

  body: Body
  nodes: list[Node]
  avals: list[Any]
  leaves: tuple[str, ...]
  out_names: tuple[str, ...]
  out_tree: Any


class Missing(NamedTuple):
  """Stands for a leaf that an edit has removed, where nothing reads it."""

  leaf: str


def leaf_name(path: tuple[Any, ...]) -> str:
  """`params/Dense_0/kernel` as `Dense_0/kernel`; other collections keep their name."""
  return path_name(path).removeprefix("params/")


def leaf_names(variables: Any) -> tuple[str, ...]:
  """Returns the names of a tree of variables' leaves, in order."""
  return tuple(leaf_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables))


def read(fn: Callable[..., Any], variables: Any, *inputs: Any) -> Program:
  """Traces `fn(variables, *inputs)` once; arguments may be arrays, tracers or `jax.ShapeDtypeStruct`.

  Raises:
    UserError: `fn` is no function, or a leaf of the variables is no array.
  """
  check_function(fn)
  check_arrays(variables)
  closed, out = jax.make_jaxpr(fn, return_shape=True)(variables, *inputs)
  inner = versions.open_jaxpr(closed)
  reader = _Reader()
  body = reader.body(inner)
  out_names = tuple(path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(out))
  return Program(body, reader.nodes, reader.avals, leaf_names(variables), out_names, jax.tree.structure(out))


def check_function(fn: Any) -> None:
  """Refuses what cannot be called.

  Raises:
    UserError: names the type of what was given.
  """
  if not callable(fn):
    raise UserError(
      f"the function is a {type(fn).__name__}; expected fn(variables, *inputs), which is net.infer of a graph.Net"
    )


def check_arrays(variables: Any) -> None:
  """Refuses variables that hold anything but arrays.

  Raises:
    UserError: names the leaf.
  """
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    if not hasattr(leaf, "dtype") and not isinstance(leaf, bool | int | float | complex):
      raise UserError(
        f"{leaf_name(path)!r} of the variables is {leaf!r}; expected arrays, which "
        "equinox.partition(module, equinox.is_array) gives of a module"
      )


def touched(program: Program, chosen: Collection[int]) -> set[int]:
  """Returns the nodes that are chosen, or hold one that is."""
  found = set(chosen)
  for node in program.nodes:  # inner nodes come first
    if any(inner.index in found for body in node.bodies for inner in body.nodes):
      found.add(node.index)
  return found


def inside(node: Node) -> set[int]:
  """Returns the indices of every node that a node holds."""
  found: set[int] = set()
  for body in node.bodies:
    for inner in body.nodes:
      found |= {inner.index} | inside(inner)
  return found


class _Reader:
  def __init__(self) -> None:
    self.nodes: list[Node] = []
    self.avals: list[Any] = []

  def number(self, variables: Sequence[Any], env: dict[Any, int]) -> tuple[int, ...]:
    first = len(self.avals)
    self.avals.extend(v.aval for v in variables)
    numbers = tuple(range(first, len(self.avals)))
    env.update(zip(variables, numbers, strict=True))
    return numbers

  def body(self, inner: versions.Inner) -> Body:
    env: dict[Any, int] = {}
    jaxpr = inner.jaxpr
    consts = tuple(zip(self.number(jaxpr.constvars, env), inner.consts, strict=True))
    body = Body(self.number(jaxpr.invars, env), consts, [], ())
    for eqn in jaxpr.eqns:
      kept = versions.layout(eqn)
      inputs = tuple(v if isinstance(v, jex.Literal) else env[v] for v in eqn.invars)
      bodies = tuple(self.body(i) for i in kept.inner)
      node = Node(eqn, kept.form, inputs, self.number(eqn.outvars, env), bodies, kept.split, body, len(self.nodes))
      self.nodes.append(node)
      body.nodes.append(node)
    body.outputs = tuple(v if isinstance(v, jex.Literal) else env[v] for v in jaxpr.outvars)
    return body
