"""The traced model: one view of any JAX function, which the other packages read and edit."""

from graph.emit import rewrite
from graph.ops import Op, Operand
from graph.view import Graph, trace

__all__ = ["Graph", "Op", "Operand", "rewrite", "trace"]
