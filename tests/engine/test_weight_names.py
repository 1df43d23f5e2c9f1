"""Weights arrive without a key map: PyTorch's names and axes, nnx's and linen's trees however they were saved.

The oracle of axes is torch's definition of each layer, written out in numpy on torch's own arrays.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import linen as nn
from flax import nnx, serialization
from flax.training.train_state import TrainState

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.models import nnx_model
from leanax.engine.store.pretrained import load
from scripts.drills.fuzz.pth import archive, module, tensor

RNG = np.random.default_rng(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


class Net(nn.Module):
  """Every kind of layer, with channels that are equal on both sides wherever they can be."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), padding="VALID", name="stem_conv")(x)
    x = nn.BatchNorm(use_running_average=True, name="stem_bn")(x)
    x = nn.ConvTranspose(4, (3, 3), (2, 2), padding="VALID", name="up")(nn.relu(x))
    x = nn.ConvTranspose(4, (3, 3), (2, 2), padding="VALID", transpose_kernel=True, name="turned")(x)
    x = nn.relu(x).reshape(x.shape[0], -1)
    x = nn.LayerNorm(epsilon=1e-5, name="norm")(nn.Dense(5, name="layers_0")(x))
    return nn.Dense(5, name="layers_1")(x)


SHAPE = (2, 4, 3, 4)
X = normal(*SHAPE)
STATE = {
  "stem_conv.weight": normal(4, 4, 3, 3),
  "stem_conv.bias": normal(4),
  "stem_bn.weight": normal(4),
  "stem_bn.bias": normal(4),
  "stem_bn.running_mean": normal(4),
  "stem_bn.running_var": np.abs(normal(4)) + 0.5,
  "stem_bn.num_batches_tracked": np.array(7),
  "up.weight": normal(4, 4, 3, 3),
  "up.bias": normal(4),
  "turned.weight": normal(4, 4, 3, 3),
  "turned.bias": normal(4),
  "layers.0.weight": normal(5, 4 * 11 * 7),
  "layers.0.bias": normal(5),
  "norm.weight": normal(5),
  "norm.bias": normal(5),
  "layers.1.weight": normal(5, 5),
  "layers.1.bias": normal(5),
}


def by_torch(x):
  """The network on (N, C, H, W) images, from the definitions of torch's layers."""
  w = {name: array.astype(np.float64) for name, array in STATE.items()}
  rows, columns = x.shape[2] - 2, x.shape[3] - 2
  out = np.zeros((len(x), 4, rows, columns)) + w["stem_conv.bias"][:, None, None]
  for i in range(3):
    for j in range(3):
      out += np.einsum("oc,nchw->nohw", w["stem_conv.weight"][:, :, i, j], x[:, :, i : i + rows, j : j + columns])

  def channels(name):
    return w[name][:, None, None]

  out = (out - channels("stem_bn.running_mean")) / np.sqrt(channels("stem_bn.running_var") + 1e-5)
  x = np.maximum(out * channels("stem_bn.weight") + channels("stem_bn.bias"), 0)
  for name in ("up", "turned"):  # each entry spreads the kernel, two apart
    out = np.zeros((len(x), 4, 2 * x.shape[2] + 1, 2 * x.shape[3] + 1)) + channels(f"{name}.bias")
    for i in range(3):
      for j in range(3):
        spread = np.einsum("co,nchw->nohw", w[f"{name}.weight"][:, :, i, j], x)
        out[:, :, i : i + 2 * x.shape[2] : 2, j : j + 2 * x.shape[3] : 2] += spread
    x = out
  x = np.maximum(x, 0).reshape(len(x), -1) @ w["layers.0.weight"].T + w["layers.0.bias"]
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w["norm.weight"] + w["norm.bias"]
  return x @ w["layers.1.weight"].T + w["layers.1.bias"]


def fresh():
  return jax.eval_shape(Net().init, jax.random.key(0), X)


def as_linen(variables):
  return Net().apply(variables, X)


CALL = (Net().apply, jax.ShapeDtypeStruct(SHAPE, jnp.float32))


def write(path, arrays, wrap=lambda state: state):
  if path.suffix == ".safetensors":
    safetensors.numpy.save_file(arrays, path)
  else:
    path.write_bytes(archive(wrap({name: tensor(array) for name, array in arrays.items()})))
  return path


