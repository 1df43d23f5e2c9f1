"""A net to a file in one call."""

from pathlib import Path
from typing import Any

import quant
from leanax.core import files
from leanax.core.errors import UserError
from leanax.deploy.description import Description
from leanax.deploy.files import format_of
from leanax.deploy.formats import Model
from leanax.deploy.ir import Network, with_ends
from leanax.deploy.lift import lift
from leanax.deploy.preprocessing import Preprocessing
from leanax.graph.net import Net


def network(net: Net, preprocessing: Preprocessing | None = None) -> Network:
  """Returns the layers of a net: int8 where it is quantized (`quant.post_training`, a trained one), else float.

  Args:
    net: batch norms must be folded before it is quantized (`graph.fold_batch_norms`).
    preprocessing: the step from raw images to inputs; it is stored in the file.

  Raises:
    UserError: what `lift` refuses.
  """
  if not isinstance(net, Net):
    raise UserError(f"a {type(net).__name__} is no net; expected one of engine.models.net or graph.net")
  if preprocessing is not None:
    preprocessing.affine()  # what makes no inputs is refused before anything is lifted
  example = net.example[0] if len(net.example) == 1 else net.example
  if not quant.is_quantized(net):
    return lift(net.infer, net.variables, example, None, preprocessing)
  plain = quant.float_net(net)
  return lift(plain.infer, plain.variables, example, quant.grids(net), preprocessing)


def save(
  net: Net,
  path: str | Path,
  *,
  preprocessing: Preprocessing | None = None,
  description: Description | None = None,
  inputs: str = "",
  outputs: str = "",
  **options: Any,
) -> int:
  """Writes a net as a file for a runtime.

  Args:
    net: as of `network`.
    path: its suffix says the format: .tflite, .onnx or .stablehlo.
    preprocessing: the step from raw images to inputs; it is stored in the file.
    description: what the file says of itself.
    inputs: "uint8" for raw images, "float32" for floats in place of codes; "" for the network's own numbers.
    outputs: "float32" or "".
    **options: of the format, such as weights="float16".

  Returns:
    The file's bytes.

  Raises:
    UserError: an unknown suffix or option, or a net that the format cannot hold.
  """
  chosen = format_of(path, **options)
  if chosen.takes is Model:
    if inputs or outputs:
      raise UserError(f"{str(path)!r}: a {chosen.suffix} file has the net's own inputs and outputs; got 'inputs'")
    content = chosen.write(Model(net, preprocessing, description))
  else:
    made = network(net, preprocessing)._replace(description=description)
    content = chosen.write(with_ends(made, inputs, outputs))
  files.write(path, content)
  return len(content)
