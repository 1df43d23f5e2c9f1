"""ONNX as a file format."""

import functools

from leanax.core.errors import unknown
from leanax.deploy.formats.base import Format
from leanax.deploy.formats.onnx.plan import ACTIVATIONS
from leanax.deploy.formats.onnx.runtime import load
from leanax.deploy.formats.onnx.writer import check, held, write


def onnx(activations: str = "uint8") -> Format:
  """Returns the format of .onnx files, float32, or int8 as QuantizeLinear and DequantizeLinear around each layer.

  Args:
    activations: the type of an int8 network's activations in the file. "uint8" holds code + 128, the same grid:
      onnxruntime on x86 has integer kernels for these beside int8 weights. "int8" is the usual choice on Arm; on x86
      onnxruntime runs most of such a file in floats, unless the session sets "session.qdqisint8allowed".
  """
  if activations not in ACTIVATIONS:
    raise unknown("type of activations", activations, ACTIVATIONS)
  bound = {"activations": activations}
  checked, written = functools.partial(check, **bound), functools.partial(write, **bound)
  return Format(".onnx", checked, written, load, held, alone=None)  # a layer of images would be transposed at both ends
