"""Edit: a factor per channel moved from one layer to the next, {"edit": "scale", "leaf": name, "axis": axis}.

The numbers are in the variables, and the function of the variables stays what it is (`graph.exponents`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError, unknown
from leanax.graph import units
from leanax.graph.edits.kind import Edit, Editable, as_array, check_net
from leanax.graph.exponents import Exponents
from leanax.graph.linking import Links
from leanax.graph.program import leaf_name, read
from leanax.graph.shapes import leaves_by_name
from leanax.graph.sites import Analysis
from leanax.graph.units import Units

N = TypeVar("N", bound=Editable)


def move_scale(net: N, leaf: str, axis: int, factors: Any) -> N:
  """Multiplies the channels of a layer by factors, and divides the kernels that read them by the same.

  The outputs stay what they are, to rounding, where all between the two is positively homogeneous, f(s x) = s f(x) for
  s > 0: ReLU, leaky ReLU, pools, means over positions, reshapes, sums of branches. The edit of cross-layer equalization
  (Nagel et al. 2019, arXiv:1906.04721, section 4.1), for factors of any origin.

  Args:
    net: of variables in any containers; what comes back has the same.
    leaf: name of the leaf that is multiplied, such as "Conv_0/kernel"; before a norm that is not folded it has to be
      the norm's scale.
    axis: of the leaf, along which its channels lie; negative from the end.
    factors: (channels,) above 0.

  Returns:
    The net with new numbers in the leaf, in the biases of its channels, and in the kernels that read them. All layers
    that are summed with it, as along a residual stream, are multiplied alike.

  Raises:
    UserError: an unknown leaf, no such axis, factors that are not finite and above 0, channels that the function
      returns or that an operation reads which is not homogeneous, or numbers out of the range of their type.
  """
  check_net(net)
  leaves_by_name(net.variables)
  analysis = Analysis(read(net.infer, net.variables, *net.example))
  program, links = analysis.program, Links(analysis.program)
  if leaf not in program.leaves:
    raise unknown("leaf", str(leaf), program.leaves)
  number = program.body.inputs[program.leaves.index(leaf)]
  trees = links.of(number)
  if type(axis) is not int or not -len(trees) <= axis < len(trees):
    raise UserError(f"{leaf!r} has {len(trees)} axes; expected one of them, got {axis!r}")
  axis %= len(trees)
  channels, given = units.seen(trees[axis]), _factors(leaf, factors, trees[axis].size)
  if not isinstance(channels, Units):
    sizes = " and ".join(str(one.size) for one in units.units(channels))
    raise UserError(f"axis {axis} of {leaf!r} is made of several axes, {sizes} long; expected channels of one")
  exponents = Exponents(analysis, links, channels, _state(net.variables))
  found = exponents.solve((number, axis), f"the channels of {leaf!r} cannot be scaled")
  before, structure = jax.tree.flatten(net.variables)
  leaves = list(before)
  for (one, along), power in found.items():
    if one in program.body.inputs:
      place, where = program.body.inputs.index(one), units.places(links.of(one)[along])[channels]
      wide = np.where(where < 0, 1.0, given[where] ** power)
      leaves[place] = _times(program.leaves[place], leaves[place], along, wide)
  for name, old, new in zip(program.leaves, before, leaves, strict=True):
    if new is not old and _vanishes(old, new):
      raise _out_of_range(name, old)
  return net.edited([{"edit": "scale", "leaf": leaf, "axis": axis}], structure.unflatten(leaves))


def apply(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any) -> Callable[..., Any]:
  """Returns the function as it is."""
  names = leaves_by_name(shapes)
  if missing := next((one["leaf"] for one in edits if one["leaf"] not in names), None):
    raise UserError(f"the function has no {missing!r}, which an edit scaled; expected the function it was made for")
  return fn


def after(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any, inputs: tuple[Any, ...]) -> Any:
  """Returns the shapes of the variables, which stay as they are."""
  del fn, edits, inputs
  return shapes


def joins(edits: Sequence[Edit], other: Edit) -> bool:
  """Returns whether these edits and the next one are applied in one trace: always, as none is needed."""
  del edits, other
  return True


def _factors(leaf: str, factors: Any, count: int) -> np.ndarray:
  given = as_array(factors)
  if given.shape != (count,) or given.dtype.kind not in "iuf" or not np.all((given > 0) & (given < np.inf)):
    raise UserError(f"the factors of {leaf!r} are {given.tolist()}; expected {count} finite numbers above 0")
  return given.astype(np.float64)


def _state(variables: Any) -> set[str]:
  """Returns the names of leaves that are no parameters, such as batch statistics."""
  divided = isinstance(variables, Mapping) and "params" in variables
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
  return {leaf_name(path) for path in paths if divided and getattr(path[0], "key", "") != "params"}


@np.errstate(all="ignore")  # what is not finite is refused
def _times(name: str, leaf: Any, axis: int, factors: np.ndarray) -> jax.Array:
  """Returns a leaf times factors along an axis, in its own type."""
  wide = factors.reshape([-1 if a == axis else 1 for a in range(leaf.ndim)])
  new = (np.asarray(leaf, np.float64) * wide).astype(leaf.dtype)
  if not np.array_equal(np.isfinite(new), np.isfinite(leaf)):
    raise _out_of_range(name, leaf)
  return jax.device_put(new)


def _vanishes(old: Any, new: Any) -> bool:
  """Returns whether some number has fallen below the least normal one, where bits are lost."""
  least, old, new = float(jnp.finfo(new.dtype).tiny), np.asarray(old, np.float64), np.asarray(new, np.float64)
  return bool(np.any((np.abs(new) < least) & (np.abs(old) >= least)))


def _out_of_range(name: str, leaf: Any) -> UserError:
  return UserError(f"the factors take {name!r} out of the range of {leaf.dtype.name}")
