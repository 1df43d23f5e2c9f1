"""The evaluator as control flow and custom rules see it, so that those files need not know the one that calls them."""

from collections.abc import Sequence
from typing import Any, Protocol

from leanax.graph.program import Body, Node
from leanax.graph.sites import Analysis

Extras = dict[str, Any]


class Evaluator(Protocol):
  """Evaluates the bodies of an analysed program (`leanax.graph.emit.Emitter`, which documents the attributes)."""

  @property
  def analysis(self) -> Analysis: ...

  @property
  def everything(self) -> bool: ...

  @property
  def sizes(self) -> Any: ...

  def run(self, body: Body, inputs: Sequence[Any], extras: Extras) -> tuple[list[Any], Extras]:
    """Returns the body's results on these inputs, and the extras that were written."""
    ...

  def guard(self, node: Node, bodies: Sequence[tuple[Body, Sequence[Any]]], extras: Extras) -> None:
    """Makes sure that the visitor leaves alone what is inside a node that cannot be built anew."""
    ...

  def guard_each(self, node: Node, extras: Extras) -> None:
    """Does the same for a node whose bodies cannot be evaluated outside of it."""
    ...

  def unedited(self, analysis: Analysis) -> "Evaluator":
    """Returns an evaluator of another program that replaces nothing and builds every node anew."""
    ...
