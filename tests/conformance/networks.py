"""The networks that the battery of edits changes, each with a form without norms and one without a head.

`model(variables, x, train, key, norm, head) -> (out, state)`: with `norm=False` a layer's bias stands where its norm
stood, with `head=False` the output is the activation named `tap`.
"""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from leanax import graph
from leanax.core.trees import map_named, named_leaves
from leanax.engine import models
from tests.numbers import array

MOMENTUM, EPSILON = 0.9, 1e-5


class Norm(NamedTuple):
  """A batch norm: the layer before it, the kernel's axis of channels, and the paths of its leaves."""

  layer: str
  axis: int
  scale: str
  bias: str
  mean: str
  var: str


class Network(NamedTuple):
  """A network, and where the channels of its first layer lie.

  Attributes:
    model: as above.
    variables: nested dicts.
    x: inputs.
    site: name of the layer whose channels are removed or reordered.
    channels: {leaf: axes} along which these channels run, as outputs or as inputs.
    readers: {leaf: axis} of the kernels that read them.
    norms: to be folded.
    tap: an activation.
    random: whether it has dropout.
  """

  model: Any
  variables: Any
  x: jax.Array
  site: str
  channels: dict[str, tuple[int, ...]]
  readers: dict[str, int]
  norms: tuple[Norm, ...]
  tap: str
  random: bool

  @property
  def net(self) -> graph.Net:
    return graph.net_of(self.model, self.variables, self.x)


def numbers(shapes: Any) -> Any:
  """Draws every leaf; scales and variances lie around one, so that no norm is the identity."""
  rng = np.random.default_rng(0)

  def leaf(name: str, shape: Any) -> jax.Array:
    near = 1.0 if name.endswith(("scale", "var")) else 0.0
    return array(near + 0.5 * rng.uniform(-1.0, 1.0, getattr(shape, "shape", shape)), jnp.float32)

  return map_named(leaf, jax.tree.map(lambda s: s if hasattr(s, "shape") else np.empty(s), shapes, is_leaf=_shape))


def _shape(value: Any) -> bool:
  return isinstance(value, tuple)


def images(*shape: int) -> jax.Array:
  return array(np.random.default_rng(1).normal(size=shape), jnp.float32)


def normalised(x: jax.Array, p: Any, s: Any, axis: int, train: bool) -> tuple[jax.Array, Any]:
  """A batch norm by the definition."""
  others = tuple(a for a in range(x.ndim) if a != axis)
  mean, var = (x.mean(others), x.var(others)) if train else (s["mean"], s["var"])
  new = {"mean": MOMENTUM * s["mean"] + (1 - MOMENTUM) * mean, "var": MOMENTUM * s["var"] + (1 - MOMENTUM) * var}
  wide = [-1 if a == axis else 1 for a in range(x.ndim)]
  slope = p["scale"] / jnp.sqrt(var + EPSILON)
  return (x - mean.reshape(wide)) * slope.reshape(wide) + p["bias"].reshape(wide), new if train else s


def plain() -> Network:
  """Two layers, no norm, no training mode."""

  def model(v, x, *, train=False, key=None, norm=True, head=True):
    del train, key, norm
    p = v["params"]
    x = jax.nn.relu(x @ p["first"]["kernel"] + p["first"]["bias"])
    return (x @ p["last"]["kernel"] if head else x), {}

  shapes = {"first": {"kernel": (5, 6), "bias": (6,)}, "last": {"kernel": (6, 3)}}
  channels = {"params/first/kernel": (1,), "params/first/bias": (0,), "params/last/kernel": (0,)}
  readers, tap = {"params/last/kernel": 0}, "first/kernel:out"
  return Network(
    model, numbers({"params": shapes}), images(4, 5), "first/kernel", channels, readers, (), tap, random=False
  )


class Linen(nn.Module):
  norm: bool = True
  head: bool = True

  @nn.compact
  def __call__(self, x, train=False):
    def norm(x):
      return nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM)(x) if self.norm else x

    x = nn.relu(norm(nn.Conv(6, (3, 3), use_bias=not self.norm)(x)))
    x = nn.relu(norm(nn.Conv(4, (3, 3))(x)))
    if not self.head:
      return x
    x = nn.Dropout(0.5, deterministic=not train)(x.mean((1, 2)))
    return nn.Dense(3, use_bias=False)(x)


def linen() -> Network:
  """Batch norms after convolutions with and without a bias, and dropout."""

  def model(v, x, *, train=False, key=None, **form):
    module, state = Linen(**form), {name: tree for name, tree in v.items() if name != "params"}
    if not train:
      return module.apply(v, x), state
    out, new = module.apply(v, x, True, mutable=list(state), rngs={"dropout": key})
    return out, {**state, **new}

  x = images(4, 6, 6, 2)
  variables = numbers(jax.eval_shape(Linen().init, jax.random.key(0), x))
  names = {"params/Conv_0/kernel": (3,), "params/Conv_1/kernel": (2,)}
  names |= {f"{part}/BatchNorm_0/{leaf}": (0,) for part, leaf in _parts("params", "batch_stats")}
  norms = tuple(
    Norm(f"params/Conv_{i}", 3, *(f"{part}/BatchNorm_{i}/{leaf}" for part, leaf in _parts("params", "batch_stats")))
    for i in range(2)
  )
  readers, tap = {"params/Conv_1/kernel": 2}, "Conv_1/kernel:out"
  return Network(model, variables, x, "Conv_0/kernel", names, readers, norms, tap, random=True)


def _parts(params: str, stats: str) -> list[tuple[str, str]]:
  return [(params, "scale"), (params, "bias"), (stats, "mean"), (stats, "var")]


