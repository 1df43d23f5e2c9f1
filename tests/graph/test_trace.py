"""Names, kinds, operands and counts of traced models."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from leanax.graph import versions
from tests.graph import models


def kinds(found):
  return {name: op.kind for name, op in found.sites.items()}


def test_names_and_kinds_of_a_conv_net():
  case = models.conv_net()
  found = graph.trace(case.fn, case.variables, case.x)
  block = "Conv_1/kernel:add"
  assert kinds(found) == {
    "Conv_0/kernel": "conv",
    "Conv_1/kernel": "conv",
    "Conv_1/bias": "bias",
    block: "add",
    f"{block}:max_pool": "max_pool",
    f"{block}:avg_pool": "avg_pool",
    f"{block}:avg_pool:mean": "mean",
    "Dense_0/kernel": "dot",
    "Dense_0/bias": "bias",
    "output": "output",
  }
  assert found.sites["Conv_1/bias"].site == "Conv_1/kernel"
  tensors = {name: [o.tensor for o in op.inputs if o.tensor] for name, op in found.sites.items()}
  assert tensors["Conv_0/kernel"] == ["input"]
  assert tensors["Conv_1/kernel"] == ["Conv_0/kernel:out"]
  assert tensors["Conv_1/bias"] == ["Conv_1/kernel:acc"]
  assert tensors[block] == ["Conv_1/kernel:out", "Conv_0/kernel:out"]
  assert tensors[f"{block}:max_pool"] == tensors[f"{block}:avg_pool"] == [f"{block}:out"]
  assert tensors["output"] == ["Dense_0/kernel:out"]
  assert found.sites["Conv_1/kernel"].channel_axis == 3
  assert found.sites["Conv_1/kernel"].kernel_index == 1


@pytest.mark.parametrize("name", models.CASES)
def test_names_are_the_same_in_training_and_evaluation(name):
  case = models.CASES[name]()
  one, other = (graph.trace(fn, case.variables, case.x) for fn in (case.fn, case.train))
  assert kinds(one) == kinds(other)
  for site in one.sites:
    assert [o.tensor for o in one.sites[site].inputs] == [o.tensor for o in other.sites[site].inputs][
      : len(one.sites[site].inputs)
    ]
  assert graph.training_only(other, one) == graph.training_only(one, other) == ()


def head(variables, x, second):
  """With a second head, which GoogLeNet has in training alone."""
  x = jax.nn.relu(x @ variables["trunk"])
  early = x @ variables["second"] if second else None
  return x @ variables["last"], early


HEAD = {"trunk": jnp.ones((3, 4)), "second": jnp.ones((4, 2)), "last": jnp.ones((4, 2))}


def test_sites_that_exist_only_in_training():
  one, other = (graph.trace(lambda v, x, s=s: head(v, x, s), HEAD, jnp.ones((2, 3))) for s in (True, False))
  assert graph.training_only(one, other) == ("second",)
  assert graph.training_only(other, one) == ()


def test_a_name_that_means_another_thing_in_training_is_refused():
  def fn(variables, x, train):
    early = jnp.tanh(x @ variables["a"]) @ variables["w"] if train else None
    return x @ variables["w"], early

  variables = {"a": jnp.eye(4), "w": jnp.eye(4)}
  one, other = (graph.trace(lambda v, x, t=t: fn(v, x, t), variables, jnp.ones((2, 4))) for t in (True, False))
  with pytest.raises(UserError, match="'w' is 'dot' of a:out, w in training, but 'dot' of input, w in evaluation"):
    graph.training_only(one, other)


def test_names_of_nnx_and_of_a_plain_function():
  case = models.nnx_conv_net()
  found = graph.trace(case.fn, case.variables, case.x)
  assert kinds(found) == {
    "conv/kernel": "conv",
    "block/kernel": "conv",
    "block/bias": "bias",
    "block/kernel:add": "add",
    "block/kernel:add:mean": "mean",
    "head/kernel": "dot",
    "head/bias": "bias",
    "output": "output",
  }
  case = models.plain()
  found = graph.trace(case.fn, case.variables, case.x)
  assert kinds(found) == {"first/w": "dot", "first/b": "bias", "last": "dot", "output": "output"}
  assert (found.sites["first/w"].kernel_index, found.sites["first/w"].channel_axis) == (0, 0)
  assert (found.sites["last"].kernel_index, found.sites["last"].channel_axis) == (1, 1)


def test_shapes_are_enough():
  case = models.conv_net()
  shapes = jax.eval_shape(lambda v: v, case.variables)
  assert kinds(graph.trace(case.fn, shapes, jax.ShapeDtypeStruct(case.x.shape, case.x.dtype))) == kinds(
    graph.trace(case.fn, case.variables, case.x)
  )


def test_macs_by_hand():
  case = models.conv_net()
  found = graph.trace(case.fn, case.variables, case.x)
  macs = {name: op.macs for name, op in found.sites.items() if op.macs}
  assert macs == {"Conv_0/kernel": 2 * 64 * 4 * 27, "Conv_1/kernel": 2 * 64 * 4 * 9 * 2, "Dense_0/kernel": 2 * 4 * 3}
  assert found.total == sum(macs.values())


def test_macs_of_depthwise_and_transposed_convolutions():
  class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
      x = nn.Conv(6, (3, 3), feature_group_count=3, use_bias=False, padding="VALID")(x)
      return nn.ConvTranspose(5, (2, 2), strides=(2, 2), use_bias=False)(x)

  x = models.images(1)
  found = graph.trace(Net().apply, jax.eval_shape(Net().init, jax.random.key(0), x), x)
  assert found.sites["Conv_0/kernel"].macs == 6 * 6 * 6 * 9
  assert found.sites["ConvTranspose_0/kernel"].macs == 36 * 6 * 4 * 5
  assert found.sites["ConvTranspose_0/kernel"].channel_axis == 3


def test_shared_kernels_and_leafless_dots():
  def fn(variables, x):
    w = variables["params"]["w"]
    q, k = x @ w, jnp.tanh(x) @ w
    return q @ k.T

  found = graph.trace(fn, {"params": {"w": jnp.ones((4, 4))}}, jnp.ones((3, 4)))
  assert kinds(found) == {"w": "dot", "w#1": "dot", "w#1:dot": "dot", "output": "output"}
  assert [o.tensor for o in found.sites["w#1"].inputs][:1] == ["input#1"]
  assert found.sites["w#1:dot"].kernel_index is None
  assert [o.tensor for o in found.sites["w#1:dot"].inputs] == ["w:out", "w#1:out"]


def test_arithmetic_on_a_kernel_keeps_its_name():
  def fn(variables, x):
    w = variables["params"]["w"]
    scaled = (w - w.mean()) / 2.0
    both = scaled * variables["params"]["gain"][0]
    return x @ scaled + x @ both

  variables = {"params": {"gain": jnp.ones(1), "w": jnp.ones((4, 4))}}
  found = graph.trace(fn, variables, jnp.ones((3, 4)))
  assert [(name, op.inputs[1].leaf, op.inputs[1].exact) for name, op in found.sites.items() if op.kind == "dot"] == [
    ("w", "w", False),
    ("w#1", "w", False),
  ]


def test_an_activation_function_is_not_a_residual():
  found = graph.trace(lambda v, x: jax.nn.gelu(x @ v["w"]), {"w": jnp.ones((4, 4))}, jnp.ones((3, 4)))
  assert kinds(found) == {"w": "dot", "output": "output"}


class Example(nn.Module):
  """A network of one example, whose batch norm reaches the others by the name of a mapped axis."""

  @nn.compact
  def __call__(self, x, train):
    x = nn.Conv(4, (3, 3))(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, axis_name="batch")(x))
    return nn.Dense(3)(x.mean((0, 1)))


def by_hand(x):
  """A batch norm's statistics, an example's share of them first."""
  mean = x.mean((1, 2)).mean(0)
  return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean((1, 2)).mean(0) + 1.0)


def test_batch_norm_statistics_under_vmap_are_not_means_of_the_model():
  x = models.normal(1, 6, 8, 8, 3)

  def apply(variables, x, train):
    one = lambda x: Example().apply(variables, x, train, mutable=["batch_stats"])[0]
    return jax.vmap(one, axis_name="batch")(x)

  init = lambda x: Example().init(jax.random.key(0), x, False)
  variables = models.fill(jax.eval_shape(init, x[0]))
  training, evaluation = (graph.trace(lambda v, x, t=t: apply(v, x, t), variables, x) for t in (True, False))
  assert kinds(training) == kinds(evaluation)
  assert [name for name, op in training.sites.items() if op.kind == "mean"] == ["Conv_0/kernel:mean"]
  assert graph.training_only(training, evaluation) == ()
  found = graph.trace(lambda v, x: by_hand(x).mean((1, 2)) @ v["w"], {"w": jnp.ones((3, 2))}, x)
  assert [op.kind for op in found.sites.values()] == ["mean", "dot", "output"]


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_a_bias_varies_along_output_channels_alone(batch):
  x, w = jnp.ones((batch, 3, 4)), jnp.ones((4, 4))

  def biases(add, shape, x=x, w=w):
    found = graph.trace(lambda v, x: add(x @ v["w"], v["b"]), {"w": w, "b": jnp.ones(shape)}, x)
    return [op.site for op in found.sites.values() if op.kind == "bias"]

  assert biases(lambda y, b: y + b, (4,)) == ["w"]
  assert biases(lambda y, b: b[None] + y, (1, 4)) == ["w"]
  assert biases(lambda y, b: y + jnp.broadcast_to(b, y.shape), (4,)) == ["w"]
  assert biases(lambda y, b: y.reshape(batch, 3, 2, 2) + b, (2, 2)) == ["w"]
  assert biases(lambda y, b: y.reshape(batch, 3, 2, 2).transpose(0, 3, 1, 2) + b, (2, 1, 2)) == ["w"]
  assert biases(lambda y, b: y.transpose(0, 2, 1) + b, (4, 1)) == ["w"]
  assert biases(lambda y, b: y + b.astype(jnp.bfloat16).astype(jnp.float32), (4,)) == ["w"]
  assert biases(lambda y, b: y + b[:, None], (3,)) == []  # positions
  assert biases(lambda y, b: y + b, (3, 4)) == []
  assert biases(lambda y, b: y[:, 0] @ jnp.ones((4, 4)) + b, (4,)) == ["w:dot"]
  assert biases(lambda y, b: y.reshape(batch, 12) + b, (12,)) == []  # positions and channels in one axis
  assert biases(lambda y, b: y.transpose(0, 2, 1).reshape(batch, 12) + b, (12,)) == []
  assert biases(lambda y, b: jnp.tanh(y) + b, (4,)) == []


def test_a_layer_norm_is_not_a_pool():
  model, x = nn.LayerNorm(), jnp.ones((2, 5, 4))
  assert kinds(graph.trace(model.apply, jax.eval_shape(model.init, jax.random.key(0), x), x)) == {"output": "output"}


def test_op_bind_is_the_original_operation():
  case = models.conv_net()
  found = graph.trace(case.fn, case.variables, case.x)
  op = found.sites["Conv_1/kernel:add:avg_pool:mean"]
  x = np.arange(math.prod(op.inputs[0].shape), dtype=np.float32).reshape(op.inputs[0].shape)
  np.testing.assert_array_equal(op.bind(jnp.asarray(x))[0], x.mean((1, 2)))


def test_the_flat_program_computes_the_function():
  case = models.conv_net()
  found = graph.trace(case.fn, case.variables, case.x)
  env = dict(zip(found.program.body.inputs, jax.tree.leaves((case.variables, case.x))))

  def get(ref):
    ref = found.resolve(ref)
    return env[ref] if isinstance(ref, int) else ref.val

  for node in found.flat:
    env.update(zip(node.outputs, versions.rebind(node.eqn, tuple(map(get, node.inputs)))))
  np.testing.assert_array_equal(get(found.program.body.outputs[0]), case.fn(case.variables, case.x))
  mean = found.sites["Conv_1/kernel:add:avg_pool:mean"]
  assert [found.flat[place].primitive for place in mean.nodes] == ["reduce_sum", "div"]
  assert found.flat[found.sites["Dense_0/kernel"].nodes[0]].primitive == "dot_general"
