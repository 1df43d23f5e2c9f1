"""The kind of method that writes a layer network as a file and runs it, and what every file that runs has in common."""

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.preprocessing import Preprocessing


class Latency(NamedTuple):
  """Microseconds per call at batch 1: wall clock (least and median) and process CPU time (least), over `runs` calls."""

  wall_min: float
  wall_median: float
  cpu_min: float
  runs: int
  threads: int


@dataclasses.dataclass(frozen=True)
class Runner:
  """A file in its runtime.

  Attributes:
    name: the file's path, or a few words for bytes; errors give it.
    bytes: the file's size.
    input: the input as an ir.Tensor (shape, type, grid).
    output: the output, likewise.
    compute: inputs (N, ...) of the input's shape and type, N >= 1, to outputs of the output's, with no conversion.
    repeat: returns a function that makes one call at batch 1 on zeros again and again; what latency measures.
    preprocessing: the step from raw images to the input, if the file holds one.
    threads: the most that the runtime may use.
    requantize: the rounding of `reference.run` that the runtime's is nearest to.
  """

  name: str
  bytes: int
  input: ir.Tensor
  output: ir.Tensor
  compute: Callable[[np.ndarray], np.ndarray]
  repeat: Callable[[], Callable[[], None]]
  preprocessing: Preprocessing | None = None
  threads: int = 1
  requantize: str = "float32"

  def codes(self, x: np.ndarray) -> np.ndarray:
    """Returns the file's own numbers: inputs (N, ...) of its type to outputs of its type, with no conversion.

    Raises:
      UserError: inputs of another shape or type.
    """
    if x.shape[1:] != self.input.shape[1:] or x.dtype != self.input.dtype:
      wanted = f"{self.input.dtype} (N, {', '.join(map(str, self.input.shape[1:]))})"
      raise UserError(f"{self.name} takes {wanted}, not {x.dtype} {x.shape}")
    if not len(x):
      return zeros(self.output, 0)
    return self.compute(np.ascontiguousarray(x))

  def run(self, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Returns float32 outputs of images, the way an application uses the file.

    Args:
      images: (N, ...); uint8 ones go through the file's preprocessing if it has one, float ones are taken as
        preprocessed already, int8 ones as codes. Floats are quantized, and int8 outputs dequantized, by the file's own
        parameters. Indices (int32), raw pixels (uint8) and masks (bool) are taken as they are.
      batch: how many are run at once, 1 or more.

    Raises:
      UserError: images of another shape or type, or NaN where codes are needed.
    """
    outputs = self.batches(images, batch)
    return ir.dequantize(outputs, self.output) if self.output.dtype == "int8" else outputs

  def batches(self, images: np.ndarray, batch: int = 256) -> np.ndarray:
    """Returns the file's own numbers of images as `run` takes them, computed `batch` at a time."""
    if batch < 1:
      raise UserError(f"a batch of {batch} images; expected 1 or more")
    images = np.asarray(images)
    starts = range(0, max(len(images), 1), batch)
    return np.concatenate([self.codes(self.inputs(images[start : start + batch])) for start in starts])

  def inputs(self, images: np.ndarray) -> np.ndarray:
    """Returns images as the file's input type: see `run`."""
    codes = self.input.dtype == "int8"
    if self.input.dtype in ("int32", "uint8", "bool"):  # indices, raw pixels, masks
      if not np.can_cast(images.dtype, self.input.dtype):
        raise UserError(f"{self.name} was given inputs of {images.dtype}; expected {self.input.dtype}")
      return images.astype(self.input.dtype)
    if images.dtype == np.int8 and codes:
      return images
    if images.dtype == np.uint8:
      images = images.astype(np.float32) if self.preprocessing is None else self.preprocessing.apply(images)
    if not np.issubdtype(images.dtype, np.floating):
      kinds = "uint8 (raw) or floats (preprocessed)" + (", or int8 codes" if codes else "")
      raise UserError(f"{self.name} was given images of {images.dtype}; expected {kinds}")
    return ir.quantize(images, self.input) if codes else images.astype(np.float32)

  def latency(self, runs: int = 200, warm_up: int = 20) -> Latency:
    """Measures calls at batch 1 on zeros; the least of many is the steadiest figure on a shared machine."""
    call = self.repeat()
    wall, cpu = [], []
    for number in range(warm_up + runs):
      start = time.perf_counter_ns(), time.process_time_ns()
      call()
      if number >= warm_up:
        cpu.append(time.process_time_ns() - start[1])
        wall.append(time.perf_counter_ns() - start[0])
    least, median, busy = min(wall) / 1e3, float(np.median(wall)) / 1e3, min(cpu) / 1e3
    return Latency(least, median, busy, runs, self.threads)


Source = str | os.PathLike[str] | bytes


class Open(Protocol):
  """Opens a file, from a path or from its bytes, in its runtime."""

  def __call__(self, source: Source, threads: int = 1) -> Runner:
    """Returns the file in its runtime.

    Args:
      source: a path, or the file's bytes.
      threads: that the runtime may use.

    Raises:
      UserError: no such file, one of another format, a damaged one, or a missing extra.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Format:
  """A file format and its runtime.

  Attributes:
    suffix: of its files, with the dot.
    check: refuses a network that the format cannot hold, naming the layer or tensor, and a missing extra; it reads
      shapes, types and grids but no weights, so that it can be asked before anything is trained.
    write: the network as a file's bytes, the same ones each time; refuses what `check` refuses.
    open: the file in its runtime.
  """

  suffix: str
  check: Callable[[ir.Network], None]
  write: Callable[[ir.Network], bytes]
  open: Open


def zeros(tensor: ir.Tensor, batch: int) -> np.ndarray:
  """Returns an activation of zeros (codes or floats), with so many in the batch."""
  return np.zeros((batch, *(int(size or 0) for size in tensor.shape[1:])), tensor.dtype)


def read(source: Source, kind: str) -> tuple[str, bytes]:
  """Returns the name and the content of a file; `kind` is its format in an error's words."""
  if isinstance(source, bytes):
    return f"the {kind} file", source
  try:
    return str(source), Path(source).read_bytes()
  except OSError as error:
    raise UserError(f"cannot read the {kind} file {str(source)!r}: {error.strerror}") from None
