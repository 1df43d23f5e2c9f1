"""The adapter for flax.nnx modules; a separate file because importing nnx takes a second.

A module is split into its definition and its variables; variables are named by their path (`layers/0/kernel`) in a
collection by their type ("params", "batch_stats", ...). Random streams are not state here: every call seeds them from
its key, so that a step is a function of its arguments and no random state is saved.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from leanax.core.errors import UserError
from leanax.engine.models.interface import Model, Variables, check_call, check_state, modes


def adapt(spec: str, build: Callable[..., Any]) -> Model:
  """Returns the `Model` of an nnx module.

  Args:
    spec: the model's name in error messages.
    build: `build(rngs=nnx.Rngs) -> module`.
  """
  module = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
  if not isinstance(module, nnx.Module):
    raise UserError(f"model {spec!r} builds no module; expected an nnx Module")

  def init(key: jax.Array, x: Any) -> Variables:
    del x
    streams = nnx.Rngs(jax.random.fold_in(key, 1), params=key)
    return variables_of(build(rngs=streams))

  return Model(init, functions(spec, module))


def functions(spec: str, module: Any) -> Callable[..., tuple[Any, Variables]]:
  """Returns the `Model.apply` of a module; sets the module's mode and does not read its values."""
  accepted = check_call(spec, type(module).__call__)
  definitions, layouts = {}, {}
  for train in (False, True):
    # the definition contains the mode and the attributes that depend on it
    module.train() if train else module.eval()
    definitions[train], state = nnx.split(module)
    layouts[train] = dict(nnx.to_flat_state(state))

  def apply(
    variables: Variables, x: Any, *, train: bool = False, key: jax.Array | None = None
  ) -> tuple[Any, Variables]:
    state = {name: tree for name, tree in variables.items() if name != "params"}
    flat = {path: _fill(path, leaf, variables, key) for path, leaf in layouts[train].items()}
    module = nnx.merge(definitions[train], nnx.from_flat_state(flat))
    logits = module(x, **modes(train, accepted))
    if not train:
      return logits, state
    after = {name: tree for name, tree in _collect(nnx.state(module)).items() if name in state}
    check_state(spec, state, after)
    return logits, after

  return apply


def variables_of(module: Any) -> Variables:
  """Returns the variables of a module by collection, {"params": tree, ...}."""
  return _collect(nnx.state(module))


def _collection(leaf: Any) -> str | None:
  """Returns the collection of a variable; None for random streams."""
  if isinstance(leaf, nnx.RngState):
    return None
  if isinstance(leaf, nnx.Param):
    return "params"
  return nnx.variable_name_from_type(type(leaf), allow_register=True) if isinstance(leaf, nnx.Variable) else "arrays"


def _collect(state: Any) -> Variables:
  """Returns the variables of a module as nested dicts of arrays with string keys."""
  variables: Variables = {"params": {}}
  for path, leaf in nnx.to_flat_state(state):
    collection = _collection(leaf)
    if collection is None:
      continue
    place = variables.setdefault(collection, {})
    for part in path[:-1]:
      place = place.setdefault(str(part), {})
    place[str(path[-1])] = leaf[...] if isinstance(leaf, nnx.Variable) else leaf
  return variables


def _fill(path: tuple[Any, ...], leaf: Any, variables: Variables, key: jax.Array | None) -> Any:
  """Fills the abstract `leaf`: from `variables`, or for a random stream from `key`."""
  if isinstance(leaf, nnx.RngState):
    return leaf.replace(_stream(path, leaf, key))
  value: Any = variables[_collection(leaf) or "params"]
  for part in path:
    value = value[str(part)]
  return leaf.replace(value) if isinstance(leaf, nnx.Variable) else value


def _stream(path: tuple[Any, ...], leaf: Any, key: jax.Array | None) -> jax.Array:
  """Returns a stream's key or counter; streams of a module differ by their path, stacked ones along their axis."""
  abstract = leaf.get_value()
  if isinstance(leaf, nnx.RngCount):
    return jnp.zeros(abstract.shape, abstract.dtype)
  seed = jax.random.key(0) if key is None else key
  folded = jax.random.fold_in(seed, zlib.crc32("/".join(map(str, path)).encode()) & 0x7FFFFFFF)
  return folded if abstract.shape == () else jax.random.split(folded, abstract.shape)
