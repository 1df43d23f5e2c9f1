"""Kernels of dense layers in compressed rows (CSR): what is not 0, its columns, and where each row starts.

Source: the tables `SparsityParameters` and `DimensionMetadata` of the LiteRT schema. The runtime takes their numbers as
they are, and would read beside its input; so a file's are looked through first.
"""

from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy.formats.litert.flat import Flat, schema

_WIDTHS = {"Uint8Vector": "uint8", "Uint16Vector": "uint16", "Int32Vector": "int32"}


class Rows(NamedTuple):
  """The entries of a matrix that are not 0, row by row.

  Attributes:
    values: (entries,) float32.
    starts: (rows + 1,) the first entry of each row, and the number of entries.
    columns: (entries,) of the values.
  """

  values: np.ndarray
  starts: np.ndarray
  columns: np.ndarray

  @property
  def bytes(self) -> int:
    """Those of the values and of the two lists of numbers in a file."""
    return self.values.nbytes + sum(one.size * np.dtype(_WIDTHS[_width(one)]).itemsize for one in self[1:])

  def matrix(self, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the whole matrix, zeros included."""
    whole = np.zeros(shape, self.values.dtype)
    whole[np.repeat(np.arange(shape[0]), np.diff(self.starts)), self.columns] = self.values
    return whole

  def write(self, flat: Flat) -> int:
    """Adds the two lists to a file, as the sparsity of a tensor."""
    (starts, first), (columns, second) = (_vector(flat, one) for one in (self.starts, self.columns))
    tables = flat.schema
    dense = flat.table("DimensionMetadata", Format=tables.DimensionType.DENSE, DenseSize=len(self.starts) - 1)
    compressed = flat.table(
      "DimensionMetadata",
      Format=tables.DimensionType.SPARSE_CSR,
      ArraySegmentsType=starts,
      ArraySegments=first,
      ArrayIndicesType=columns,
      ArrayIndices=second,
    )
    order = flat.vector([0, 1], "int32")
    return flat.table("SparsityParameters", TraversalOrder=order, DimMetadata=flat.tables([dense, compressed]))


def rows(matrix: np.ndarray) -> Rows:
  """Returns the compressed rows of a matrix."""
  held = matrix != 0
  return Rows(matrix[held], np.append(0, np.cumsum(held.sum(1))), np.nonzero(held)[1])


def read(sparsity: Any, shape: tuple[int, ...], values: np.ndarray) -> Rows:
  """Returns the compressed rows of a matrix in a file.

  Raises:
    UserError: they are those of no matrix of this shape, or in blocks.
  """
  wrong = UserError("its sparse weights are not in compressed rows of their shape")
  try:
    order, dims = sparsity.TraversalOrderAsNumpy().tolist(), [sparsity.DimMetadata(place) for place in range(2)]
    kinds = [one.Format() for one in dims]
    starts = _numbers(dims[1].ArraySegmentsType(), dims[1].ArraySegments())
    columns = _numbers(dims[1].ArrayIndicesType(), dims[1].ArrayIndices())
  except Exception:  # tables of a damaged file may raise anything
    raise wrong from None
  tables = schema()
  plain = order == [0, 1] and not sparsity.BlockMapLength() and sparsity.DimMetadataLength() == len(shape) == 2
  if not plain or kinds != [tables.DimensionType.DENSE, tables.DimensionType.SPARSE_CSR]:
    raise wrong
  if not len(starts) - 1 == dims[0].DenseSize() == shape[0] or not len(columns) == len(values) == starts[-1]:
    raise wrong
  if starts[0] != 0 or (np.diff(starts) < 0).any() or (columns < 0).any() or (columns >= shape[1]).any():
    raise wrong
  return Rows(values, starts, columns)


def _width(numbers: np.ndarray) -> str:
  largest = numbers.max(initial=0)
  return "Uint8Vector" if largest < 2**8 else "Uint16Vector" if largest < 2**16 else "Int32Vector"


def _vector(flat: Flat, numbers: np.ndarray) -> tuple[int, int]:
  """Adds whole numbers in the narrowest of the schema's vectors; returns the number of its kind, and its place."""
  kind = _width(numbers)
  return getattr(flat.schema.SparseIndexVector, kind), flat.table(kind, Values=flat.vector(numbers, _WIDTHS[kind]))


def _numbers(kind: int, table: Any) -> np.ndarray:
  tables = schema()
  name = next(name for name in _WIDTHS if getattr(tables.SparseIndexVector, name) == kind)
  vector = getattr(tables, name)()
  vector.Init(table.Bytes, table.Pos)
  return vector.ValuesAsNumpy().astype(np.int64)
