"""Counts the codes in which two computations of the same network differ."""

from typing import NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from leanax.deploy.formats import Runner

CLOSE = 1e-4


class Mismatch(NamedTuple):
  """The number of output codes that differ, out of `total`, and by how many steps at most."""

  count: int
  total: int
  max_steps: int

  def __str__(self) -> str:
    return f"{self.count} of {self.total} codes differ, by {self.max_steps} at most"


def compare(a: np.ndarray, b: np.ndarray) -> Mismatch:
  """Counts where two arrays of integer codes differ.

  Raises:
    UserError: the shapes differ, or something else than integers is given.
  """
  a, b = np.asarray(a), np.asarray(b)
  if a.shape != b.shape:
    raise UserError(f"cannot compare codes of shape {a.shape} with codes of shape {b.shape}")
  for codes in (a, b):
    if not np.issubdtype(codes.dtype, np.integer):
      raise UserError(f"mismatches are counted in integer codes, not in {codes.dtype}")
  steps = np.abs(a.astype(np.int64) - b.astype(np.int64))
  return Mismatch(int(np.count_nonzero(steps)), steps.size, int(steps.max(initial=0)))


def parity(
  network: ir.Network, runner: Runner, images: np.ndarray, simulated: np.ndarray | None = None
) -> dict[str, Mismatch]:
  """Compares an int8 network's simulation, reference and file, two by two, on the same inputs.

  An output that stays float is compared as numbers: those that differ by more than 1e-4 of the largest are counted, in
  steps of that size.

  Args:
    network: the lifted network.
    runner: the file written from it, in its runtime.
    images: (N, ...) float inputs, already preprocessed, or int8 codes.
    simulated: (N, ...) what the simulation gave for them, float on the output's grid; left out without one.

  Returns:
    "reference/runtime" and, with a simulation, "simulation/reference" and "simulation/runtime".

  Raises:
    UserError: NaN among the inputs, other shapes, or a file of codes beside a network of floats.
  """
  found = {"reference": reference.run(network, images, runner.requantize), "runtime": runner.batches(images)}
  if simulated is not None:
    found = {"simulation": simulated, **found}
  several = {who: ir.arranged(network.outputs, x, who) for who, x in found.items()}
  names = list(found)
  pairs = [(a, b) for position, a in enumerate(names) for b in names[position + 1 :]]
  made = [network.tensors[tensor] for tensor in network.outputs.values()]
  return {f"{a}/{b}": _total(list(map(_counted, several[a], several[b], made))) for a, b in pairs}


def _counted(a: np.ndarray, b: np.ndarray, tensor: ir.Tensor) -> Mismatch:
  if tensor.dtype != "int8":
    if np.int8 in (np.asarray(a).dtype, np.asarray(b).dtype):
      raise UserError(f"{tensor.name!r} is {tensor.dtype} in the network and codes in the file, which is another's")
    return _apart(a, b)
  return compare(*(x if np.asarray(x).dtype == np.int8 else ir.quantize(np.asarray(x), tensor) for x in (a, b)))


def _total(found: list[Mismatch]) -> Mismatch:
  return Mismatch(sum(m.count for m in found), sum(m.total for m in found), max(m.max_steps for m in found))


def _apart(a: np.ndarray, b: np.ndarray) -> Mismatch:
  """Counts where two arrays of floats differ by more than `CLOSE` of the largest number, in steps of that size."""
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  if a.shape != b.shape:
    raise UserError(f"cannot compare numbers of shape {a.shape} with numbers of shape {b.shape}")
  steps = np.abs(a - b) // (CLOSE * max(np.abs(a).max(initial=0), 1e-30))
  return Mismatch(int(np.count_nonzero(steps)), steps.size, int(steps.max(initial=0)))
