"""LiteRT as a file format."""

import functools

from leanax.core.errors import unknown
from leanax.deploy.formats.base import Format
from leanax.deploy.formats.litert.runtime import RESOLVERS, load
from leanax.deploy.formats.litert.writer import check, held, write


def litert(kernels: str = "xnnpack") -> Format:
  """Returns the format of .tflite files, float32 or int8.

  Args:
    kernels: the runtime's: "xnnpack" (what phones run) or "reference" (its plain kernels, a second opinion).
  """
  if kernels not in RESOLVERS:
    raise unknown("kernels", kernels, RESOLVERS)
  return Format(".tflite", check, write, functools.partial(load, kernels=kernels), held)
