"""Ten lines that run an exported file with numpy and its runtime alone, from pixels to a class."""

from collections.abc import Mapping
from typing import Any


def snippet(path: str, dtype: str, preprocess: Mapping[str, Any]) -> str:
  """Returns the program for a file; "" for a format that has none here.

  Args:
    path: the file.
    dtype: of its input.
    preprocess: {"scale", "mean", "std"}, from pixels to its input.
  """
  import numpy as np  # the report's page is written without it

  if not path.endswith(".tflite") or dtype not in ("float32", "int8", "uint8"):
    return ""
  std = np.asarray(preprocess["std"], np.float64)
  factor, offset = preprocess["scale"] / std, -np.asarray(preprocess["mean"], np.float64) / std
  prepared = f"x = pixels * {_numbers(factor)} + {_numbers(offset)}"
  codes = 'np.rint(x * (np.float32(1) / source["quantization"][0])) + source["quantization"][1]'
  steps = {
    "float32": [prepared],
    "int8": [prepared, f"x = np.clip({codes}, -128, 127)"],
    "uint8": ["x = pixels"],
  }
  return "\n".join(
    [
      "import numpy as np",
      "from ai_edge_litert.interpreter import Interpreter",
      f'net = Interpreter("{path}")',
      "net.allocate_tensors()",
      "source, result = net.get_input_details()[0], net.get_output_details()[0]",
      'pixels = np.zeros(source["shape"], np.uint8)  # one image, 0 to 255',
      *steps[dtype],
      'net.set_tensor(source["index"], x.astype(source["dtype"]))',
      "net.invoke()",
      'print(net.get_tensor(result["index"]).argmax())  # the number of its class',
    ]
  )


def _numbers(values: Any) -> str:
  """Returns float32 numbers as a program has them, one for all channels or one for each."""
  exact = [str(value + 0) for value in values.ravel().astype("float32")]
  return f"np.float32({exact[0]})" if len(exact) == 1 else f"np.array([{', '.join(exact)}], np.float32)"
