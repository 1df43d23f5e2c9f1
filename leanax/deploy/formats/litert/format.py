"""LiteRT as a file format."""

import functools
from typing import Any

from leanax.core.errors import UserError, unknown
from leanax.deploy.formats.base import Format
from leanax.deploy.formats.litert.kernels import with_kernels
from leanax.deploy.formats.litert.runtime import RESOLVERS, load
from leanax.deploy.formats.litert.weights import WEIGHTS
from leanax.deploy.formats.litert.writer import check, held, write


def litert(kernels: str = "xnnpack", weights: str = "", sparse: float | None = None) -> Format:
  """Returns the format of .tflite files, float32 or int8.

  Args:
    kernels: the runtime's: "xnnpack" (what phones run) or "reference" (its plain kernels, a second opinion).
    weights: of a float network. "" as the network has them, those on grids as their codes. "float16" rounds the others
      to float16, and "int8" to 8 bits with a scale per output channel, where that makes the file smaller; the runtime
      computes with their values in float32. With "dynamic_int8" dense layers and convolutions read these codes, and the
      runtime rounds what they multiply to 8 bits at run time, by the range of its numbers.
    sparse: of a float network: the share of zeros from which a dense layer's kernel is held in compressed rows, in
      float32 without them; None for none. Files get smaller from a third on, the runtime faster from about 0.95 alone.
  """
  if kernels not in RESOLVERS:
    raise unknown("kernels", kernels, RESOLVERS)
  if weights not in WEIGHTS:
    raise unknown("weights", weights, WEIGHTS[1:])
  if sparse is not None and not (isinstance(sparse, float | int) and 0 < sparse < 1):
    raise UserError(f"sparse={sparse!r} is no share of zeros; expected a number between 0 and 1")
  bound: dict[str, Any] = {"weights": weights, "sparse": sparse}
  return Format(
    ".tflite",
    functools.partial(check, **bound),
    functools.partial(write, **bound),
    functools.partial(load, kernels=kernels),
    functools.partial(held, **bound),
    alone=with_kernels,
  )
