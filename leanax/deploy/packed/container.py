"""Variables as the bytes of a file, and back."""

import collections
import hashlib
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from leanax.deploy.formats.base import Source
from leanax.deploy.formats.base import read as read_file
from leanax.deploy.packed import arrays, header, tree
from leanax.deploy.packed import grids as grids_of
from leanax.deploy.packed.model import Damaged
from quant import Grid

# A few bytes may stand for any number of zeros: how many bytes of arrays a file may unpack to without being asked.
FREE, PER_BYTE = 2**26, 2**10
_PREFIX = "params/"  # which the names of the graph leave out


class Packed(NamedTuple):
  """The content of a packed file.

  Attributes:
    variables: numpy arrays, which cannot be written to, in dicts, lists and tuples as they were packed.
    grids: those of the leaves that lie on one, by their names.
    metadata: JSON values.
  """

  variables: Any
  grids: dict[str, Grid]
  metadata: dict[str, Any]


def pack(variables: Any, grids: Mapping[str, Grid] | None = None, metadata: Mapping[str, Any] | None = None) -> bytes:
  """Returns variables as the bytes of a file, the same ones for equal variables.

  Every leaf comes back bit for bit as it is, but for those with a grid: of these the values on the grid are stored,
  which a model that rounds the leaf to this grid computes with.

  Args:
    variables: arrays in nested dicts (other mappings come back as dicts), lists and tuples.
    grids: by the names of leaves as `quant.grids` has them ("Dense_0/kernel", without "params/"); of leaves that are
      read on this grid alone, for any other reader would be given rounded numbers (`pack_net` finds them).
    metadata: JSON values to keep with them.

  Raises:
    UserError: a leaf that is no array or of a type without a name here, a grid of no leaf or of another shape, a scale
      that is not positive and finite, a leaf on a grid that holds NaN, or metadata that is not JSON.
  """
  found, coded = _Arrays(), {}
  given = grids_of.plain(grids or {}, _names(variables))

  def index(path: str, leaf: Any) -> int:
    name = path.removeprefix(_PREFIX)
    array, grid = _array(path, leaf), given.get(name)
    codes = None if grid is None else grids_of.codes(array, name, grid)
    if grid is None or codes is None:
      return found.add(array)
    coded[name] = grid
    return found.append(array, "codes", arrays.encode_codes(codes, grid), name)

  whole = {"tree": tree.write(variables, index), "metadata": dict(metadata or {})}
  whole["grids"] = {name: grids_of.write(grid, found.add) for name, grid in coded.items()}
  try:
    return header.write({**whole, "arrays": found.rows}, found.parts)
  except (TypeError, ValueError, RecursionError) as error:
    raise UserError(f"the metadata cannot be packed: {error}; expected values of JSON") from error


def _names(variables: Any) -> set[str]:
  """Returns the names of the leaves as `graph` gives them."""
  names: list[str] = []
  tree.write(variables, lambda path, _: names.append(path.removeprefix(_PREFIX)) or 0)
  twice = next((name for name, count in collections.Counter(names).items() if count > 1), None)
  if twice is not None:
    raise UserError(f"two leaves of the variables are named {twice!r}; expected names that differ")
  return set(names)


class _Arrays:
  """The arrays of a file: their rows in the header, and their streams. Arrays of the same bytes are stored once."""

  def __init__(self) -> None:
    self.rows: list[list[Any]] = []
    self.parts: list[bytes] = []
    self._places: dict[Any, int] = {}

  def add(self, array: np.ndarray) -> int:
    """Returns the index of an array."""
    content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    key = (array.shape, array.dtype.name, hashlib.sha256(content.data).digest())
    if key not in self._places:
      self._places[key] = self.append(array, *arrays.encode(array))
    return self._places[key]

  def append(self, array: np.ndarray, layout: str, parts: list[bytes], *grid: str) -> int:
    """Returns the index of an array that is stored in these streams, on the grid of this name."""
    self.rows.append([array.dtype.name, list(array.shape), layout, [len(part) for part in parts], *grid])
    self.parts.extend(parts)
    return len(self.rows) - 1


def _array(path: str, leaf: Any) -> np.ndarray:
  if not isinstance(leaf, np.ndarray | np.generic | jax.Array) or isinstance(leaf, jax.core.Tracer):
    kind = type(leaf).__name__
    raise UserError(f"{path!r} of the variables is a {kind}; expected arrays in dicts, lists and tuples")
  if str(leaf.dtype) not in arrays.DTYPES:
    raise UserError(f"{path!r} of the variables has type {leaf.dtype}; expected one of {', '.join(arrays.DTYPES)}")
  return np.asarray(leaf, arrays.DTYPES[str(leaf.dtype)])


