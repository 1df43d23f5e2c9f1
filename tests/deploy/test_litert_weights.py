"""Weights of .tflite files in their types: packed codes, and constants of float networks, in the real runtime."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import quant
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.deploy import ir, litert, reference
from leanax.deploy.compare import compare
from leanax.deploy.formats.litert import constants, weights
from leanax.deploy.size import held as held_as_it_is
from tests.deploy import nets

KERNELS = {"xnnpack": "float32", "reference": "litert"}  # the runtime's kernels and the rounding that they have


def on_few_bits(maker, bits, narrow=True):
  """Moves kernels to grids of a few bits, all codes of which occur."""
  for layer in maker.layers:
    if isinstance(layer, ir.Conv2D | ir.Dense):
      kernel, highest = maker.tensors[layer.kernel], 2 ** (bits - 1) - 1
      lowest = -highest if narrow else -highest - 1
      data = np.clip(np.rint(kernel.data * (highest / 127)), lowest, highest).astype(np.int8)
      data.flat[: highest - lowest + 1] = np.arange(lowest, highest + 1)[: data.size]
      grid = ir.grid(kernel.scale * np.float32(127 / highest), bits=bits, narrow=narrow, axis=kernel.axis)
      maker.tensors[layer.kernel] = kernel._replace(data=data, grid=grid)
      if layer.bias:
        bias = maker.tensors[layer.bias]
        grid = ir.bias_grid(maker.tensors[layer.inputs[0]], maker.tensors[layer.kernel])
        maker.tensors[layer.bias] = bias._replace(grid=grid, data=(bias.data * highest // 127).astype(np.int32))
  return maker


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_packed_dense_weights_are_bit_exact(bits, kernels):
  for seed, narrow in enumerate((True, False)):
    maker = on_few_bits(nets.mlp(seed, (22, 15, 12, 5)), bits, narrow)  # the second layer's stay int8
    network, x = maker.network(), maker.images(67)
    file = litert(kernels=kernels).open(litert().write(network))
    expected = reference.run(network, x, KERNELS[kernels])
    assert np.ptp(expected.astype(int)) > 20
    assert [one.type[:4] for one in litert().held(network).values()] == ["int4", "int8", "int4"]
    assert compare(expected, file.codes(x)).count == compare(expected, file.batches(x, 3)).count == 0


def test_packed_products_at_each_pixel_have_the_codes_of_convolutions():
  maker = nets.Maker(0, (5, 4, 8), True)
  maker.conv(10, (1, 1), padding=((0, 0), (0, 0)), relu=True)
  maker.conv(5, (1, 1), padding=((0, 0), (0, 0)), bias=False)
  maker.conv(6, (1, 1), strides=(2, 2), padding=((0, 0), (0, 0)))
  maker.conv(6, (3, 3))
  network, x = on_few_bits(maker, 4).network(), maker.images(33)
  file = litert().write(network)
  assert [one.type for one in litert().held(network).values()] == ["int4", "int4", "int8 of 4 bits", "int8 of 4 bits"]
  assert compare(reference.run(network, x), litert().open(file).codes(x)).count == 0
  first = network._replace(layers=network.layers[:1], outputs={"output": network.layers[0].output})
  plain = litert(kernels="reference").open(litert().write(first)).codes(x)
  assert compare(reference.run(first, x, "litert"), plain).max_steps <= 1  # dense layers round once there


def test_packed_weights_take_half_a_byte():
  widths = (34, 32, 11)
  byte, half = (on_few_bits(nets.mlp(1, widths), bits) for bits in (5, 4))
  sizes = [a * b for a, b in itertools.pairwise(widths)]
  files = [litert().write(maker.network()) for maker in (byte, half)]
  saved = sum(sizes) // 2
  assert abs(len(files[0]) - len(files[1]) - saved) < 64  # alignment
  held = litert().held(half.network())
  for layer, size in zip(half.layers, sizes, strict=True):
    channels = half.tensors[layer.kernel].shape[1]
    assert held[layer.name] == ("int4", size // 2 + 4 * channels + (8 * channels if layer.bias else 0))
  stored = {array.shape: array for array in constants(files[1])}
  for layer in half.layers:
    kernel = half.tensors[layer.kernel].data
    np.testing.assert_array_equal(stored[kernel.T.shape], kernel.T)


def mixed(seed=0):
  """A float net of each kind of layer with weights."""
  maker = nets.Maker(seed, (8, 7, 3), False)
  maker.conv(8, relu=True)
  maker.conv(8, groups=8)
  maker.conv(12, groups=2, relu=True)
  maker.conv(8, (1, 1), padding=((0, 0), (0, 0)), bias=False)
  maker.pool(ir.MaxPool)
  maker.flatten()
  maker.dense(11, relu=True)
  maker.dense(10)
  return maker


def to_float16(w):
  return w.astype(np.float16).astype(np.float32)


def to_int8(w):
  """Symmetric codes of 8 bits times a scale per output channel, the last axis, in float64."""
  scale = np.abs(w).max(tuple(range(w.ndim - 1))).astype(np.float64) / 127
  return (np.clip(np.rint(w / scale), -127, 127) * scale).astype(np.float32)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize(("kind", "rounded"), [("float16", to_float16), ("int8", to_int8)])
def test_held_weights_compute_with_their_values(kind, rounded, kernels, monkeypatch):
  monkeypatch.setattr(weights, "EXTRA", -(10**9))  # small layers too
  maker = mixed()
  network, x = maker.network(), maker.images(9)
  content, plain = litert(weights=kind).write(network), reference.run(network, x)
  for layer in maker.layers:
    for name in layer.constants()[:1]:
      tensor = maker.tensors[name]
      maker.tensors[name] = tensor._replace(data=rounded(tensor.data))
  expected = reference.run(maker.network(), x)
  assert np.abs(expected - plain).max() > 1e-4
  file = litert(kernels=kernels).open(content)
  for size in (9, 1, 4):
    np.testing.assert_allclose(file.codes(x[:size]), expected[:size], atol=2e-5)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("kind", ["dense", "conv", "depthwise"])
def test_what_dynamic_weights_multiply_is_rounded_by_a_step_at_most(kind, kernels, monkeypatch):
  monkeypatch.setattr(weights, "EXTRA", -(10**9))
  maker = nets.Maker(3, (6, 6, 4), False)
  layers = {
    "dense": lambda: (maker.flatten(), maker.dense(9)),
    "conv": lambda: maker.conv(9),
    "depthwise": lambda: maker.conv(4, groups=4),
  }
  layers[kind]()
  x = maker.images(5)
  file = litert(kernels=kernels).open(litert(weights="dynamic_int8").write(maker.network()))
  kernel = maker.tensors[maker.layers[-1].kernel]
  maker.tensors[kernel.name] = kernel._replace(data=to_int8(kernel.data))
  error = np.abs(file.run(x) - reference.run(maker.network(), x)).reshape(-1, kernel.shape[-1]).max(0)
  step = np.abs(x).max() / 127
  assert (error < step * np.abs(kernel.data).reshape(-1, kernel.shape[-1]).sum(0)).all()
  assert (error.max() > 1e-4) == (kind != "depthwise")  # these read values, and nothing is rounded


def test_held_weights_take_these_bytes():
  maker = nets.mlp(2, (64, 96, 10), quantized=False)
  network = maker.network()
  sizes = {"": (4, 0), "float16": (2, 0), "int8": (1, 4), "dynamic_int8": (1, 4)}  # of a number, of a channel's scale
  whole = len(litert().write(network))
  for kind, (number, scale) in sizes.items():
    file, held = litert(weights=kind).write(network), litert(weights=kind).held(network)
    saved = 0
    for layer in maker.layers:
      (depth, channels), bias = maker.tensors[layer.kernel].shape, 4 * maker.tensors[layer.kernel].shape[1]
      expected = depth * channels * number + channels * scale
      assert held[layer.name].bytes == expected + (bias if layer.bias else 0)
      saved += 4 * depth * channels - expected - (8 * channels if scale else 0)  # and zero points
    assert saved - 600 < whole - len(file) <= saved
  small = nets.mlp(2, (8, 4), quantized=False).network()
  assert litert(weights="int8").write(small) == litert().write(small)  # codes would take more


def tables(v, x):
  return v["table"][x].reshape(-1, 32) @ v["kernel"]


def test_tables_are_held_too():
  rng = np.random.default_rng(0)
  v = {"table": rng.normal(size=(50, 8)).astype(np.float32), "kernel": rng.normal(size=(32, 20)).astype(np.float32)}
  x = rng.integers(0, 50, (6, 4)).astype(np.int32)
  network = deploy.lift(tables, v, x)
  for kind, rounded in (("float16", to_float16), ("int8", to_int8)):
    held = {"table": rounded(v["table"].T).T, "kernel": rounded(v["kernel"])}
    expected = reference.run(deploy.lift(tables, held, x), x)
    content = litert(weights=kind).write(network)
    assert len(content) < len(litert().write(network)) - 1000
    for kernels in KERNELS:
      np.testing.assert_allclose(litert(kernels=kernels).open(content).run(x), expected, atol=1e-4)


def two(v, x):
  return jnp.maximum(x @ v["a"] + v["bias"], 0) @ v["b"]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("setting", ["w8", "w4", [("a", "w3"), ("b", "w8a8")], [("a", "w8a8"), ("b", "w4 full")]])
def test_weights_on_grids_are_held_as_these_codes(setting):
  rng = np.random.default_rng(1)
  v = {"a": rng.normal(size=(8, 30)), "bias": rng.normal(size=30), "b": rng.normal(size=(30, 5))}
  v = {name: jnp.asarray(one, jnp.float32) for name, one in v.items()}
  x = rng.normal(size=(40, 8)).astype(np.float32)
  rules = quant.policy(setting, None) if isinstance(setting, str) else setting
  net = quant.post_training(graph.net(two, v, x), [x], rules)
  grids, (expected, _) = quant.grids(net), net.apply(net.variables, x)
  network = deploy.lift(two, v, x, grids)
  stored = {array.shape: array for array in constants(litert().write(network))}
  for name in ("a", "b"):
    np.testing.assert_array_equal(stored[v[name].T.shape], np.asarray(quant.codes(v[name], grids[name])).T)
  step = 1e-5 if isinstance(setting, str) else 0.05  # a code beside a tie is another one
  np.testing.assert_allclose(reference.run(network, x), expected, atol=step)
  for kernels in KERNELS:
    np.testing.assert_allclose(litert(kernels=kernels).open(litert().write(network)).run(x), expected, atol=step)
  onnx = pytest.importorskip("onnxruntime") and deploy.onnx()
  np.testing.assert_allclose(onnx.open(onnx.write(network)).run(x), expected, atol=step)
  if isinstance(setting, str):
    assert not network.quantized
    with pytest.raises(UserError, match="the layer 'a' would stay float: the activation 'input' has no grid"):
      deploy.lift(two, v, x, grids, islands=False)


class Net(nn.Module):
  """Every kind of layer with weights."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(8, (3, 3), feature_group_count=2)(nn.relu(nn.Conv(8, (3, 3))(x)))
    x = nn.swish(nn.Conv(8, (3, 3), feature_group_count=8)(x))
    x = nn.Conv(5, (1, 1))(nn.ConvTranspose(6, (3, 3), strides=(2, 2))(x))
    return nn.Dense(4)(nn.Dense(4)(x).mean((1, 2)))


