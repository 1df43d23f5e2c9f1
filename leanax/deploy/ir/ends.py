"""What a file takes and gives: a network's own numbers, floats in place of codes, or pixels."""

from leanax.core.errors import UserError
from leanax.deploy.ir.layers import Dequantize, Layer, Quantize, Reshape
from leanax.deploy.ir.network import Network
from leanax.deploy.ir.operators import Binary, Cast
from leanax.deploy.ir.tensor import Tensor


def with_ends(network: Network, inputs: str = "", outputs: str = "") -> Network:
  """Returns a network that takes and gives other types.

  Args:
    network: any network.
    inputs: "uint8" for pixels as they are, "float32" for floats in place of codes, "" for its own.
    outputs: "float32" or "".

  Raises:
    UserError: pixels are asked for of a network whose preprocessing is not known.
  """
  if inputs == "uint8":
    network = pixel_inputs(network)
  return float_ends(network, inputs == "float32", outputs == "float32")


def pixel_inputs(network: Network) -> Network:
  """Returns a network that takes uint8 images as they are: its first layers are the preprocessing.

  Raises:
    UserError: it has no preprocessing, which says what the pixels become.
  """
  how = network.preprocessing
  if how is None:
    raise UserError(
      "the network has no preprocessing, so it is not known what it makes of pixels; expected "
      "preprocessing=deploy.Preprocessing(...)"
    )
  tensors, layers, inputs = dict(network.tensors), list[Layer](), {}
  for name, given in network.inputs.items():
    if tensors[given].dtype not in ("float32", "int8"):
      raise UserError(f"the input {name!r} takes {tensors[given].dtype}, not images")
    shape, made = tensors[given].shape, [f"{given}:{step}" for step in ("pixels", "cast", "scaled", "image")]
    if tensors[given].dtype == "float32":
      made[3] = given
    constants = {f"{given}:{key}": value for key, value in zip(("factor", "offset"), how.affine(), strict=True)}
    tensors |= {key: Tensor(key, value.shape, data=value) for key, value in constants.items()}
    tensors |= {key: Tensor(key, shape) for key in made[1:]}
    tensors[made[0]] = Tensor(made[0], shape, "uint8")
    factor, offset = constants
    layers += [
      Cast(f"{given}:cast", (made[0],), made[1]),
      Binary(f"{given}:scale", (made[1], factor), made[2], "mul"),
      Binary(f"{given}:shift", (made[2], offset), made[3], "add"),
    ]
    if made[3] != given:
      layers.append(Quantize(f"{given}:quantize", (made[3],), given))
    inputs[name] = made[0]
  layers += network.layers
  return network._replace(layers=tuple(layers), tensors=tensors, inputs=inputs, preprocessing=None)


def float_ends(network: Network, inputs: bool = True, outputs: bool = True) -> Network:
  """Returns a network with float32 ends: a Quantize layer before codes, and a Dequantize layer behind them."""
  tensors, layers = dict(network.tensors), list(network.layers)
  given, made = dict(network.inputs), dict(network.outputs)
  for name, tensor in given.items():
    if inputs and tensors[tensor].dtype == "int8":
      given[name] = f"{tensor}:given"
      tensors = {given[name]: Tensor(given[name], tensors[tensor].shape), **tensors}
      layers.insert(0, Quantize(f"{tensor}:quantize", (given[name],), tensor))
  for name, tensor in made.items():
    if outputs and tensors[tensor].dtype == "int8":
      made[name] = f"{tensor}:taken"
      tensors[made[name]] = Tensor(made[name], tensors[tensor].shape)
      layers.append(Dequantize(f"{tensor}:dequantize", (tensor,), made[name]))
  if (given, made) == (dict(network.inputs), dict(network.outputs)):
    return network
  return network._replace(layers=tuple(layers), tensors=tensors, inputs=given, outputs=made)


def separate_outputs(network: Network) -> Network:
  """Returns a network whose outputs are a tensor each, for a format that knows outputs by their tensors alone."""
  tensors, layers, outputs = dict(network.tensors), list(network.layers), dict(network.outputs)
  taken: set[str] = set()
  for name, made in network.outputs.items():
    if made in taken:
      outputs[name] = f"{made}:{name}"
      tensors[outputs[name]] = tensors[made]._replace(name=outputs[name])
      layers.append(Reshape(outputs[name], (made,), outputs[name]))
    taken.add(made)
  return network._replace(layers=tuple(layers), tensors=tensors, outputs=outputs)
