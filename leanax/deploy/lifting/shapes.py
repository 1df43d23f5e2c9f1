"""Equations that move numbers without changing them: reshapes, transposes, paddings and copies."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.graph.program import Node


def reshape(lifter: Lifter, node: Node) -> None:
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


def pad(lifter: Lifter, node: Node) -> None:
  """Notes zeros around an image, which become part of the convolution that reads it."""
  traced = lifter.traced
  x, config = lifter.finished(lifter.operand(node), node), node.params["padding_config"]
  flat = len(config) == 4 and config[0] == config[3] == (0, 0, 0)
  if not flat or any(low < 0 or high < 0 or inside for low, high, inside in config):
    raise traced.refuse(node, "only height and width of (N, H, W, C) can be padded")
  if np.any(traced.constant(node.inputs[1]) != 0):
    raise traced.refuse(node, "only zeros can be padded")
  (top, bottom, _), (left, right, _) = config[1:3]
  lifter.pads[node.outputs[0]] = (x, ((top, bottom), (left, right)))


def hand_on(lifter: Lifter, node: Node) -> None:
  """Hands the operand on unchanged."""
  x = lifter.operand(node)
  before, after = (lifter.traced.aval(n) for n in (x, node.outputs[0]))
  if before.dtype != after.dtype:
    raise lifter.traced.refuse(node, f"it turns {before.dtype} into {after.dtype}; lift a float32 function")
  lifter.same[node.outputs[0]] = x


TABLE = {
  "reshape": reshape,
  "squeeze": reshape,
  "expand_dims": reshape,
  "broadcast_in_dim": reshape,
  "transpose": reshape,
  "pad": pad,
  "copy": hand_on,
  "copy_p": hand_on,
  "name": hand_on,
  "stop_gradient": hand_on,
  "sharding_constraint": hand_on,
  "convert_element_type": hand_on,
}
