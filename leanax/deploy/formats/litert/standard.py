"""TensorFlow Lite's own metadata of a model, for tools that know nothing of ours: normalisation, classes, licence.

Source: `metadata_schema.fbs` of TensorFlow Lite Support, version 1.1.0, whose fields are written by their numbers here.
The classes are a file "labels.txt" in a ZIP archive behind the model's own bytes.
"""

import io
import zipfile
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from leanax.deploy import ir
from leanax.deploy.formats.litert.flat import Flat
from leanax.deploy.preprocessing import Preprocessing

NAME = "TFLITE_METADATA"
LABELS = "labels.txt"
_FEATURE, _IMAGE = 1, 2  # ContentProperties
_COLOURS = {3: 1, 1: 2}  # ColorSpaceType, by channels
_NORMALISATION, _AXIS_LABELS = 1, 2  # ProcessUnitOptions, AssociatedFileType


class _Byte(NamedTuple):
  """A number of one byte in a table; other fields are places of tables, vectors and texts."""

  value: int


def metadata(network: ir.Network) -> bytes:
  """Returns the buffer of the model's metadata, of a network with a description."""
  flat, about = Flat(), network.description
  assert about is not None
  inputs = [_input(flat, name, network.tensors[one], network.preprocessing) for name, one in network.inputs.items()]
  labels = [bool(labels_of(network))] * len(network.outputs)
  outputs = [_tensor(flat, name, _FEATURE, labels=one) for name, one in zip(network.outputs, labels, strict=True)]
  graph = _table(flat, 8, {2: flat.tables(inputs), 3: flat.tables(outputs)})
  made = ", ".join(f"{key} {value}" for key, value in about.made.items())
  fields: dict[int, Any] = {3: flat.tables([graph]), 7: flat.text("1.0.0")}
  fields |= {slot: flat.text(text) for slot, text in ((1, made), (5, about.licence)) if text}
  flat.builder.Finish(_table(flat, 8, fields), file_identifier=b"M001")
  return bytes(flat.builder.Output())


def labels_of(network: ir.Network) -> tuple[str, ...]:
  """Returns the classes of a network's only output, one for each entry of its last axis; () where there are none."""
  classes = () if network.description is None else network.description.classes
  ends = [network.tensors[name].shape[-1] for name in network.outputs.values()]
  return classes if ends == [len(classes)] else ()


def with_labels(model: bytes, classes: Sequence[str]) -> bytes:
  """Returns the file with its classes behind it, the same bytes each time."""
  if not classes:
    return model
  whole = io.BytesIO(model)
  with zipfile.ZipFile(whole, "a") as archive:
    archive.writestr(zipfile.ZipInfo(LABELS), "\n".join(classes) + "\n")
  return whole.getvalue()


def _input(flat: Flat, name: str, tensor: ir.Tensor, how: Preprocessing | None) -> int:
  image = len(tensor.shape) == 4 and tensor.shape[3] in _COLOURS
  units = []
  if how is not None:  # (x - mean) / std of pixels from 0 to 255
    numbers = [flat.vector(np.asarray(one, np.float64) / how.scale, "float32") for one in (how.mean, how.std)]
    units = [_table(flat, 2, {0: _Byte(_NORMALISATION), 1: _table(flat, 2, dict(enumerate(numbers)))})]
  return _tensor(flat, name, _IMAGE if image else _FEATURE, tensor.shape[-1] or 0, units)


def _tensor(
  flat: Flat, name: str, content: int, channels: int = 0, units: Sequence[int] = (), labels: bool = False
) -> int:
  properties = _table(flat, 2, {0: _Byte(_COLOURS[channels])}) if content == _IMAGE else _table(flat, 0, {})
  fields = {0: flat.text(name), 3: _table(flat, 3, {0: _Byte(content), 1: properties})}
  if units:
    fields[4] = flat.tables(list(units))
  if labels:
    fields[6] = flat.tables([_table(flat, 4, {0: flat.text(LABELS), 2: _Byte(_AXIS_LABELS)})])
  return _table(flat, 7, fields)


def _table(flat: Flat, slots: int, fields: dict[int, Any]) -> int:
  """Writes a table by the numbers of its fields."""
  flat.builder.StartObject(slots)
  for slot, value in fields.items():
    if isinstance(value, _Byte):
      flat.builder.PrependInt8Slot(slot, value.value, 0)
    else:
      flat.builder.PrependUOffsetTRelativeSlot(slot, value, 0)
  return flat.builder.EndObject()
