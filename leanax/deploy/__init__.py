"""Deployment: a model as a network of layers, an integer reference of it, and files with their runtimes.

>>> import jax.numpy as jnp
>>> import numpy as np
>>> from leanax import deploy
>>> network = deploy.lift(lambda v, x: jnp.maximum(x @ v["kernel"], 0), {"kernel": 2 * jnp.eye(3)}, jnp.zeros((1, 3)))
>>> print(network)
input input float32[Nx3]
Dense relu kernel: input -> kernel:out float32[Nx3], 9 parameters
>>> content = deploy.litert().write(network)  # the bytes of a .tflite file
>>> deploy.litert().open(content).run(np.array([[1.0, -2.0, 3.0]])).tolist()
[[2.0, 0.0, 6.0]]

With `grids` of a quantized model (`quant.quantize`) the network and its file are int8, and `deploy.parity` counts the
codes in which simulation, reference and file differ.

Variables as a file that gives them back bit for bit, those on a grid as entropy-coded codes:

>>> import quant
>>> kernel = np.zeros((100, 100), np.float32)
>>> kernel[::10] = np.linspace(-1, 1, 100)
>>> content = deploy.pack({"kernel": kernel}, {"kernel": quant.symmetric(jnp.float32(1.0), bits=4)}, {"made": "today"})
>>> len(content) < 1000
True
>>> sorted({round(float(value), 3) for value in deploy.unpack(content).variables["kernel"][0]})[:3]
[-1.0, -0.857, -0.714]
"""

from leanax.deploy import formats, packed, reference
from leanax.deploy.compare import Mismatch, compare, parity
from leanax.deploy.description import Description
from leanax.deploy.files import file_format, file_formats, format_of, open_file
from leanax.deploy.formats import Format, Latency, Model, Runner, litert, onnx, stablehlo
from leanax.deploy.ir import Network, with_ends
from leanax.deploy.lift import lift
from leanax.deploy.packed import Packed, pack, pack_net, unpack, unpack_net
from leanax.deploy.preprocessing import Preprocessing
from leanax.deploy.save import network, save
from leanax.deploy.size import Held, Sizes, sizes

__all__ = [
  "Description",
  "Format",
  "Held",
  "Latency",
  "Mismatch",
  "Model",
  "Network",
  "Packed",
  "Preprocessing",
  "Runner",
  "Sizes",
  "compare",
  "file_format",
  "file_formats",
  "format_of",
  "formats",
  "lift",
  "litert",
  "network",
  "onnx",
  "open_file",
  "pack",
  "pack_net",
  "packed",
  "parity",
  "reference",
  "save",
  "sizes",
  "stablehlo",
  "unpack",
  "unpack_net",
  "with_ends",
]