def whole(state):
  """A pickled module, of which the state dict is `state`."""

  def of(level):
    names = dict.fromkeys(name.split(".")[0] for name in level if "." in name)
    inside = {name: of({k[len(name) + 1 :]: v for k, v in level.items() if k.startswith(f"{name}.")}) for name in names}
    own = {name: value for name, value in level.items() if "." not in name}
    buffers = {name: own.pop(name) for name in list(own) if name.startswith(("running", "num"))}
    return module("M", own, buffers, inside)

  return of(state)


OPTIMIZER = {"state": {0: {"exp_avg": tensor(np.ones(3)), "step": 1}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
WRAPS = {
  "state dict": lambda state: state,
  "checkpoint": lambda state: {"epoch": 3, "state_dict": state, "optimizer": OPTIMIZER, "best": np.float32(0.5)},
  "model and options": lambda state: {"model": state, "args": {"depth": 3}, "mean": tensor(np.ones(3))},
  "parallel": lambda state: {f"module.{name}": value for name, value in state.items()},
  "lightning": lambda state: {"state_dict": {f"net.{name}": v for name, v in state.items()}, "loops": {"fit": [1]}},
  "module": whole,
  "checkpoint of a module": lambda state: {"epoch": 3, "ema": whole(state)},
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_torch_file(tmp_path, wrap):
  path = write(tmp_path / "w.pth", STATE, WRAPS[wrap])
  variables = load(path, fresh(), call=CALL)
  assert jax.tree.structure(variables) == jax.tree.structure(fresh())
  if wrap == "state dict":
    wanted = by_torch(X.transpose(0, 3, 1, 2).astype(np.float64))
    np.testing.assert_allclose(as_linen(variables), wanted, rtol=2e-4, atol=2e-4)
  np.testing.assert_array_equal(variables["params"]["layers_1"]["kernel"], STATE["layers.1.weight"].T)
  np.testing.assert_array_equal(variables["batch_stats"]["stem_bn"]["var"], STATE["stem_bn.running_var"])


def test_an_array_of_the_same_state_dict_is_not_left_out(tmp_path):
  """What stands beside an entry is something else; what stands beside the model inside of one is named."""

  def wrap(state):
    return {"state_dict": {**{f"net.{name}": v for name, v in state.items()}, "aux.bias": tensor(normal(3))}}

  path = write(tmp_path / "w.pth", STATE, wrap)
  with pytest.raises(UserError, match="w.pth holds 'state_dict/aux.bias', which the model does not use"):
    load(path, fresh(), call=CALL)


def test_torch_names_in_safetensors_are_the_same(tmp_path):
  one = load(write(tmp_path / "w.safetensors", STATE), fresh(), call=CALL)
  other = load(write(tmp_path / "w.pth", STATE), fresh(), call=CALL)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_rules_of_the_user_come_first(tmp_path):
  """A renamed array has torch's axes still, and one whose axes a rule has ordered has the rule's."""
  arrays = {f"old.{name}": array for name, array in STATE.items()}
  path = write(tmp_path / "w.pth", arrays)
  given = load(path, fresh(), [(r"^old\.", ""), (r"layers\.1\.weight$", "layers_1/kernel", (0, 1))], call=CALL)
  plain = load(write(tmp_path / "v.pth", STATE), fresh(), call=CALL)
  kernel = given["params"]["layers_1"].pop("kernel")
  plain["params"]["layers_1"].pop("kernel")
  np.testing.assert_array_equal(kernel, STATE["layers.1.weight"])
  jax.tree.map(np.testing.assert_array_equal, given, plain)
  turned = load(path, fresh(), [(r"^old\.", ""), (r"layers\.1\.weight$", "layers.1.weight", (1, 0))], call=CALL)
  np.testing.assert_array_equal(turned["params"]["layers_1"]["kernel"], STATE["layers.1.weight"].T)  # turned once


def without(*names, **more):
  return {**{name: array for name, array in STATE.items() if name not in names}, **more}


@pytest.mark.parametrize(
  ("arrays", "options", "says"),
  [
    (without("norm.bias"), {}, "has no array for 'norm/bias' of the model$"),
    (
      {**without("layers.1.weight"), "layers.2.weight": normal(5, 5)},
      {},
      r"no array for 'layers_1/kernel' of the model \(the nearest name there is 'layers.2.weight'\); .* holds 'layers",
    ),
    ({**STATE, "aux.weight": normal(2, 2)}, {}, "w.pth holds 'aux.weight', which the model does not use$"),
    (
      {**STATE, "layers.1.weight": normal(3, 5), "layers.1.bias": normal(3)},
      {},
      r"'layers_1/bias' \('layers.1.bias' there\) has shape \(3,\); the model's has \(5,\), and 1 more differ; "
      r"expected the keywords of the model that was trained; a .* by keep=\('layers_1/\*',\), in a config by .*'new'",
    ),
    (STATE, {"call": None}, r"holds kernels of PyTorch, whose axes Flax orders otherwise; expected call=\(fn, x\)"),
    (STATE, {"entry": "ema"}, "w.pth has no entry 'ema'; it has arrays alone"),
    ({**STATE, "up.bias": np.full(4, np.nan, np.float32)}, {}, "w.pth: 'up/bias' holds NaN"),
    ({**STATE, "up_bias": normal(4)}, {}, "holds 'up_bias', which"),
    ({**STATE, "layers_0.bias": normal(5)}, {}, "'layers.0.bias' and 'layers_0.bias' are both 'layers_0/bias'"),
  ],
)
def test_what_does_not_fit_is_named(tmp_path, arrays, options, says):
  path = write(tmp_path / "w.pth", arrays)
  with pytest.raises(UserError, match=says) as caught:
    load(path, fresh(), **{"call": CALL, **options})
  assert "\n" not in str(caught.value)


def test_a_quantized_tensor_is_named(tmp_path):
  from scripts.drills.fuzz.pth import Made, Stored

  codes = Made("torch._utils _rebuild_qtensor", Stored(np.ones(4, np.int8)), 0, (4,), (1,), (), False, {})
  state = {name: tensor(array) for name, array in STATE.items()} | {"up.bias": codes}
  (tmp_path / "w.pth").write_bytes(archive(state))
  with pytest.raises(UserError, match="w.pth: 'up.bias' is a tensor of 'torch._utils._rebuild_qtensor'; expected a"):
    load(tmp_path / "w.pth", fresh(), call=CALL)


def test_a_new_head(tmp_path):
  """Leaves that are kept are not looked for in the file, whatever it has of their names."""
  target = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 9, leaf.dtype), fresh())
  arrays = {**STATE, "layers.1.weight": normal(3, 5), "layers.1.bias": normal(3)}
  loaded = load(write(tmp_path / "w.pth", arrays), target, keep=["layers_1/*"], call=CALL)
  assert (loaded["params"]["layers_1"]["kernel"] == 9).all()
  np.testing.assert_array_equal(loaded["params"]["norm"]["scale"], STATE["norm.weight"])


def test_one_of_several_entries(tmp_path):
  average = {name: array + 1 for name, array in STATE.items()}

  def both(state):
    more = {name: tensor(array) for name, array in average.items()}
    return {"model": state, "ema": {"decay": 0.9, "shadow": more}}

  path = write(tmp_path / "w.pth", STATE, both)
  with pytest.raises(UserError, match="all weights of the model 2 times, in 'ema/shadow' and 'model'; expected"):
    load(path, fresh(), call=CALL)
  for entry, wanted in (("model", 0), ("ema/shadow", 1), ("ema", 1)):
    found = load(path, fresh(), call=CALL, entry=entry)
    np.testing.assert_array_equal(found["params"]["norm"]["bias"], STATE["norm.bias"] + wanted)
  with pytest.raises(UserError, match="w.pth has no entry 'modle'; it has 'model'"):
    load(path, fresh(), call=CALL, entry="modle")


class Flat(nn.Module):
  """An MLP on images: which of the flattened axes are channels cannot be seen."""

  @nn.compact
  def __call__(self, x):
    return nn.Dense(3, name="fc")(x.reshape(x.shape[0], -1))


def test_flattened_channels_that_are_not_known(tmp_path):
  x = jax.ShapeDtypeStruct((1, 2, 3, 2), jnp.float32)
  target, weight = jax.eval_shape(Flat().init, jax.random.key(0), x), normal(3, 12)
  path = write(tmp_path / "w.pth", {"fc.weight": weight, "fc.bias": normal(3)})
  with pytest.raises(UserError, match="'fc/kernel' of the model reads flattened axes, of which those of channels"):
    load(path, target, call=(Flat().apply, x))
  given = load(path, target, [(r"fc\.weight$", "fc.kernel", (1, 0))], call=(Flat().apply, x))
  np.testing.assert_array_equal(given["params"]["fc"]["kernel"], weight.T)
  grey = jax.ShapeDtypeStruct((1, 4, 3, 1), jnp.float32)  # in either order the same
  given = load(path, target, call=(Flat().apply, grey))
  np.testing.assert_array_equal(given["params"]["fc"]["kernel"], weight.T)


class First(nn.Module):
  """A transposed convolution that spreads nothing, known by its name; channels are first where it is flattened."""

  @nn.compact
  def __call__(self, x):
    x = nn.ConvTranspose(2, (3, 3), padding="VALID")(x)
    return nn.Dense(3, name="fc")(x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1))


