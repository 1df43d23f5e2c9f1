"""Classifies pictures by an exported .tflite file, with numpy, pillow and LiteRT alone; copy this file anywhere.

    python examples/phone/classify.py runs/phone/files/w16_int8.tflite shirt.png shoe.jpg

It needs `pip install numpy pillow ai-edge-litert`. The file itself says how pixels become its input and what its
classes are. Pictures are turned upright by their EXIF orientation, laid over white where they are transparent, made
grey or coloured and brought to the size that the file takes. Probabilities are the softmax of the file's outputs.
The status is 2 where a file or a picture cannot be read; the other pictures are classified all the same.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

TYPES = ("float32", "int8", "uint8")  # of inputs that are prepared here
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")  # pillow would try all that it has, such as EPS, a program


class Mistake(Exception):
  """A mistake of the user's: its text is one sentence, which names the file."""


class Net(NamedTuple):
  """An opened file.

  Attributes:
    shape: (height, width, channels) of the picture that it takes.
    how: its preprocessing, {"scale", "mean", "std"} and perhaps "resize"; None where it takes pixels as they are.
    classes: the names of its outputs, numbers where it has none.
    run: from (height, width, channels) uint8 pixels to float outputs.
  """

  shape: tuple[int, int, int]
  how: dict[str, Any] | None
  classes: list[str]
  run: Callable[[np.ndarray], np.ndarray]


def metadata(content: bytes) -> dict[str, bytes]:
  """Returns the entries of a .tflite file's metadata by name."""
  from ai_edge_litert import schema_py_generated as schema

  model: Any = schema.Model.GetRootAs(content)
  entries = [model.Metadata(place) for place in range(model.MetadataLength())]
  return {one.Name().decode(): bytes(model.Buffers(one.Buffer()).DataAsNumpy()) for one in entries}


def open_net(path: str) -> Net:
  """Opens a .tflite file.

  Raises:
    Mistake: it is not there, is none, or does not say how pixels become its input.
  """
  from ai_edge_litert.interpreter import Interpreter

  try:
    content = Path(path).read_bytes()
  except OSError as error:
    raise Mistake(f"{path}: cannot be read: {error.strerror}") from None
  if content[4:8] != b"TFL3":
    raise Mistake(f"{path}: is no .tflite file")
  try:
    interpreter, held = Interpreter(model_content=content, num_threads=1), metadata(content)
    interpreter.allocate_tensors()
    how = json.loads(held["leanax"])["preprocessing"] if "leanax" in held else None
    named = json.loads(held["leanax.description"])["classes"] if "leanax.description" in held else []
  except Exception as error:  # a damaged file may raise anything
    raise Mistake(f"{path}: is damaged: {' '.join(str(error).split())[:200]}") from None
  sources: list[Any] = interpreter.get_input_details()
  results: list[Any] = interpreter.get_output_details()
  source, result = sources[0], results[0]
  shape, dtype, count = tuple(source["shape"][1:]), np.dtype(source["dtype"]).name, int(result["shape"][-1])
  single = len(sources) == len(results) == 1
  if not single or len(shape) != 3 or shape[2] not in (1, 3) or len(result["shape"]) != 2 or dtype not in TYPES:
    raise Mistake(
      f"{path}: takes {dtype} numbers of shape {shape} and gives {tuple(result['shape'][1:])}; expected one picture, "
      "grey or coloured, and one number for each class"
    )
  (scale, zero), (out_scale, out_zero) = source["quantization"], result["quantization"]
  plain = dtype == "uint8" and not scale
  if how is None and not plain:
    raise Mistake(f"{path}: does not say how pixels become its input; expected a file that leanax wrote")

  def run(pixels: np.ndarray) -> np.ndarray:
    x = pixels if plain or how is None else prepared(pixels, how)
    if scale:
      info = np.iinfo(source["dtype"])
      x = np.clip(np.rint(x * (np.float32(1) / np.float32(scale))) + zero, info.min, info.max)
    interpreter.set_tensor(source["index"], x.astype(source["dtype"])[None])
    interpreter.invoke()
    out = interpreter.get_tensor(result["index"])[0]
    return (out.astype(np.float32) - out_zero) * np.float32(out_scale) if out_scale else out.astype(np.float32)

  if len(named) != count:
    print(f"note: {path} does not name its classes; their numbers are shown", file=sys.stderr)
    named = [str(number) for number in range(count)]
  return Net((int(shape[0]), int(shape[1]), int(shape[2])), how, named, run)