def test_every_layer_with_weights_takes_half_a_byte_beside_float_activations():
  x = np.random.default_rng(0).normal(size=(5, 4, 4, 3)).astype(np.float32)
  variables = jax.jit(Net().init)(jax.random.key(0), x)
  net = quant.post_training(graph.net(Net().apply, variables, x), [x], quant.policy("w4", None))
  network = deploy.lift(Net().apply, variables, x, quant.grids(net))
  expected, _ = net.apply(net.variables, x)
  held, byte = litert().held(network), held_as_it_is(network)
  assert {one.type for one in held.values()} == {"int4"}
  for layer in network.layers:
    if isinstance(layer, ir.Conv2D | ir.Dense):
      assert byte[layer.name].bytes - held[layer.name].bytes == ir.values(network.tensors[layer.kernel]).size // 2
  for kernels in KERNELS:
    found = litert(kernels=kernels).open(litert().write(network)).run(x)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_other_weights_are_refused():
  with pytest.raises(UserError, match="unknown weights 'float8'"):
    litert(weights="float8")
  for call in (litert(weights="float16").check, litert(weights="int8").write):
    with pytest.raises(UserError, match=r"weights='(float16|int8)' is for float networks; this one has int8 layers"):
      call(nets.mlp(0).network())
  maker = nets.mlp(0, (40, 30), quantized=False)
  maker.tensors[maker.layers[0].kernel].data[0, 0] = 1e5
  with pytest.raises(UserError, match=r"the weights 'dense0/kernel' hold 1e\+05; float16 has numbers up to 65504"):
    litert(weights="float16").write(maker.network())


