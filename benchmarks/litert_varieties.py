"""The ways in which a .tflite file can hold one float network: bytes, latency, and how far its outputs lie apart.

python -m benchmarks.litert_varieties [--runs 400] [--out=benchmarks/results/litert_varieties_cpu.json]

Both networks have their first random weights; their outputs are compared on random inputs, with those of the float32
file of the same weights. "95 % zeros" are files of the MLP without the smallest weights of each kernel. All files
of a network are called at batch 1 on one thread, in turns.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import quant
from benchmarks.common import load, write
from leanax import deploy, graph
from leanax.pipeline.benchmark import latencies
from leanax.zoo.mlp import MLP
from leanax.zoo.resnet import ResNet

WEIGHTS = ("float16", "int8", "dynamic_int8")  # of `deploy.litert`
SETTINGS = {"w4": "w4", "w8a8": "w8a8", "w4a8": "w4a8"}  # of quantization, the first and the last layer too
ZEROS = 0.95
COUNT = 256  # inputs that outputs are compared on


class Case(NamedTuple):
  """A float net, and inputs."""

  net: graph.Net
  inputs: np.ndarray


def mlp() -> Case:
  """Returns an MLP of 784, 1200, 1200 and 10 units."""
  return _case(MLP((1200, 1200)), (28, 28, 1))


def resnet20() -> Case:
  """Returns a net of the size of ResNet-20 for images of 32 by 32."""
  return _case(ResNet((3, 3, 3)), (32, 32, 3))


def _case(module: Any, shape: tuple[int, ...]) -> Case:
  inputs = np.random.default_rng(0).normal(size=(COUNT, *shape)).astype(np.float32)
  variables = jax.jit(module.init)(jax.random.key(0), inputs[:8])
  return Case(graph.fold_batch_norms(graph.net(module.apply, variables, inputs[:1])), inputs)


def thinned(net: graph.Net) -> graph.Net:
  """Returns the net without the smallest weights of each kernel."""

  def kept(leaf: Any) -> Any:
    return leaf if leaf.ndim < 2 else np.where(np.abs(leaf) > np.quantile(np.abs(leaf), ZEROS), leaf, np.float32(0))

  return graph.net(net.infer, jax.tree.map(kept, net.variables), *net.example)


def varieties(case: Case) -> dict[str, bytes]:
  """Returns the files by name; those that begin with "float32" are what the others are compared with."""
  net, example = case.net, case.inputs[:1]
  network = deploy.lift(net.infer, net.variables, example)
  found = {"float32": deploy.litert().write(network)}
  found |= {name: deploy.litert(weights=name).write(network) for name in WEIGHTS}
  for name, setting in SETTINGS.items():
    rounded = quant.post_training(net, [case.inputs[:64]], quant.policy(setting, None))
    on_grids = deploy.lift(net.infer, net.variables, example, quant.grids(rounded))
    found[name] = deploy.litert().write(on_grids)
  return found


def sparse(case: Case) -> dict[str, bytes]:
  """Returns files of the net without its smallest weights."""
  net = thinned(case.net)
  network = deploy.lift(net.infer, net.variables, case.inputs[:1])
  whole, rows = deploy.litert().write(network), deploy.litert(sparse=0.9).write(network)
  return {f"float32, {ZEROS:.0%} zeros": whole, f"compressed rows, {ZEROS:.0%} zeros": rows}


def measure(case: Case, files: dict[str, bytes], runs: int) -> list[dict[str, Any]]:
  """Returns a row of each file."""
  with tempfile.TemporaryDirectory() as folder:
    paths = {name: str(Path(folder) / f"{place}.tflite") for place, name in enumerate(files)}
    for name, path in paths.items():
      Path(path).write_bytes(files[name])
    times = latencies(paths, runs)
    outputs = {name: deploy.open_file(path).run(case.inputs) for name, path in paths.items()}
  rows, exact = [], np.zeros(1)
  for name, content in files.items():
    exact = outputs[name] if name.startswith("float32") else exact
    error = float(np.sqrt(np.mean((outputs[name] - exact) ** 2)) / np.std(exact))
    row = {"name": name, "bytes": len(content), "error_of_outputs": error}
    rows.append({**row, **{key: times[name][key] for key in ("wall_min", "cpu_min")}})
    print(f"{name:28} {len(content):>10,} bytes {row['error_of_outputs']:.4f} {times[name]['wall_min']:9.1f} us")
  return rows


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", type=int, default=400)
  parser.add_argument("--out", default="benchmarks/results/litert_varieties_cpu.json")
  given = parser.parse_args()
  before, cases = load(), {"MLP, 784-1200-1200-10": mlp(), "ResNet-20, 32x32": resnet20()}
  results = {}
  for name, case in cases.items():
    files = varieties(case) | (sparse(case) if name.startswith("MLP") else {})
    results[name] = measure(case, files, given.runs)
  what = "One float network in .tflite files that hold its weights in different ways."
  write(given.out, what, f"python -m benchmarks.litert_varieties --runs {given.runs}", before, {"cases": results})


if __name__ == "__main__":
  main()
