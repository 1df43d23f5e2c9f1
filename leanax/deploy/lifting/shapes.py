"""Equations that move numbers without changing them: reshapes, transposes, paddings and copies."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.deploy.lifting.views import Link, composed
from leanax.graph.program import Node


def reshape(lifter: Lifter, node: Node) -> None:
  """Starts a reshape; equations that only add or drop axes of length 1 are reshapes too."""
  traced = lifter.traced
  x = lifter.operand(node)
  before, after = (tuple(traced.aval(n).shape) for n in (x, node.outputs[0]))
  if np.prod(before) != np.prod(after):
    spread(lifter, node, x)
    return
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


def spread(lifter: Lifter, node: Node, x: int) -> None:
  """Notes a value whose axes of length 1 are repeated, and others inserted."""
  traced, axes = lifter.traced, list(node.params["broadcast_dimensions"])
  before, after = (tuple(traced.aval(n).shape) for n in (x, node.outputs[0]))
  if axes[:1] != [0]:
    raise traced.refuse(node, f"it spreads {before} over {after}")
  shape = [before[axes.index(axis)] if axis in axes else 1 for axis in range(len(after))]
  lifter.spread[node.outputs[0]] = lifter.shaped(x, shape, node)


def transpose(lifter: Lifter, node: Node) -> None:
  """Notes a value with its axes in another order, which becomes a layer where another one reads it as it is."""
  x, order = lifter.number(lifter.operand(node)), tuple(node.params["permutation"])
  link = lifter.links.get(x)
  if link is None:
    source = lifter.finished(x, node)
    link = Link(source, lifter.shape(source), tuple(range(len(order))), x)
  lifter.links[node.outputs[0]] = link._replace(permutation=composed(link.permutation, order), parent=x)


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
  "transpose": transpose,
  "pad": pad,
  "copy": hand_on,
  "copy_p": hand_on,
  "name": hand_on,
  "stop_gradient": hand_on,
  "sharding_constraint": hand_on,
  "convert_element_type": hand_on,
}
