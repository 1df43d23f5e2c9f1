"""Our quantized .onnx files beside those of onnxruntime's own quantize_static, in one interleaved run.

python -m benchmarks.onnx_peers [--rounds 40] [--epochs 40] [--out=benchmarks/results/onnx_peers_cpu.json]

Both start from one float file of ours, with batch norms folded, and from the same calibration images; quantize_static
has int8 weights per channel, uint8 activations and ranges from extrema. The first network is trained on the digits and
judged on its test split; the second has the size of ResNet-20 for 32x32 images and its first random weights, and only
its latency counts. In each round every file is called at batch 1 on one thread, in turns.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import quant
from benchmarks.common import load, write
from leanax import deploy, graph
from leanax.engine.data import Preprocess, device_arrays, normalise
from leanax.pipeline import build, calibrate
from leanax.pipeline import trained as models
from leanax.pipeline.benchmark import benchmark, table
from leanax.pipeline.compress import open_run
from leanax.pipeline.config import loading
from leanax.pipeline.stage import run_stage
from leanax.zoo.resnet import ResNet

FLOAT, OURS, ENDS, THEIRS = "float", "ours", "ours_float_ends", "quantize_static"
BATCHES, POLICY = 8, (("*", "w8a8"),)


class Case(NamedTuple):
  """A float net, calibration batches, and images and labels to judge by; None for a net that was never trained."""

  net: graph.Net
  batches: Sequence[np.ndarray]
  test: tuple[np.ndarray, np.ndarray] | None


def digits(epochs: int) -> Case:
  """Returns a small residual net, trained on the digits."""
  return trained("digits", {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1, 1)}}, epochs)


def trained(data: str, model: dict[str, Any], epochs: int) -> Case:
  """Returns a net that was trained on a dataset, as a config names both."""
  config = loading.load("configs/digits_ptq.py")
  config.data.name, config.models.student, config.stages.float.epochs = data, model, epochs
  settings = loading.resolve(config)
  with tempfile.TemporaryDirectory() as folder:
    context = open_run(settings, Path(folder))
    found = models.fold(run_stage("float", context, {}))
  stage, images = settings.stages["float"], context.data
  arrays = device_arrays(build.examples(settings, stage, images.train))
  batches = list(calibrate.batches(arrays, build.inputs(settings, stage), BATCHES))
  net = graph.net(models.functions(found.recipe).fn, found.variables, models.example(found.recipe))
  test = normalise(jnp.asarray(images.test.images), Preprocess(**found.recipe.preprocess))
  return Case(net, [np.asarray(batch) for batch in batches], (np.asarray(test), images.test.labels))


def resnet20() -> Case:
  """Returns a net of the size of ResNet-20, with random weights."""
  module = ResNet((3, 3, 3))
  batches = np.random.default_rng(0).normal(size=(2, 8, 32, 32, 3)).astype(np.float32)
  variables = jax.jit(module.init)(jax.random.key(0), batches[0])
  return Case(graph.fold_batch_norms(graph.net(module.apply, variables, batches[0][:1])), list(batches), None)


def files(case: Case, folder: Path) -> dict[str, Path]:
  """Writes the float file, ours with integer and with float ends, and quantize_static's."""
  example = case.batches[0][:1]
  rounded = quant.post_training(case.net, case.batches, quant.policy(POLICY))
  plain = deploy.lift(case.net.infer, case.net.variables, example)
  ours = deploy.lift(case.net.infer, case.net.variables, example, quant.grids(rounded))
  made = {FLOAT: plain, OURS: ours, ENDS: deploy.ir.float_ends(ours)}
  paths = {name: folder / f"{name}.onnx" for name in (*made, THEIRS)}
  for name, network in made.items():
    paths[name].write_bytes(deploy.onnx().write(network))
  _quantize_static(paths[FLOAT], paths[THEIRS], next(iter(plain.inputs)), case.batches)
  return paths


def _quantize_static(source: Path, out: Path, name: str, batches: Sequence[np.ndarray]) -> None:
  from onnxruntime import quantization as peer

  class Reader(peer.CalibrationDataReader):
    """The calibration batches, as quantize_static asks for them."""

    def __init__(self) -> None:
      self.left = iter(batches)

    def get_next(self) -> Any:
      batch = next(self.left, None)
      return None if batch is None else {name: batch}

  prepared = out.with_suffix(".prepared.onnx")
  peer.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
  types = {"activation_type": peer.QuantType.QUInt8, "weight_type": peer.QuantType.QInt8}
  peer.quantize_static(str(prepared), str(out), Reader(), quant_format=peer.QuantFormat.QDQ, per_channel=True, **types)


def judged(paths: dict[str, Path], test: tuple[np.ndarray, np.ndarray]) -> dict[str, dict[str, float]]:
  """Returns of each file its accuracy, how often it answers as the float file, and the error of its logits."""
  images, labels = test
  logits = {name: deploy.open_file(path).run(images) for name, path in paths.items()}
  spread = float(np.std(logits[FLOAT]))
  return {
    name: {
      "accuracy": float(np.mean(found.argmax(-1) == labels)),
      "same_answer_as_float": float(np.mean(found.argmax(-1) == logits[FLOAT].argmax(-1))),
      "error_of_logits": float(np.sqrt(np.mean((found - logits[FLOAT]) ** 2))) / spread,
    }
    for name, found in logits.items()
  }


def measure(case: Case, rounds: int) -> dict[str, Any]:
  """Returns the figures of all files of a case, and prints them."""
  with tempfile.TemporaryDirectory() as folder:
    paths = files(case, Path(folder))
    result = benchmark([str(path) for path in paths.values()], rounds=rounds)
    quality = {} if case.test is None else judged(paths, case.test)
  print(table(result))
  for name, row in quality.items():
    print(
      f"{name:16}  accuracy {row['accuracy']:.2%}, same answer {row['same_answer_as_float']:.2%}, "
      f"error of the logits {row['error_of_logits']:.4f} of their spread"
    )
  return {"files": [{**row, **quality.get(Path(row["name"]).stem, {})} for row in result["models"]]}


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=40)
  parser.add_argument("--epochs", type=int, default=40)
  parser.add_argument("--out", default="benchmarks/results/onnx_peers_cpu.json")
  given = parser.parse_args()
  before = load()
  cases = {"digits, ResNet of 3 blocks, 8x8": digits(given.epochs), "ResNet-20, 32x32, random weights": resnet20()}
  results = {name: measure(case, given.rounds) for name, case in cases.items()}
  command = f"python -m benchmarks.onnx_peers --rounds {given.rounds} --epochs {given.epochs}"
  what = "Our quantized .onnx files and those of onnxruntime's quantize_static, from one float file and calibration."
  write(given.out, what, command, before, {"cases": results})


if __name__ == "__main__":
  main()