def prepared(pixels: np.ndarray, how: dict[str, Any]) -> np.ndarray:
  """Returns (pixels * scale - mean) / std as float32."""
  std = np.asarray(how["std"], np.float64)
  factor, offset = how["scale"] / std, -np.asarray(how["mean"], np.float64) / std
  return pixels.astype(np.float32) * factor.astype(np.float32) + offset.astype(np.float32)


def picture(path: str, shape: tuple[int, int, int], resize: str) -> np.ndarray:
  """Returns a picture's (height, width, channels) uint8 pixels.

  Args:
    path: of the picture.
    shape: that it is brought to.
    resize: "stretch" fits both sides, "crop" takes the largest centred part of the aspect, "pad" lays black around.

  Raises:
    Mistake: the picture is not there, is none, or has pages or numbers that are no pixels.
  """
  from PIL import Image, ImageOps

  height, width, channels = shape
  size, method = (width, height), Image.Resampling.BILINEAR
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")  # pillow warns of much that a user cannot change
      warnings.simplefilter("error", Image.DecompressionBombWarning)
      image: Any = Image.open(path, formats=FORMATS)
      if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        raise ValueError(f"it has {image.n_frames} frames or pages; expected one picture")
      if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits; expected 8 or 16")
      image = ImageOps.exif_transpose(image)
  except OSError as error:
    raise Mistake(f"{path}: {error.strerror or 'is not a readable picture'}") from None
  except Exception as error:  # a damaged picture may raise anything
    raise Mistake(f"{path}: is not a readable picture: {error}") from None
  if image.mode.startswith("I;16"):
    image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
  if image.has_transparency_data:
    found = np.asarray(image.convert("RGBA")).astype(np.uint16)
    colour, alpha = found[..., :3], found[..., 3:]
    image = Image.fromarray(((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8))
  image = image.convert("RGB" if channels == 3 else "L")
  if image.size != size:
    if not resize:
      print(f"note: {path} is stretched to {height}x{width} pixels; the file does not say how", file=sys.stderr)
    if resize == "crop":
      image = ImageOps.fit(image, size, method)
    elif resize == "pad":
      image = ImageOps.pad(image, size, method, color=0)
    else:
      image = image.resize(size, method)
  return np.asarray(image, np.uint8).reshape(shape)


def softmax(outputs: np.ndarray) -> np.ndarray:
  """Returns the probabilities of logits, in double precision."""
  powers = np.exp(outputs.astype(np.float64) - outputs.max())
  return powers / powers.sum()


def main() -> int:
  """Reads the command line, prints the likeliest classes of each picture, and returns the exit status."""
  options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
  options.add_argument("file", help="an exported .tflite file")
  options.add_argument("picture", nargs="+", help="a picture that pillow reads")
  options.add_argument("--top", type=int, default=3, help="how many classes are printed")
  options.add_argument("--invert", action="store_true", help="for dark things on white, where the net saw the opposite")
  given, status = options.parse_args(), 0
  try:
    net = open_net(given.file)
  except Mistake as error:
    print(f"error: {error}", file=sys.stderr)
    return 2
  for path in given.picture:
    try:
      pixels = picture(path, net.shape, (net.how or {}).get("resize", ""))
    except Mistake as error:
      print(f"error: {error}", file=sys.stderr)
      status = 2
      continue
    found = softmax(net.run(255 - pixels if given.invert else pixels))
    best = np.argsort(-found, kind="stable")[: max(given.top, 1)]
    print(f"{path}: " + ", ".join(f"{net.classes[place]} {100 * found[place]:.1f} %" for place in best))
  return status


if __name__ == "__main__":
  sys.exit(main())
