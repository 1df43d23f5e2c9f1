"""A network's files in every runtime that is installed."""

import importlib.util
from collections.abc import Iterator

from leanax import deploy


def runners(network: deploy.Network, kernels=("xnnpack", "reference")) -> Iterator[deploy.Runner]:
  """Yields the network's LiteRT file with these kernels, and its ONNX file where its packages are there."""
  content = deploy.litert().write(network)
  for one in kernels:
    yield deploy.litert(kernels=one).open(content)
  if importlib.util.find_spec("onnxruntime"):
    yield deploy.onnx().open(deploy.onnx().write(network))
