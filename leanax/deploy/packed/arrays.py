"""An array as streams, in one of four layouts; each gives back every bit, NaN payloads and the sign of -0 too.

| layout | streams |
| --- | --- |
| bytes | the array's bytes, little-endian, in C order |
| planes | of each element the first byte, of each the second, ... |
| masked | a bit for each element, whether any of its bits is set, and the planes of those that are so |
| codes | the codes on a grid less its lowest code; at 16 bits the low bytes, then the high ones |
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from leanax.deploy.packed import streams
from leanax.deploy.packed.model import Damaged
from quant import Grid

DTYPES = {
  name: jnp.dtype(name)
  for name in (
    *("bool", "bfloat16", "float16", "float32", "float64", "complex64", "complex128"),
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e4m3b11fnuz"),
  )
}
_WHOLE = 2**16  # bytes of an array up to which they are tried as they lie, which keeps patterns such as 0, 1, 2, ...
_SPARSE = 32  # one zero among so many elements pays for a mask


def encode(array: np.ndarray) -> tuple[str, list[bytes]]:
  """Returns the layout and the streams of an array of a type in `DTYPES`."""
  rows = np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, array.dtype.itemsize)
  nonzero: np.ndarray = np.any(rows, axis=1)
  forms: dict[str, list[bytes]] = {}
  if np.count_nonzero(~nonzero) * _SPARSE >= max(array.size, 1):
    forms["masked"] = [streams.encode(np.where(nonzero, np.uint8(1), np.uint8(0)), 2), *_planes(rows[nonzero])]
  else:
    forms["planes"] = _planes(rows)
  if array.nbytes <= _WHOLE:
    forms["bytes"] = [streams.encode(rows.reshape(-1), 256)]
  layout = min(forms, key=lambda name: (sum(map(len, forms[name])), len(forms[name])))
  return layout, forms[layout]


def decode(layout: str, parts: Sequence[memoryview], shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """Returns the array of a layout that is not "codes"; the caller has bounded its shape.

  Raises:
    Damaged: the streams are none of it.
  """
  size, width = math.prod(shape), dtype.itemsize
  expected = {"bytes": 1, "planes": width, "masked": 1 + width}
  if layout not in expected or len(parts) != expected[layout]:
    raise Damaged("an array has an unknown layout")
  if layout == "bytes":
    rows = streams.decode(parts[0], size * width, 256)
  elif layout == "planes":
    rows = np.stack([streams.decode(part, size, 256) for part in parts], axis=1)
  else:
    nonzero = streams.decode(parts[0], size, 2).astype(bool)
    rows = np.zeros((size, width), np.uint8)
    count = int(np.count_nonzero(nonzero))
    rows[nonzero] = np.stack([streams.decode(part, count, 256) for part in parts[1:]], axis=1)
  if dtype == np.bool_ and np.any(rows > 1):
    raise Damaged("an array of bools has others than two values")
  return np.ascontiguousarray(rows).reshape(-1).view(dtype).reshape(shape)


def _planes(rows: np.ndarray) -> list[bytes]:
  return [streams.encode(np.ascontiguousarray(plane), 256) for plane in rows.T]


def encode_codes(codes: np.ndarray, grid: Grid) -> list[bytes]:
  """Returns the streams of codes on a grid."""
  symbols = (codes.reshape(-1) - grid.qmin).astype(np.uint16)
  return [
    streams.encode((symbols >> 8 * place & 255).astype(np.uint8), alphabet)
    for place, alphabet in enumerate(_alphabets(grid))
  ]


def decode_codes(parts: Sequence[memoryview], shape: tuple[int, ...], grid: Grid) -> np.ndarray:
  """Returns int32 codes on a grid.

  Raises:
    Damaged: the streams hold none.
  """
  alphabets, codes = _alphabets(grid), np.zeros(math.prod(shape), np.int32)
  if len(parts) != len(alphabets):
    raise Damaged("an array of codes has an unknown layout")
  for place, (part, alphabet) in enumerate(zip(parts, alphabets, strict=True)):
    codes |= streams.decode(part, codes.size, alphabet).astype(np.int32) << 8 * place
  if np.any(codes > grid.qmax - grid.qmin):
    raise Damaged("an array has codes beyond its grid")
  codes += np.int32(grid.qmin)
  return codes.reshape(shape)


def _alphabets(grid: Grid) -> list[int]:
  count = grid.qmax - grid.qmin + 1
  return [count] if count <= 256 else [256, -(-count // 256)]
