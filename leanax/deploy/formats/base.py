"""The kind of method that writes a model as a file and runs it, and what every file that runs has in common."""

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from leanax.core.errors import UserError
from leanax.core.texts import quoted
from leanax.deploy import ir
from leanax.deploy.description import Description
from leanax.deploy.preprocessing import Preprocessing
from leanax.deploy.size import Held, held
from leanax.graph import Net

MOST_THREADS = max(256, os.cpu_count() or 1)  # with thousands a runtime takes minutes to open a file, or aborts


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
    inputs: the inputs as ir.Tensors (shape, type, grid), by name, in order.
    outputs: the outputs, likewise.
    compute: arrays (N, ...) of the inputs' shapes and types, N >= 1, to those of the outputs, with no conversion.
    repeat: returns a function that makes one call at batch 1 on zeros again and again; what latency measures.
    preprocessing: the step from raw images to the input, if the file holds one.
    threads: the most that the runtime may use.
    requantize: the rounding of `reference.run` that the runtime's is nearest to.
    description: of the network in words, if the file holds one.
  """

  name: str
  bytes: int
  inputs: Mapping[str, ir.Tensor]
  outputs: Mapping[str, ir.Tensor]
  compute: Callable[[list[np.ndarray]], list[np.ndarray]]
  repeat: Callable[[], Callable[[], None]]
  preprocessing: Preprocessing | None = None
  threads: int = 1
  requantize: str = "float32"
  description: Description | None = None

  @property
  def input(self) -> ir.Tensor:
    """The only input; UserError where there are several."""
    return self._sole(self.inputs, "inputs")

  @property
  def output(self) -> ir.Tensor:
    """The only output; UserError where there are several."""
    return self._sole(self.outputs, "outputs")

  def _sole(self, ends: Mapping[str, ir.Tensor], kind: str) -> ir.Tensor:
    if len(ends) != 1:
      raise UserError(f"{self.name} has {len(ends)} {kind}, {', '.join(map(repr, ends))}; expected one")
    return next(iter(ends.values()))

  def codes(self, x: Any) -> Any:
    """Returns the file's own numbers: inputs (N, ...) of its type to outputs of its type, with no conversion.

    Args:
      x: an array; of several inputs a dict by name, or a tuple.

    Raises:
      UserError: inputs of another shape or type.
    """
    arrays = ir.arranged(self.inputs, x, self.name)
    for array, tensor in zip(arrays, self.inputs.values(), strict=True):
      shape = f"(N, {', '.join(map(str, tensor.shape[1:]))})"
      if array.shape[1:] != tensor.shape[1:] and array.dtype == tensor.dtype:
        raise UserError(f"{self.name} takes inputs of {shape}, not {array.shape}")
      if array.shape[1:] != tensor.shape[1:] or array.dtype != tensor.dtype:
        wanted = f"{tensor.dtype} {shape}"
        raise UserError(f"{self.name} takes {wanted}, not {array.dtype} {array.shape}")
      if len(array) != len(arrays[0]):
        raise UserError(f"{self.name} was given batches of {len(arrays[0])} and {len(array)}; expected one size")
    if not len(arrays[0]):
      return ir.returned(self.outputs, [zeros(tensor, 0) for tensor in self.outputs.values()])
    return ir.returned(self.outputs, self.compute([np.ascontiguousarray(array) for array in arrays]))

  def run(self, images: Any, batch: int = 256) -> Any:
    """Returns float32 outputs of images, the way an application uses the file.

    Args:
      images: (N, ...), of several inputs a dict by name, or a tuple; uint8 ones go through the file's preprocessing if
        it has one, float ones are taken as preprocessed already, int8 ones as codes. Floats are quantized, and int8
        outputs dequantized, by the file's own parameters. A file that takes uint8 and names no grid takes uint8 images
        as they are, and no others.
      batch: how many are run at once, 1 or more.

    Returns:
      (N, ...), of several outputs a dict by name.

    Raises:
      UserError: images of another shape or type, or NaN where codes are needed.
    """
    made = ir.arranged(self.outputs, self.batches(images, batch), self.name)
    pairs = zip(made, self.outputs.values(), strict=True)
    floats = [ir.dequantize(x, tensor) if tensor.dtype == "int8" else x for x, tensor in pairs]
    return ir.returned(self.outputs, floats)

  def batches(self, images: Any, batch: int = 256) -> Any:
    """Returns the file's own numbers of images as `run` takes them, computed `batch` at a time."""
    if not isinstance(batch, int | np.integer):
      raise UserError(f"{self.name} takes its inputs as one dict by name, or one tuple; got another argument")
    if batch < 1:
      raise UserError(f"a batch of {batch} images; expected 1 or more")
    arrays = [np.asarray(x) for x in ir.arranged(self.inputs, images, self.name)]
    if any(not array.ndim for array in arrays):
      raise UserError(f"{self.name} was given a single {arrays[0].dtype} for a batch; expected an array (N, ...)")
    parts: list[list[np.ndarray]] = []
    for start in range(0, max(len(arrays[0]), 1), batch):
      pairs = zip(arrays, self.inputs.values(), strict=True)
      given = tuple(self.as_input(x[start : start + batch], tensor) for x, tensor in pairs)
      parts.append(ir.arranged(self.outputs, self.codes(given), self.name))
    return ir.returned(self.outputs, [np.concatenate(part) for part in zip(*parts, strict=True)])

  def as_input(self, images: np.ndarray, tensor: ir.Tensor) -> np.ndarray:
    """Returns images as an input's type: see `run`."""
    codes = tensor.dtype == "int8"
    if tensor.dtype in ("int32", "int64", "uint8", "bool"):  # indices, raw pixels, masks
      if not np.can_cast(images.dtype, tensor.dtype):
        raise UserError(f"{self.name} was given inputs of {images.dtype}; it takes {tensor.dtype} as it is")
      return images.astype(tensor.dtype)
    if images.dtype == np.int8 and codes:
      return images
    if images.dtype == np.uint8:
      if self.preprocessing is None:
        raise UserError(
          f"{self.name} does not say what it makes of pixels, and was given uint8; expected floats as the network "
          "takes them, or a file that is saved with its preprocessing"
        )
      images = self.preprocessing.apply(images)
    if not np.issubdtype(images.dtype, np.floating):
      kinds = "uint8 (raw) or floats (preprocessed)" + (", or int8 codes" if codes else "")
      raise UserError(f"{self.name} was given images of {images.dtype}; expected {kinds}")
    return ir.quantize(images, tensor) if codes else images.astype(np.float32)

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


