"""Convolutions with constant kernels."""

import numpy as np

from leanax.deploy import ir
from leanax.deploy.lifting.drafts import Draft, Lifter
from leanax.graph.program import Node


def conv(lifter: Lifter, node: Node) -> None:
  """Starts a convolution, of which one along a single axis has height 1; a padding before it becomes part of it."""
  traced, params = lifter.traced, node.params
  x = lifter.operand(node)
  if traced.is_data(node.inputs[1]):
    raise traced.refuse(node, "its kernel depends on the input")
  spec, shape = params["dimension_numbers"], lifter.shape(x)
  spatial = len(shape) - 2
  if spatial not in (1, 2):
    raise traced.refuse(node, f"a convolution over {spatial} axes has no layer; one over 1 or 2 has")
  if params["batch_group_count"] != 1:
    raise traced.refuse(node, "a convolution with groups of the batch has no layer")
  out, inside, *window = spec.rhs_spec

  def layout(operand: np.ndarray) -> np.ndarray:  # of one axis as of an image of height 1
    turned = operand.transpose(*window, inside, out)
    return turned[None] if spatial == 1 else turned

  kernel = layout(traced.constant(node.inputs[1]))
  padding = np.array(params["padding"]).reshape(spatial, 2)
  source, around = _images(lifter, node, x)
  padding = padding + around
  strides, dilation, between = (params[key] for key in ("window_strides", "rhs_dilation", "lhs_dilation"))
  if spatial == 1:  # (N, L, C) as (N, 1, L, C)
    source = lifter.shaped(source, np.insert(lifter.shape(source), 1, 1).tolist(), node)
    padding = np.insert(padding, 0, 0, 0)
    strides, dilation, between = (1, *strides), (1, *dilation), (1, *between)
  strides, dilation, between = ((int(one[0]), int(one[1])) for one in (strides, dilation, between))
  groups = int(params["feature_group_count"])
  kind = ir.Conv2D
  if any(n != 1 for n in between):
    kind = ir.TransposedConv2D
    if any(n != 1 for n in strides):
      raise traced.refuse(node, "a transposed convolution that leaves out results has no layer")
    kernel, cut = transposed(kernel, padding, dilation, groups)
    if any(low < 0 or high < 0 for low, high in cut):
      raise traced.refuse(node, f"its padding {params['padding']} leaves nothing")
    fields = {"strides": between, "cut": cut}
  elif (padding < 0).any():
    raise traced.refuse(node, f"its padding {params['padding']} is negative")
  else:
    around = tuple((int(low), int(high)) for low, high in padding)
    fields = {"strides": strides, "padding": around, "dilation": dilation, "groups": groups}
  kept = layout if kind is ir.Conv2D else None  # a transposed convolution's kernel has zeros between its entries
  draft = Draft(kind, traced.site(node) or "", (source,), node.outputs[0], node, kernel, kept, fields=fields)
  # The result (N, H, W, C) as the equation has it.
  places = spec.out_spec[:1] + spec.out_spec[2:] + spec.out_spec[1:2]  # where each of our axes goes
  order = tuple(int(axis) for axis in np.argsort(places))
  shape = tuple(lifter.shape(node.outputs[0])[axis] for axis in places)
  lifter.start_linked(draft, (shape[0], 1, *shape[1:]) if spatial == 1 else shape, shape, order)


def _images(lifter: Lifter, node: Node, x: int) -> tuple[int, np.ndarray]:
  """Returns the images (N, H, W, C) that a convolution reads, or (N, L, C), and the zeros around them."""
  batch, depth, *spatial = node.params["dimension_numbers"].lhs_spec
  order, number = (batch, *spatial, depth), lifter.number(x)
  if order == (0, 1, 2, 3) and number in lifter.pads:
    source, around = lifter.pads[number]
    return lifter.finished(source, node), np.array(around)
  x = lifter.turned(x, order, node)
  return x if len(spatial) == 1 else lifter.finished(x, node), np.zeros((len(spatial), 2), int)


def transposed(
  kernel: np.ndarray, padding: np.ndarray, dilation: ir.Pair, groups: int
) -> tuple[np.ndarray, ir.Padding]:
  """Returns a transposed convolution's kernel and cut for those of a convolution of images with zeros between pixels.

  Args:
    kernel: (h, w, I / groups, O).
    padding: (2, 2) zeros before and behind rows and columns; negative ones leave out.
    dilation: of the kernel.
    groups: of channels.

  Returns:
    The kernel (h', w', I, O), upside down, with zeros for what groups and dilation leave out, and what is cut.
  """
  height, width, depth, channels = kernel.shape
  # Room for the dilation, and for zeros so that each side is cut and not padded.
  reach = np.array([(height - 1) * dilation[0] + 1, (width - 1) * dilation[1] + 1])
  room = np.maximum(padding - (reach - 1)[:, None], 0)[:, ::-1]
  wide = np.zeros((*(reach + room.sum(1)), depth * groups, channels), kernel.dtype)
  part = channels // groups
  for group in range(groups):
    ours, theirs = slice(group * depth, (group + 1) * depth), slice(group * part, (group + 1) * part)
    top, left = room[:, 0]
    rows = slice(top, top + reach[0], dilation[0])
    columns = slice(left, left + reach[1], dilation[1])
    wide[rows, columns, ours, theirs] = kernel[..., theirs]
  cut = np.array(wide.shape[:2])[:, None] - 1 - (padding + room)
  (top, bottom), (left, right) = cut.tolist()
  return wide[::-1, ::-1], ((top, bottom), (left, right))


TABLE = {"conv_general_dilated": conv}
