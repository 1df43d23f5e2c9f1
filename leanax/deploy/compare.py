"""Counts the codes in which two computations of the same network differ."""

from typing import NamedTuple

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from leanax.deploy.litert.runtime import Model


class Mismatch(NamedTuple):
  """How many of `total` output codes differ, and by how many steps at most."""

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
  network: ir.Network, model: Model, images: np.ndarray, simulated: np.ndarray | None = None
) -> dict[str, Mismatch]:
  """Compares an int8 network's simulation, reference and file, two by two, on the same inputs.

  Args:
    network: the lifted network.
    model: the file written from it, in the runtime.
    images: (N, ...) float inputs, already preprocessed, or int8 codes.
    simulated: (N, ...) what the simulation gave for them, float on the output's grid; left out without one.

  Returns:
    "reference/runtime" and, with a simulation, "simulation/reference" and "simulation/runtime".
  """
  output = network.tensors[network.output]
  codes = {"reference": reference.run(network, images), "runtime": run_codes(model, images)}
  if simulated is not None:
    codes = {"simulation": ir.quantize(simulated, output), **codes}
  names = list(codes)
  pairs = [(a, b) for position, a in enumerate(names) for b in names[position + 1 :]]
  return {f"{a}/{b}": compare(codes[a], codes[b]) for a, b in pairs}


def run_codes(model: Model, images: np.ndarray, batch: int = 256) -> np.ndarray:
  """Inputs as `Model.run` takes them to the file's own output codes."""
  parts = [model.codes(model.inputs(images[start : start + batch])) for start in range(0, len(images), batch)]
  return np.concatenate(parts)
