"""Seconds from a network with batch norms to its files: folding, lifting with its proofs, and writing.

python -m benchmarks.export_time [--rounds 3] [--out=benchmarks/results/export_time_cpu.json]

The networks are those of the zoo and torchvision's ResNet-18, with random weights. Lifting runs each layer, and all of
them together, beside the traced function. JAX's caches are cleared before each round, and the one on disk is off, so
that all programs are compiled each time. Figures are of the fastest round; "CPU" is the time of all of the process's
threads, which other work on the machine hardly changes.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import quant
from benchmarks import nets
from benchmarks.common import load, write
from leanax import deploy, graph

STEPS = ("fold", "lift", "litert", "onnx")


def measure(case: nets.Case, rounds: int) -> dict[str, dict[str, Any]]:
  """Returns wall and CPU seconds of each step, of the float and of the int8 file."""
  net = nets.net(case)
  folded = graph.fold_batch_norms(net)
  batch = np.random.default_rng(0).normal(size=(2, *case.shape)).astype(np.float32)
  grids = {"float": None, "int8": quant.grids(quant.post_training(folded, [batch], "w8a8"))}
  return {name: _fastest([_once(net, batch[:1], grid) for _ in range(rounds)]) for name, grid in grids.items()}


def _once(net: graph.Net, x: np.ndarray, grids: Any) -> dict[str, Any]:
  jax.clear_caches()
  spent: dict[str, Any] = {"wall": {}, "cpu": {}}

  def timed(step: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter(), time.process_time()
    made = work()
    spent["wall"][step], spent["cpu"][step] = time.perf_counter() - start[0], time.process_time() - start[1]
    return made

  folded = timed("fold", lambda: graph.fold_batch_norms(net))
  network = timed("lift", lambda: deploy.lift(folded.infer, folded.variables, x, grids))
  timed("litert", lambda: deploy.litert().write(network))
  timed("onnx", lambda: deploy.onnx().write(network))
  return {**spent, "layers": len(network.layers)}


def _fastest(rounds: list[dict[str, Any]]) -> dict[str, Any]:
  best = {kind: min((one[kind] for one in rounds), key=lambda spent: sum(spent.values())) for kind in ("wall", "cpu")}
  figures = {f"{kind}_s": {**{k: round(v, 3) for k, v in spent.items()}} for kind, spent in best.items()}
  totals = {f"{kind}_total_s": round(sum(spent.values()), 2) for kind, spent in best.items()}
  return {**figures, **totals, "layers": rounds[0]["layers"]}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--only", default="", help="the name of one network")
  parser.add_argument("--out", default="benchmarks/results/export_time_cpu.json")
  given = parser.parse_args()
  jax.config.update("jax_enable_compilation_cache", False)
  before, found = load(), {}
  measure(nets.CASES["LeNet-300-100"], 1)  # imports, and JAX's own start
  for name, case in nets.CASES.items():
    if given.only not in ("", name):
      continue
    found[name] = measure(case, given.rounds)
    for kind, row in found[name].items():
      steps = ", ".join(f"{step} {row['cpu_s'][step]:.2f}" for step in STEPS)
      print(f"{name:22} {kind:6} {row['wall_total_s']:6.2f} s, CPU {row['cpu_total_s']:6.2f} s ({steps})", flush=True)
  what = "Seconds of exporting networks: batch norms folded, layers lifted and proven, both files written."
  write(given.out, what, f"python -m benchmarks.export_time --rounds {given.rounds}", before, {"networks": found})


if __name__ == "__main__":
  main()
