"""Ten lines that run an exported file with numpy and its runtime alone, from pixels to a class.

A .stablehlo file's runtime is jax; its weights are entropy-coded, so this package unpacks them.
"""

from collections.abc import Mapping
from typing import Any


def snippet(path: str, dtype: str, preprocess: Mapping[str, Any]) -> str:
  """Returns the program for a file; "" for a format that has none here.

  Args:
    path: the file.
    dtype: of its input.
    preprocess: {"scale", "mean", "std"}, from pixels to its input, and "resize" where images are resized before.
  """
  import numpy as np  # the report's page is written without it

  written = next((lines for suffix, lines in _LINES.items() if path.endswith(suffix)), None)
  if written is None or dtype not in ("float32", "int8", "uint8"):
    return ""
  std = np.asarray(preprocess["std"], np.float64)
  factor, offset = preprocess["scale"] / std, -np.asarray(preprocess["mean"], np.float64) / std
  prepared = f"x = pixels * {_numbers(factor)} + {_numbers(offset)}"
  lines = ["import numpy as np", *written(path, dtype, "x = pixels" if dtype == "uint8" else prepared)]
  way = _WAYS.get(preprocess.get("resize", ""))
  if way is None:
    return "\n".join(lines)
  place = next(index for index, line in enumerate(lines) if line.startswith("pixels = "))
  read = [
    '_, height, width, channels = source["shape"]'
    if path.endswith(".tflite")
    else "_, height, width, channels = source.shape",
    'image = ImageOps.exif_transpose(Image.open("picture.jpg")).convert("RGB" if channels == 3 else "L")',
    f"image = {way}",
    "pixels = np.asarray(image, np.uint8).reshape(1, height, width, channels)",
  ]
  return "\n".join([lines[0], "from PIL import Image, ImageOps", *lines[1:place], *read, *lines[place + 1 :]])


def _litert(path: str, dtype: str, prepared: str) -> list[str]:
  codes = 'np.rint(x * (np.float32(1) / source["quantization"][0])) + source["quantization"][1]'
  return [
    "from ai_edge_litert.interpreter import Interpreter",
    f'net = Interpreter("{path}")',
    "net.allocate_tensors()",
    "source, result = net.get_input_details()[0], net.get_output_details()[0]",
    'pixels = np.zeros(source["shape"], np.uint8)  # one image, 0 to 255',
    prepared,
    *([f"x = np.clip({codes}, -128, 127)"] if dtype == "int8" else []),
    'net.set_tensor(source["index"], x.astype(source["dtype"]))',
    "net.invoke()",
    'print(net.get_tensor(result["index"]).argmax())  # the number of its class',
  ]


def _onnx(path: str, dtype: str, prepared: str) -> list[str]:
  """Returns the lines for an .onnx file, which has uint8 codes where the network has int8 ones (`deploy.onnx`)."""
  held = 'net.get_modelmeta().custom_metadata_map["leanax.grids"]'
  codes = 'np.rint(x * (np.float32(1) / np.float32(grid["scale"]))) + grid["zero_point"]'
  quantized = [f'grid = json.loads({held})["inputs"][source.name]', f"x = np.clip({codes}, 0, 255)"]
  return [
    *(["import json"] if dtype == "int8" else []),
    "import onnxruntime",
    f'net = onnxruntime.InferenceSession("{path}")',
    "source = net.get_inputs()[0]",
    "pixels = np.zeros([1, *source.shape[1:]], np.uint8)  # one image, 0 to 255",
    prepared,
    *(quantized if dtype == "int8" else []),
    f"x = x.astype(np.{'float32' if dtype == 'float32' else 'uint8'})",
    "print(net.run(None, {source.name: x})[0].argmax())  # the number of its class",
  ]


_SIZE = "(width, height), Image.Resampling.BILINEAR"
_WAYS = {  # as `engine.data.pictures.RESIZES`
  "stretch": f"image.resize({_SIZE})",
  "crop": f"ImageOps.fit(image, {_SIZE})",
  "pad": f"ImageOps.pad(image, {_SIZE}, color=0)",
}


def _stablehlo(path: str, dtype: str, prepared: str) -> list[str]:
  del dtype  # the model's own
  return [
    "from leanax import deploy  # of the packages of models it needs none",
    f'net = deploy.open_file("{path}")',
    "pixels = np.zeros([1, *net.input.shape[1:]], np.uint8)  # one image, 0 to 255",
    prepared,
    "print(net.codes(x.astype(net.input.dtype)).argmax())  # the number of its class",
  ]


_LINES = {".tflite": _litert, ".onnx": _onnx, ".stablehlo": _stablehlo}


def _numbers(values: Any) -> str:
  """Returns float32 numbers as a program has them, one for all channels or one for each."""
  exact = [str(value + 0) for value in values.ravel().astype("float32")]
  return f"np.float32({exact[0]})" if len(exact) == 1 else f"np.array([{', '.join(exact)}], np.float32)"
