"""Runs a .tflite file in the real LiteRT interpreter (package ai-edge-litert) and measures it there."""

from collections.abc import Callable
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, trial
from leanax.deploy.formats.base import Runner, Source, check_threads, read, refusal, zeros
from leanax.deploy.formats.litert.tables import checked

RESOLVERS = ("xnnpack", "reference")


def load(source: Source, threads: int = 1, kernels: str = "xnnpack") -> Runner:
  """Returns a .tflite file in the interpreter; see `formats.base.Open`, and `litert` for the kernels."""
  name, content = read(source, "LiteRT")
  check_threads(threads)
  preprocessing, description = checked(content, name)
  trial.check("litert", content, name, kernels=kernels)
  interpreter, inputs, outputs = _interpreter(content, name, threads, kernels)
  given, made = _named(inputs, name, "input"), _named(outputs, name, "output")
  size = [1]  # the batch that memory is allocated for

  def resize(batch: int) -> None:
    if batch != size[0]:
      size[0] = 0
      for detail, tensor in zip(inputs, given.values(), strict=True):
        interpreter.resize_tensor_input(detail["index"], (batch, *tensor.shape[1:]))
      interpreter.allocate_tensors()
      size[0] = batch

  def compute(arrays: list[np.ndarray]) -> list[np.ndarray]:
    try:
      resize(len(arrays[0]))
      for detail, array in zip(inputs, arrays, strict=True):
        interpreter.set_tensor(detail["index"], array)
      interpreter.invoke()
      return [interpreter.get_tensor(detail["index"]) for detail in outputs]
    except Exception as error:  # what it says may be no text, or too large a number
      raise refusal("the LiteRT runtime", name, error) from None

  def repeat() -> Callable[[], None]:
    compute([zeros(tensor, 1) for tensor in given.values()])
    return interpreter.invoke

  return Runner(name, len(content), given, made, compute, repeat, preprocessing, threads, description=description)


def _interpreter(content: bytes, name: str, threads: int, kernels: str) -> tuple[Any, list[Any], list[Any]]:
  from ai_edge_litert.interpreter import Interpreter, OpResolverType

  resolver = OpResolverType.AUTO if kernels == "xnnpack" else OpResolverType.BUILTIN_REF
  try:
    interpreter = Interpreter(model_content=content, num_threads=threads, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    return interpreter, interpreter.get_input_details(), interpreter.get_output_details()
  except Exception as error:  # as above
    raise refusal("the LiteRT runtime", name, error) from None


def _named(details: list[dict[str, Any]], name: str, kind: str) -> dict[str, ir.Tensor]:
  """Returns the inputs or outputs of a file by their names in it; one alone is named by its kind."""
  if not details:
    raise UserError(f"{name} has no {kind}s")
  names = [kind] if len(details) == 1 else [detail["name"] or str(place) for place, detail in enumerate(details)]
  return {key: _tensor(detail, name) for key, detail in zip(names, details, strict=True)}


def _tensor(detail: dict[str, Any], name: str) -> ir.Tensor:
  dtype = np.dtype(detail["dtype"]).name
  if dtype not in ("float32", "int8", "int32", "uint8", "bool"):
    raise UserError(f"{name} has inputs or outputs of type {dtype}; expected float32, int8, int32, uint8 or bool")
  shape = (None, *(int(size) for size in detail["shape"][1:]))
  if dtype != "int8":
    return ir.Tensor("", shape, dtype)
  scales, zeros = detail["quantization_parameters"]["scales"], detail["quantization_parameters"]["zero_points"]
  if len(scales) != 1:
    raise UserError(f"{name} has {len(scales)} scales for its input or output; expected one")
  return ir.Tensor("", shape, dtype, ir.grid(scales[0], int(zeros[0])))
