"""The traced model: one view of any JAX function, which the other packages read and edit.

>>> import jax
>>> import jax.numpy as jnp
>>> from leanax import graph
>>> variables = {"params": {"a": {"kernel": jnp.ones((4, 3))}, "b": {"kernel": jnp.ones((3, 2))}}}
>>> def apply(variables, x):
...   return jax.nn.relu(x @ variables["params"]["a"]["kernel"]) @ variables["params"]["b"]["kernel"]
>>> x = jnp.ones((1, 4))
>>> print(list(graph.trace(apply, variables, x).sites))  # operations are named by the leaf that they read
['a/kernel', 'b/kernel', 'output']
>>> out, taps = graph.taps(apply, ["a/kernel:out"])(variables, x)  # an activation, by who made it
>>> print(out, taps["a/kernel:out"])
[[12. 12.]] [[4. 4. 4.]]
>>> net = graph.net(apply, variables, x)
>>> small = graph.keep_channels(net, {"a/kernel": [0, 2]})  # an edit: one of three hidden units is removed
>>> print(small.variables["params"]["b"]["kernel"].shape, small.infer(small.variables, x))
(2, 2) [[8. 8.]]
"""

from leanax.graph.bounded import bounded, second_factor
from leanax.graph.edit import edit
from leanax.graph.edits.add_bias import add_bias
from leanax.graph.edits.depthwise import depthwise, depthwise_batch_norms
from leanax.graph.edits.fold_batch_norm import fold_batch_norms
from leanax.graph.edits.keep_channels import keep_channels
from leanax.graph.edits.permute import permute
from leanax.graph.edits.replace_head import replace_head
from leanax.graph.edits.scale import move_scale
from leanax.graph.groups import Group, Member, groups
from leanax.graph.joins import met, passed
from leanax.graph.kinds import Statistic
from leanax.graph.live import leaves_read, live
from leanax.graph.makers import Maker, exposed
from leanax.graph.matmul import Matmul, matmul
from leanax.graph.net import Net, net, net_of
from leanax.graph.norms import Norm, batch_norms
from leanax.graph.observe import Observer, inputs_of, observe, observing
from leanax.graph.ops import Op, Operand
from leanax.graph.parts import Made, axis_parts
from leanax.graph.precise import highest_precision
from leanax.graph.rewriting import rewrite
from leanax.graph.rows import rows
from leanax.graph.shapes import shapes
from leanax.graph.slice import slice
from leanax.graph.stacked import stacked_axes
from leanax.graph.statistics import Extrema, Histogram, absolute_maximum, extrema, histogram, mean, second_moment
from leanax.graph.taps import taps
from leanax.graph.unrolling import unrolled
from leanax.graph.view import Graph, trace, training_only

__all__ = [
  "Extrema",
  "Graph",
  "Group",
  "Histogram",
  "Made",
  "Maker",
  "Matmul",
  "Net",
  "Member",
  "Norm",
  "Observer",
  "Op",
  "Operand",
  "Statistic",
  "absolute_maximum",
  "add_bias",
  "axis_parts",
  "batch_norms",
  "bounded",
  "depthwise",
  "depthwise_batch_norms",
  "edit",
  "exposed",
  "extrema",
  "fold_batch_norms",
  "groups",
  "highest_precision",
  "histogram",
  "keep_channels",
  "leaves_read",
  "live",
  "matmul",
  "mean",
  "met",
  "move_scale",
  "inputs_of",
  "observe",
  "observing",
  "net",
  "net_of",
  "passed",
  "permute",
  "replace_head",
  "rewrite",
  "rows",
  "second_factor",
  "second_moment",
  "shapes",
  "slice",
  "stacked_axes",
  "taps",
  "trace",
  "training_only",
  "unrolled",
]
