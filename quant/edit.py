"""Edit: a net on grids, {"edit": "quantize", "rules": [[site glob, setting], ...], "ends": setting, ...}.

The net's variables hold the grids as collections of their own: "qparams", the logarithms of trained scales, and
"quant_state". What is computed is `quant.Quantized.apply`. It is the last edit of a net: `before` makes others.
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leanax import graph
from leanax.core.errors import UserError
from leanax.graph import Net
from leanax.graph.edits.kind import check_net
from leanax.graph.program import leaf_name
from leanax.graph.shapes import leaves_by_name
from quant.grid import Grid
from quant.policy import Policy
from quant.policy import policy as make_policy
from quant.quantize import Quantized, quantize
from quant.quantizer import Quantizer

LAST = "a quantized net is edited before its grids: quant.before(net, lambda net: graph.keep_channels(net, ...))"
RANDOM = True  # `apply` takes the key of a training step, for estimators that round at random
GRIDS = ("qparams", "quant_state")
_SLICED = ("keep_channels", "permute")


def post_training(net: Net, batches: Iterable[Any], policy: Any, carrier: str = "float32", half: bool = False) -> Net:
  """Returns the net with simulated integers, its grids calibrated.

  Args:
    net: a float one, of variables in a dict; fold its batch norms first where the integers are to be exported.
    batches: an iterable of batches: an array, or a tuple of the net's inputs.
    policy: as of `quant.quantize`.
    carrier: likewise.
    half: likewise.

  Raises:
    UserError: no batch, one that holds NaN, or variables that cannot hold the grids.
  """
  check_net(net)
  if not isinstance(net.variables, Mapping):
    raise UserError(f"the net's variables are a {type(net.variables).__name__}; expected a dict")
  if held := set(GRIDS) & net.variables.keys():
    raise UserError(f"the net's variables hold {min(held)!r} already; expected a float net, such as of quant.float_net")
  edit = data(policy, carrier, half)
  return with_grids(net, edit, *_model(net.infer, edit).calibrate(net.variables, _checked(net, batches)))


def _checked(net: Net, batches: Iterable[Any]) -> Iterator[tuple[Any, ...]]:
  """Yields calibration batches.

  Raises:
    UserError: one that the net cannot be called with, or one of whole numbers, such as pixels, where it takes floats.
  """
  for place, inputs in enumerate(graph.inputs_of(batches, "calibrate with")):
    given, wanted = _described(inputs), _described(net.example)
    if [shape for shape, _ in given] != [shape for shape, _ in wanted]:
      try:
        jax.eval_shape(net.infer, net.variables, *inputs)
      except (TypeError, ValueError) as error:  # of the user's code
        raise UserError(f"calibration batch {place} is {_words(given)}; the net takes {_words(wanted)}") from error
    for (_, dtype), (_, like) in zip(given, wanted):
      if jnp.issubdtype(like, jnp.floating) and jnp.issubdtype(dtype, jnp.integer):
        raise UserError(
          f"calibration batch {place} is of {dtype}; the net takes {like}: expected the numbers that it reads, such as "
          "pixels after their preprocessing"
        )
    yield inputs


def _described(inputs: Any) -> list[tuple[tuple[int, ...], Any]]:
  """Returns the shape, without the batch, and the type of each array."""
  return [(jnp.shape(one)[1:], jnp.result_type(one)) for one in jax.tree.leaves(inputs)]


def _words(described: Sequence[tuple[tuple[int, ...], Any]]) -> str:
  return " and ".join(f"{dtype} (N, {', '.join(map(str, shape))})" for shape, dtype in described) or "nothing"


def with_grids(net: Net, edit: Mapping[str, Any], qparams: Any, quant_state: Any) -> Net:
  """Returns the net with this edit and these grids."""
  return net.edited([dict(edit)], {**net.variables, "qparams": qparams, "quant_state": quant_state}, KIND)


def data(policy: Any, carrier: str = "float32", half: bool = False) -> dict[str, Any]:
  """Returns the edit as data, of a policy or what `quant.policy` makes one from."""
  chosen = make_policy(policy)
  rules = [[glob, str(setting)] for glob, setting in chosen.rules]
  ends = None if chosen.ends is None else str(chosen.ends)
  return {"edit": "quantize", "rules": rules, "ends": ends, "carrier": carrier, "half": half}


def grids(net: Net) -> dict[str, Grid]:
  """Returns the grids of a quantized net, as `Quantized.grids` does."""
  plain = float_net(net)
  return _model(plain.infer, net.edits[-1]).grids(
    *(net.variables.get(key, {}) for key in GRIDS), plain.variables, *net.example
  )


def shared_grids(net: Net) -> list[tuple[str, ...]]:
  """Returns the activations of a quantized net that share one grid, because a file moves codes from one to the other.

  They are sliced, joined, spread or chosen from one another. Each entry has the names of those on one grid.
  """
  plain = float_net(net)
  return _model(plain.infer, net.edits[-1]).plan(plain.variables, *net.example).shared


def of(edit: Mapping[str, Any]) -> Policy:
  """Returns the policy of an edit."""
  return make_policy([tuple(rule) for rule in edit["rules"]], edit["ends"])


def is_quantized(net: Net) -> bool:
  """Returns whether a net has grids, as of `post_training`."""
  check_net(net)
  return bool(net.edits) and net.edits[-1]["edit"] == "quantize"


def float_net(net: Net) -> Net:
  """Returns the net before its grids."""
  if not is_quantized(net):
    raise UserError("the net is not quantized; expected one of quant.post_training")
  variables = {name: tree for name, tree in net.variables.items() if name not in GRIDS}
  return dataclasses.replace(net, edits=net.edits[:-1], variables=variables)


def before(net: Net, change: Callable[[Net], Net]) -> Net:
  """Returns a quantized net with edits that go in before its grids, and these cut as their kernels are.

  Args:
    net: of `post_training`.
    change: float net -> float net, of channels that are kept or put in another order. It is called again for each
      kernel's scales, so that what it does may not depend on the net's numbers.

  Raises:
    UserError: the edits change numbers or mix groups of weights, and the grids have to be calibrated again.
  """
  plain, edit = float_net(net), net.edits[-1]
  after = change(plain)
  check_net(after)
  other = next((one["edit"] for one in after.edits[len(plain.edits) :] if one["edit"] not in _SLICED), None)
  if other is not None:
    raise UserError(
      f"the grids are not those of a net after {other!r}; apply it to quant.float_net and calibrate again"
    )
  old = _model(plain.infer, edit).plan(plain.variables, *plain.example).quantizers
  new = _model(after.infer, edit).plan(after.variables, *after.example).quantizers
  places = _places(plain, change, old, new)

  def cut(name: str, scale: jax.Array) -> jax.Array:
    return scale.reshape(-1)[places[name]] if name in places else scale

  def entry(name: str, entry: Any) -> Any:
    scales = {key: {**entry[key], "scale": cut(name, entry[key]["scale"])} for key in ("seen", "used")}
    return {**entry, **scales}

  qparams = {name: cut(name, scale) for name, scale in net.variables["qparams"].items()}
  state = {name: entry(name, one) for name, one in net.variables["quant_state"].items()}
  return with_grids(after, edit, qparams, state)


def _places(
  plain: Net, change: Callable[[Net], Net], old: Mapping[str, Quantizer], new: Mapping[str, Quantizer]
) -> dict[str, np.ndarray]:
  """Returns, for each kernel's scales, their places before the change, found by changing a net of places."""
  unmatched = next(iter(sorted(old.keys() ^ new.keys())), None)
  computed = next((name for name, one in old.items() if one.kernel and one.leaf is None), unmatched)
  if computed is not None:
    raise UserError(f"the grid of {computed!r} cannot be cut; apply the change to quant.float_net and calibrate again")
  found = {}
  for name, one in old.items():
    if one.kernel:
      at = _along(np.arange(math.prod(one.shape[i] for i in one.axis), dtype=np.float32), one)

      def marked(path: Any, leaf: Any, one: Quantizer = one, at: np.ndarray = at) -> Any:
        here = leaf_name(path) == one.leaf
        return jnp.asarray(np.broadcast_to(at, one.shape).reshape(leaf.shape)) if here else leaf

      moved = change(dataclasses.replace(plain, variables=jax.tree_util.tree_map_with_path(marked, plain.variables)))
      leaf = np.asarray(leaves_by_name(moved.variables)[str(one.leaf)]).reshape(new[name].shape)
      others = tuple(i for i in range(leaf.ndim) if i not in new[name].axis)
      if np.any(leaf.min(others) != leaf.max(others)):
        raise UserError(
          f"the edits take the groups of {name!r} apart, which share a scale; apply them to quant.float_net and "
          "calibrate again"
        )
      found[name] = leaf.min(others).astype(np.int32)
  return found


