"""ONNX as a file format."""

import functools

from leanax.core.errors import unknown
from leanax.deploy.formats.base import Format
from leanax.deploy.formats.onnx.emit.groups import GROUPS
from leanax.deploy.formats.onnx.plan import ACTIVATIONS
from leanax.deploy.formats.onnx.runtime import load
from leanax.deploy.formats.onnx.writer import check, held, write


def onnx(activations: str = "uint8", groups: str = "values") -> Format:
  """Returns the format of .onnx files, float32, or int8 as QuantizeLinear and DequantizeLinear around each layer.

  Args:
    activations: the type of an int8 network's activations in the file. "uint8" holds code + 128, the same grid:
      onnxruntime on x86 has integer kernels for these beside int8 weights. "int8" is the usual choice on Arm; on x86
      onnxruntime runs most of such a file in floats, unless the session sets "session.qdqisint8allowed".
    groups: the form of kernels with a scale for each group of inputs, whose layers are floats. "values": codes times
      scales, which onnxruntime computes once, when it opens the file. "blocked": DequantizeLinear with a block_size,
      for tools that look for it; onnxruntime computes it in each call. "matmul_nbits": dense layers are onnxruntime's
      own MatMulNBits with float32 sums, which reads the codes: at 4 bits, of groups of 16, 32, 64 and so on.
  """
  if activations not in ACTIVATIONS:
    raise unknown("type of activations", activations, ACTIVATIONS)
  if groups not in GROUPS:
    raise unknown("form of groups", groups, GROUPS)
  bound = {"activations": activations, "groups": groups}
  checked, written = functools.partial(check, **bound), functools.partial(write, **bound)
  return Format(".onnx", checked, written, load, held, alone=None)  # a layer of images would be transposed at both ends
