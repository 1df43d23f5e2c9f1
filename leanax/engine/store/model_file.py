"""A finished model as one file, which loads without the config that trained it.

The file is a safetensors file: a single file that other tools read without jax, and that contains no code. Its metadata
is JSON: the caller's values, and per leaf the shape, the dtype and a checksum, which the format lacks.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import files
from leanax.core.errors import UserError
from leanax.core.texts import quoted
from leanax.core.trees import map_named, named_leaves
from leanax.engine.store import leaves
from leanax.engine.store.leaves import Leaf

FORMAT = 1
KEY = "leanax"  # our entry in the file's metadata

DTYPES = {
  "BOOL": "bool",
  "BF16": "bfloat16",
  "F8_E4M3": "float8_e4m3fn",
  "F8_E5M2": "float8_e5m2",
  "C64": "complex64",
  **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
  **{f"{short}{bits}": f"{name}{bits}" for short, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
}


def save_tree(path: str | Path, tree: Any, meta: Mapping[str, Any] | None = None) -> None:
  """Writes `tree` to one file atomically.

  Args:
    path: the file; an existing one is replaced.
    tree: arrays (typed keys too) in nested dicts, lists, tuples or dataclasses.
    meta: JSON values: the model's import path and keywords, edits, preprocessing, ...
  """
  import safetensors.numpy

  path = Path(path)
  description = json.loads(json.dumps({"format": FORMAT, "meta": dict(meta or {}), "leaves": leaves.describe(tree)}))
  arrays = {name: leaves.to_host(leaves.stored(leaf)) for name, leaf in named_leaves(tree).items()}
  text = json.dumps(description, sort_keys=True)
  # One entry: safetensors writes several in any order, but equal trees must give equal files.
  entry = {KEY: f"{zlib.crc32(text.encode())} {text}"}
  data = safetensors.numpy.save({name: np.ascontiguousarray(a).reshape(a.shape) for name, a in arrays.items()}, entry)
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write(path, data)


def load_tree(path: str | Path, target: Any = None) -> tuple[Any, dict[str, Any]]:
  """Reads a file of `save_tree`.

  Args:
    path: the file.
    target: a tree of arrays or ShapeDtypeStructs with the structure of the result; nested dicts if None.

  Returns:
    The tree, with its leaves on the default device, and the caller's JSON values.

  Raises:
    UserError: there is no such file, it is not a file of `save_tree`, it is damaged, its format is newer, or its tree
      differs from the target.
  """
  arrays, metadata = read_safetensors(path)
  if KEY not in metadata:
    raise UserError(f"{path} is no model that this program saved; expected a file written by it")
  checksum, _, text = metadata[KEY].partition(" ")
  if str(zlib.crc32(text.encode())) != checksum:
    raise UserError(f"{path} is damaged: its description does not match its checksum")
  try:
    description = json.loads(text)
    if description["format"] > FORMAT:
      raise UserError(
        f"{path} has format {description['format']}, newer than this program's {FORMAT}; update the program"
      )
    saved, meta = (
      {name: Leaf.from_json(leaf) for name, leaf in description["leaves"].items()},
      dict(description["meta"]),
    )
    if missing := [name for name in saved if name not in arrays]:
      raise UserError(f"{path} is damaged: leaf {missing[0]!r} is missing")
    if bad := leaves.damaged(saved, arrays):
      raise UserError(f"{path} is damaged: leaf {bad[0]!r} does not match its checksum")
    flat = {name: jax.device_put(leaves.recovered(arrays[name], leaf)) for name, leaf in saved.items()}
    if [name for name, leaf in saved.items() if flat[name].shape != leaf.shape]:
      raise ValueError("a leaf's type does not fit its bytes")
    tree = leaves.nested(flat)
  except (KeyError, TypeError, ValueError, AttributeError, MemoryError, RecursionError) as error:
    raise UserError(f"{path} is damaged: its description is not one of arrays") from error  # anyone can make a checksum
  if target is None:
    return tree, meta
  leaves.compare(saved, named_leaves(target), str(path))
  return map_named(lambda name, _: flat[name], target), meta


def read_safetensors(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
  """Reads the arrays and the metadata of any safetensors file, bfloat16 and float8 included.

  Raises:
    UserError: there is no such file, it is damaged, or it has an unsupported dtype.
  """
  import safetensors

  path = Path(path)
  if not path.is_file():
    raise UserError(f"there is no file {path}")
  try:
    with safetensors.safe_open(path, framework="numpy") as file:
      metadata = file.metadata() or {}
    entries = safetensors.deserialize(path.read_bytes())
  except OSError as error:
    raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
  except safetensors.SafetensorError as error:
    raise UserError(f"{path} is damaged or no safetensors file ({quoted(error)})") from error
  arrays = {}
  for name, entry in entries:
    if entry["dtype"] not in DTYPES:
      raise UserError(f"{path}: array {name!r} has dtype {entry['dtype']}; expected one of {', '.join(DTYPES)}")
    arrays[name] = np.frombuffer(entry["data"], jnp.dtype(DTYPES[entry["dtype"]])).reshape(entry["shape"])
  return arrays, metadata
