"""The traced function as its users see it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from leanax.core.errors import UserError
from leanax.graph import cost
from leanax.graph.ops import Op
from leanax.graph.program import Node, Program, Ref, read
from leanax.graph.sites import Analysis


@dataclass(frozen=True, eq=False)
class Graph:
  """A function traced at given shapes: `ops` and `sites` by name, in order; `analysis` and `program` hold the
  equations.
  """

  analysis: Analysis

  @property
  def program(self) -> Program:
    return self.analysis.program

  @cached_property
  def sites(self) -> dict[str, Op]:
    """The operations of interest: every kind but "other"; the last is "output"."""
    return {site.op.name: site.op for site in self.analysis.sites}

  @cached_property
  def ops(self) -> dict[str, Op]:
    """Every operation, those of kind "other" too, in order; a custom rule's and a scan's are listed as well."""
    every = [site.op for site in self.analysis.every_site().values()]
    return {op.name: op for op in [*every, self.analysis.sites[-1].op]}

  @property
  def skipped(self) -> dict[str, str]:
    """The reason, by the leaf's name, why a product with a kernel is no site. Parameters alone are read there."""
    return dict(self.analysis.skipped)

  @property
  def total(self) -> int:
    """Multiply-accumulates of one call."""
    return sum(op.macs for op in self.sites.values())

  def table(self, bits: Mapping[str, tuple[int, int]] | None = None) -> list[cost.Row]:
    """Returns the costs of each operation of interest as plain data; `bits`: (weight, activation) widths by name."""
    return cost.table(self.sites.values(), bits)

  @property
  def flat(self) -> list[Node]:
    """The nodes that compute, in order; calls, checkpoints and custom rules are looked through.

    A node's `inputs` are numbers or Literals, to be passed through `resolve`; its `outputs` are numbers. What is inside
    a scan, branch or loop stands before the node that holds it. `versions.rebind(node.eqn, inputs)` computes one.
    """
    return self.analysis.flat

  def resolve(self, ref: Ref) -> Ref:
    """Returns the number of a value after looking through calls, or a Literal."""
    return self.analysis.resolve(ref)


def trace(fn: Callable[..., Any], variables: Any, *inputs: Any) -> Graph:
  """Looks at `fn(variables, *inputs)` without running it; arrays or `jax.ShapeDtypeStruct`, any framework."""
  return Graph(Analysis(read(fn, variables, *inputs)))


def training_only(training: Graph, evaluation: Graph) -> tuple[str, ...]:
  """Returns names of the sites that only the training trace has, in order; all others are the same in both.

  Uses of a shared leaf are counted in order, so one that is used more often in training has its last uses marked.

  Raises:
    UserError: a site's kind, leaf, or the name of a tensor that it reads differs between the two, so that its name does
      not stand for one thing.
  """
  one, other = training.sites, evaluation.sites
  for name in one.keys() & other.keys() - {"output"}:  # a training step may return more
    here, there = _what(one[name]), _what(other[name])
    if here != there:
      raise UserError(f"the site {name!r} is {here} in training, but {there} in evaluation")
  return tuple(name for name in one if name not in other)


def _what(op: Op) -> str:
  return f"{op.kind!r} of {', '.join(operand.tensor or operand.leaf or 'a constant' for operand in op.inputs)}"