class Model(NamedTuple):
  """A model that a format holds as its own function.

  Attributes:
    net: the model.
    preprocessing: the step from raw images to its input, if any.
    description: of it in words, if any.
  """

  net: Net
  preprocessing: Preprocessing | None = None
  description: Description | None = None


Source = str | os.PathLike[str] | bytes


def refusal(runtime: str, name: str, error: Exception | str) -> UserError:
  """Returns the error for a file that its runtime raises for: one line of its reason, which may quote the file."""
  return UserError(f"{runtime} refuses {name}: {quoted(error, 200)}")


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
    held: the constants of a network's layers as a file holds them, by the layers' names; reads what `check` reads.
    takes: what `check` and `write` are given: the layers of an `ir.Network`, or a `Model` whole.
    alone: the layers as the runtime runs them, each of which takes the time in a file of its own that it takes in the
      network's; None where a file of one layer does more than the layer.
  """

  suffix: str
  check: Callable[[Any], None]
  write: Callable[[Any], bytes]
  open: Open
  held: Callable[[ir.Network], dict[str, Held]] = held
  takes: type = ir.Network
  alone: Callable[[ir.Network], ir.Network] | None = lambda network: network


def zeros(tensor: ir.Tensor, batch: int) -> np.ndarray:
  """Returns an activation of zeros (codes or floats), with so many in the batch."""
  return np.zeros((batch, *(int(size or 0) for size in tensor.shape[1:])), tensor.dtype)


def check_threads(threads: int) -> None:
  """Refuses what is no number of threads that a runtime can start."""
  if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
    raise UserError(f"{threads!r} threads; expected 1 to {MOST_THREADS}")


def read(source: Source, kind: str) -> tuple[str, bytes]:
  """Returns the name and the content of a file; `kind` is its format in an error's words."""
  if isinstance(source, bytes):
    return f"the {kind} file", source
  try:
    return str(source), Path(source).read_bytes()
  except OSError as error:
    raise UserError(f"cannot read the {kind} file {str(source)!r}: {error.strerror}") from None