def _along(values: np.ndarray, one: Quantizer) -> np.ndarray:
  """Returns a flat array of one number for each scale, as it broadcasts against the kernel's shape."""
  return values.reshape([n if i in one.axis else 1 for i, n in enumerate(one.shape)])


def apply(
  fn: Callable[..., Any], edits: Sequence[Mapping[str, Any]], shapes: Any, key: Any = None
) -> Callable[..., Any]:
  """Returns the function with simulated integers, of the variables with their grids; `key` as of `Quantized.apply`."""
  del shapes
  model = _model(fn, edits[0])

  def rounded(variables: Any, *inputs: Any) -> Any:
    plain = {name: tree for name, tree in variables.items() if name not in GRIDS}
    lost = next((name for name in GRIDS if name not in variables), None)
    if lost is not None and model.plan(plain, *inputs).quantizers:
      raise UserError(f"the variables of a quantized net have no {lost!r}; expected those of quant.post_training")
    return model.apply(*(variables.get(name, {}) for name in GRIDS), plain, *inputs, key=key)[0]

  return rounded


def joins(edits: Sequence[Mapping[str, Any]], other: Mapping[str, Any]) -> bool:
  """Returns whether these edits and the next one are applied in one trace: never."""
  del edits, other
  return False


def _model(fn: Callable[..., Any], edit: Mapping[str, Any]) -> Quantized:
  return quantize(fn, of(edit), edit["carrier"], edit["half"])


KIND = {"quantize": sys.modules[__name__]}