def test_stride_one_and_channels_first(tmp_path):
  x = jax.ShapeDtypeStruct((1, 2, 2, 2), jnp.float32)
  target = jax.eval_shape(First().init, jax.random.key(0), x)
  arrays = {"ConvTranspose_0.weight": normal(2, 2, 3, 3), "ConvTranspose_0.bias": normal(2)}
  arrays |= {"fc.weight": normal(3, 32), "fc.bias": normal(3)}
  found = load(write(tmp_path / "w.pth", arrays), target, call=(First().apply, x))["params"]
  turned = np.einsum("iohw->hwio", arrays["ConvTranspose_0.weight"])[::-1, ::-1]
  np.testing.assert_array_equal(found["ConvTranspose_0"]["kernel"], turned)
  np.testing.assert_array_equal(found["fc"]["kernel"], arrays["fc.weight"].T)


class Mixed(nn.Module):
  """One- and three-dimensional convolutions, an embedding, heads."""

  @nn.compact
  def __call__(self, x):
    y = nn.Embed(3, 3, name="embed")(jnp.zeros(x.shape[:1], jnp.int32))
    y = nn.Conv(3, (2,), name="line")(y[:, None])
    y = nn.Conv(3, (2, 2, 2), name="block")(y[:, :, None, None])
    y = nn.Dense(4, use_bias=False, name="heads")(y.reshape(-1, 3))
    y = y.reshape(-1, 2, 2) * self.param("temperature", nn.initializers.ones, (2, 1))
    return nn.Dense(4, use_bias=False, name="joined")(y.reshape(-1, 4)) + 0 * x.sum()


