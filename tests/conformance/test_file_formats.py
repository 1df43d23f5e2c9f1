"""Every file format of deploy, found by walking the package, and one of the tests, through one battery.

What a file computes is compared with the integer reference; the layers one by one are in the formats' own tests.
"""

import copy
import dataclasses
import pkgutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.core.methods import methods
from leanax.deploy import formats, ir, reference
from tests.conformance.file_formats.npz import npz
from tests.deploy import nets

ROOT = Path(__file__).resolve().parents[2]
FOUND = methods(formats)
WHOLE = {name for name, method in FOUND.items() if method().takes is not ir.Network}  # tests/deploy/test_stablehlo.py
BATTERY = {**{name: method for name, method in FOUND.items() if name not in WHOLE}, "npz": npz}
NETS = {"mlp": nets.mlp, "lenet": nets.lenet, "resnet": nets.resnet}


@pytest.fixture(params=BATTERY)
def made(request):
  """A file format."""
  return BATTERY[request.param]()


def network_of(name="resnet", quantized=True, seed=0):
  maker = NETS[name](seed, quantized=quantized)
  return maker.network(deploy.Preprocessing((0.5,), (0.2,))), maker.images(33)


def sentence(call, *parts):
  with pytest.raises(UserError) as caught:
    call()
  text = str(caught.value)
  assert "\n" not in text and len(text) < 500, text
  for part in parts:
    assert str(part) in text, text
  return text


def test_the_walk_finds_every_file():
  files = {module.name for module in pkgutil.iter_modules(formats.__path__)} - {"base"}
  assert files == set(FOUND), "a file of deploy/formats has a method of its name, exported, and so this battery"


def test_suffixes_are_apart_and_found(made):
  assert made.suffix.startswith(".") and made.suffix == made.suffix.lower()
  every = {**FOUND, **BATTERY}
  assert len({method().suffix for method in every.values()}) == len(every)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("seed", range(3))
def test_the_file_has_the_codes_of_the_reference(made, name, seed):
  network, x = network_of(name, seed=seed)
  made.check(network)
  runner = made.open(made.write(network))
  assert (runner.input.dtype, runner.output.dtype) == ("int8", "int8")
  expected = reference.run(network, x, runner.requantize)
  assert np.ptp(expected.astype(int)) > 20
  assert deploy.compare(runner.codes(x), expected).count == 0
  given = ir.dequantize(x, network.tensors[network.input])
  assert deploy.compare(runner.batches(given), reference.run(network, given, runner.requantize)).count == 0
  floats = network.tensors[network.output]
  np.testing.assert_array_equal(runner.run(x), ir.dequantize(expected, floats))


@pytest.mark.parametrize("name", NETS)
def test_a_float_file_computes_the_floats_of_the_reference(made, name):
  network, x = network_of(name, quantized=False)
  runner = made.open(made.write(network))
  assert runner.input.dtype == "float32"
  np.testing.assert_allclose(runner.run(x), reference.run(network, x), atol=1e-5)


def test_equal_networks_are_equal_bytes(made):
  network, _ = network_of()
  assert made.write(network) == made.write(copy.deepcopy(network))


def test_batches_of_any_size_in_any_order(made):
  network, x = network_of()
  runner = made.open(made.write(network))
  whole = runner.codes(x)
  for size in (7, 1, 33, 0, 2):
    np.testing.assert_array_equal(runner.codes(x[:size]), whole[:size])
  np.testing.assert_array_equal(runner.batches(x, batch=8), whole)
  assert runner.run(x[:0]).shape == (0, *whole.shape[1:])
  sentence(lambda: runner.run(x, batch=0), "a batch of 0 images")


def test_a_path_and_its_bytes_are_one(made, tmp_path):
  network, x = network_of("mlp")
  path = tmp_path / f"net{made.suffix}"
  path.write_bytes(made.write(network))
  runner = made.open(path, 2)
  assert (runner.name, runner.bytes, runner.threads) == (str(path), path.stat().st_size, 2)
  np.testing.assert_array_equal(runner.codes(x), made.open(path.read_bytes()).codes(x))
  latency = runner.latency(runs=3, warm_up=1)
  assert 0 < latency.wall_min <= latency.wall_median and (latency.runs, latency.threads) == (3, 2)
  np.testing.assert_array_equal(runner.codes(x), runner.codes(x))
  sentence(lambda: made.open(path, 0), "threads")


def test_the_preprocessing_is_in_the_file(made):
  network, _ = network_of("lenet")
  raw = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 1)).astype(np.uint8)
  runner = made.open(made.write(network))
  assert runner.preprocessing == network.preprocessing
  np.testing.assert_array_equal(runner.run(raw), runner.run(network.preprocessing.apply(raw)))
  assert made.open(made.write(network._replace(preprocessing=None))).preprocessing is None


@pytest.mark.parametrize("quantized", [True, False])
def test_other_inputs_are_refused(made, quantized):
  network, _ = network_of("lenet", quantized)
  runner = made.open(made.write(network))
  wide = np.zeros((2, 12, 12, 1), np.float32)
  sentence(lambda: runner.run(wide[:, 1:]), "(N, 12, 12, 1)", "(2, 11, 12, 1)")
  sentence(lambda: runner.run(wide[0]), "(12, 12, 1)")
  sentence(lambda: runner.codes(wide.astype(np.int16)), "int16")
  for dtype in (np.int64, np.bool_, np.complex64):
    sentence(lambda dtype=dtype: runner.run(wide.astype(dtype)), np.dtype(dtype).name, "uint8 (raw)")
  if quantized:
    sentence(lambda: runner.run(wide * np.nan), "NaN")
    assert runner.run(wide + np.inf).shape == (2, 10)
  else:
    sentence(lambda: runner.run(wide.astype(np.int8)), "int8")
    assert runner.run(wide.astype(np.float64)).shape == (2, 10)


