"""Times of layers: on a clock that only the calls move, and in the real runtime, where the large layer is slow."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.pipeline.report import layer_times
from tests.deploy import nets

COST = {"conv0": 40.0, "pool1": 7.5, "flat2": 0.1, "dense3": 10.0}  # microseconds beyond those of a call, 2.0
WHOLE = 62.5


@pytest.fixture
def clock(monkeypatch):
  """A clock in microseconds, and a format whose files take the times above, twice as long in every other call."""
  now = [0.0]
  monkeypatch.setattr(layer_times.time, "perf_counter", lambda: now[0] / 1e6)
  monkeypatch.setattr(layer_times.time, "perf_counter_ns", lambda: round(now[0] * 1e3))

  def opened(network):
    (name, *more) = [layer.name for layer in network.layers]
    cost, calls = 2.0 + (WHOLE - 2.0 if more else COST.get(name, 0.0)), [0]

    def call():
      calls[0] += 1
      now[0] += cost * (1 + calls[0] % 2)

    return dataclasses.make_dataclass("File", [("repeat", object)])(lambda: call)

  return dataclasses.replace(deploy.litert(), write=lambda network: network, open=opened), now


def network_of():
  maker = nets.Maker(0, (6, 6, 2), True)
  maker.conv(4)
  maker.pool(deploy.reference.ir.MaxPool)
  maker.flatten()
  maker.dense(5)
  return maker.network()


def test_a_layer_takes_its_least_less_that_of_an_empty_call(clock):
  found = layer_times.layer_times(network_of(), clock[0], 0.1)
  assert found.whole == pytest.approx(WHOLE) and found.layers == pytest.approx(COST)
  assert clock[1][0] == pytest.approx(1e5, rel=0.01)  # the seconds that were given


def test_what_would_take_too_long_is_not_measured(clock):
  network, one = network_of(), clock[0]
  assert layer_times.layer_times(network, one, 0.0) is None
  assert layer_times.layer_times(network, one, 0.039) is None and not clock[1][0]  # a hundredth for each of four
  slow = dataclasses.replace(one, open=lambda made: _slow(clock[1]))
  assert layer_times.layer_times(network, slow, 0.1) is None and clock[1][0] == pytest.approx(4e4)
  assert layer_times.layer_times(network, dataclasses.replace(one, alone=None), 0.1) is None

  def refuses(made):
    if len(made.layers) == 1:
      raise UserError("alone it is no layer")
    return made

  assert layer_times.layer_times(network, dataclasses.replace(one, write=refuses), 0.1) is None


def _slow(now):
  def call():
    now[0] += 2e4

  return dataclasses.make_dataclass("File", [("repeat", object)])(lambda: call)


def test_in_the_runtime_the_large_layer_takes_most_of_the_time():
  maker = nets.Maker(1, (256,), False)
  maker.dense(2048)
  maker.dense(8)
  found = layer_times.layer_times(maker.network(), deploy.litert(), 0.2)
  large, small = found.layers.values()
  assert large > 10 * small and 0 < large < 2 * found.whole


def test_functions_on_codes_are_timed_as_the_runtime_runs_them():
  """Dequantize, sigmoid and Quantize are one layer in LiteRT, and layers of several inputs or one input twice run."""
  rng = np.random.default_rng(0)
  kernel, x = rng.normal(size=(4, 4)).astype(np.float32), rng.normal(size=(64, 4)).astype(np.float32)

  def fn(v, x):
    y = x @ v["k"]
    y = jax.nn.sigmoid(y) @ v["k"]
    return jnp.sin(jnp.concatenate([y * y, x], -1)) * 2.0

  net = quant.post_training(graph.net(fn, {"k": kernel}, x), [x], "w8a8")
  plain = quant.float_net(net)
  network = deploy.lift(plain.infer, plain.variables, x[:1], quant.grids(net))
  found = layer_times.layer_times(network, deploy.litert(), 0.2)
  kinds = {layer.name: type(layer).__name__ for layer in network.layers}
  gone = [kinds[name] for name in kinds if name not in found.layers]
  assert gone == ["Dequantize", "Quantize"] and {"Dequantize", "Binary", "Concat"} <= {kinds[k] for k in found.layers}
