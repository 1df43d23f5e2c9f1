"""The time of each layer of a file: LiteRT's runtime for Python has no profiler, so each layer is a file of its own.

The same format writes a network of that layer alone, and all these files, the whole one and one that does next to
nothing take turns on one thread. A layer's time is its least, less the least of the file that does next to nothing:
that one's is what a call costs by itself. A kernel may run otherwise within a network (what it reads is in a cache, or
is not), so that the sum is near the time of the whole file and not equal to it; both are given.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir

CALLS = 3  # of a file in its turn; the least counts
OPENING = 0.01  # seconds per layer that writing and opening its file may take


class LayerTimes(NamedTuple):
  """Microseconds of one example on one thread: of the whole file, and of each layer by its name."""

  whole: float
  layers: Mapping[str, float]


def layer_times(network: deploy.Network, file_format: deploy.Format, seconds: float) -> LayerTimes | None:
  """Returns the time of each layer of a network's file; None where it cannot be told in so many seconds.

  Args:
    network: the layers.
    file_format: of the file; one whose `alone` is None cannot tell.
    seconds: that measuring may take. A network needs a hundredth for each layer, and three rounds.
  """
  if file_format.alone is None:
    return None
  layers = file_format.alone(network).layers
  if seconds <= OPENING * len(layers):
    return None
  try:
    whole = _call(network, file_format)
    whole()
    began = time.perf_counter()
    whole()
    if 2 * (time.perf_counter() - began) * CALLS > seconds:
      return None
    calls = {"": whole, **{layer.name: _call(_of(layer, network), file_format) for layer in layers}}
    nothing = _call(_NOTHING, file_format)
  except UserError:  # a layer that the format holds within a network alone
    return None
  least = _least([nothing, *calls.values()], seconds)
  empty, found = least[0], dict(zip(calls, least[1:], strict=True))
  return LayerTimes(found.pop(""), {name: max(one - empty, 0.0) for name, one in found.items()})


_NOTHING = ir.Network(
  (ir.Relu("relu", ("x",), "y"),), {name: ir.Tensor(name, (None, 1)) for name in "xy"}, {"x": "x"}, {"y": "y"}
)


def _of(layer: ir.Layer, network: deploy.Network) -> deploy.Network:
  """Returns the network of one layer."""
  tensors = {name: network.tensors[name] for name in (*layer.inputs, *layer.constants(), layer.output)}
  read = dict.fromkeys(name for name in layer.inputs if tensors[name].data is None)  # the others are constants too
  return ir.Network((layer,), tensors, {f"x{place}": name for place, name in enumerate(read)}, {"y": layer.output})


def _call(network: deploy.Network, file_format: deploy.Format) -> Callable[[], Any]:
  return file_format.open(file_format.write(network)).repeat()


def _least(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
  """Returns the least microseconds of each call, in rounds in which all take turns, until the seconds are over."""
  least, end = [float("inf")] * len(calls), time.perf_counter() + seconds
  while True:
    for place, call in enumerate(calls):
      for _ in range(CALLS):
        start = time.perf_counter_ns()
        call()
        least[place] = min(least[place], (time.perf_counter_ns() - start) / 1e3)
    if time.perf_counter() > end:
      return least
