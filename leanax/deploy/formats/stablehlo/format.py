"""StableHLO as a file format."""

import functools
from collections.abc import Sequence

from leanax.core.errors import UserError, unknown
from leanax.deploy.formats.base import Format, Model
from leanax.deploy.formats.stablehlo.program import PLATFORMS
from leanax.deploy.formats.stablehlo.runtime import load
from leanax.deploy.formats.stablehlo.writer import check, write


def stablehlo(platforms: str | Sequence[str] = PLATFORMS) -> Format:
  """Returns the format of .stablehlo files, which hold a model's own function as `jax.export` writes it.

  Nothing is lifted: a file has what the function computes, of a quantized model its simulation, bit for bit on the same
  machine and jax. It is run by XLA, on any batch size.

  Args:
    platforms: on which the file can be run: "cpu", "cuda", "rocm" or "tpu", or several of them.
  """
  platforms = (platforms,) if isinstance(platforms, str) else tuple(platforms)
  if not platforms:
    raise UserError(f"a .stablehlo file is for no platform; expected one or more of {', '.join(PLATFORMS)}, rocm")
  for name in platforms:
    if name not in (*PLATFORMS, "rocm"):
      raise unknown("platform", name, (*PLATFORMS, "rocm"))
  bound = {"platforms": platforms}
  return Format(".stablehlo", functools.partial(check, **bound), functools.partial(write, **bound), load, takes=Model)