class Nnx(nnx.Module):
  def __init__(self, rngs, norm=True, head=True):
    self.conv = nnx.Conv(2, 6, (3, 3), use_bias=not norm, rngs=rngs)
    if norm:
      self.norm = nnx.BatchNorm(6, momentum=MOMENTUM, rngs=rngs)
    self.drop = nnx.Dropout(0.5, rngs=rngs)
    if head:
      self.last = nnx.Linear(6, 3, use_bias=False, rngs=rngs)
    self.has = norm, head

  def __call__(self, x):
    norm, head = self.has
    x = self.conv(x)
    x = nnx.relu(self.norm(x) if norm else x)
    return self.last(self.drop(x.mean((1, 2)))) if head else x


@functools.cache
def _nnx_net(norm: bool, head: bool) -> graph.Net:
  return models.net(Nnx(nnx.Rngs(0), norm, head), None, jax.ShapeDtypeStruct((1, 6, 6, 2), jnp.float32))


def of_nnx() -> Network:
  """A batch norm and dropout, of nnx."""

  def model(v, x, *, train=False, key=None, norm=True, head=True):
    net = _nnx_net(norm, head)
    return net.fn(_only(v, net.variables), x, train=train, key=key)

  names = {"params/conv/kernel": (3,), "params/last/kernel": (0,)}
  names |= {f"{part}/norm/{leaf}": (0,) for part, leaf in _parts("params", "batch_stats")}
  norms = (Norm("params/conv", 3, *(f"{part}/norm/{leaf}" for part, leaf in _parts("params", "batch_stats"))),)
  readers, tap = {"params/last/kernel": 0}, "conv/kernel:out"
  variables, x = numbers(_nnx_net(True, True).original), images(4, 6, 6, 2)
  return Network(model, variables, x, "conv/kernel", names, readers, norms, tap, random=True)


def _only(variables: Any, like: Any) -> Any:
  """The variables that a form of the model has."""
  found = named_leaves(variables)
  return map_named(lambda name, _: found[name], like)


def scanned() -> Network:
  """A norm, then a scan over two residual layers with dropout in each."""

  def model(v, x, *, train=False, key=None, norm=True, head=True):
    p, state = v["params"], {name: tree for name, tree in v.items() if name != "params"}
    x = x @ p["stem"]["kernel"]
    if norm:
      x, new = normalised(x, p["norm"], v["batch_stats"], 1, train)
      state = {"batch_stats": new}
    else:
      x = x + p["stem"]["bias"]

    def layer(x, given):
      w, key = given
      y = jax.nn.relu(x @ w["kernel"] + w["bias"])
      return x + (jnp.where(jax.random.bernoulli(key, 0.5, y.shape), y / 0.5, jnp.zeros(y.shape)) if train else y), None

    keys = jax.random.split(key, 2) if train else jnp.zeros(2)
    x = jax.nn.relu(jax.lax.scan(layer, jax.nn.relu(x), (p["layers"], keys))[0])
    return (x @ p["last"]["kernel"] if head else x), state

  shapes = {"stem": {"kernel": (5, 6)}, "norm": {"scale": (6,), "bias": (6,)}, "last": {"kernel": (6, 3)}}
  shapes["layers"] = {"kernel": (2, 6, 6), "bias": (2, 6)}
  variables = numbers({"params": shapes, "batch_stats": {"mean": (6,), "var": (6,)}})
  norm = Norm("params/stem", 1, "params/norm/scale", "params/norm/bias", "batch_stats/mean", "batch_stats/var")
  names = {"params/stem/kernel": (1,), "params/layers/kernel": (1, 2), "params/layers/bias": (1,)}
  names |= {"params/last/kernel": (0,)} | dict.fromkeys(norm[2:], (0,))
  readers = {"params/layers/kernel": 1, "params/last/kernel": 0}
  tap = "layers/kernel:add:scanned:out"
  return Network(model, variables, images(4, 5), "stem/kernel", names, readers, (norm,), tap, random=True)


def channels_first() -> Network:
  """NCHW and OIHW, a batch norm, and a pool."""

  def conv(x, w):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NCHW", "OIHW", "NCHW"))

  def model(v, x, *, train=False, key=None, norm=True, head=True):
    del key
    p, state = v["params"], {name: tree for name, tree in v.items() if name != "params"}
    x = conv(x, p["first"]["kernel"])
    if norm:
      x, new = normalised(x, p["norm"], v["batch_stats"], 1, train)
      state = {"batch_stats": new}
    else:
      x = x + p["first"]["bias"][:, None, None]
    x = jax.lax.reduce_window(jax.nn.relu(x), -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = jax.nn.relu(conv(x, p["second"]["kernel"])).mean((2, 3))
    return (x @ p["last"]["kernel"] if head else x), state

  shapes = {"first": {"kernel": (6, 2, 3, 3)}, "norm": {"scale": (6,), "bias": (6,)}}
  shapes |= {"second": {"kernel": (4, 6, 3, 3)}, "last": {"kernel": (4, 3)}}
  variables = numbers({"params": shapes, "batch_stats": {"mean": (6,), "var": (6,)}})
  norm = Norm("params/first", 0, "params/norm/scale", "params/norm/bias", "batch_stats/mean", "batch_stats/var")
  names = {"params/first/kernel": (0,), "params/second/kernel": (1,)} | dict.fromkeys(norm[2:], (0,))
  readers, tap = {"params/second/kernel": 1}, "second/kernel:mean:out"
  return Network(model, variables, images(4, 2, 6, 6), "first/kernel", names, readers, (norm,), tap, random=False)


NETWORKS = {"plain": plain, "linen": linen, "nnx": of_nnx, "scan": scanned, "nchw": channels_first}
