"""Counts the codes in which two computations of the same network differ."""

from typing import NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from leanax.deploy.formats import Runner


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

  Args:
    network: the lifted network.
    runner: the file written from it, in its runtime.
    images: (N, ...) float inputs, already preprocessed, or int8 codes.
    simulated: (N, ...) what the simulation gave for them, float on the output's grid; left out without one.

  Returns:
    "reference/runtime" and, with a simulation, "simulation/reference" and "simulation/runtime".
  """
  output = network.tensors[network.output]
  codes = {"reference": reference.run(network, images, runner.requantize), "runtime": runner.batches(images)}
  if simulated is not None:
    codes = {"simulation": ir.quantize(simulated, output), **codes}
  names = list(codes)
  pairs = [(a, b) for position, a in enumerate(names) for b in names[position + 1 :]]
  return {f"{a}/{b}": compare(codes[a], codes[b]) for a, b in pairs}
