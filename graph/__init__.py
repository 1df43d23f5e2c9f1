"""The traced model: one view of any JAX function, which the other packages read and edit."""

from graph.cut import keep_channels
from graph.edit import edit
from graph.fold import fold_batch_norms
from graph.live import leaves_read, live
from graph.makers import Maker, exposed
from graph.norms import Norm, batch_norms
from graph.ops import Op, Operand
from graph.parts import Made, axis_parts
from graph.precise import highest_precision
from graph.rewriting import rewrite
from graph.shapes import shapes
from graph.stacked import stacked_axes
from graph.taps import taps
from graph.view import Graph, trace, training_only

__all__ = [
  "Graph",
  "Made",
  "Maker",
  "Norm",
  "Op",
  "Operand",
  "axis_parts",
  "batch_norms",
  "edit",
  "exposed",
  "fold_batch_norms",
  "highest_precision",
  "keep_channels",
  "leaves_read",
  "live",
  "rewrite",
  "shapes",
  "stacked_axes",
  "taps",
  "trace",
  "training_only",
]
