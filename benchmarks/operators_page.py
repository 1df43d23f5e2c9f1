"""Generates docs/operators.md from the layers of the IR, the formats' emitters and the table of functions.

python -m benchmarks.operators_page
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from leanax.core.errors import UserError
from leanax.deploy import integers, ir
from leanax.deploy.formats.litert import limits
from leanax.deploy.formats.litert import plan as litert
from leanax.deploy.formats.onnx import plan as onnx
from leanax.deploy.functions import FUNCTIONS
from leanax.deploy.reference import choices, elementwise, functions, pools, shapes, weighted
from quant.quantizer import FIXED

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/operators.md"
HEAD = """# Operators

What a network may be made of to reach a file; `python -m benchmarks.operators_page` generates this page. A model is
read through its jaxpr, so that it does not matter how an operator is spelled: functions of one number and softmaxes are
recognised by their values, all else by the structure of its equations. What is not here is refused before anything
trains, with the primitive and the line of the model's code.

In a network with grids the column "int8" says what runs on codes. "float" layers stand between Dequantize and Quantize
layers and compute what the simulation computes; `deploy.lift(..., islands=False)` refuses them by name. Kernels of
fewer than 8 bits are stored as int8 codes, but for those of 4 bits at most in a .tflite file's dense layers
([deploy.md](deploy.md)). "same grid" are layers that move codes where what they read and make share a grid.

Every operator has its test in both runtimes (`tests/deploy/`): lifted, in the file of the table; as a layer by itself
in onnxruntime, in `test_onnx.py`.

"""
TESTS = {
  weighted: "test_products.py",
  pools: "test_shapes.py",
  elementwise: "test_products.py",
  functions: "test_functions.py",
  shapes: "test_shapes.py",
  choices: "test_shapes.py",
}
WITHIN = (ir.Quantize, ir.Dequantize)  # between float and integer layers
PARAMETERS = {"clip": (0, 6), "leaky_relu": (0.1,), "elu": (1,), "celu": (1,), "power": (2,)}
ON_GRID = {
  name: f"codes, on the grid of scale {scale:g} and zero point {zero}" for name, (scale, zero) in FIXED.items()
}
KERNELS = {  # kernels of LiteRT that a file uses for functions where it has them, by `limits.int8_kernel`
  **{name: "codes" for name in (*limits.TABLES, "relu6", "clip", "relu")},
  **ON_GRID,
  "silu": "codes, as a sigmoid and a product, where an integer layer reads it",
}


class Row(NamedTuple):
  """An operator: its name, a sentence, what runs on codes, whether each format has it, and the test."""

  name: str
  sentence: str
  int8: str
  litert: str
  onnx: str
  test: str


def layers() -> list[Row]:
  """Returns a row for each layer of the IR."""
  found = []
  for module, test in TESTS.items():
    for kind in module.TABLE:
      if kind not in WITHIN and kind is not ir.Activation:
        text = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
        found.append(Row(kind.__name__, text, _int8(kind), _has(kind in litert._EMIT), _has(kind in onnx._EMIT), test))
  return sorted(found)


def of_one_number() -> list[Row]:
  """Returns a row for each function of one number."""
  found = []
  for name in FUNCTIONS:
    ends = {key: ir.Tensor(key, (None, 4)) for key in ("x", "y")}
    layer = ir.Activation(name, ("x",), "y", name, PARAMETERS.get(name, ()))
    network = ir.Network((layer,), ends, {"x": "x"}, {"y": "y"})
    given = (_has(_reaches(one.planned, network)) for one in (litert, onnx))
    found.append(Row(name, "", KERNELS.get(name, "float"), *given, "test_functions.py"))
  return sorted(found)


def page() -> str:
  """Returns the page."""
  lines = ["| layer | what it is | int8 | LiteRT | ONNX | test |", "| --- | --- | --- | --- | --- | --- |"]
  lines += [f"| {' | '.join(row)} |" for row in layers()]
  lines += ["", "Functions of one number, wherever a model has one:", ""]
  lines += ["| function | int8 | LiteRT | ONNX | test |", "| --- | --- | --- | --- | --- |"]
  lines += [f"| {row.name} | {row.int8} | {row.litert} | {row.onnx} | {row.test} |" for row in of_one_number()]
  return HEAD + "\n".join(lines) + "\n"


def _int8(kind: type[ir.Layer]) -> str:
  own, moved = integers.RESCALED.get(kind, ()), ir.CHOICES.get(kind, ())
  if own or moved:
    words = [f"codes: {', '.join(own)} of two activations"] * bool(own) + [f"codes, same grid: {', '.join(moved)}"]
    return "; ".join([*words, "float otherwise"])
  if issubclass(kind, ir.MOVES | ir.Select):
    return "codes, same grid"
  if kind is ir.MatMul:
    return "codes, where the second factor's zero point is 0; float otherwise"
  if kind is ir.Softmax:
    return f"{ON_GRID['softmax']}; float otherwise"
  return "codes" if kind in integers.INTEGER else "float"


def _reaches(planned: Callable[[ir.Network], object], network: ir.Network) -> bool:
  try:
    planned(network)
  except UserError:
    return False
  return True


def _has(there: bool) -> str:
  return "yes" if there else "refused"


if __name__ == "__main__":
  PAGE.write_text(page(), encoding="utf-8")
