"""What files say of themselves, read back by us and by others."""

import importlib.util
import io
import zipfile

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers.table import Table
from flatbuffers.util import GetBufferIdentifier

from leanax import deploy
from leanax.core.errors import UserError
from tests.deploy import nets

CLASSES = ("zero", "une", "zwei", "三", "four", "five", "six", "seven", "eight", "nine and more")
ABOUT = deploy.Description(CLASSES, "Apache-2.0", {"stage": "int8", "quantization": "w8a8"})
HOW = deploy.Preprocessing((0.5, 0.4, 0.3), (0.2, 0.25, 0.5))
FORMATS = ["litert", *(["onnx"] if importlib.util.find_spec("onnxruntime") else [])]


def network_of(make=nets.resnet):
  maker = make(0)
  return maker.network(HOW)._replace(description=ABOUT), maker.images(5)


@pytest.mark.parametrize("name", FORMATS)
def test_a_description_is_in_the_file(name, tmp_path):
  network, x = network_of()
  one = deploy.file_format(name)
  content = one.write(network)
  file = one.open(content)
  assert file.description == ABOUT and file.preprocessing == HOW
  assert content == one.write(network)
  plain = one.open(one.write(network._replace(description=None)))
  assert plain.description is None
  np.testing.assert_array_equal(file.codes(x), plain.codes(x))
  pixels = one.open(one.write(deploy.with_ends(network, "uint8", "float32")))
  assert pixels.description == ABOUT and pixels.preprocessing is None
  few = network._replace(description=deploy.Description(licence="MIT"), preprocessing=None)
  assert one.open(one.write(few)).description == deploy.Description(licence="MIT")


def field(table, slot):
  """The place of a field in a flatbuffer's table, 0 where it is not there."""
  offset = table.Offset(4 + 2 * slot)
  return offset and offset + table.Pos


def child(table, slot):
  return Table(table.Bytes, table.Indirect(field(table, slot)))


def text(table, slot):
  return table.String(field(table, slot)).decode()


def elements(table, slot):
  start = table.Vector(field(table, slot) - table.Pos)
  return [
    Table(table.Bytes, table.Indirect(start + 4 * k)) for k in range(table.VectorLen(field(table, slot) - table.Pos))
  ]


def floats(table, slot):
  at = field(table, slot) - table.Pos
  return np.frombuffer(table.Bytes, np.float32, table.VectorLen(at), table.Vector(at))


def test_tools_of_tensorflow_lite_read_the_same():
  """By the numbers of the fields in its schema: model, subgraph, tensors, their content and normalisation."""
  network, _ = network_of()
  content = deploy.litert().write(network)
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    assert archive.namelist() == ["labels.txt"] and archive.testzip() is None
    assert archive.read("labels.txt").decode().splitlines() == list(CLASSES)
  model = schema.Model.GetRootAs(content, 0)
  entries = {model.Metadata(k).Name().decode(): model.Metadata(k).Buffer() for k in range(model.MetadataLength())}
  held = model.Buffers(entries["TFLITE_METADATA"]).DataAsNumpy().tobytes()
  assert GetBufferIdentifier(held, 0) == b"M001"
  root = Table(held, int.from_bytes(held[:4], "little"))
  assert text(root, 1) == "stage int8, quantization w8a8" and text(root, 5) == "Apache-2.0"
  (graph,) = elements(root, 3)
  (given,), (made,) = elements(graph, 2), elements(graph, 3)
  assert (text(given, 0), text(made, 0)) == ("input", "output")
  image = child(given, 3)
  assert held[field(image, 0)] == 2 and held[field(child(image, 1), 0)] == 1  # an image, RGB
  (unit,) = elements(given, 4)
  assert held[field(unit, 0)] == 1
  mean, std = (floats(child(unit, 1), slot) for slot in (0, 1))
  pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3)).astype(np.uint8)
  np.testing.assert_allclose((pixels - mean) / std, HOW.apply(pixels), atol=1e-5)
  (labels,) = elements(made, 6)
  assert text(labels, 0) == "labels.txt" and held[field(labels, 2)] == 2


def test_classes_that_are_not_the_outputs_are_in_our_metadata_alone():
  network, _ = network_of(lambda seed: nets.mlp(seed, (6, 4)))
  content = deploy.litert().write(network._replace(preprocessing=None))
  assert deploy.litert().open(content).description == ABOUT and not zipfile.is_zipfile(io.BytesIO(content))


def test_wrong_descriptions_are_refused():
  for wrong in ({"classes": (1,)}, {"classes": ("a\nb",)}, {"classes": ("",)}, {"licence": 3}, {"made": {"stage": 1}}):
    with pytest.raises(UserError, match="the description of a network holds .*; expected texts"):
      deploy.Description(**wrong)
  network, _ = network_of()
  for name in FORMATS:
    content = deploy.file_format(name).write(network)
    with pytest.raises(UserError, match="is damaged"):
      deploy.file_format(name).open(content.replace(b'"licence":', b'"license":'))
