"""Runs a .tflite file in the real LiteRT interpreter (package ai-edge-litert) and measures it there."""

from collections.abc import Callable
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.base import Runner, Source, read, zeros
from leanax.deploy.formats.litert.tables import checked

RESOLVERS = ("xnnpack", "reference")


def load(source: Source, threads: int = 1, kernels: str = "xnnpack") -> Runner:
  """Returns a .tflite file in the interpreter; see `formats.base.Open`, and `litert` for the kernels."""
  name, content = read(source, "LiteRT")
  if not isinstance(threads, int) or threads < 1:
    raise UserError(f"{threads!r} threads; expected 1 or more")
  preprocessing = checked(content, name)
  interpreter = _interpreter(content, name, threads, kernels)
  inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
  given, made = _tensor(inputs, name), _tensor(outputs, name)
  source_index, result_index = inputs[0]["index"], outputs[0]["index"]
  size = [1]  # the batch that memory is allocated for

  def resize(batch: int) -> None:
    if batch != size[0]:
      size[0] = 0
      interpreter.resize_tensor_input(source_index, (batch, *given.shape[1:]))
      interpreter.allocate_tensors()
      size[0] = batch

  def compute(x: np.ndarray) -> np.ndarray:
    try:
      resize(len(x))
      interpreter.set_tensor(source_index, x)
      interpreter.invoke()
      return interpreter.get_tensor(result_index)
    except (ValueError, RuntimeError) as error:
      raise _refused(name, error) from None

  def repeat() -> Callable[[], None]:
    compute(zeros(given, 1))
    return interpreter.invoke

  return Runner(name, len(content), given, made, compute, repeat, preprocessing, threads)


def _refused(name: str, error: Exception) -> UserError:
  reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
  return UserError(f"the LiteRT runtime refuses {name}: {reason}")


def _interpreter(content: bytes, name: str, threads: int, kernels: str) -> Any:
  from ai_edge_litert.interpreter import Interpreter, OpResolverType

  resolver = OpResolverType.AUTO if kernels == "xnnpack" else OpResolverType.BUILTIN_REF
  try:
    interpreter = Interpreter(model_content=content, num_threads=threads, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
  except (ValueError, RuntimeError) as error:
    raise _refused(name, error) from None
  return interpreter


def _tensor(details: list[dict[str, Any]], name: str) -> ir.Tensor:
  if len(details) != 1:
    raise UserError(f"{name} has {len(details)} inputs or outputs; expected one of each")
  detail, dtype = details[0], np.dtype(details[0]["dtype"]).name
  if dtype not in ("float32", "int8", "int32", "uint8", "bool"):
    raise UserError(f"{name} has inputs or outputs of type {dtype}; expected float32, int8, int32, uint8 or bool")
  shape = (None, *(int(size) for size in detail["shape"][1:]))
  if dtype != "int8":
    return ir.Tensor("", shape, dtype)
  scales, zeros = detail["quantization_parameters"]["scales"], detail["quantization_parameters"]["zero_points"]
  if len(scales) != 1:
    raise UserError(f"{name} has {len(scales)} scales for its input or output; expected one")
  return ir.Tensor("", shape, dtype, ir.grid(scales[0], int(zeros[0])))