def test_formats_are_named_with_options():
  network = nets.mlp(0, (40, 30), quantized=False).network()
  for text in ("litert(weights=float16)", "tflite(weights=float16, kernels=reference)", ".tflite(weights=float16)"):
    assert deploy.file_format(text).write(network) == litert(weights="float16").write(network)
  assert deploy.format_of("net.tflite", weights="int8").write(network) == litert(weights="int8").write(network)
  refused = {
    "litert(weight=int8)": "unknown option of the file format 'litert(weight=int8)': 'weight'; did you mean 'weights'",
    "onnx(weights=int8)": "unknown option of the file format",
    "litert(weights=int7)": "unknown weights 'int7'",
    "litert(int8)": "unknown option",
    "litert(weights=int8": "unknown file format",
    "litert(weights=int8, weights=float16)": "the option 'weights' of the file format",
  }
  for text, reason in refused.items():
    with pytest.raises(UserError) as caught:
      deploy.file_format(text)
    assert reason in str(caught.value)
  with pytest.raises(UserError, match="is given twice; expected once"):
    deploy.format_of("net.tflite", "litert(weights=float16)", weights="int8")


def thinned(share, widths=(300, 40, 10)):
  """A float dense net, the first kernel with this share of zeros."""
  maker = nets.mlp(4, widths, quantized=False)
  kernel = maker.tensors[maker.layers[0].kernel].data
  kernel[maker.rng.random(kernel.shape) < share] = 0
  return maker


