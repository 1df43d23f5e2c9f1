"""Edit: what follows an activation replaced by a new head (`graph.head`).

{"edit": "replace_head", "name": among the parameters, "tap": activation, "steps": of the head, "shapes": of its
parameters, "beside": whether they stand beside the other parameters in one dict, "dropped": leaves that nothing reads}.
The layers behind the activation are gone: nothing reads them any more.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError
from leanax.graph import head
from leanax.graph.edits.kind import Edit, Editable, check_net
from leanax.graph.live import leaves_read, live
from leanax.graph.program import leaf_name
from leanax.graph.retrace import STATE
from leanax.graph.shapes import GONE, changed, leaves_by_name, structs
from leanax.graph.shapes import shapes as shapes_of
from leanax.graph.taps import taps

N = TypeVar("N", bound=Editable)
TRUNK = "student"  # where the other parameters lie if they are no dict


def replace_head(net: N, tap: str, steps: head.Steps, params: Mapping[str, Any], name: str = "head") -> N:
  """Puts a new head in the place of all that follows an activation.

  Args:
    net: of variables {"params": tree, ...}.
    tap: name of an activation or operation (`graph.taps`).
    steps: of the head, data (`graph.head`).
    params: of the head, {layer: {"kernel", "bias"}}.
    name: of the head among the parameters.

  Returns:
    The net that gives the head's output, without the layers that nothing reads any more.

  Raises:
    UserError: an unknown activation, step or layer, parameters of that name, or variables without "params".
  """
  check_net(net)
  edit = describe(net.infer, net.variables, net.example, tap, steps, params, name)
  made = net.edited([edit], joined(net.variables, edit, params))
  jax.eval_shape(made.infer, made.variables, *net.example)
  return made


def describe(
  fn: Callable[..., Any], variables: Any, inputs: Any, tap: str, steps: head.Steps, params: Any, name: str
) -> Edit:
  """Returns the edit; variables, inputs and the head's parameters may be shapes."""
  if not isinstance(variables, Mapping) or "params" not in variables:
    raise UserError("a head can be replaced where the variables are {'params': tree, ...}; these are not so divided")
  head.check(steps)
  beside = isinstance(variables["params"], Mapping)
  if name in (variables["params"] if beside else (TRUNK,)):
    raise UserError(f"the head's name {name!r} is taken among the parameters; expected another one")

  def tapped(variables: Any, *inputs: Any) -> Any:
    return taps(fn, [tap])(variables, *inputs)[1]

  read = leaves_read(tapped, variables, *inputs)
  leaves = jax.tree_util.tree_leaves_with_path(variables)
  floats = [leaf_name(path) for path, leaf in leaves if jnp.issubdtype(leaf.dtype, jnp.floating)]
  return {
    "edit": "replace_head",
    "name": name,
    "tap": tap,
    "steps": [[list(part) if isinstance(part, tuple) else part for part in step] for step in steps],
    "beside": beside,
    "dropped": [leaf for leaf in floats if leaf not in read],
    "shapes": shapes_of(params),
  }


def joined(variables: Any, edit: Edit, params: Any) -> Any:
  """Returns the variables of the whole, of those before the edit and the head's parameters; shapes give shapes."""
  paths = {leaf_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(variables)}
  own = changed(variables, {paths[name]: GONE for name in edit["dropped"] if name in paths})
  trunk = own.get("params", {})
  return {**own, "params": {**(trunk if edit["beside"] else {TRUNK: trunk}), edit["name"]: params}}


def apply(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any) -> Callable[..., Any]:
  """Returns the function with the head."""
  (edit,) = edits

  def headed(variables: Any, *inputs: Any) -> Any:
    params = {name: tree for name, tree in variables["params"].items() if name != edit["name"]}
    trunk = {**variables, "params": params if edit["beside"] else params.get(TRUNK, {})}
    given = leaves_by_name(trunk)

    def features(trunk: Any, *inputs: Any) -> Any:
      # What was dropped is zeros: the original function reads it, and what it makes of it is dropped in turn.
      leaves = leaves_by_name(trunk)
      whole = jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaves.get(leaf_name(path), jnp.zeros(leaf.shape, leaf.dtype)), shapes
      )
      out, found = taps(fn, [edit["tap"]])(whole, *inputs)
      state = _state(out)
      return found[edit["tap"]], None if state is None else {name: state[name] for name in state if name in given}

    activation, state = live(features)(trunk, *inputs)
    out = head.run(edit["steps"], variables["params"][edit["name"]], activation)
    return out if state is None else (out, {STATE: state})

  return headed


def after(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any, inputs: tuple[Any, ...]) -> Any:
  """Returns the shapes of the variables of the whole."""
  del fn, inputs
  (edit,) = edits
  return joined(shapes, edit, structs(edit["shapes"]))


def joins(edits: Sequence[Edit], other: Edit) -> bool:
  """Returns whether these edits and the next one are applied in one trace: never."""
  del edits, other
  return False


def _state(out: Any) -> Any:
  """Returns the new state that a function in training mode returns; None in evaluation mode."""
  training = isinstance(out, tuple) and len(out) == 2 and isinstance(out[1], dict) and out[1].keys() == {STATE}
  return out[1][STATE] if training else None
