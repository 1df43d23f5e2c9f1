"""Runs a .tflite file in the real LiteRT interpreter (package ai-edge-litert) and measures it there."""

import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.litert.flat import schema
from leanax.deploy.litert.writer import METADATA

RESOLVERS = ("xnnpack", "reference")


class Latency(NamedTuple):
  """Microseconds a call at batch 1: wall clock (least and median) and process CPU time (least), over `runs` calls."""

  wall_min: float
  wall_median: float
  cpu_min: float
  runs: int
  threads: int


class Model:
  """A .tflite file in the real runtime.

  Attributes:
    bytes: the file's size.
    input: the input as an ir.Tensor (shape, type, grid).
    output: the same for the output.
    preprocessing: how raw images become the input, if the file says so.
  """

  def __init__(self, source: str | os.PathLike[str] | bytes, threads: int = 1, kernels: str = "xnnpack") -> None:
    """Loads a file.

    Args:
      source: a path, or the file's bytes.
      threads: how many threads the runtime may use.
      kernels: "xnnpack" (what phones run) or "reference" (the runtime's plain kernels, a second opinion).

    Raises:
      UserError: no such file, not a LiteRT file, or a damaged one.
    """
    if kernels not in RESOLVERS:
      raise UserError(f"unknown kernels {kernels!r}; expected one of {', '.join(RESOLVERS)}")
    self.name, content = _read(source)
    self.bytes, self.threads = len(content), threads
    self.preprocessing = _open(content, self.name)
    self._interpreter = _load(content, self.name, threads, kernels)
    self.input = _tensor(self._interpreter.get_input_details(), self.name)
    self.output = _tensor(self._interpreter.get_output_details(), self.name)
    self._batch = 1

  def codes(self, x: np.ndarray) -> np.ndarray:
    """The file's own numbers: inputs of the file's type (N, ...) to outputs of its type, with no conversion."""
    if x.shape[1:] != self.input.shape[1:] or x.dtype != self.input.dtype:
      wanted = f"{self.input.dtype} (N, {', '.join(map(str, self.input.shape[1:]))})"
      raise UserError(f"{self.name} takes {wanted}, not {x.dtype} {x.shape}")
    self._resize(len(x))
    self._interpreter.set_tensor(self._interpreter.get_input_details()[0]["index"], np.ascontiguousarray(x))
    self._interpreter.invoke()
    return self._interpreter.get_tensor(self._interpreter.get_output_details()[0]["index"])

  def run(self, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Images to float32 outputs, the way an application uses the file.

    Args:
      images: (N, ...); uint8 ones go through the file's preprocessing if it has one, float ones are taken as
        preprocessed already, int8 ones as codes. Floats are quantized, and int8 outputs dequantized, by the file's own
        parameters.
      batch: how many are run at once.
    """
    made = [self.codes(self.inputs(images[start : start + batch])) for start in range(0, len(images), batch)]
    outputs = np.concatenate(made) if made else np.zeros((0, *self.output.shape[1:]), self.output.dtype)  # pyrefly: ignore
    return ir.dequantize(outputs, self.output) if self.output.dtype == "int8" else outputs

  def inputs(self, images: np.ndarray) -> np.ndarray:
    """Images as the file's input type: see `run`."""
    if images.dtype == np.int8 and self.input.dtype == "int8":
      return images
    if images.dtype == np.uint8:
      images = images.astype(np.float32) if self.preprocessing is None else self.preprocessing.apply(images)
    return ir.quantize(images, self.input) if self.input.dtype == "int8" else images.astype(np.float32)

  def latency(self, runs: int = 200, warm_up: int = 20) -> Latency:
    """Measures calls at batch 1 on a zero image; the least of many is the steadiest figure on a shared machine."""
    self._resize(1)
    details = self._interpreter.get_input_details()[0]
    self._interpreter.set_tensor(details["index"], np.zeros(details["shape"], details["dtype"]))
    wall, cpu = [], []
    for call in range(warm_up + runs):
      start = time.perf_counter_ns(), time.process_time_ns()
      self._interpreter.invoke()
      if call >= warm_up:
        cpu.append(time.process_time_ns() - start[1])
        wall.append(time.perf_counter_ns() - start[0])
    least, median, busy = min(wall) / 1e3, float(np.median(wall)) / 1e3, min(cpu) / 1e3
    return Latency(least, median, busy, runs, self.threads)

  def _resize(self, batch: int) -> None:
    if batch != self._batch:
      index = self._interpreter.get_input_details()[0]["index"]
      self._interpreter.resize_tensor_input(index, (batch, *self.input.shape[1:]))
      self._interpreter.allocate_tensors()
      self._batch = batch


def _read(source: str | os.PathLike[str] | bytes) -> tuple[str, bytes]:
  if isinstance(source, bytes):
    return "the LiteRT file", source
  try:
    return str(source), Path(source).read_bytes()
  except OSError as error:
    raise UserError(f"cannot read the LiteRT file {str(source)!r}: {error.strerror}") from None


def _open(content: bytes, name: str) -> ir.Preprocessing | None:
  """The preprocessing in the file's metadata; also the first look at whether this is a sound LiteRT file."""
  tables = schema()
  if content[4:8] != b"TFL3":
    raise UserError(f"{name} is not a LiteRT (.tflite) file: its identifier is not TFL3")
  try:
    model = tables.Model.GetRootAs(content, 0)
    for position in range(model.MetadataLength()):
      entry = model.Metadata(position)
      if entry.Name() == METADATA.encode():
        data = model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
        found = json.loads(data)["preprocessing"]
        return ir.Preprocessing(tuple(found["mean"]), tuple(found["std"]), float(found["scale"]))
  except Exception:
    raise UserError(f"{name} is damaged: its tables cannot be read") from None
  return None


def constants(content: bytes) -> list[np.ndarray]:
  """The weights and biases as a file holds them, each in the file's own layout and type, read without the runtime."""
  tables = schema()
  types = {getattr(tables.TensorType, name.upper()): name for name in ("float32", "int32", "int8")}
  model = tables.Model.GetRootAs(content, 0)
  graph, held = model.Subgraphs(0), []
  for position in range(graph.TensorsLength()):
    tensor = graph.Tensors(position)
    buffer = model.Buffers(tensor.Buffer())
    if buffer.DataLength():
      held.append(np.frombuffer(buffer.DataAsNumpy().tobytes(), types[tensor.Type()]).reshape(tensor.ShapeAsNumpy()))
  return held


def _load(content: bytes, name: str, threads: int, kernels: str) -> Any:
  from ai_edge_litert.interpreter import Interpreter, OpResolverType

  resolver = OpResolverType.AUTO if kernels == "xnnpack" else OpResolverType.BUILTIN_REF
  try:
    interpreter = Interpreter(model_content=content, num_threads=threads, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
  except (ValueError, RuntimeError) as error:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else "no reason given"
    raise UserError(f"the LiteRT runtime refuses {name}: {reason}") from None
  return interpreter


def _tensor(details: list[dict[str, Any]], name: str) -> ir.Tensor:
  if len(details) != 1:
    raise UserError(f"{name} has {len(details)} inputs or outputs; expected one of each")
  detail, dtype = details[0], np.dtype(details[0]["dtype"]).name
  if dtype not in ("float32", "int8"):
    raise UserError(f"{name} has inputs or outputs of type {dtype}; expected float32 or int8")
  shape = (None, *(int(size) for size in detail["shape"][1:]))
  if dtype == "float32":
    return ir.Tensor("", shape)
  scales, zeros = detail["quantization_parameters"]["scales"], detail["quantization_parameters"]["zero_points"]
  if len(scales) != 1:
    raise UserError(f"{name} has {len(scales)} scales for its input or output; expected one")
  return ir.Tensor("", shape, dtype, np.array(scales[0], np.float32), int(zeros[0]))