def unpack(source: Source, limit: int | None = None, kind: str = "packed") -> Packed:
  """Returns the content of a packed file; no code is run, whatever the file holds.

  Args:
    source: a path, or the file's bytes.
    limit: the most bytes of arrays that it may unpack to, for a few bytes may stand for any number of zeros; by default
      64 MiB, or 1024 for each byte of the file where that is more. Some four times as much memory is used on the way.
    kind: of the file, in errors.

  Raises:
    UserError: no such file, a damaged or foreign one, one of a newer form, or one beyond the limit.
  """
  name, content = read_file(source, kind)
  try:
    return _unpack(content, max(FREE, PER_BYTE * len(content)) if limit is None else limit)
  except Damaged as damage:
    raise UserError(f"{name} is damaged: {damage}") from None
  except UserError as error:
    raise UserError(f"{name} {error}") from None
  except MemoryError:
    raise UserError(f"{name} needs more memory than there is; expected a smaller file or a lower limit=") from None


def _unpack(content: bytes, limit: int) -> Packed:
  head, body = header.read(content)
  parts = {"tree": object, "arrays": list, "grids": dict, "metadata": dict}
  if head.keys() != parts.keys() or not all(isinstance(head[key], kind) for key, kind in parts.items()):
    raise Damaged("its header lacks a part")
  # All that the header claims is checked against the file and the limit before an array is made.
  rows = [_row(row) for row in head["arrays"]]
  if sum(sum(row.lengths) for row in rows) != len(body):
    raise Damaged("its arrays are not as long as its header says")
  whole = sum(math.prod(row.shape) * row.dtype.itemsize for row in rows)
  if whole > limit:
    raise UserError(f"unpacks to {whole:,} bytes, beyond the limit of {limit:,}; give a higher limit= if you trust it")
  streams = _streams(rows, body)
  # Grids have arrays too, which lie on none.
  found = {
    place: arrays.decode(row.layout, part, row.shape, row.dtype)
    for place, (row, part) in enumerate(zip(rows, streams, strict=True))
    if row.grid is None
  }
  grids = {name: grids_of.read(name, given, lambda index: _at(found, index)) for name, given in head["grids"].items()}
  coded = {
    place: _on_grid(row, part, grids)
    for place, (row, part) in enumerate(zip(rows, streams, strict=True))
    if row.grid is not None
  }
  found |= coded
  for array in found.values():
    array.flags.writeable = False
  return Packed(tree.read(head["tree"], lambda index: _at(found, index)), grids, head["metadata"])


class _Row(NamedTuple):
  """An array as the header describes it: its type and shape, the layout and lengths of its streams, its grid's name."""

  dtype: np.dtype
  shape: tuple[int, ...]
  layout: str
  lengths: list[int]
  grid: str | None = None


def _row(row: Any) -> _Row:
  match row:
    case [str(dtype), list(shape), str(layout), list(lengths), *grid] if dtype in arrays.DTYPES:
      numbers = all(type(n) is int and 0 <= n < 2**48 for n in (*shape, *lengths))
      fits = [type(name) for name in grid] == ([str] if layout == "codes" else [])
      # numpy counts the bytes of an empty array as if its zeros were ones
      if numbers and fits and len(shape) <= 32 and math.prod(n or 1 for n in shape) < 2**58:
        return _Row(arrays.DTYPES[dtype], tuple(shape), layout, lengths, *grid)
  raise Damaged("its header describes an array that is none")


def _streams(rows: list[_Row], body: memoryview) -> list[list[memoryview]]:
  ends = list(itertools.accumulate((length for row in rows for length in row.lengths), initial=0))
  pieces = iter(itertools.starmap(lambda start, end: body[start:end], itertools.pairwise(ends)))
  return [list(itertools.islice(pieces, len(row.lengths))) for row in rows]


def _at(found: Mapping[int, np.ndarray], index: Any) -> np.ndarray:
  if type(index) is not int or index not in found:
    raise Damaged("it names an array that is not there")
  return found[index]


def _on_grid(row: _Row, parts: list[memoryview], grids: Mapping[str, Grid]) -> np.ndarray:
  grid = grids.get(str(row.grid))
  if grid is None or not jnp.issubdtype(row.dtype, jnp.floating):
    raise Damaged(f"the leaf {row.grid!r} has no grid that it can lie on")
  codes = arrays.decode_codes(parts, row.shape, grid)
  try:
    return grids_of.values(codes, grid, row.dtype)
  except (UserError, ValueError, TypeError, OverflowError) as error:  # a grid of any shape along any axes may be there
    raise Damaged(f"the grid of {row.grid!r} does not fit its leaf") from error
