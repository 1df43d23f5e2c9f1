"""A network's files in every runtime that there is."""

from collections.abc import Iterator

from leanax import deploy


def runners(network: deploy.Network, kernels=("xnnpack", "reference")) -> Iterator[deploy.Runner]:
  """Yields the network's LiteRT file with these kernels, and its ONNX file."""
  content = deploy.litert().write(network)
  for one in kernels:
    yield deploy.litert(kernels=one).open(content)
  yield deploy.onnx().open(deploy.onnx().write(network))
