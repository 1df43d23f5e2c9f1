"""The proof of a lifted network: its layers, each by itself, and all of them together, against the traced function."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from leanax.deploy.lifting.drafts import Draft
from leanax.deploy.lifting.traced import Traced

LAYER = 1e-4  # of the largest value: float32 sums in another order
WHOLE = 1e-2  # the same, of all layers behind each other
SHARE = 0.99  # of the entries of an output: some come of numbers on a tie, which may round otherwise
TRIES = 3  # inputs: of some, all entries come of numbers on a tie

_MOVES = ir.Reshape | ir.Transpose | ir.Slice | ir.Pad | ir.Concat | ir.Gather | ir.Broadcast | ir.Select  # exact


def prove(traced: Traced, drafts: list[Draft], network: ir.Network) -> None:
  """Runs each layer and its slice of the equations on random inputs, and the network and the whole function.

  All equations run in one compiled program, the layers in the reference interpreter.

  Args:
    traced: the function.
    drafts: of the network's layers, in order.
    network: the float network.

  Raises:
    UserError: they differ.
  """
  rng = np.random.default_rng(0)
  rows = _rows(traced, drafts)
  read = [{traced.base(n) for n in draft.inputs if isinstance(n, int)} for draft in drafts]
  givens = [
    {n: _random(rng, traced.aval(n), rows.get(n, 2), draft.positive) for n in sorted(numbers)}
    for numbers, draft in zip(read, drafts, strict=True)
  ]
  wholes = [{n: _random(rng, traced.aval(n), rows.get(n, 2)) for n in traced.inputs.values()} for _ in range(TRIES)]
  ends = tuple(traced.outputs.values())
  slices = [((draft.end,), given) for draft, given in zip(drafts, givens, strict=True)]
  *results, made = traced.run([*slices, (ends, wholes[0])])
  for draft, layer, given, (expected,) in zip(drafts, network.layers, givens, results, strict=True):
    if draft.early:
      expected = np.maximum(expected, 0)
    values = [traced.seen(n, given) if isinstance(n, int) else n for n in draft.inputs]
    got = reference.step(layer, values, network.tensors)
    near = 0 if isinstance(layer, _MOVES) else LAYER
    if got.shape != expected.shape or not _close(got, expected, near).all():
      raise traced.refuse(draft.node, f"the layer {layer.name!r} made of it computes something else")
  wrong = _differing(traced, network, wholes[0], made)
  if wrong and all(_differing(traced, network, one, *traced.run([(ends, one)])) for one in wholes[1:]):
    raise UserError(f"cannot lift the function: its layers, each of them right, do not make its output {wrong[0]!r}")


def _differing(
  traced: Traced, network: ir.Network, inputs: Mapping[int, np.ndarray], expected: Iterable[np.ndarray]
) -> list[str]:
  """Returns the names of the outputs that the network and the function make otherwise of the same inputs."""
  try:
    found = reference.run(network, {name: inputs[n] for name, n in traced.inputs.items()})
  except IndexError:  # the function looks for rows at other places than these inputs, and there may be none
    return []
  pairs = zip(ir.arranged(network.outputs, found, "the network"), expected, strict=True)
  return [name for name, (got, right) in zip(traced.outputs, pairs, strict=True) if not _alike(got, right)]


def _alike(got: np.ndarray, expected: np.ndarray) -> bool:
  near = WHOLE if expected.dtype.kind == "f" else 0
  return got.shape == expected.shape and bool(_close(got, expected, near, nan=True).mean() >= SHARE)


def _close(got: np.ndarray, expected: np.ndarray, near: float, nan: bool = False) -> np.ndarray:
  """Returns where numbers are equal up to `near` of the largest one that is expected."""
  largest = np.abs(expected, where=np.isfinite(expected), out=np.zeros_like(expected)).max(initial=0) if near else 0
  with np.errstate(all="ignore"):
    return np.isclose(got, expected, rtol=0, atol=near * max(largest, 1e-6), equal_nan=nan)


def _rows(traced: Traced, drafts: Iterable[Draft]) -> dict[int, int]:
  """Returns how many rows the tables have that are read at indices, by the numbers of these."""
  found: dict[int, int] = {}
  for draft in drafts:
    table, *at = draft.inputs
    if draft.kind is ir.Gather and isinstance(table, np.ndarray) and isinstance(at[0], int):
      number = traced.base(at[0])
      found[number] = min(table.shape[draft.fields["axis"]], found.get(number, 2**31 - 1))
  return found


def _random(rng: np.random.Generator, aval: Any, rows: int, positive: bool = False) -> np.ndarray:
  """Returns random numbers in the shape and type of a value; whole ones are below `rows`, so that rows are there."""
  if not np.issubdtype(aval.dtype, np.floating):
    return rng.integers(0, rows, aval.shape).astype(aval.dtype)
  x = rng.normal(size=aval.shape).astype(np.float32)
  return np.abs(x) if positive else x