def test_further_ranks(tmp_path):
  x = jax.ShapeDtypeStruct((2, 3), jnp.float32)
  arrays = {
    "embed.weight": normal(3, 3),
    "line.weight": normal(3, 3, 2),
    "line.bias": normal(3),
    "block.weight": normal(3, 3, 2, 2, 2),
    "block.bias": normal(3),
    "heads.weight": normal(4, 3),
    "joined.weight": normal(4, 4),
    "temperature": normal(2, 1),
  }
  path = write(tmp_path / "w.pth", arrays)
  found = load(path, jax.eval_shape(Mixed().init, jax.random.key(0), x), call=(Mixed().apply, x))["params"]
  np.testing.assert_array_equal(found["embed"]["embedding"], arrays["embed.weight"])
  np.testing.assert_array_equal(found["line"]["kernel"], np.einsum("oik->kio", arrays["line.weight"]))
  np.testing.assert_array_equal(found["block"]["kernel"], np.einsum("oiabc->abcio", arrays["block.weight"]))
  np.testing.assert_array_equal(found["heads"]["kernel"], arrays["heads.weight"].T)
  np.testing.assert_array_equal(found["joined"]["kernel"], arrays["joined.weight"].T)
  np.testing.assert_array_equal(found["temperature"], arrays["temperature"])


class Block(nnx.Module):
  def __init__(self, rngs):
    self.fc = nnx.Linear(3, 3, rngs=rngs)
    self.norm = nnx.BatchNorm(3, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)

  def __call__(self, x):
    return self.drop(self.norm(self.fc(x)))


class Nnx(nnx.Module):
  def __init__(self, rngs):
    self.layers = nnx.List([Block(rngs) for _ in range(2)])
    self.head = nnx.Linear(3, 2, rngs=rngs)
    self.noise = rngs

  def __call__(self, x):
    for layer in self.layers:
      x = layer(x)
    return self.head(x)


def orbax(path, tree):
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(path, tree)


def msgpack(path, tree):
  path.write_bytes(serialization.to_bytes(tree))


def flattened(link, end=""):
  def write(path, tree):
    named = {name.replace("/", link) + end: np.asarray(leaf) for name, leaf in named_leaves(tree).items()}
    safetensors.numpy.save_file(named, path)

  return write