@dataclasses.dataclass(frozen=True)
class Foreign(ir.Layer):
  """A layer that no format has."""


def test_check_refuses_what_write_cannot_hold(made):
  network, _ = network_of("mlp")
  last = network.layers[-1]
  foreign = network._replace(layers=(*network.layers[:-1], Foreign("odd one", last.inputs, last.output)))
  unready = network._replace(layers=network.layers[1:])
  for wrong, part in ((foreign, "'odd one' is a Foreign"), (unready, network.layers[1].name)):
    for call in (made.check, made.write):
      sentence(lambda call=call, wrong=wrong: call(wrong), part)


def test_check_does_not_need_trained_numbers(made):
  network, _ = network_of()
  tensors = {
    name: tensor if tensor.data is None else tensor._replace(data=np.zeros_like(tensor.data))
    for name, tensor in network.tensors.items()
  }
  made.check(network._replace(tensors=tensors))


def test_damaged_and_foreign_files_are_refused(made, tmp_path):
  path = tmp_path / f"wrong{made.suffix}"
  content = made.write(network_of("lenet")[0])
  rng = np.random.default_rng(0)
  wrong = [b"", b"\0", b"PK\x03\x04" + bytes(100), rng.bytes(1000), bytes(2000), content[:4] + rng.bytes(3000)]
  wrong += [method().write(network_of("mlp")[0]) for name, method in BATTERY.items() if method().suffix != made.suffix]
  wrong += [content[:cut] for cut in (4, 9, 40, 200, len(content) // 3, len(content) // 2, len(content) - 30)]
  for data in wrong:
    path.write_bytes(data)
    sentence(lambda: made.open(path), path)
    sentence(lambda data=data: made.open(data))
  sentence(lambda: made.open(tmp_path / f"none{made.suffix}"), "cannot read", "none")
  sentence(lambda: made.open(tmp_path), "cannot read", tmp_path)


def spoilt(content, seed):
  """A file with some bytes changed: single ones, a number, or a stretch."""
  rng, data = np.random.default_rng(seed), bytearray(content)
  if seed % 3 == 0:
    for place in rng.integers(0, len(data), rng.integers(1, 4)):
      data[place] = rng.integers(0, 256)
  elif seed % 3 == 1:
    place = rng.integers(2, len(data) // 4 - 1) * 4
    data[place : place + 4] = int(rng.choice([0, 1, 255, 2**31 - 1, 2**32 - 1])).to_bytes(4, "little")
  else:
    place = rng.integers(8, len(data) - 64)
    data[place : place + 32] = rng.bytes(32)
  return bytes(data)


def survive(name, seeds):
  """Opens and runs spoilt files; run in a process of its own, which a crash would end."""
  made, found = BATTERY[name](), []
  for net in ("mlp", "resnet"):
    network, x = network_of(net)
    content = made.write(network)
    for seed in range(seeds):
      try:
        made.open(spoilt(content, seed)).run(x[:2])
        found.append("ran")
      except UserError:
        found.append("refused")
  print(found.count("ran"), found.count("refused"))


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", BATTERY)
def test_corrupted_files_never_crash(name):
  code = f"from tests.conformance.test_file_formats import survive; survive({name!r}, 150)"
  command = [sys.executable, "-W", "ignore", "-c", code]
  result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
  assert result.returncode == 0, (result.returncode, result.stderr[-2000:])
  ran, refused = map(int, result.stdout.split()[-2:])
  assert ran + refused == 300 and refused > 20


@pytest.fixture
def one_more(monkeypatch):
  """The packages as they are once a file with another format was added."""
  monkeypatch.setattr(formats, "__path__", [*formats.__path__, str(Path(__file__).parent / "file_formats")])
  monkeypatch.setattr(formats, "npz", npz, raising=False)


def test_a_new_format_is_one_file_and_one_line(one_more, tmp_path):
  network, x = network_of("lenet")
  assert set(deploy.file_formats()) >= {".tflite", ".npz"}
  for name in ("npz", ".npz"):
    assert deploy.file_format(name).suffix == ".npz"
  path = tmp_path / "net.npz"
  path.write_bytes(deploy.format_of(path).write(network))
  assert deploy.parity(network, deploy.open_file(path), x)["reference/runtime"].count == 0


def test_unknown_formats_are_named(one_more):
  assert deploy.file_format("tflite").suffix == deploy.file_format("litert").suffix == ".tflite"
  sentence(lambda: deploy.file_format("keras"), "unknown file format 'keras'", "tflite (litert)", "npz (npz)")
  sentence(lambda: deploy.file_format(""), "unknown file format ''")
  sentence(lambda: deploy.format_of("run/net.onx"), "'run/net.onx'", ".npz, .onnx, .stablehlo, .tflite")
  sentence(lambda: deploy.open_file("net"), "'net' has the suffix of no file format")
