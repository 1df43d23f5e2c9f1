"""From equations to layers: which primitives are which layer, and what is fused into it.

Each function of the table takes one equation whose operands are known and either starts a draft of a layer, adds to the
draft that its operand ends (a bias, a ReLU, the divisor of a mean), or passes a value on. What no function accepts is
refused by the primitive's name and the line in the user's code.
"""

from collections.abc import Callable

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.drafts import Draft, Lifter
from leanax.deploy.traced import Traced
from leanax.graph.program import Node


def recognise(traced: Traced, foldable: bool = True) -> tuple[list[Draft], int]:
  """The layers of a traced function, in order, and the number of the value that is the output.

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


def _channels(constant: np.ndarray, channels: int) -> np.ndarray | None:
  """A constant as one number a channel, or None if it is not constant along the other axes."""
  rows = np.broadcast_to(constant, (*constant.shape[:-1], channels)) if constant.ndim else np.full(channels, constant)
  rows = rows.reshape(-1, channels).astype(np.float32)
  return rows[0] if np.array_equal(rows, np.broadcast_to(rows[0], rows.shape), equal_nan=True) else None


def _dot(lifter: Lifter, node: Node) -> None:
  traced = lifter.traced
  x = lifter.operand(node)
  if traced.is_data(node.inputs[1]):
    raise traced.refuse(node, "both operands depend on the input")
  (lhs, rhs), batch = node.params["dimension_numbers"]
  shape, kernel = traced.aval(x).shape, traced.constant(node.inputs[1])
  if len(shape) != 2 or tuple(lhs) != (1,) or kernel.ndim != 2 or any(map(len, batch)):
    raise traced.refuse(node, f"a dense layer is (N, I) by (I, O), not {tuple(shape)} by {kernel.shape}")
  kernel = kernel if tuple(rhs) == (0,) else kernel.T
  x = lifter.finished(x, node)
  lifter.start(Draft(ir.Dense, traced.site(node) or "", (x,), node.outputs[0], node, kernel))


def _conv(lifter: Lifter, node: Node) -> None:
  traced, params = lifter.traced, node.params
  x = lifter.operand(node)
  if traced.is_data(node.inputs[1]):
    raise traced.refuse(node, "its kernel depends on the input")
  spec = params["dimension_numbers"]
  if tuple(spec.lhs_spec) != (0, 3, 1, 2) or tuple(spec.out_spec) != (0, 3, 1, 2):
    raise traced.refuse(node, "a convolution's images must be (N, H, W, C)")
  if any(d != 1 for d in params["lhs_dilation"]) or params["batch_group_count"] != 1:
    raise traced.refuse(node, "transposed convolutions have no layer here")
  out, inside, *window = spec.rhs_spec
  kernel = traced.constant(node.inputs[1]).transpose(*window, inside, out)
  padding = np.array(params["padding"])
  source = lifter.number(x)
  if source in lifter.pads:
    source, around = lifter.pads[source]
    padding = padding + np.array(around)
  if (padding < 0).any():
    raise traced.refuse(node, f"its padding {params['padding']} is negative")
  fields = {
    "strides": tuple(map(int, params["window_strides"])),
    "padding": tuple((int(low), int(high)) for low, high in padding),
    "dilation": tuple(map(int, params["rhs_dilation"])),
    "groups": int(params["feature_group_count"]),
  }
  source = lifter.finished(source, node)
  name = traced.site(node) or ""
  lifter.start(Draft(ir.Conv2D, name, (source,), node.outputs[0], node, kernel, fields=fields))


def _add(lifter: Lifter, node: Node, sign: int = 1) -> None:
  traced = lifter.traced
  found = lifter.constants(node)
  if found is None:
    if sign < 0:
      raise traced.refuse(node, "two activations can be added, not subtracted")
    shapes = [tuple(traced.aval(n).shape) for n in traced.data(node)]
    if len(set(shapes)) > 1:
      raise traced.refuse(node, f"the shapes {shapes[0]} and {shapes[1]} differ")
    inputs = tuple(lifter.finished(n, node) for n in traced.data(node))
    lifter.start(Draft(ir.Add, traced.site(node) or "", inputs, node.outputs[0], node))
    return
  place, constant = found
  draft = lifter.open(lifter.operand(node, place), ir.Conv2D, ir.Dense)
  if draft is None or (sign < 0 and place == 1):
    raise _misplaced(lifter, node, "a constant that is added")
  assert draft.kernel is not None
  bias = _channels(constant, draft.kernel.shape[-1])
  if bias is None:
    raise traced.refuse(node, "the constant is not one number a channel")
  bias = bias if sign > 0 else -bias
  draft.bias = bias if draft.bias is None else draft.bias + bias
  lifter.extend(draft, node)


def _misplaced(lifter: Lifter, node: Node, what: str) -> UserError:
  """The refusal of a constant that no layer with weights takes in."""
  place = "right behind a convolution or dense layer"
  why = f"{what} can stand only {place}"
  if lifter.traced.in_norm(node):
    why = f"it is part of a batch norm that does not stand {place}, and the exported formats have no layer for it"
  return lifter.traced.refuse(node, why)


def _subtract(lifter: Lifter, node: Node) -> None:
  _add(lifter, node, -1)


def _scale(lifter: Lifter, node: Node) -> None:
  """A product or quotient with a constant: the end of a mean, or a factor that goes into the weights before it."""
  traced = lifter.traced
  found = lifter.constants(node)
  if found is None or (node.primitive == "div" and found[0] == 1):
    raise traced.refuse(node, "only a constant factor or divisor can be lifted")
  place, constant = found
  number = lifter.operand(node, place)
  draft = lifter.open(number, ir.Mean, ir.AvgPool)
  if draft is not None and draft.share is not None:
    factor = 1 / constant if node.primitive == "div" else constant
    if not np.allclose(factor, 1 / draft.share, rtol=1e-6):
      raise traced.refuse(node, f"a sum of {draft.share} terms is divided by something else")
    draft.share, draft.name = None, traced.site(node) or ""
    lifter.extend(draft, node)
    return
  draft = lifter.open(number, ir.Conv2D, ir.Dense)
  if draft is None:
    raise _misplaced(lifter, node, "a factor")
  if not lifter.foldable:
    what = "a batch norm" if traced.in_norm(node) else "a factor"
    how = "graph.fold_batch_norms" if traced.leaves(node) else "multiply the kernel and the bias by it"
    raise traced.refuse(node, f"{what} must be folded into the weights before grids are made: {how}")
  assert draft.kernel is not None
  factor = _channels(constant, draft.kernel.shape[-1])
  if factor is None:
    raise traced.refuse(node, "the factor is not one number a channel")
  factor = 1 / factor if node.primitive == "div" else factor
  draft.kernel = draft.kernel * factor
  draft.bias = None if draft.bias is None else draft.bias * factor
  lifter.extend(draft, node)


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
  """Reshapes, and what only adds or drops axes of length 1."""
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
  """What hands its operand on as it is."""
  x = lifter.operand(node)
  before, after = (lifter.traced.aval(n) for n in (x, node.outputs[0]))
  if before.dtype != after.dtype:
    raise lifter.traced.refuse(node, f"it turns {before.dtype} into {after.dtype}; lift a float32 function")
  lifter.same[node.outputs[0]] = x


_TABLE: dict[str, Callable[[Lifter, Node], None]] = {
  "dot_general": _dot,
  "conv_general_dilated": _conv,
  "add": _add,
  "add_any": _add,
  "sub": _subtract,
  "mul": _scale,
  "div": _scale,
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
