"""Our .tflite files beside those of litert-converter and of TensorFlow's converter, in one interleaved run.

python -m benchmarks.litert_peers [--rounds 40] [--epochs 40] [--out=benchmarks/results/litert_peers_cpu.json]

Needs the environment of scripts/check_peers.sh, and for the rows of TensorFlow also the extra "tensorflow"; those of a
package that is not installed are left out. All files are made of one float function, with batch norms folded.
litert-converter has no calibration: its int8 file is made of our grids. TensorFlow's has its own calibration, on the
same images. In each round every file is called at batch 1 on one thread, in turns.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

import quant
from benchmarks import converter
from benchmarks.common import load, write
from benchmarks.onnx_peers import POLICY, Case, digits, resnet20
from leanax import deploy, graph
from leanax.pipeline.benchmark import interleaved
from leanax.zoo.mlp import MLP

FLOAT = "float"


def mlp() -> Case:
  """Returns dense layers of 1,200 units, with random weights."""
  module, batches = MLP((1200, 1200)), list(np.random.default_rng(0).normal(size=(2, 8, 28, 28, 1)).astype(np.float32))
  return Case(
    graph.net(module.apply, jax.jit(module.init)(jax.random.key(0), batches[0]), batches[0][:1]), batches, None
  )


def files(case: Case) -> dict[str, tuple[bytes, float]]:
  """Returns each file, and the seconds that it took to make."""
  net, example = case.net, np.asarray(case.batches[0][:1])
  grids = quant.grids(quant.post_training(net, case.batches, quant.policy(POLICY)))
  ours = deploy.lift(net.infer, net.variables, example, grids)

  def fn(x: jax.Array) -> jax.Array:
    return net.infer(net.variables, x)

  made: dict[str, Callable[[], bytes]] = {
    FLOAT: lambda: deploy.litert().write(deploy.lift(net.infer, net.variables, example)),
    "int8": lambda: deploy.litert().write(deploy.lift(net.infer, net.variables, example, grids)),
    "int8, float ends": lambda: deploy.litert().write(deploy.ir.float_ends(ours)),
  }
  if importlib.util.find_spec("litert_converter"):
    made["litert-converter, float"] = lambda: converter.litert_converter(fn, example)
    made["litert-converter, int8, float ends"] = lambda: converter.litert_converter(
      converter.fake_quantized(ours), example, strict=True
    )
  if importlib.util.find_spec("tensorflow"):
    made["TensorFlow, float"] = lambda: converter.tensorflow(fn, example)
    made["TensorFlow, int8"] = lambda: converter.tensorflow(fn, example, case.batches)
  return {name: _timed(call) for name, call in made.items()}


def _timed(call: Callable[[], bytes]) -> tuple[bytes, float]:
  start = time.perf_counter()
  return call(), time.perf_counter() - start


def quality(opened: Mapping[str, deploy.Runner], case: Case) -> dict[str, dict[str, float]]:
  """Returns of each file the error of its logits, and of a trained net its accuracy; one image at a time."""
  images = case.batches[0] if case.test is None else case.test[0]
  logits = {name: np.concatenate([file.run(image[None]) for image in images]) for name, file in opened.items()}
  spread = float(np.std(logits[FLOAT]))
  found = {}
  for name, one in logits.items():
    found[name] = {"error_of_logits": float(np.sqrt(np.mean((one - logits[FLOAT]) ** 2))) / spread}
    if case.test is not None:
      found[name]["accuracy"] = float(np.mean(one.argmax(-1) == case.test[1]))
  return found


def measure(case: Case, rounds: int) -> dict[str, Any]:
  """Returns the figures of all files of a case, and prints them."""
  with tempfile.TemporaryDirectory() as folder:
    opened, seconds = {}, {}
    for place, (name, (content, took)) in enumerate(files(case).items()):
      path = Path(folder) / f"{place}.tflite"
      path.write_bytes(content)
      opened[name], seconds[name] = deploy.open_file(path), took
    found = interleaved(opened, rounds, 50)
    judged = quality(opened, case)
  rows = [
    {
      "name": name,
      "bytes": file.bytes,
      "wall_min_us": min(latency.wall_min for latency in found[name]),
      "wall_us": float(np.median([latency.wall_median for latency in found[name]])),
      "cpu_us": min(latency.cpu_min for latency in found[name]),
      "seconds": seconds[name],
      **judged[name],
    }
    for name, file in opened.items()
  ]
  for row in rows:
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
  return {"files": rows}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=40)
  parser.add_argument("--epochs", type=int, default=40)
  parser.add_argument("--out", default="benchmarks/results/litert_peers_cpu.json")
  given = parser.parse_args()
  before = load()
  cases = {
    "digits, ResNet of 3 blocks, 8x8": digits(given.epochs),
    "ResNet-20, 32x32, random weights": resnet20(),
    "MLP 784-1200-1200-10, random weights": mlp(),
  }
  results = {name: measure(case, given.rounds) for name, case in cases.items()}
  command = f"python -m benchmarks.litert_peers --rounds {given.rounds} --epochs {given.epochs}"
  what = "Our .tflite files and those of litert-converter and TensorFlow's converter, of one float function."
  write(given.out, what, command, before, {"cases": results})


if __name__ == "__main__":
  main()