def test_dense_kernels_of_many_zeros_are_held_without_them():
  maker = thinned(0.9)
  network, x = maker.network(), maker.images(7)
  kernel = maker.tensors[maker.layers[0].kernel].data
  entries = np.count_nonzero(kernel)
  held, whole = litert(sparse=0.85).held(network), litert().held(network)
  lists = 2 * entries + 2 * (40 + 1)  # columns up to 299 and places up to 1,200 take two bytes
  bias = 4 * 40 if maker.layers[0].bias else 0
  assert held["dense0"].bytes == 4 * entries + lists + bias and held["dense1"] == whole["dense1"]
  content = litert(sparse=0.85).write(network)
  saved = whole["dense0"].bytes - held["dense0"].bytes
  assert saved - 200 < len(litert().write(network)) - len(content) <= saved
  assert litert(sparse=0.95).write(network) == litert().write(network)
  for kernels in KERNELS:
    file = litert(kernels=kernels).open(content)
    for size in (7, 1, 2):
      np.testing.assert_allclose(file.codes(x[:size]), reference.run(network, x[:size]), atol=1e-5)
  stored = {array.shape: array for array in constants(content)}
  np.testing.assert_array_equal(stored[kernel.T.shape], kernel.T)


def test_compressed_rows_outside_of_their_shape_are_refused():
  """The runtime would read beside its input there."""
  content = litert(sparse=0.5).write(thinned(0.97).network())
  kernel = thinned(0.97).tensors["dense0/kernel"].data.T
  columns = np.nonzero(kernel)[1].astype(np.uint16).tobytes()
  starts = np.append(0, np.cumsum((kernel != 0).sum(1))).astype(np.uint16).tobytes()
  for numbers, wrong in (
    (columns, b"\xff\xff"),
    (columns, b"\x2c\x01"),
    (starts, b"\x01\x00"),
    (starts[2:], b"\xff\xff"),
  ):
    assert content.count(numbers) == 1
    with pytest.raises(UserError, match="the LiteRT file is damaged: its sparse weights are not in compressed rows"):
      litert().open(content.replace(numbers, wrong + numbers[2:]))


def test_other_shares_of_zeros_are_refused():
  for share in (0, 1, "much", -0.5):
    with pytest.raises(UserError, match="is no share of zeros; expected a number between 0 and 1"):
      litert(sparse=share)
  with pytest.raises(UserError, match=r"sparse=0\.9 is for float networks"):
    litert(sparse=0.9).write(nets.mlp(0).network())
