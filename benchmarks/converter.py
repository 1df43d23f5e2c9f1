"""Files of others for LiteRT: by Google's litert-converter, which needs no TensorFlow, and by TensorFlow's converter.

litert-converter 0.5.0 reads the StableHLO text of a jitted function. In its strict mode for quantized models it makes
int8 kernels of float operations between composites named "quant.fake_quant", on the grids that these carry; which
attributes they have is in TensorFlow's `lower_quant_annotations_helper.cc`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from leanax import deploy
from leanax.deploy import ir

IMAGE = ("NHWC", "HWIO", "NHWC")


def litert_converter(fn: Callable[..., Any], example: Any, strict: bool = False) -> bytes:
  """Returns a .tflite file of `fn(x)`, of the example's batch, by litert-converter.

  Args:
    fn: its weights are constants.
    example: an input, or its shape.
    strict: whether composites "quant.fake_quant" become int8.

  Raises:
    Exception: MLIR's, for what it does not convert.
  """
  from litert_converter import converter_api_ext as converter
  from litert_converter.mlir import ir as mlir
  from litert_converter.mlir import passmanager

  text = jax.jit(fn).lower(example).as_text()
  context = mlir.Context()
  converter.prepare_mlir_context(context)
  with context, mlir.Location.unknown(context):
    module = mlir.Module.parse(text)
    converter.set_signature(module.body.operations[0], "serving_default", ["input"], ["output"])
    config = converter.ConvertToTFLConfig()
    config.strict_qdq_mode = strict
    converter.run_convert_to_tfl_passes(module, passmanager.PassManager("builtin.module"), config)
    return converter.export_flatbuffer_to_bytes(module.operation)


def tensorflow(fn: Callable[..., Any], example: np.ndarray, batches: Sequence[np.ndarray] = ()) -> bytes:
  """Returns a .tflite file of `fn(x)` by TensorFlow's converter: float, or int8 where there are calibration batches.

  Int8 has scales per channel and int8 ends, as the converter's full integer quantization makes it.
  """
  import tensorflow as tf
  from jax.experimental import jax2tf

  called = tf.function(jax2tf.convert(fn, enable_xla=False), autograph=False)
  concrete = called.get_concrete_function(tf.TensorSpec(example.shape, tf.float32, name="input"))
  converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
  if len(batches):
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([x[None]] for batch in batches for x in batch)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = converter.inference_output_type = tf.int8
  return converter.convert()


def fake_quantized(network: deploy.Network) -> Callable[[jax.Array], jax.Array]:
  """Returns an int8 network of one input as a float function with a composite for each of its grids."""

  def run(x: jax.Array) -> jax.Array:
    values = {network.input: _on_grid(x, network.tensors[network.input])}
    for layer in network.layers:
      made = _LAYERS[type(layer)](layer, network, *(values[name] for name in layer.inputs))
      if getattr(layer, "relu", False):
        made = jax.nn.relu(made)
      values[layer.output] = _on_grid(made, network.tensors[layer.output])
    return values[network.output]

  return run


def _on_grid(x: jax.Array, tensor: ir.Tensor) -> jax.Array:
  """Returns values on a tensor's grid, by a composite that says the grid's numbers."""
  scale, zero, narrow = np.atleast_1d(tensor.scale), tensor.zero_point, tensor.data is not None
  along = [-1 if axis == tensor.axis else 1 for axis in range(x.ndim)] if tensor.axis is not None else [1] * x.ndim

  def body(x: jax.Array, **_: Any) -> jax.Array:
    steps = jnp.round(x / scale.reshape(along)) + np.float32(zero)
    return (jnp.clip(steps, -127 if narrow else -128, 127) - np.float32(zero)) * scale.reshape(along)

  axis = {} if tensor.axis is None else {"quantization_dimension": np.int32(tensor.axis)}
  numbers = {"scale": scale, "zero_point": np.full(scale.shape, zero, np.int32), "dtype": "i8", "narrow_range": narrow}
  return lax.composite(body, "quant.fake_quant")(x, **numbers, **axis)


def _kernel(layer: Any, network: deploy.Network) -> jax.Array:
  kernel = network.tensors[layer.kernel]
  return _on_grid(jnp.asarray(ir.dequantize(ir.values(kernel), kernel)), kernel)


def _bias(layer: Any, network: deploy.Network) -> Any:
  if layer.bias is None:
    return np.float32(0)
  bias = network.tensors[layer.bias]
  return bias.scale * ir.values(bias).astype(np.float32)


def _dense(layer: Any, network: deploy.Network, x: jax.Array) -> jax.Array:
  return x @ _kernel(layer, network) + _bias(layer, network)


def _conv(layer: Any, network: deploy.Network, x: jax.Array) -> jax.Array:
  given: dict[str, Any] = {"rhs_dilation": layer.dilation, "feature_group_count": layer.groups}
  made = lax.conv_general_dilated(
    x, _kernel(layer, network), layer.strides, layer.padding, dimension_numbers=IMAGE, **given
  )
  return made + _bias(layer, network)


def _max_pool(layer: Any, network: deploy.Network, x: jax.Array) -> jax.Array:
  del network
  return lax.reduce_window(x, -np.inf, lax.max, (1, *layer.window, 1), (1, *layer.strides, 1), _pads(layer))


def _average_pool(layer: Any, network: deploy.Network, x: jax.Array) -> jax.Array:
  del network
  total = lax.reduce_window(x, np.float32(0), lax.add, (1, *layer.window, 1), (1, *layer.strides, 1), _pads(layer))
  return total / np.float32(np.prod(layer.window))  # of windows without padding


def _pads(layer: Any) -> list[tuple[int, int]]:
  return [(0, 0), *layer.padding, (0, 0)]


_LAYERS: dict[type, Callable[..., jax.Array]] = {
  ir.Dense: _dense,
  ir.Conv2D: _conv,
  ir.MaxPool: _max_pool,
  ir.AvgPool: _average_pool,
  ir.Add: lambda layer, network, a, b: a + b,
  ir.Mean: lambda layer, network, x: x.mean((1, 2), keepdims=layer.keep_dims),
  ir.Reshape: lambda layer, network, x: x.reshape(x.shape[0], *network.tensors[layer.output].shape[1:]),
  ir.Relu: lambda layer, network, x: jax.nn.relu(x),
}
