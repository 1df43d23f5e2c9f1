"""Arrays of files of weights by name: safetensors, msgpack, PyTorch's, and directories that Orbax wrote."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.store.torch_arrays import Unread

Arrays = dict[str, "np.ndarray | Unread"]


def read(path: str | Path) -> dict[str, np.ndarray]:
  """Reads all arrays of a file by name, nested names joined by "/".

  Raises:
    UserError: there is no such file, its format is not supported, it is damaged, or a tensor of it is no plain one.
  """
  return {name: refuse(array, name, path) for name, array in arrays(path).items()}


def arrays(path: str | Path) -> Arrays:
  """Does the same, with a reason in place of each tensor that is no plain one."""
  path = Path(path)
  found = reader(path)(path)
  if not found:
    raise UserError(f"{path} holds no arrays")
  return dict(sorted(found.items()))


def reader(path: str | Path) -> Callable[[Path], Arrays]:
  """Returns what reads a file or directory of weights, by its suffix; nothing is read yet.

  Raises:
    UserError: there is no such file, or its format is not supported.
  """
  path = Path(path)
  if not path.exists():
    raise UserError(f"there are no weights at {path}")
  if not path.is_dir() and path.suffix not in READERS:
    raise UserError(f"{path}: expected weights as {', '.join(READERS)} or a directory that Orbax wrote")
  return _read_orbax if path.is_dir() else READERS[path.suffix]


def refuse(array: np.ndarray | Unread, name: str, path: str | Path) -> np.ndarray:
  """Returns the array; refuses what stands for one that cannot be read."""
  if isinstance(array, Unread):
    raise UserError(f"{path}: {name!r} is {array.reason}; expected a plain tensor")
  return array


def _read_safetensors(path: Path) -> Arrays:
  from leanax.engine.store import model_file

  found, metadata = model_file.read_safetensors(path)
  if model_file.KEY not in metadata:
    return {**found}
  tree, meta = model_file.load_tree(path)  # a stage's own file, with checksums
  edits = (meta.get("recipe") or {}).get("edits", ()) if isinstance(meta.get("recipe", {}), Mapping) else ()
  if edits:
    kinds = [str(edit.get("edit")) if isinstance(edit, Mapping) else "?" for edit in edits]
    what = "quantized" if "quantize" in kinds else f"changed by {kinds[-1]!r}"
    raise UserError(
      f"{path} holds a model that is {what}; expected the file of an earlier stage, whose model is the one that its "
      "code builds"
    )
  return _of_tree(tree.get("variables", tree))


def _read_torch(path: Path) -> Arrays:
  from leanax.engine.store import torch_file, torch_pickle

  try:
    return torch_file.read(path.read_bytes())
  except (torch_pickle.Damaged, OSError) as error:
    raise UserError(f"{path} cannot be read: {error}") from error


def _read_msgpack(path: Path) -> Arrays:
  from flax import serialization

  try:
    return _of_tree(serialization.msgpack_restore(path.read_bytes()))
  except Exception as error:  # a damaged file may raise anything
    raise UserError(f"{path} is damaged or no msgpack file of flax") from error


def _read_orbax(path: Path) -> Arrays:
  """Reads a directory with one tree, or a step with several items, one of them a tree of arrays."""
  import orbax.checkpoint as ocp

  path = path.absolute()  # Orbax takes no other
  trees = [p for p in (path, *sorted(path.iterdir())) if (p / "_METADATA").exists()]
  if len(trees) != 1:
    raise UserError(f"{path}: expected a directory with one tree that Orbax wrote, found {len(trees)}{_newest(path)}")
  try:
    with ocp.PyTreeCheckpointer() as checkpointer:
      metadata = checkpointer.metadata(trees[0]).item_metadata
      as_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), metadata.tree)
      return _of_tree(checkpointer.restore(trees[0], restore_args=as_host))
  except Exception as error:  # a damaged file may raise anything
    raise UserError(f"{path} cannot be read by Orbax; is it damaged?") from error


def _newest(path: Path) -> str:
  """Returns which folder of a CheckpointManager's directory holds its newest step, in words; "" without one."""
  steps = {int(found[0]): each for each in path.iterdir() if (found := re.findall(r"^(?:\w*_)?(\d+)$", each.name))}
  steps = {number: each for number, each in steps.items() if any(each.rglob("_METADATA"))}
  return f"; its newest step is {steps[max(steps)]}" if steps else ""


def _of_tree(tree: Any) -> Arrays:
  """Returns the arrays of a tree by name; ValueError where two leaves have one name, of which one would be lost."""
  named = named_leaves(tree)
  if len(named) != len(jax.tree.leaves(tree)):
    raise ValueError("two arrays have one name")
  return {name: np.asarray(leaf) for name, leaf in named.items() if hasattr(leaf, "dtype")}


TORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")  # as torch.save is used
READERS: dict[str, Callable[[Path], Arrays]] = {
  ".safetensors": _read_safetensors,
  ".msgpack": _read_msgpack,
  **dict.fromkeys(TORCH, _read_torch),
}
