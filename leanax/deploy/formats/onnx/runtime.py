"""Runs an .onnx file in onnxruntime and measures it there."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, trial
from leanax.deploy.formats.base import Runner, Source, check_threads, read, refusal, zeros
from leanax.deploy.formats.onnx.tables import checked
from quant.grid import Grid

TYPES = {
  "tensor(float)": "float32",
  "tensor(uint8)": "uint8",
  "tensor(int8)": "int8",
  "tensor(int32)": "int32",
  "tensor(int64)": "int64",
  "tensor(bool)": "bool",
}
QUIET = 4  # only fatal messages


def load(source: Source, threads: int = 1) -> Runner:
  """Returns an .onnx file in onnxruntime; see `formats.base.Open`.

  The codes of an int8 network are int8 here, whichever type the file has for them.
  """
  name, content = read(source, "ONNX")
  check_threads(threads)
  held = checked(content, name)
  trial.check("onnx", content, name)
  session, inputs, outputs = _session(content, name, threads)
  given = {end.name: _end(end, name, "input", held.inputs.get(end.name)) for end in inputs}
  made = {end.name: _end(end, name, "output", held.outputs.get(end.name)) for end in outputs}

  def fed(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    pairs = zip(given.items(), arrays, strict=True)
    return {key: _flipped(x) if kind != tensor.dtype else x for (key, (tensor, kind)), x in pairs}

  def compute(arrays: list[np.ndarray]) -> list[np.ndarray]:
    try:
      results = session.run(list(made), fed(arrays))
    except Exception as error:  # the runtime's own exceptions share no base
      raise refusal("onnxruntime", name, error) from None
    for result, (tensor, _) in zip(results, made.values(), strict=True):
      if result.shape[1:] != tensor.shape[1:] or len(result) != len(arrays[0]):
        raise UserError(f"{name} gave outputs of shape {result.shape} for inputs of shape {arrays[0].shape}")
    pairs = zip(results, made.values(), strict=True)
    return [_flipped(x) if kind != tensor.dtype else x for x, (tensor, kind) in pairs]

  def repeat() -> Callable[[], None]:
    arrays = [zeros(tensor, 1) for tensor, _ in given.values()]
    feed = fed(arrays)
    compute(arrays)
    return lambda: session.run(list(made), feed)

  taken, gives = ({key: tensor for key, (tensor, _) in side.items()} for side in (given, made))

  about = held.preprocessing, threads, "onnxruntime", held.description
  return Runner(name, len(content), taken, gives, compute, repeat, *about)


def _flipped(codes: np.ndarray) -> np.ndarray:
  """Returns int8 codes as uint8 ones of the same grid, or back: 128 more or less."""
  other = np.uint8 if codes.dtype == np.int8 else np.int8
  return (codes.view(np.uint8) ^ 0x80).view(other)


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
    raise refusal("onnxruntime", name, error) from None


def _end(end: End, name: str, which: str, grid: Grid | None) -> tuple[ir.Tensor, str]:
  """Returns an end of the file as an ir.Tensor, and its type in the file."""
  kind = TYPES.get(end.type, end.type)
  expected = ("float32", "uint8", "int32", "int64", "bool")
  if kind not in (expected if grid is None else ("uint8", "int8")):
    raise UserError(f"the {which} of {name} is of type {kind}; expected {' or '.join(expected)}")
  sizes = [size for size in end.shape[1:] if isinstance(size, int)]
  if not end.shape or len(sizes) != len(end.shape) - 1:
    raise UserError(f"the {which} of {name} has the shape {end.shape}; expected the batch alone to be open")
  shape = (None, *sizes)
  if grid is None:
    return ir.Tensor("", shape, kind), kind
  zero = int(grid.zero_point) - (128 if kind == "uint8" else 0)
  if not ir.QMIN <= zero <= ir.QMAX:
    raise UserError(f"the {which} of {name} has the zero point {int(grid.zero_point)}, which is none of {kind}")
  return ir.Tensor("", shape, "int8", ir.grid(grid.scale, zero)), kind
