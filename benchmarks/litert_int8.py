"""Our int8 .tflite files beside our float ones in LiteRT on one thread, and their answers beside the simulation's.

python -m benchmarks.litert_int8 [--rounds 40] [--images 2000] [--epochs 40]

The first networks have random weights, batch norms of 64 images of random patches, which give the ranges too; the last
two are trained, and compared on test images (MNIST is read from LEANAX_DATA_DIR, and left out without). In each round
every file is called at batch 1, in turns. "Same answer" is how often the largest logit of the int8 file is that of the
simulation. Logits are codes: of random weights the two largest ones are often equal, or a step apart.
"""

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import quant
from benchmarks import nets
from benchmarks.common import load, write
from benchmarks.onnx_peers import digits, trained
from leanax import deploy, graph
from leanax.pipeline.benchmark import benchmark, table

AT_LEAST = {"MLP 784-1200-1200-10": 4.0, "ResNet-20, 32x32": 2.0, "ResNet-18, 32x32": None}  # times faster
BATCH = 50


def written(net: graph.Net, batches: Sequence[np.ndarray], folder: Path) -> tuple[dict[str, Path], graph.Net]:
  """Writes the float and the int8 file; returns their paths, and the net whose integers are simulated."""
  rounded = quant.post_training(net, batches, "w8a8")
  paths = {}
  for name, grids in (("float", None), ("int8", quant.grids(rounded))):
    paths[name] = folder / f"{name}.tflite"
    paths[name].write_bytes(deploy.litert().write(deploy.lift(net.infer, net.variables, batches[0][:1], grids)))
  return paths, rounded


def answers(path: Path, rounded: graph.Net, images: np.ndarray) -> dict[str, Any]:
  """Returns how often the file and the simulation give the same answer, and the same codes."""
  file, simulate = deploy.open_file(path), jax.jit(rounded.infer)
  parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
  values = np.concatenate([np.asarray(simulate(rounded.variables, part)) for part in parts])
  expected, found = deploy.ir.quantize(values, file.output), file.batches(images, BATCH)
  same = found.argmax(-1) == expected.argmax(-1)
  return {
    "images": len(images),
    "same_answer": float(same.mean()),
    "same_codes": float((found == expected).mean()),
  }


def pictures(shape: tuple[int, ...], count: int, seed: int) -> np.ndarray:
  """Returns images of pixels from 0 to 1: patches of random colours, since noise alone looks the same everywhere."""
  height, width, colours = shape
  drawn = np.random.default_rng(seed).integers(0, 256, (count, 4, 4, colours)).astype(np.float32) / np.float32(255)
  return drawn.repeat(height // 4, 1).repeat(width // 4, 2)


def normalised(net: graph.Net, images: np.ndarray) -> graph.Net:
  """Returns a net whose batch norms have the statistics of these images, so that its logits differ between images."""
  if "batch_stats" not in net.variables:
    return net
  train = jax.jit(lambda v, x: net.apply(v, x, train=True, key=jax.random.key(0))[1])
  kept = 0.9  # of the old statistics: the momentum of the zoo's nets
  moved = train(net.variables, images)["batch_stats"]
  stats = jax.tree.map(lambda new, old: (new - kept * old) / (1 - kept), moved, net.variables["batch_stats"])
  return dataclasses.replace(net, variables={**net.variables, "batch_stats": stats})


def measure(net: graph.Net, batches: Sequence[np.ndarray], images: np.ndarray, rounds: int) -> dict[str, Any]:
  """Returns the figures of one network, and prints them."""
  with tempfile.TemporaryDirectory() as folder:
    paths, rounded = written(net, batches, Path(folder))
    found = benchmark([str(path) for path in paths.values()], rounds=rounds)
    same = answers(paths["int8"], rounded, images)
  one, other = found["models"]
  faster = {kind: round(one[f"{kind}_us"] / other[f"{kind}_us"], 2) for kind in ("wall", "cpu")}
  print(f"{table(found)}\nint8 is {faster['cpu']} times faster (CPU); {same}\n", flush=True)
  return {"files": found["models"], "faster": faster, **same}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=40)
  parser.add_argument("--images", type=int, default=2000)
  parser.add_argument("--epochs", type=int, default=40)
  parser.add_argument("--out", default="benchmarks/results/litert_int8_cpu.json")
  given = parser.parse_args()
  before, results = load(), {}
  for name, least in AT_LEAST.items():
    case = nets.CASES[name]
    print(name)
    batches = [pictures(case.shape, 64, 1)]
    net = graph.fold_batch_norms(normalised(nets.net(case), batches[0]))
    results[name] = {"at_least": least, **measure(net, batches, pictures(case.shape, given.images, 2), given.rounds)}
  learnt = {"digits, ResNet of 3 blocks, 8x8": digits(given.epochs)}
  if os.environ.get("LEANAX_DATA_DIR"):
    model = {"name": "zoo.mlp:MLP", "kwargs": {"widths": (1200, 1200)}}
    learnt["MNIST, MLP 784-1200-1200-10"] = trained("tfds:mnist", model, 1)
  for name, one in learnt.items():
    assert one.test is not None
    print(name)
    results[name] = measure(one.net, one.batches, one.test[0], given.rounds)
  command = f"python -m benchmarks.litert_int8 --rounds {given.rounds} --images {given.images} --epochs {given.epochs}"
  write(given.out, (__doc__ or "").splitlines()[0], command, before, {"networks": results})


if __name__ == "__main__":
  main()
