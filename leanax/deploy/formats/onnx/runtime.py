"""Runs an .onnx file in onnxruntime and measures it there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.base import Runner, Source, read, zeros
from leanax.deploy.formats.onnx.tables import checked
from quant.grid import Grid

TYPES = {f"tensor({kind})": kind for kind in ("int32", "uint8", "int8", "bool")} | {"tensor(float)": "float32"}
QUIET = 4  # only fatal messages


def load(source: Source, threads: int = 1) -> Runner:
  """Returns an .onnx file in onnxruntime; see `formats.base.Open`.

  The codes of an int8 network are int8 here, whichever type the file has for them. A file from elsewhere has one input
  and one output, of floats, pixels, indices or masks.
  """
  name, content = read(source, "ONNX")
  if not isinstance(threads, int) or threads < 1:
    raise UserError(f"{threads!r} threads; expected 1 or more")
  held = checked(content, name)
  session, inputs, outputs = _session(content, name, threads)
  given, taken = _end(inputs, name, "input", held.grids.get("input"))
  made, gives = _end(outputs, name, "output", held.grids.get("output"))
  names = inputs[0].name, [outputs[0].name]

  def run(x: np.ndarray) -> np.ndarray:
    try:
      return session.run(names[1], {names[0]: x})[0]
    except Exception as error:  # the runtime's own exceptions share no base
      raise _refused(name, error) from None

  def compute(x: np.ndarray) -> np.ndarray:
    result = run(_flipped(x) if taken != given.dtype else x)
    if result.shape[1:] != made.shape[1:] or len(result) != len(x):
      raise UserError(f"{name} gave outputs of shape {result.shape} for inputs of shape {x.shape}")
    return _flipped(result) if gives != made.dtype else result

  def repeat() -> Callable[[], None]:
    feed = {names[0]: zeros(given, 1).astype(taken)}
    compute(zeros(given, 1))
    return lambda: session.run(names[1], feed)

  return Runner(name, len(content), given, made, compute, repeat, held.preprocessing, threads, "onnxruntime")


def _flipped(codes: np.ndarray) -> np.ndarray:
  """Returns int8 codes as uint8 ones of the same grid, or back: 128 more or less."""
  other = np.uint8 if codes.dtype == np.int8 else np.int8
  return (codes.view(np.uint8) ^ 0x80).view(other)


def _refused(name: str, error: Exception) -> UserError:
  text = " ".join(str(error).split()) or "no reason given"
  return UserError(f"onnxruntime refuses {name}: {text[:200]}")


class End(NamedTuple):
  """An input or output as the runtime describes it."""

  name: str
  type: str
  shape: list[int | str | None]


def _session(content: bytes, name: str, threads: int) -> tuple[Any, list[End], list[End]]:
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
  options.log_severity_level = QUIET
  try:
    providers = ["CPUExecutionProvider"]  # and no second try after an error, which would print
    session = onnxruntime.InferenceSession(content, options, providers=providers, enable_fallback=0)
    sides = session.get_inputs(), session.get_outputs()
    inputs, outputs = ([End(end.name, end.type, end.shape) for end in side] for side in sides)
    return session, inputs, outputs
  except Exception as error:  # as above
    raise _refused(name, error) from None


def _end(ends: list[End], name: str, which: str, grid: Grid | None) -> tuple[ir.Tensor, str]:
  """Returns an end of the file as an ir.Tensor, and its type in the file."""
  if len(ends) != 1:
    raise UserError(f"{name} has {len(ends)} {which}s; expected one")
  kind = TYPES.get(ends[0].type, ends[0].type)
  expected = ("float32", "uint8", "int32", "bool") if grid is None else ("uint8", "int8")
  if kind not in expected:
    raise UserError(f"the {which} of {name} is of type {kind}; expected {' or '.join(expected)}")
  sizes = [size for size in ends[0].shape[1:] if isinstance(size, int)]
  if not ends[0].shape or len(sizes) != len(ends[0].shape) - 1:
    raise UserError(f"the {which} of {name} has the shape {ends[0].shape}; expected the batch alone to be open")
  shape = (None, *sizes)
  if grid is None:
    return ir.Tensor("", shape, kind), kind
  zero = int(grid.zero_point) - (128 if kind == "uint8" else 0)
  if not ir.QMIN <= zero <= ir.QMAX:
    raise UserError(f"the {which} of {name} has the zero point {int(grid.zero_point)}, which is none of {kind}")
  return ir.Tensor("", shape, "int8", ir.grid(grid.scale, zero)), kind
