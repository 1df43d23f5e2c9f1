"""Edit: a scale and an offset of each channel, such as a batch norm that nothing takes up, as a depthwise convolution.

{"edit": "depthwise", "scale": leaf, "bias": leaf, "axis": of the channels, "chain": primitives}, one for each; those of
one call are applied in one trace (`graph.scales` finds them). The chain becomes a convolution whose windows are single
positions, with `scale` as its kernel, and a bias: for a runtime a layer as others are, which has integer kernels.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError, unknown
from leanax.graph.affine import Users
from leanax.graph.batch_statistics import axes_after
from leanax.graph.edits.kind import Edit, Editable, check_net
from leanax.graph.emit import Emitter, Replacement
from leanax.graph.live import needed
from leanax.graph.program import Node, leaf_name, read, touched
from leanax.graph.retrace import retrace
from leanax.graph.scales import Chain, Scaled, batch_norm_chains, chains_of, factors, scaled
from leanax.graph.shapes import GONE, beside, changed
from leanax.graph.sites import Analysis

N = TypeVar("N", bound=Editable)


def depthwise_batch_norms(net: N) -> N:
  """Makes every batch norm that is left a depthwise convolution with a bias, as a file of integers has it.

  Fold those that can be folded first (`fold_batch_norms`). A norm stays as it is inside a scan, where its scale and
  bias are read elsewhere too, where it has neither, and where its channels lie along several axes.

  Args:
    net: of variables in any containers; what comes back has the same.

  Returns:
    The net whose outputs in evaluation mode are the same, to rounding. The norms' scales and biases are those of the
    convolutions, their statistics are gone. In training mode the norms are gone too.
  """
  check_net(net)
  users = Users(Analysis(read(net.infer, net.variables, *net.example)))
  return _made(net, users, scaled(users, batch_norm_chains(users), net.variables))


def depthwise(net: N, scale: str) -> N:
  """Makes one scale of each channel, with the offsets before and behind it, a depthwise convolution with a bias.

  Args:
    net: of variables in any containers; what comes back has the same.
    scale: name of the leaf that an activation is multiplied by, such as "BatchNorm_0/scale".

  Returns:
    The net as `depthwise_batch_norms` returns it.

  Raises:
    UserError: an unknown leaf, or one that is no scale of each channel alone.
  """
  check_net(net)
  users = Users(Analysis(read(net.infer, net.variables, *net.example)))
  leaves = users.analysis.program.leaves
  if not isinstance(scale, str) or scale not in leaves:
    raise unknown("leaf", str(scale), leaves)
  found = scaled(users, chains_of(users, scale), net.variables)
  if not found:
    raise UserError(
      f"{scale!r} cannot be the kernel of a depthwise convolution; expected the scale of each channel of one activation"
    )
  return _made(net, users, found)


def _made(net: N, users: Users, found: Sequence[Scaled]) -> N:
  if not found:
    return net
  edits: list[Edit] = []
  values: dict[Any, Any] = {}
  for one in found:
    values |= {path: jnp.asarray(x, jnp.float32) for path, x in zip((one.scale, one.bias), one.numbers, strict=True)}
    names = {"scale": leaf_name(one.scale), "bias": leaf_name(one.bias)}
    edits.append(
      {"edit": "depthwise", **names, "axis": one.axis, "chain": [node.primitive for node in one.chain.nodes]}
    )
  paths = {leaf_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(net.variables)}
  gone = {paths[name]: GONE for name in _gone(users, edits)}
  return net.edited(edits, changed(net.variables, {**gone, **values}))


def apply(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any) -> Callable[..., Any]:
  """Returns the function with depthwise convolutions."""

  def convolved(variables: Any, *inputs: Any) -> Any:
    traced = retrace(fn, shapes, variables, inputs)
    program, users = traced.analysis.program, Users(traced.analysis)
    if missing := next((one[key] for one in edits for key in ("scale", "bias") if one[key] not in traced.given), None):
      raise UserError(f"the variables lack {missing!r}, which a depthwise convolution reads")
    replaced = _replaced(users, edits, traced.given)
    live, _ = needed(traced.analysis, replaced, outputs=traced.wanted)
    emitter = Emitter(traced.analysis, edits=replaced, live=live, touched=touched(program, replaced))
    return traced.output(emitter.run(program.body, traced.values, {})[0])

  return convolved


def after(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any, inputs: tuple[Any, ...]) -> Any:
  """Returns the shapes of the variables afterwards; `fn` is in evaluation mode."""
  users = Users(Analysis(read(fn, shapes, *inputs)))
  paths = {leaf_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
  new: dict[Any, Any] = {paths[name]: GONE for name in _gone(users, edits)}
  for one in edits:
    made = users.analysis.program.avals[_find(users, one).nodes[-1].outputs[0]]
    known = paths.get(one["scale"]) or paths[one["bias"]]
    for key in ("scale", "bias"):
      path = paths.get(one[key]) or beside(shapes, known, one[key].rpartition("/")[2])
      if path is None:
        raise UserError(f"the variables have no place for {one[key]!r}, which a depthwise convolution reads")
      new[path] = jax.ShapeDtypeStruct((made.shape[one["axis"]],), made.dtype)
  return changed(shapes, new)


def joins(edits: Sequence[Edit], other: Edit) -> bool:
  """Returns whether these edits and the next one are applied in one trace: always, as no scale is edited twice."""
  del edits, other
  return True


def _gone(users: Users, edits: Sequence[Edit]) -> list[str]:
  """Returns the leaves that nothing reads any more."""
  analysis = users.analysis
  replaced, kept = _replaced(users, edits, {}), {one[key] for one in edits for key in ("scale", "bias")}
  read_after, read_before = needed(analysis, replaced)[1], needed(analysis, {})[1]
  leaves = zip(analysis.program.leaves, analysis.program.body.inputs, strict=False)
  return [name for name, n in leaves if n in read_before and n not in read_after and name not in kept]


def _replaced(users: Users, edits: Sequence[Edit], given: Mapping[str, Any]) -> dict[int, Replacement]:
  found: dict[int, Replacement] = {}
  for one in edits:
    chain = _find(users, one)

    def call(x: Any, one: Edit = one) -> tuple[Any, ...]:
      return (_convolved(x, one["axis"], given[one["scale"]], given[one["bias"]]),)

    found[chain.nodes[-1].index] = Replacement((chain.nodes[0].inputs[chain.places[0]],), call)
  return found


def _find(users: Users, one: Edit) -> Chain:
  """Returns the chain of an edit, in evaluation mode or in training mode, whose numbers are statistics of the batch."""
  own = {one["scale"], one["bias"]}
  found = {
    chain.nodes[-1].index: chain
    for node in users.analysis.flat
    for place, ref in enumerate(node.inputs)
    if node.primitive == one["chain"][0] and users.analysis.value(ref).data
    for chain in _walk(users, node, place, one, Chain((), ()), frozenset((one["axis"],)))
    if any(own & {*factors(users.analysis, n.inputs[1 - at])} for n, at in zip(*chain, strict=True))
  }
  if len(found) != 1:
    raise UserError(
      f"{one['scale']!r} is the kernel of a depthwise convolution in place of {', '.join(one['chain'])}, of which the "
      f"function has {len(found)}; expected the function that the edit was made for"
    )
  return next(iter(found.values()))


def _walk(users: Users, node: Node, place: int, one: Edit, chain: Chain, axes: frozenset[int]) -> Iterator[Chain]:
  """Yields the chains of an edit's primitives that begin with a node, and do the same at all places of a channel."""
  names, start = one["chain"], chain.nodes[0] if chain.nodes else node
  if node.primitive != names[len(chain.nodes)] or users.frames[node.index] != users.frames[start.index]:
    return
  if users.analysis.scopes[node.index].frozen or axes_after(users.analysis, node, place, axes) != axes:
    return
  chain = Chain((*chain.nodes, node), (*chain.places, place))
  if len(chain.nodes) == len(names):
    yield chain
    return
  for reader, at in users.readers[node.outputs[0]]:
    if reader is not None:
      yield from _walk(users, reader, at, one, chain, axes)


def _convolved(x: jax.Array, axis: int, scale: jax.Array, bias: jax.Array) -> jax.Array:
  """Returns x * scale + bias, as a convolution over all axes but those of examples and channels."""
  shape, channels = x.shape, x.shape[axis]
  if not 2 < x.ndim <= 4:  # rows, or more axes than a convolution has
    x, axis = x.reshape(shape[0], -1, channels), 2
  lhs = (0, axis, *(i for i in range(1, x.ndim) if i != axis))
  rhs = (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))
  y = jax.lax.conv_general_dilated(
    x,
    scale.reshape((1,) * (x.ndim - 1) + (channels,)).astype(x.dtype),
    (1,) * (x.ndim - 2),
    "VALID",
    dimension_numbers=jax.lax.ConvDimensionNumbers(lhs, rhs, lhs),
    feature_group_count=channels,
  )
  return (y + bias.astype(x.dtype).reshape([channels if i == axis else 1 for i in range(x.ndim)])).reshape(shape)
