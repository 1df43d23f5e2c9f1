"""Packed files of pruned and quantized normal weights: their bytes against the entropy of their codes, and the time.

python -m benchmarks.packed [--weights 20000 1000000 10000000] [--out=benchmarks/results/packed_cpu.json]

The weights are drawn from a normal distribution and the smallest are zero; one scale for each of 100 columns, the
largest magnitude at 8 bits, and 2.5 standard deviations at fewer. "Entropy" is of the codes' histogram, of all columns
together. Each file holds one leaf, its scales and the header, and is read back and compared, bit for bit; "codes" are
the bytes of the leaf's stream alone.
"""

import argparse
import statistics
import time
from typing import Any

import numpy as np

import quant
from benchmarks import common
from leanax import deploy
from leanax.deploy.packed import header

CASES = ((8, 0.0), (8, 0.5), (8, 0.8), (8, 0.9), (8, 0.95), (4, 0.0), (4, 0.5), (4, 0.9), (2, 0.45), (2, 0.9))


def weights(count: int, zeros: float) -> np.ndarray:
  """Returns float32 weights (count / 100, 100), the smallest of which are zero."""
  w = np.random.default_rng(0).normal(size=(count // 100, 100)).astype(np.float32)
  return np.where(np.abs(w) < np.quantile(np.abs(w), zeros), np.float32(0), w)


def grid_of(w: np.ndarray, bits: int) -> quant.Grid:
  """Returns a grid with a scale for each column."""
  largest = np.abs(w).max(0) if bits == 8 else np.full(w.shape[1], 2.5, np.float32)
  return quant.symmetric(largest, bits, axis=1)


def entropy(codes: np.ndarray) -> float:
  """Returns the bytes of codes at the entropy of their histogram."""
  _, counts = np.unique(codes, return_counts=True)
  return float(-np.sum(counts * np.log2(counts / codes.size)) / 8)


def measured(count: int, bits: int, zeros: float, rounds: int) -> dict[str, Any]:
  """Returns the figures of one file; seconds are medians over rounds."""
  w = weights(count, zeros)
  grid = grid_of(w, bits)
  write, read, content = [], [], b""
  for _ in range(rounds):
    start = time.perf_counter()
    content = deploy.pack({"kernel": w}, {"kernel": grid})
    write.append(time.perf_counter() - start)
    start = time.perf_counter()
    found = deploy.unpack(content).variables["kernel"]
    read.append(time.perf_counter() - start)
    codes = np.asarray(quant.codes(w, grid))
    assert found.tobytes() == np.asarray(quant.dequantize(codes, grid)).tobytes()
  least, stream = entropy(codes), sum(next(row[3] for row in header.read(content)[0]["arrays"] if row[2] == "codes"))
  return {
    "weights": w.size,
    "bits": bits,
    "zeros": zeros,
    "float_bytes": w.nbytes,
    "entropy_bytes": round(least),
    "file_bytes": len(content),
    "codes_bytes": stream,
    "codes_over_entropy": round(stream / least - 1, 4),
    "file_over_entropy": round(len(content) / least - 1, 4),
    "pack_seconds": round(statistics.median(write), 3),
    "unpack_seconds": round(statistics.median(read), 3),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  parser.add_argument("--weights", type=int, nargs="+", default=[20_000, 1_000_000, 10_000_000])
  parser.add_argument("--rounds", type=int, default=1)
  parser.add_argument("--out", default="benchmarks/results/packed_cpu.json")
  args = parser.parse_args()
  before, rows = common.load(), []
  for count in args.weights:
    for bits, zeros in CASES:
      rows.append(measured(count, bits, zeros, args.rounds))
      print(rows[-1], flush=True)
  command = f"python -m benchmarks.packed --weights {' '.join(map(str, args.weights))} --rounds {args.rounds}"
  common.write(args.out, (__doc__ or "").splitlines()[0], command, before, {"rows": rows})


if __name__ == "__main__":
  main()
