"""Flatbuffer tables by name, from the LiteRT schema that ships inside ai-edge-litert; equal vectors are written once.

Source: the schema `tflite/schema/schema.fbs` of LiteRT, in the Python that its package holds (`schema_py_generated`).
"""

from types import ModuleType
from typing import Any

import numpy as np

from leanax.core.errors import UserError

ALIGNMENT = 16  # what the schema asks of a buffer's data, so that a runtime may map the file


def schema() -> ModuleType:
  """Returns the generated schema module.

  Raises:
    UserError: the extra that brings it is not installed.
  """
  try:
    import flatbuffers  # noqa: F401
    from ai_edge_litert import schema_py_generated
  except ImportError as error:
    raise UserError(f"LiteRT files need the package ai-edge-litert: pip install leanax[litert] ({error})") from None
  return schema_py_generated


class Flat:
  """A flatbuffers builder that knows tables by their schema names and never writes the same vector twice."""

  def __init__(self) -> None:
    self.schema = schema()
    import flatbuffers

    self.builder = flatbuffers.Builder(1024)
    self._shared: dict[tuple[str, bytes], int] = {}

  def table(self, kind: str, **fields: Any) -> int:
    """Writes one table, such as `table("Tensor", Shape=..., Type=0)`; fields that are None are left out."""
    getattr(self.schema, f"{kind}Start")(self.builder)
    for name, value in fields.items():
      if value is not None:
        getattr(self.schema, f"{kind}Add{name}")(self.builder, value)
    return getattr(self.schema, f"{kind}End")(self.builder)

  def vector(self, values: Any, dtype: str) -> int:
    """Returns a vector of numbers; an equal one is shared."""
    array = np.ascontiguousarray(values, dtype)
    key = (dtype, array.tobytes())
    if key not in self._shared:
      self._shared[key] = self.builder.CreateNumpyVector(array)
    return self._shared[key]

  def tables(self, offsets: list[int]) -> int:
    """Returns a vector of tables."""
    self.builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
      self.builder.PrependUOffsetTRelative(offset)
    return self.builder.EndVector()

  def text(self, value: str) -> int:
    """Returns a string."""
    return self.builder.CreateSharedString(value)

  def data(self, content: bytes) -> int:
    """Returns a buffer's bytes, aligned as the schema asks."""
    self.builder.Prep(ALIGNMENT, len(content))
    return self.builder.CreateByteVector(content)

  def finish(self, root: int) -> bytes:
    """Returns the finished file."""
    self.builder.Finish(root, file_identifier=b"TFL3")
    return bytes(self.builder.Output())
