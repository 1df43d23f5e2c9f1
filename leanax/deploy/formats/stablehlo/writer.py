"""Writes a model's own function as a .stablehlo file: a packed file of its weights and of its program."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from leanax.core.trees import path_name
from leanax.deploy import trial
from leanax.deploy.formats.base import Model
from leanax.deploy.formats.stablehlo import program
from leanax.deploy.lifting.traced import input_names
from leanax.deploy.packed import pack, stored_grids
from leanax.deploy.packed.arrays import DTYPES
from leanax.graph import leaves_read
from leanax.graph.shapes import leaves_by_name, structs

PROGRAM = "stablehlo program"  # its entry among the arrays of the file, beside the leaves under "params"
METADATA = "stablehlo"


def check(model: Model, platforms: tuple[str, ...] = program.PLATFORMS) -> None:
  """Refuses a model whose function is no program; its variables may be shapes, and nothing is compiled.

  Raises:
    UserError: what `jax.export` or the batch of any size refuses, or a missing extra.
  """
  _exported(model, platforms)


def write(model: Model, platforms: tuple[str, ...] = program.PLATFORMS) -> bytes:
  """Returns a model as the bytes of a .stablehlo file.

  The weights that the function reads are arguments of the program, and stand in the file bit for bit; those that it
  rounds to a grid are stored as their codes. The batch may have any size.

  Raises:
    UserError: what `check` refuses.
  """
  exported, ends = _exported(model, platforms)
  read = exported.in_tree.unflatten(exported.in_avals)[0][0]
  weights = {name: np.asarray(leaf, read[name].dtype) for name, leaf in leaves_by_name(model.net.variables).items()
             if name in read}  # fmt: skip
  held = {"params": weights, PROGRAM: np.frombuffer(exported.serialize(), np.uint8)}
  meta: dict[str, Any] = {"jax": jax.__version__, **ends}
  if model.preprocessing is not None:
    meta["preprocessing"] = model.preprocessing.to_json().decode()
  if model.description is not None:
    meta["description"] = model.description.to_json().decode()
  grids = {name: grid for name, grid in stored_grids(model.net).items() if name in weights}
  return trial.note(pack(held, grids, {METADATA: meta}))


def _exported(model: Model, platforms: tuple[str, ...]) -> tuple[Any, dict[str, list[str]]]:
  """Returns the program, and the names of its inputs and outputs."""
  program.package()
  if not isinstance(model, Model):
    raise UserError(f"a .stablehlo file is written of a deploy.Model, a net as its own function, not of {type(model)}")
  net = model.net
  shapes = structs(net.variables)
  leaves, variables_tree = jax.tree.flatten(shapes)
  names = list(leaves_by_name(shapes))
  given, inputs_tree = jax.tree.flatten(net.example)
  (batch,) = jax.export.symbolic_shape("N")
  inputs = [_input(leaf, batch) for leaf in given]
  outputs: list[str] = []

  def run(weights: dict[str, Any], *arrays: Any) -> tuple[Any, ...]:
    held = [weights[name] if name in weights else _unread(leaf) for name, leaf in zip(names, leaves, strict=True)]
    out = net.infer(jax.tree.unflatten(variables_tree, held), *jax.tree.unflatten(inputs_tree, arrays))
    found = jax.tree_util.tree_leaves_with_path(out)
    outputs[:] = [path_name(path) or "output" for path, _ in found]
    return tuple(leaf for _, leaf in found)

  try:
    whole = dict(zip(names, leaves, strict=True))
    read = leaves_read(lambda weights, *arrays: run(weights["params"], *arrays), {"params": whole}, *structs(given))
    weights = {name: leaf for name, leaf in whole.items() if name in read}
    for name, leaf in weights.items():
      if str(leaf.dtype) not in DTYPES:
        raise UserError(f"the variable {name!r} is of type {leaf.dtype}; a file holds {', '.join(DTYPES)}")
    exported = jax.export.export(jax.jit(run), platforms=platforms)(weights, *inputs)
    exported = program.portable(exported)
  except UserError:
    raise
  except Exception as error:  # a user's function may do anything to tracing
    text = " ".join(str(error).split())[:300]
    raise UserError(
      f"the function is no program for a batch of any size, as jax.export traces it: {type(error).__name__}: {text}"
    ) from error
  program.check(exported)
  ends = {"inputs": input_names(net.example), "outputs": outputs}
  program.ends(exported.in_avals[len(weights) :], ends["inputs"], "input")
  program.ends(exported.out_avals, outputs, "output")
  return exported, ends


def _unread(leaf: Any) -> Any:
  """Returns what stands for a variable that no output depends on; a random key is not looked at."""
  return leaf if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended) else jnp.zeros(leaf.shape, leaf.dtype)


def _input(leaf: Any, batch: Any) -> jax.ShapeDtypeStruct:
  shape = np.shape(leaf)
  if not shape:
    raise UserError("an example input has no axes; expected a batch in front")
  return jax.ShapeDtypeStruct((batch, *shape[1:]), leaf.dtype)
