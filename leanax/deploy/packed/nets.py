"""A net as the bytes of a file: its edits and variables, and of a quantized one the codes of its kernels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import quant
from leanax.core.errors import UserError
from leanax.core.texts import quoted
from leanax.deploy.formats.base import Source
from leanax.deploy.packed.container import pack, unpack
from leanax.graph import Net, live, rewrite
from leanax.graph.program import leaf_names
from leanax.graph.shapes import changed, leaves_by_name, struct
from quant import Grid

_KEY = "net"  # its entry among the metadata


def pack_net(net: Net, metadata: Mapping[str, Any] | None = None) -> bytes:
  """Returns a net as the bytes of a file: edits, variables, and kernels as codes where `stored_grids` finds grids.

  Args:
    net: of dicts, lists and tuples of arrays.
    metadata: JSON values to keep with it, such as classes and preprocessing.

  Raises:
    UserError: as of `pack`, or metadata with the key "net".
  """
  given = dict(metadata or {})
  if _KEY in given:
    raise UserError(f"the metadata have the key {_KEY!r}, which holds the net's edits; expected another name")
  original = {name: _described(leaf) for name, leaf in leaves_by_name(net.original).items()}
  return pack(net.variables, stored_grids(net), given | {_KEY: {"edits": list(net.edits), "original": original}})


def unpack_net(source: Source, net: Net, limit: int | None = None) -> tuple[Net, dict[str, Any]]:
  """Returns the net of a file of `pack_net`, and the metadata that were kept with it.

  Args:
    source: a path, or the file's bytes.
    net: the original one, without edits; its variables may be fresh ones. The function is never read from a file.
    limit: as of `unpack`.

  Raises:
    UserError: as of `unpack`; or the file holds no net, or one of another original.
  """
  name = "the packed file" if isinstance(source, bytes) else str(source)
  if net.edits:
    raise UserError(f"{name} was to be opened for a net with edits; expected the original net, without any")
  variables, _, metadata = unpack(source, limit)
  held = metadata.pop(_KEY, None)
  if not isinstance(held, dict) or held.keys() != {"edits", "original"} or not isinstance(held["original"], dict):
    raise UserError(f"{name} holds no net; expected a file of pack_net")
  here = {leaf: _described(one) for leaf, one in leaves_by_name(net.original).items()}
  if differs := sorted(leaf for leaf in here.keys() | held["original"] if here.get(leaf) != held["original"].get(leaf)):
    there, this = (side.get(differs[0], "none") for side in (held["original"], here))
    raise UserError(f"{name} is of another net: leaf {differs[0]!r} is {there} there, and {this} of the net given")
  try:
    found = net.edited(held["edits"], variables, quant.edit.KIND)
    if not set(variables) & set(quant.edit.GRIDS) and not held["edits"]:
      found = dataclasses.replace(found, variables=_in_containers(net.original, variables))
    jax.eval_shape(found.infer, found.variables, *found.example)
  except UserError as error:
    raise UserError(f"{name}: {error}") from error
  except Exception as error:  # edits that fit nothing may fail anywhere
    raise UserError(f"{name} does not fit the net: {type(error).__name__}: {quoted(error)}") from error
  return found, metadata


def _described(leaf: Any) -> str:
  one = struct(leaf)
  return f"{one.dtype}[{','.join(map(str, one.shape))}]"


def _in_containers(original: Any, variables: Any) -> Any:
  """Returns the variables in the containers of the user's net, which dicts may stand for in a file."""
  named = leaves_by_name(variables)
  paths = jax.tree_util.tree_leaves_with_path(original)
  return changed(original, {path: named[name] for (path, _), name in zip(paths, leaves_by_name(original), strict=True)})


def stored_grids(net: Net) -> dict[str, Grid]:
  """Returns the grids of the kernels of a net that may be stored as codes; none of a float net.

  These are the leaves that are read on one grid, and by nothing else: a kernel that is also an embedding, or that a
  site of another rule reads, stays as it is.
  """
  if not net.edits or net.edits[-1]["edit"] != "quantize":
    return {}
  plain = quant.float_net(net)
  edit = net.edits[-1]
  plan = quant.quantize(plain.infer, quant.edit.of(edit)).plan(plain.variables, *plain.example)
  found = quant.grids(net)
  kernels = {(site, index): q for (site, index), q in plan.at.items() if q.kernel and q.leaf is not None}
  keys: dict[str, set[str]] = {}
  for quantizer in kernels.values():
    keys.setdefault(str(quantizer.leaf), set()).add(quantizer.key)

  def without_kernels(op: Any, inputs: tuple[Any, ...], extras: Any) -> Any:
    cut = [jnp.zeros_like(x) if (op.name, index) in kernels else x for index, x in enumerate(inputs)]
    return op.bind(*cut), {}

  sites = {site for site, _ in kernels}
  rest = rewrite(plain.infer, without_kernels, select=lambda op: op.name in sites)
  alive = live(lambda variables, *inputs: rest({}, variables, *inputs)[0])
  used = _used(jax.make_jaxpr(alive)(plain.variables, *plain.example).jaxpr)
  others = {name for place, name in enumerate(leaf_names(plain.variables)) if place in used}
  return {leaf: found[leaf] for leaf, grids in keys.items() if len(grids) == 1 and leaf in found and leaf not in others}


def _used(jaxpr: Any) -> set[int]:
  """Returns the places of the inputs that a jaxpr reads, in the bodies of its calls and scans too."""
  used = {id(one) for one in jaxpr.outvars}
  for eqn in jaxpr.eqns:
    bodies = [getattr(one, "jaxpr", one) for one in jax.tree.leaves(eqn.params, is_leaf=_is_body) if _is_body(one)]
    through = len(bodies) == 1 and len(bodies[0].invars) == len(eqn.invars)
    used |= {id(eqn.invars[place]) for place in (_used(bodies[0]) if through else range(len(eqn.invars)))}
  return {place for place, one in enumerate(jaxpr.invars) if id(one) in used}


def _is_body(one: Any) -> bool:
  return hasattr(getattr(one, "jaxpr", one), "eqns")