def pure(net, *kinds):
  return nnx.to_pure_dict(nnx.state(net, kinds))


def tensors(net):
  return pure(net, nnx.Param, nnx.BatchStat)


KINDS = {"params": nnx.Param, "batch_stats": nnx.BatchStat}
NNX = {
  "state by orbax": ("w", orbax, nnx.state),
  "split by orbax": ("w", orbax, lambda net: nnx.split(net)[1]),
  "a state of each kind by orbax": (
    "w",
    orbax,
    lambda net: dict(zip(KINDS, nnx.split(net, *KINDS.values(), ...)[1:3])),
  ),
  "pure dict by orbax": ("w", orbax, lambda net: nnx.to_pure_dict(nnx.state(net))),
  "with an optimizer by orbax": ("w", orbax, lambda net: {"model": nnx.state(net), "step": np.array(3)}),
  "msgpack": ("w.msgpack", msgpack, tensors),
  "msgpack of text keys": ("w.msgpack", msgpack, lambda net: serialization.to_state_dict(tensors(net))),
  "safetensors a/b": ("w.safetensors", flattened("/"), tensors),
  "safetensors a.b": ("w.safetensors", flattened("."), tensors),
  "safetensors a.b.value": ("w.safetensors", flattened(".", ".value"), tensors),
  "our variables": ("w.safetensors", flattened("/"), nnx_model.variables_of),
}


@pytest.mark.parametrize("way", NNX)
def test_nnx_weights(tmp_path, way):
  name, write, make = NNX[way]
  net = Nnx(nnx.Rngs(1))
  for layer in net.layers:
    layer.norm.mean[...] = jnp.asarray(normal(3))
  write(tmp_path / name, make(net))
  target = nnx_model.variables_of(Nnx(nnx.Rngs(2)))
  found = load(tmp_path / name, target)
  assert jax.tree.structure(found) == jax.tree.structure(target)
  jax.tree.map(np.testing.assert_array_equal, found, nnx_model.variables_of(net))


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))


class State(TrainState):
  batch_stats: dict


LINEN = Linen().init(jax.random.key(3), jnp.ones((1, 3)))
ADAM = optax.adam(1e-3)
TRAINED = State.create(apply_fn=None, tx=ADAM, **LINEN)
TREES = {
  "variables": LINEN,
  "params and statistics": {"model": LINEN},
  "state of training": TRAINED,
  "variables in params": TrainState.create(apply_fn=None, params=LINEN, tx=ADAM),
  "with averages": {"params": LINEN["params"], "batch_stats": LINEN["batch_stats"], "opt_state": ADAM.init(LINEN)},
}


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize(("name", "write"), [("w", orbax), ("w.msgpack", msgpack), ("w.safetensors", flattened("/"))])
def test_linen_weights(tmp_path, tree, name, write):
  write(tmp_path / name, TREES[tree])
  target = jax.tree.map(jnp.zeros_like, LINEN)
  found = load(tmp_path / name, target)
  assert jax.tree.structure(found) == jax.tree.structure(target)
  jax.tree.map(np.testing.assert_array_equal, found, LINEN)


def test_params_alone(tmp_path):
  dense = nn.Dense(3).init(jax.random.key(0), jnp.ones((1, 3)))
  for number, tree in enumerate((dense, dense["params"], TrainState.create(apply_fn=None, params=dense, tx=ADAM))):
    orbax(tmp_path / str(number), tree)
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / str(number), dense), dense)


def test_averages_beside_the_weights(tmp_path):
  """Two trees that hold the whole model are not told apart, but by name."""
  tree = {"params": LINEN["params"], "batch_stats": LINEN["batch_stats"], "ema_params": LINEN["params"]}
  flattened("/")(tmp_path / "w.safetensors", tree)
  with pytest.raises(UserError, match="holds 'ema_params/BatchNorm_0/bias', .* which the model does not use"):
    load(tmp_path / "w.safetensors", LINEN)
  load(tmp_path / "w.safetensors", LINEN, [("^ema_params/", None)])
  del tree["batch_stats"]
  flattened("/")(tmp_path / "w.safetensors", tree)
  only = {"params": LINEN["params"]}
  with pytest.raises(UserError, match="all weights of the model 2 times, in 'ema_params' and 'params'"):
    load(tmp_path / "w.safetensors", only)
  jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "w.safetensors", only, entry="ema_params"), only)
