"""From equations to layers: the layer of each primitive, and what is fused into it.

Each function of the table takes one equation whose operands are known and either starts a draft of a layer, adds to the
draft that its operand ends (a bias, a ReLU, the divisor of a mean), or passes a value on. What no function accepts is
refused by the primitive's name and the line in the user's code.
"""

from collections.abc import Callable

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, weighted
from leanax.deploy.drafts import Draft, Lifter
from leanax.deploy.traced import Traced
from leanax.graph.program import Node


def recognise(traced: Traced, foldable: bool = True) -> tuple[list[Draft], int]:
  """Returns the layers of a traced function, in order, and the number of the value that is the output.

  Args:
    traced: the function.
    foldable: whether a factor behind a product may go into its weights (not once their grids are fixed).

  Raises:
    UserError: an equation that is not part of any layer.
  """
  lifter = Lifter(traced, foldable)
  for node in traced.nodes:
    if node.primitive not in _TABLE:
      raise traced.refuse(node, "the exported formats have no layer for it")
    _TABLE[node.primitive](lifter, node)
  if not lifter.drafts:
    why = "hands its input on" if traced.is_data(traced.output) else "gives what does not depend on its input"
    raise UserError(f"the function has no layer to lift: it {why}")
  return lifter.drafts, lifter.finished(traced.output, traced.nodes[-1])


def _max(lifter: Lifter, node: Node) -> None:
  traced = lifter.traced
  found = lifter.constants(node)
  if found is None or np.any(found[1] != 0):
    raise traced.refuse(node, "only max(x, 0) is a layer")
  number = lifter.operand(node, found[0])
  draft = lifter.open(number, ir.Conv2D, ir.Dense, ir.Add)
  if draft is not None:
    draft.relu = True
    lifter.extend(draft, node)
    return
  pool = lifter.open(number, ir.MaxPool)
  before = None if pool is None else lifter.open(pool.inputs[0], ir.Conv2D, ir.Dense, ir.Add)
  if pool is not None and before is not None:
    before.relu = before.early = pool.positive = True
    lifter.extend(pool, node)
    return
  rectified = lifter.ends.get(lifter.number(number))
  if rectified is not None and (rectified.relu or rectified.kind is ir.Relu) and lifter.sole(number):
    lifter.extend(rectified, node)
    return
  lifter.start(Draft(ir.Relu, "", (lifter.finished(number, node),), node.outputs[0], node))


def _window(lifter: Lifter, node: Node) -> None:
  traced, params = lifter.traced, node.params
  x = lifter.finished(lifter.operand(node), node)
  window, strides, padding = params["window_dimensions"], params["window_strides"], params["padding"]
  if len(window) != 4 or any(n != 1 for spec in (window, strides) for n in (spec[0], spec[3])):
    raise traced.refuse(node, "a pool's images must be (N, H, W, C)")
  if any(d != 1 for key in ("base_dilation", "window_dilation") for d in params[key]):
    raise traced.refuse(node, "a pool cannot be dilated")
  fields = {"window": tuple(window[1:3]), "strides": tuple(strides[1:3]), "padding": tuple(map(tuple, padding[1:3]))}
  if node.primitive == "reduce_window_max":
    draft = Draft(ir.MaxPool, traced.site(node) or "", (x,), node.outputs[0], node, fields=fields)
  else:
    share = int(np.prod(window))
    draft = Draft(ir.AvgPool, "", (x,), node.outputs[0], node, share=share, fields=fields)
  lifter.start(draft)


def _sum(lifter: Lifter, node: Node) -> None:
  x = lifter.finished(lifter.operand(node), node)
  shape = lifter.traced.aval(x).shape
  if len(shape) != 4 or tuple(node.params["axes"]) != (1, 2):
    raise lifter.traced.refuse(node, "only the mean over height and width of (N, H, W, C) is a layer")
  fields = {"keep_dims": False}
  share = int(shape[1] * shape[2])
  lifter.start(Draft(ir.Mean, "", (x,), node.outputs[0], node, share=share, fields=fields))


def _reshape(lifter: Lifter, node: Node) -> None:
  """Starts a reshape; equations that only add or drop axes of length 1 are reshapes too."""
  traced = lifter.traced
  x = lifter.operand(node)
  before, after = (tuple(traced.aval(n).shape) for n in (x, node.outputs[0]))
  if np.prod(before) != np.prod(after):
    raise traced.refuse(node, f"it spreads {before} over {after}")
  if node.primitive == "transpose":
    moved = [axis for axis in node.params["permutation"] if before[axis] != 1]
    if moved != sorted(moved):
      raise traced.refuse(node, "axes cannot change places")
  draft = lifter.ends.get(lifter.number(x))
  if draft is not None and draft.share is not None:
    if draft.kind is not ir.Mean or after != (before[0], 1, 1, before[-1]):
      raise traced.refuse(draft.node, "a sum is a layer only when it is divided by the number of its terms")
    draft.fields["keep_dims"] = True
    lifter.extend(draft, node)
    return
  if before == after:
    lifter.same[node.outputs[0]] = x
    return
  if before[0] != after[0]:
    raise traced.refuse(node, f"it mixes the examples of a batch: {before} to {after}")
  lifter.start(Draft(ir.Reshape, "", (lifter.finished(x, node),), node.outputs[0], node))


def _pad(lifter: Lifter, node: Node) -> None:
  traced = lifter.traced
  x, config = lifter.finished(lifter.operand(node), node), node.params["padding_config"]
  flat = len(config) == 4 and config[0] == config[3] == (0, 0, 0)
  if not flat or any(low < 0 or high < 0 or inside for low, high, inside in config):
    raise traced.refuse(node, "only height and width of (N, H, W, C) can be padded")
  if np.any(traced.constant(node.inputs[1]) != 0):
    raise traced.refuse(node, "only zeros can be padded")
  (top, bottom, _), (left, right, _) = config[1:3]
  lifter.pads[node.outputs[0]] = (x, ((top, bottom), (left, right)))


def _pass(lifter: Lifter, node: Node) -> None:
  """Hands the operand on unchanged."""
  x = lifter.operand(node)
  before, after = (lifter.traced.aval(n) for n in (x, node.outputs[0]))
  if before.dtype != after.dtype:
    raise lifter.traced.refuse(node, f"it turns {before.dtype} into {after.dtype}; lift a float32 function")
  lifter.same[node.outputs[0]] = x


_TABLE: dict[str, Callable[[Lifter, Node], None]] = {
  "dot_general": weighted.dot,
  "conv_general_dilated": weighted.conv,
  "add": weighted.add,
  "add_any": weighted.add,
  "sub": weighted.subtract,
  "mul": weighted.scale,
  "div": weighted.scale,
  "max": _max,
  "reduce_window_max": _window,
  "reduce_window_sum": _window,
  "reduce_sum": _sum,
  "reshape": _reshape,
  "squeeze": _reshape,
  "expand_dims": _reshape,
  "broadcast_in_dim": _reshape,
  "transpose": _reshape,
  "pad": _pad,
  "copy": _pass,
  "copy_p": _pass,
  "name": _pass,
  "stop_gradient": _pass,
  "sharding_constraint": _pass,
  "convert_element_type": _pass,
}
