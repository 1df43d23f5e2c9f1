"""Finds the leaf that is the bias of a dot or a convolution, and reads its numbers."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core as jex

from leanax.graph import channels
from leanax.graph.flow import Flow
from leanax.graph.program import Node, Ref

_SAME = ("pvary", "pcast", "sharding_constraint", "reshard")  # the numbers are the same without them


def moves(flow: Flow, site: Any, node: Node, place: int) -> channels.Moves | None:
  """Returns the moves of output channels from a site to its sum with a leaf, if the leaf varies along no other axis.

  Args:
    flow: what is known of the values so far.
    site: the dot or convolution that operand `place` of the sum comes from.
    node: the sum.
    place: its operand that depends on the inputs.
  """
  op, avals, out = site.op, flow.program.avals, flow.program.avals[node.outputs[0]].shape
  if op.kind not in ("dot", "conv") or op.kernel_index is None:
    return None
  first, after = _chain(flow, node.inputs[place], site.node)
  leaf, before = _chain(flow, node.inputs[1 - place], None)
  shape = avals[leaf].shape
  if first != site.node.outputs[0] or not shape or flow.value(node.inputs[place]).aval.shape != out:
    return None
  shapes = [operand.shape for operand in op.inputs]
  produced = channels.produced(op.kind, op.params, op.kernel_index, shapes)
  found = channels.follow(produced, shapes[op.kernel_index], after, avals)
  return found[0] if found is not None and channels.varying(shape, before, avals) <= found[1] else None


def reader(flow: Flow, ref: Ref, to_sum: channels.Moves) -> Callable[[Any], Any] | None:
  """Returns the function from a bias's leaf to its values for each output channel, if these need nothing else."""
  steps: list[Any] = []
  while True:
    ref, nodes = _chain(flow, ref, None)
    steps = [*nodes, *steps]
    if ref not in flow.handed:
      break
    ref, *scan = flow.handed[ref]
    steps.insert(0, tuple(scan))
  plain = [step for step in steps if isinstance(step, Node)]
  known = all(len(n.outputs) == 1 and all(isinstance(r, jex.Literal) for r in n.inputs[1:]) for n in plain)
  return _reading(steps, to_sum) if known else None


def _chain(flow: Flow, ref: Ref, until: Node | None) -> tuple[Ref, list[Node]]:
  """Returns the value that moves alone have brought here, and the moves; none further back than the node `until`."""
  nodes: list[Node] = []
  while not isinstance(ref := flow.resolve(ref), jex.Literal):
    node = flow.values[ref].producer
    if node is None or node is until or node.form:
      break
    nodes.insert(0, node)
    ref = node.inputs[0]
  return ref, nodes


def _reading(steps: Sequence[Any], moves: channels.Moves) -> Callable[[Any], Any]:
  """Returns the function from a bias's leaf to its values in the axes of the kernel operand, behind those of the scans.

  Args:
    steps: the nodes that move the leaf to the sum, and for each scan on the way its (length, whether it hands out one
      slice of the leaf in each iteration).
    moves: what `follow` gives.
  """

  def read(steps: Sequence[Any], value: Any) -> Any:
    for place, step in enumerate(steps):
      if isinstance(step, tuple):
        length, slices = step
        stacked = value if slices else jnp.broadcast_to(value, (length, *value.shape))
        return jax.vmap(functools.partial(read, steps[place + 1 :]))(stacked)
      if step.primitive not in _SAME:
        others = (ref.val for ref in step.inputs[1:])
        # Not in the equation's own context: the plan that it is from may have been made on another mesh of devices.
        primitive = step.eqn.primitive
        value = primitive.bind(value, *others, **primitive.get_bind_params(step.params))
    shape = channels.to_sum_shape(moves)
    value = value[tuple(slice(None) if n > 1 else slice(1) for n in shape)]
    return channels.to_kernel(jnp.broadcast_to(value, shape), moves)

  return functools.partial(read, tuple(steps))
