"""Functions of single numbers and of rows, however they are spelled: lifted, written, and run in the real runtime."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir, litert, reference
from leanax.deploy.formats.litert.limits import int8_kernel
from leanax.deploy.lifting import functions, rows
from leanax.deploy.lifting.traced import Traced
from tests.deploy.runtimes import runners
from tests.numbers import normal


def prelu(x):
  return nn.PReLU().apply({"params": {"negative_slope": jnp.float32(0.2)}}, x)


def exact_gelu(x):
  return nn.gelu(x, approximate=False)


# Function and parameters, and ways to write it.
FUNCTIONS = {
  "relu6": [nn.relu6, lambda x: jnp.clip(x, 0, 6), lambda x: jnp.minimum(jnp.maximum(x, 0), 6), nnx.relu6],
  "clip (-1, 1)": [nn.hard_tanh, lambda x: jnp.clip(x, -1, 1), lambda x: jax.lax.clamp(-1.0, x, 1.0)],
  "clip (0, 1)": [lambda x: jnp.maximum(jnp.minimum(1.0, x), 0.0)],
  "clip (-0.5, 200)": [lambda x: jnp.clip(x, -0.5, 200.0), lambda x: jnp.where(x > 200, 200.0, jnp.maximum(x, -0.5))],
  "hard_swish": [nn.hard_swish, lambda x: x * nn.relu6(x + 3) / 6, lambda x: x * (nn.relu6(x + 3.0) * (1 / 6))],
  "hard_sigmoid": [nn.hard_sigmoid, lambda x: nn.relu6(x + 3) * (1 / 6)],
  "sigmoid": [nn.sigmoid, lambda x: 1 / (1 + jnp.exp(-x)), lambda x: 0.5 * (jnp.tanh(x / 2) + 1)],
  "silu": [nn.silu, lambda x: x * nn.sigmoid(x), nnx.swish, lambda x: x / (1 + jnp.exp(-x))],
  "gelu": [exact_gelu, lambda x: x * (1 + jax.lax.erf(x / np.float32(np.sqrt(2)))) / 2],
  "gelu_tanh": [nn.gelu],
  "tanh": [jnp.tanh],
  "leaky_relu (0.01,)": [nn.leaky_relu, nnx.leaky_relu],
  "leaky_relu (0.1,)": [lambda x: jnp.where(x > 0, x, 0.1 * x), lambda x: jnp.maximum(x, 0.1 * x)],
  "leaky_relu (0.2,)": [prelu, lambda x: nn.relu(x) - 0.2 * nn.relu(-x)],
  "leaky_relu (-2,)": [lambda x: jnp.where(x < 0, -2 * x, x)],
  "elu (1,)": [nn.elu, nnx.elu, nn.celu],
  "elu (0.7,)": [lambda x: nn.elu(x, 0.7)],
  "celu (0.5,)": [lambda x: nn.celu(x, 0.5)],
  "selu": [nn.selu],
  "softplus": [nn.softplus, lambda x: jnp.log1p(jnp.exp(x))],
  "log_sigmoid": [nn.log_sigmoid],
  "mish": [jax.nn.mish],
  "soft_sign": [nn.soft_sign],
  "exp": [jnp.exp],
  "expm1": [jnp.expm1, lambda x: jnp.exp(x) - 1],
  "abs": [jnp.abs, lambda x: jnp.maximum(x, -x), lambda x: jnp.sqrt(x * x)],
  "neg": [lambda x: -x],
  "square": [jnp.square, lambda x: x * x, lambda x: x**2],
  "power (3,)": [lambda x: x**3],
  "sin": [jnp.sin],
  "cos": [jnp.cos],
  "sign": [jnp.sign],
  "floor": [jnp.floor],
  "ceil": [jnp.ceil],
  "round": [jnp.round],
}
POSITIVE = {
  "log": [jnp.log],
  "log1p": [jnp.log1p],
  "sqrt": [jnp.sqrt, lambda x: x**0.5],
  "rsqrt": [jax.lax.rsqrt, lambda x: 1 / jnp.sqrt(x), lambda x: x**-0.5],
  "reciprocal": [lambda x: 1 / x, lambda x: x**-1],
  "power (0.3,)": [lambda x: jnp.power(x, 0.3)],
}
ALL = {**FUNCTIONS, **POSITIVE}
NOT_PLAIN = ("elu", "celu", "selu", "ceil", "round")  # the plain kernels of ai-edge-litert 2.3.0 have none


def described(kind, fields):
  assert kind is ir.Activation, kind
  parameters = ", ".join(f"{one:.6g}" for one in fields.get("parameters", ()))
  return fields["function"] + (f" ({parameters}{',' * (parameters.count(',') == 0)})" if parameters else "")


def found(fn, shape=(2, 6, 4)):
  """The groups of a function that is traced and not run."""
  traced = Traced(lambda v, x: fn(x), {}, jax.ShapeDtypeStruct(shape, np.float32))
  groups = rows.find(traced)
  groups += functions.find(traced, frozenset().union(*(group.nodes for group in groups)))
  return groups, len(traced.nodes)


@pytest.mark.parametrize("name", ALL)
def test_a_function_is_recognised_however_it_is_spelled(name):
  for fn in ALL[name]:
    groups, count = found(fn)
    assert [described(group.kind, group.fields) for group in groups] == [name]
    assert len(groups[0].nodes) == count - (fn is exact_gelu)  # it ends in a copy


def test_functions_compute_what_jax_computes():
  """Each layer is proven against its equations when it is lifted, and here against both kernels of the runtime."""
  firsts = {name: spelled[0] for name, spelled in ALL.items()}
  weights = {name: normal(seed, (4, 3)) / 10 for seed, name in enumerate(firsts)}

  def fn(v, x):
    values = {name: one(nn.softplus(x) if name in POSITIVE else x) for name, one in firsts.items()}
    return sum(values[name] @ v[name] for name in firsts), values

  x = np.asarray(3 * normal(0, (5, 4)))
  network = deploy.lift(lambda v, x: fn(v, x)[0], weights, x)
  layers = {described(type(one), vars(one)): one for one in network.layers if isinstance(one, ir.Activation)}
  assert layers.keys() == firsts.keys()
  assert layers["hard_swish"].name.endswith(":hard_swish")
  _, expected = jax.device_get(jax.jit(fn)(weights, x))
  for name, layer in layers.items():
    given = np.asarray(nn.softplus(x)) if name in POSITIVE else x
    alone = ir.Network((layer,), network.tensors, {"x": layer.inputs[0]}, {"y": layer.output})
    np.testing.assert_allclose(reference.run(alone, given), expected[name], rtol=2e-6, atol=1e-6, err_msg=name)
    check_in_runtimes(alone, given, expected[name], ("xnnpack", "reference")[: 1 + (name.split()[0] not in NOT_PLAIN)])


def check_in_runtimes(network, x, expected, kernels=("xnnpack", "reference")):
  for runner in runners(network, kernels):
    for batch in (1, len(x)):
      got = runner.run(x[:batch])
      np.testing.assert_allclose(got, expected[:batch], rtol=1e-5, atol=1e-5, err_msg=str(network))


def rows_of(e):
  return e / e.sum(-1, keepdims=True)


def shifted(x):
  return x - jax.nn.logsumexp(x, -1, keepdims=True)


SOFTMAX = {
  "softmax": [nn.softmax, nnx.softmax, lambda x: rows_of(jnp.exp(x)), lambda x: jnp.exp(nn.log_softmax(x))],
  "softmax with a factor": [lambda x: jnp.exp(x) * (1 / jnp.exp(x).sum(-1, keepdims=True))],
  "softmax over axis 1": [lambda x: nn.softmax(x, axis=1), lambda x: jnp.exp(x) / jnp.exp(x).sum(1)[:, None]],
  "log_softmax": [nn.log_softmax, shifted, lambda x: jnp.log(nn.softmax(x))],
  "log_softmax over axis 1": [lambda x: nn.log_softmax(x, axis=-2)],
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_softmax_is_recognised_however_it_is_spelled(name):
  for fn in SOFTMAX[name]:
    (group,), count = found(fn)
    assert group.kind is ir.Softmax and len(group.nodes) == count
    assert group.fields == {"log": name.startswith("log"), "axis": 1 if "axis 1" in name else -1}
  x = np.asarray(5 * normal(0, (3, 6, 4)))
  network, expected = deploy.lift(lambda v, x: fn(x), {}, x), np.asarray(jax.jit(fn)(x))
  np.testing.assert_allclose(reference.run(network, x), expected, rtol=1e-5, atol=1e-6)
  check_in_runtimes(network, x, expected)


def test_a_slope_per_channel_is_a_prelu():
  slopes = jnp.array([0.1, -0.5, 2.0, 0.3])
  spelled = [
    lambda x: jnp.where(x > 0, x, slopes * x),
    lambda x: nn.relu(x) - slopes * nn.relu(-x),
    lambda x: jnp.maximum(x, 0) + slopes * jnp.minimum(x, 0),
  ]
  assert [[group.kind for group in found(fn)[0]] for fn in spelled] == [[ir.Prelu]] * 3
  x = np.asarray(normal(0, (3, 5, 6, 4)))
  network, expected = deploy.lift(lambda v, x: spelled[0](x), {}, x), np.asarray(spelled[0](x))
  np.testing.assert_allclose(reference.run(network, x), expected, rtol=1e-6)
  check_in_runtimes(network, x, expected)
  flat = deploy.lift(lambda v, x: spelled[0](x), {}, x[:, 0, 0])
  check_in_runtimes(flat, x[:, 0, 0], expected[:, 0, 0])


def beside(fn, x):
  return fn(x) + x


def kinds(network):
  return [getattr(layer, "function", type(layer).__name__) for layer in network.layers]


def test_what_stands_around_a_function_is_left_alone():
  v = {"w": jnp.eye(4), "b": jnp.zeros(4)}
  x = np.asarray(normal(0, (3, 4)))
  lifted = lambda fn: kinds(deploy.lift(fn, v, x))
  # Biases of zeros and factors of ones, before and behind.
  assert lifted(lambda v, x: nn.hard_swish(x @ v["w"] + v["b"])) == ["Dense", "hard_swish"]
  assert lifted(lambda v, x: nn.softmax((x @ v["w"] + v["b"]) * (v["b"] + 1))) == ["Dense", "Softmax"]
  # A ReLU belongs to the layer before it.
  assert lifted(lambda v, x: nn.relu(x @ v["w"] + v["b"])) == ["Dense"]
  assert lifted(lambda v, x: jnp.square(nn.relu(x @ v["w"] + v["b"]))) == ["Dense", "square"]
  assert lifted(lambda v, x: jnp.where(x > 0, x, 0)) == ["Relu"]
  # Values that others read are ends of regions.
  assert lifted(lambda v, x: beside(jnp.tanh, nn.softplus(x @ v["w"]))) == ["Dense", "softplus", "tanh", "Add"]
  # Softmaxes in a row, and a mask before one.
  assert lifted(lambda v, x: nn.softmax(nn.softmax(x))) == ["Softmax", "Softmax"]
  groups, _ = found(lambda x: nn.softmax(jnp.where(jnp.arange(4) > 1, x, -1e9)))
  assert [(group.kind, len(group.nodes)) for group in groups] == [(ir.Softmax, 9)]


def test_a_function_without_a_layer_is_refused_by_its_primitive():
  assert found(lambda x: jnp.maximum(x, 0.5))[0] == found(lambda x: 2 * x + 1)[0] == []
  with pytest.raises(UserError, match=r"cannot lift 'tan' at test_functions.py:\d+: the exported formats"):
    deploy.lift(lambda v, x: jnp.tan(nn.relu6(x)), {}, jnp.ones((1, 3)))
  network = deploy.lift(lambda v, x: jax.lax.erf(x), {}, jnp.ones((1, 3)))
  with pytest.raises(UserError, match="layer 'input#1:erf' is the function 'erf', which LiteRT lacks"):
    litert().write(network)


def codes_of(values, tensor):
  steps = np.rint(values.astype(np.float32) * (np.float32(1) / tensor.scale)) + tensor.zero_point
  return np.clip(steps, -128, 127).astype(np.int8)


# Function, its parameters, a definition, and the output's scale and zero point where the kernels have fixed ones.
INTEGER = [
  ("sigmoid", (), lambda x: 1 / (1 + np.exp(-x)), (1 / 256, -128)),
  ("tanh", (), np.tanh, (1 / 128, 0)),
  ("exp", (), np.exp, None),
  ("gelu_tanh", (), lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))), None),
  ("gelu", (), lambda x: 0.5 * x * np.vectorize(math.erfc)(-x / np.sqrt(2)), None),
  ("hard_swish", (), lambda x: x * np.clip(x + 3, 0, 6) / 6, None),
  ("relu6", (), lambda x: np.clip(x, 0, 6), None),
  ("clip", (-1.0, 1.0), lambda x: np.clip(x, -1, 1), None),
  ("clip", (-0.7, 2.5), lambda x: np.clip(x, -0.7, 2.5), None),
  ("leaky_relu", (0.1,), lambda x: np.where(x > 0, x, 0.1 * x), None),
  ("abs", (), np.abs, None),
]


@pytest.mark.parametrize("name, parameters, definition, fixed", INTEGER)
def test_integer_kernels_compute_the_codes_of_the_reference(name, parameters, definition, fixed):
  codes, kinds = np.arange(-128, 128).astype(np.int8).reshape(1, 16, 16), set()
  layer = ir.Activation("f", ("x",), "y", name, parameters)
  for seed in range(6):
    rng = np.random.default_rng(seed)
    scale, zero = np.float32(rng.uniform(4, 20) / 255), int(rng.integers(-40, 40))
    other = fixed or (scale * np.float32(rng.uniform(0.6, 1.3)), int(rng.integers(-40, 40)))
    other = other if seed % 2 or fixed else (scale, zero)
    tensors = {
      key: ir.Tensor(key, (None, 16, 16), "int8", ir.grid(*one)) for key, one in (("x", (scale, zero)), ("y", other))
    }
    network = ir.Network((layer,), tensors, {"x": "x"}, {"y": "y"})
    kind = int8_kernel(layer, tensors)
    kinds.add(kind)
    table = codes_of(definition(float(scale) * (codes.astype(np.float64) - zero)), tensors["y"])
    if kind is None:
      with pytest.raises(UserError, match=f"'f' is the function '{name}', which LiteRT has not in int8 on these grids"):
        litert().write(network)
      continue
    content = litert().write(network)
    for kernels, mode in (("xnnpack", "float32"), ("reference", "litert")):
      expected = reference.run(network, codes, mode)
      np.testing.assert_array_equal(litert(kernels=kernels).open(content).batches(codes), expected)
      apart = np.abs(expected.astype(int) - table)
      assert apart.max() <= (kind == "near") and (apart > 0).mean() < 0.25
  assert "exact" in kinds or name in ("hard_swish", "leaky_relu")


def test_an_integer_softmax_gives_the_codes_of_its_values():
  x = np.random.default_rng(0).integers(-128, 128, (50, 7, 5)).astype(np.int8)
  tensors = {"x": ir.Tensor("x", (None, 7, 5), "int8", ir.grid(0.07, -11))}
  tensors["y"] = ir.Tensor("y", (None, 7, 5), "int8", ir.grid(1 / 256, -128))
  for axis in (-1, 1):
    network = ir.Network((ir.Softmax("s", ("x",), "y", axis=axis),), tensors, {"x": "x"}, {"y": "y"})
    e = np.exp(float(np.float32(0.07)) * (x.astype(np.float64) + 11))
    table = codes_of(e / e.sum(axis, keepdims=True), tensors["y"])
    np.testing.assert_array_equal(reference.run(network, x), table)
    for kernels in ("xnnpack", "reference"):
      np.testing.assert_array_equal(litert(kernels=kernels).open(litert().write(network)).batches(x), table)
