"""Edit: a bias added to a dot or convolution that has none.

{"edit": "add_bias", "site": name, "bias": leaf, "axes": of the site's output that the bias runs along}. The leaf lies
beside the kernel, as the bias of a folded batch norm does.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError, unknown
from leanax.graph.affine import out_axes
from leanax.graph.edits.kind import Edit, Editable, check_net
from leanax.graph.fold import new_bias
from leanax.graph.ops import Op
from leanax.graph.program import leaf_name, read
from leanax.graph.rewriting import rewrite
from leanax.graph.shapes import changed, leaves_by_name
from leanax.graph.sites import Analysis

N = TypeVar("N", bound=Editable)


def add_bias(net: N, site: str) -> N:
  """Adds a bias of zeros to a dot or convolution that has none.

  Args:
    net: of variables in any containers; what comes back has the same.
    site: name of the dot or convolution, such as "Dense_0/kernel".

  Returns:
    The net of the same outputs, with a zero for each output channel in a new leaf beside the kernel, `<module>/bias`.

  Raises:
    UserError: an unknown site, one that has a bias or no kernel among the variables, one that a loop runs several
      times, or variables without a place beside the kernel.
  """
  check_net(net)
  sites = {one.op.name: one for one in Analysis(read(net.infer, net.variables, *net.example)).sites[:-1]}
  if not isinstance(site, str) or site not in sites:
    raise unknown("site", str(site), [name for name, one in sites.items() if one.op.kernel_index is not None])
  op, paths = sites[site].op, {leaf_name(at): at for at, _ in jax.tree_util.tree_leaves_with_path(net.variables)}
  kernel = None if op.kernel_index is None else op.inputs[op.kernel_index].leaf
  reasons = {
    f"it is of the kind {op.kind!r}": op.kind not in ("dot", "conv"),
    "its kernel is not among the variables": kernel is None,
    "it has one": any(one.op.kind == "bias" and one.op.site == site for one in sites.values()),
    "a loop runs it several times": op.repeats > 1,
    f"it is {op.frozen}": op.frozen is not None,
  }
  if reason := next((text for text, holds in reasons.items() if holds), None):
    raise UserError(f"{site!r} cannot be given a bias: {reason}")
  path = new_bias(net.variables, paths[kernel or ""], leaves_by_name(net.variables))
  if path is None:
    raise UserError(
      f"{site!r} cannot be given a bias: the variables have no place for it beside the kernel; expected the kernel in "
      "a dict, or in a module whose field for a bias is None"
    )
  one = {"edit": "add_bias", "site": site, "bias": leaf_name(path), "axes": list(out_axes(sites[site]))}
  zeros = jnp.zeros([op.outputs[0].shape[axis] for axis in one["axes"]], op.inputs[op.kernel_index or 0].dtype)
  return net.edited([one], changed(net.variables, {path: zeros}))


def apply(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any) -> Callable[..., Any]:
  """Returns the function of the variables with the biases."""

  def biased(variables: Any, *inputs: Any) -> Any:
    given = leaves_by_name(variables)
    left = {one["site"]: one for one in edits}

    def visit(op: Op, values: tuple[Any, ...], extras: Any) -> Any:
      del extras
      one = left.get(op.name)
      if one is None:
        return None
      (y,), bias = op.bind(*values), given[one["bias"]]
      wide = [n if axis in one["axes"] else 1 for axis, n in enumerate(y.shape)]
      seen.add(op.name)
      return (y + bias.astype(y.dtype).reshape(wide),), {}

    if missing := next((one["bias"] for one in edits if one["bias"] not in given), None):
      raise UserError(f"the variables lack {missing!r}, which an edit added")
    seen: set[str] = set()
    own = jax.tree_util.tree_map_with_path(lambda path, leaf: _own(given, path), shapes)
    out, _ = rewrite(fn, visit)({}, own, *inputs)
    if stray := next((name for name in left if name not in seen), None):
      raise UserError(
        f"the function has no {stray!r}, which an edit added a bias to; expected the function it was made for"
      )
    return out

  return biased


def after(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any, inputs: tuple[Any, ...]) -> Any:
  """Returns the shapes of the variables with the biases."""
  sites = {one.op.name: one.op for one in Analysis(read(fn, shapes, *inputs)).sites}
  paths = {leaf_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)}
  new: dict[Any, Any] = {}
  for one in edits:
    op = sites[one["site"]]
    kernel = op.inputs[op.kernel_index or 0]
    path = new_bias(shapes, paths[kernel.leaf or ""], name=one["bias"])
    if path is None:
      raise UserError(f"the variables have no place for {one['bias']!r}, which an edit added")
    new[path] = jax.ShapeDtypeStruct(tuple(op.outputs[0].shape[axis] for axis in one["axes"]), kernel.dtype)
  return changed(shapes, new)


def joins(edits: Sequence[Edit], other: Edit) -> bool:
  """Returns whether these edits and the next one are applied in one trace: where they are of different sites."""
  return other.get("site") not in [one.get("site") for one in edits]


def _own(given: dict[str, Any], path: Any) -> Any:
  name = leaf_name(path)
  if name not in given:
    raise UserError(f"the variables lack {name!r}, which the function reads")
  return given[name]
