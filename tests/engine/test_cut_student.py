"""Students cut out of teachers: by hand, the identity, and teachers of which what is left out does nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import map_named, named_leaves
from leanax.engine.models import cut_student as cutting
from leanax.engine.models.model import load
from tests.numbers import array

IMAGE = (8, 8, 1)


def build(spec, seed=0, image=IMAGE, **kwargs):
  """(its function in evaluation, random variables, statistics too)."""
  model = load(spec, kwargs)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), jnp.zeros((1, *image)))
  rng = np.random.default_rng(seed)

  def draw(name, leaf):
    values = rng.normal(size=leaf.shape) * 0.3
    return array(np.abs(values) + 0.5 if name.endswith("var") else values, jnp.float32)

  return (lambda v, x: model.apply(v, x)[0]), map_named(draw, shapes)


def images(seed=5, count=4, image=IMAGE):
  return array(np.random.default_rng(seed).normal(size=(count, *image)), jnp.float32)


def narrow(student, teacher, image=IMAGE, pairs=()):
  """The student's variables, cut out by width; each is (fn, variables)."""
  x = jnp.zeros((1, *image))
  parts = graph.axis_parts(*student, x), graph.axis_parts(*teacher, x)
  return cutting.fill(student[1], teacher[1], cutting.counterparts(student[1], teacher[1], None, pairs), parts)


def flat(variables):
  return {name.removeprefix("params/"): np.asarray(leaf) for name, leaf in named_leaves(variables).items()}


def same(one, other):
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_a_dense_stack_by_hand():
  teacher, student = build("zoo.mlp:MLP", widths=(6, 5)), build("zoo.mlp:MLP", 1, widths=(4, 3))
  t, s = flat(teacher[1]), flat(narrow(student, teacher))
  np.testing.assert_array_equal(s["Dense_0/kernel"], t["Dense_0/kernel"][:, :4])  # all 64 pixels
  np.testing.assert_array_equal(s["Dense_1/kernel"], t["Dense_1/kernel"][:4, :3])
  np.testing.assert_array_equal(s["Dense_2/kernel"], t["Dense_2/kernel"][:3])
  np.testing.assert_array_equal(s["Dense_1/bias"], t["Dense_1/bias"][:3])


def test_a_dense_layer_keeps_the_leading_channels_of_every_place():
  wide, thin = ({"widths": (4, 6), "dense": (5,)}, {"widths": (2, 3), "dense": (4,)})
  teacher, student = build("zoo.convnet:ConvNet", **wide), build("zoo.convnet:ConvNet", 1, **thin)
  t, s = flat(teacher[1]), flat(narrow(student, teacher))
  rows = [place * 6 + channel for place in range(4) for channel in range(3)]  # 2 x 2 places
  np.testing.assert_array_equal(s["Dense_0/kernel"], t["Dense_0/kernel"][rows][:, :4])
  np.testing.assert_array_equal(s["Conv_1/kernel"], t["Conv_1/kernel"][:, :, :2, :3])


MODELS = {
  "zoo.mlp:MLP": ({"widths": (8, 6)}, {"widths": (3, 4)}),
  "zoo.mlp:plain_mlp": ({"widths": (8, 6)}, {"widths": (3, 4)}),
  "zoo.convnet:ConvNet": ({"widths": (4, 6), "dense": (5,)}, {"widths": (2, 3), "dense": (4,)}),
  "zoo.resnet:ResNet": ({"blocks": (2, 1), "widths": (6, 8)}, {"blocks": (2, 1), "widths": (3, 5)}),
}


@pytest.mark.parametrize("spec", MODELS)
def test_of_the_same_widths_the_student_is_its_teacher(spec):
  teacher, student = build(spec, **MODELS[spec][0]), build(spec, 1, **MODELS[spec][0])
  same(narrow(student, teacher), teacher[1])


def silenced(student, teacher):
  """The teacher with everything that only its trailing channels write at zero, so that nobody reads them."""
  small = flat(student)

  def silent(name, leaf):
    path = name.removeprefix("params/")
    last = leaf.shape[-1]
    kept = jnp.arange(last) < small[path].shape[-1]
    return jnp.where(kept, leaf, 0.0) if path.endswith(("kernel", "bias", "scale")) else leaf

  return map_named(silent, teacher)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("spec", MODELS)
def test_a_teacher_whose_trailing_channels_are_silent_is_its_student(spec):
  (fn, whole), student = build(spec, **MODELS[spec][0]), build(spec, 1, **MODELS[spec][1])
  teacher = fn, silenced(student[1], whole)
  found = narrow(student, teacher)
  assert {name: leaf.shape for name, leaf in flat(found).items()} == {
    name: leaf.shape for name, leaf in flat(student[1]).items()
  }
  np.testing.assert_allclose(student[0](found, images()), fn(teacher[1], images()), rtol=1e-5, atol=1e-5)


def test_a_residual_net_is_cut_as_the_graph_cuts_it():
  spec = "zoo.resnet:ResNet"
  teacher, student = build(spec, **MODELS[spec][0]), build(spec, 1, **MODELS[spec][1])
  keep = {"Conv_0/kernel": 3} | {f"Block_{b}/Conv_{c}/kernel": 3 for b in (0, 1) for c in (0, 1)}
  keep |= {f"Block_2/Conv_{c}/kernel": 5 for c in (0, 1, 2)}
  net = graph.keep_channels(graph.net(*teacher, images()), {name: list(range(n)) for name, n in keep.items()})
  same(narrow(student, teacher), net.variables)


def channels_first(widths=(4, 6)):
  """A convolution whose map is flattened channel by channel."""

  def init(key, x):
    return {"params": {"conv": jnp.zeros((3, 3, 1, widths[0])), "dense": jnp.zeros((64 * widths[0], widths[1]))}}

  def apply(v, x):
    p = v["params"]
    x = jax.lax.conv_general_dilated(x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(x).transpose(0, 3, 1, 2).reshape(x.shape[0], -1) @ p["dense"]

  return init, apply


def test_another_layout_is_read_from_the_function():
  name = f"{__name__}:channels_first"
  teacher, student = build(name), build(name, 1, widths=(3, 6))
  t, s = flat(teacher[1]), flat(narrow(student, teacher))
  np.testing.assert_array_equal(s["dense"], t["dense"][: 3 * 64])


def two_branches(widths=(4, 6)):
  """Two dense layers side by side, of which the next reads the outputs one after the other."""

  def init(key, x):
    a, b = widths
    return {"params": {"a": jnp.zeros((64, a)), "b": jnp.zeros((64, b)), "c": jnp.zeros((a + b, 2))}}

  def apply(v, x):
    x, p = x.reshape(x.shape[0], -1), v["params"]
    return jnp.concatenate([x @ p["a"], x @ p["b"]], 1) @ p["c"]

  return init, apply


def test_leaves_that_cannot_be_cut_are_refused_by_name():
  mlp = "zoo.mlp:MLP"
  teacher = build(mlp, widths=(6, 5))
  with pytest.raises(UserError, match=r"'Dense_0/bias' of shape \(7,\) is larger than its teacher's 'Dense_0/bias'"):
    narrow(build(mlp, widths=(7, 5)), teacher)
  with pytest.raises(
    UserError, match="'Dense_3/bias' has no counterpart among its teacher's leaves; near it: .*Dense_"
  ):
    narrow(build(mlp, widths=(6, 5, 5)), teacher)
  with pytest.raises(UserError, match="no leaf of the student is cut out of its teacher's 'Dense_2/bias'; expected"):
    narrow(build(mlp, widths=(6,)), teacher)  # its head would be cut out of a hidden layer
  name = f"{__name__}:two_branches"
  with pytest.raises(UserError, match="'a' of shape .* axis 1 cannot be followed through 'concatenate'"):
    narrow(build(name, widths=(2, 6)), build(name))
  net = {"widths": (4, 6), "dense": (5,)}
  with pytest.raises(UserError, match=r"'Dense_0/kernel' .* is larger .*\(4, 4, 6\) in the student and of \(2, 2, 6\)"):
    narrow(build("zoo.convnet:ConvNet", **net, pool=1), build("zoo.convnet:ConvNet", **net))
  shapes = (build(mlp, widths=(6, 5))[1], build(mlp, widths=(4, 5))[1])
  with pytest.raises(UserError, match="'Dense_0/bias' of shape .* cannot be copied .*; expected the same shape"):
    cutting.fill(shapes[1], shapes[0], cutting.counterparts(shapes[1], shapes[0], cutting.first))


DEEP, SHALLOW = ({"blocks": (3, 2), "widths": (4, 6)}, {"blocks": (1, 1), "widths": (4, 6)})


def drop(student, teacher, pick, pairs=()):
  return cutting.fill(student, teacher, cutting.counterparts(student, teacher, pick, pairs))


def test_modules_are_matched_in_order_and_by_kind():
  (_, teacher), (_, student) = (build("zoo.resnet:ResNet", **kwargs) for kwargs in (DEEP, SHALLOW))
  runs, lost = cutting.module_runs(student, teacher)
  assert runs == [(("Block_0",), ("Block_0", "Block_1", "Block_2")), (("Block_1",), ("Block_3",))] and not lost
  names = cutting.counterparts(student, teacher, cutting.alternate)
  assert names["Block_1/Conv_2/kernel"] == "Block_3/Conv_2/kernel"
  assert names["batch_stats/Block_1/BatchNorm_1/var"] == "batch_stats/Block_3/BatchNorm_1/var"
  assert names["Dense_0/bias"] == "Dense_0/bias"


def test_a_later_run_is_not_taken_from_an_earlier_one():
  def tree(kinds):
    return {"params": {f"m_{number}": {"w": np.zeros(int(kind))} for number, kind in enumerate(kinds)}}

  runs, lost = cutting.module_runs(tree("2343"), tree("223344333"))
  assert [run.teacher for run in runs] == [("m_0", "m_1"), ("m_2", "m_3"), ("m_4", "m_5"), ("m_6", "m_7", "m_8")]
  assert not lost and cutting.module_runs(tree("23"), tree("344"))[1] == ["m_0"]


def test_kept_modules():
  modules = [f"m_{k}" for k in range(6)]
  assert cutting.alternate(modules, 3) == [0, 2, 4] and cutting.alternate(modules, 2) == [0, 3]
  assert cutting.first(modules, 3) == [0, 1, 2]
  effects = dict(zip(modules, (1, 5, 0, 3, 3, 3), strict=True))
  assert cutting.by_effect(effects.__getitem__)(modules, 3) == [1, 3, 4]
  assert cutting.by_effect({}.__getitem__)(modules, 6) == [0, 1, 2, 3, 4, 5]  # no choice, no measuring


def idle(variables, module):
  """A residual block whose branch is zero: the scale and offset of its last batch norm are."""
  return map_named(lambda name, leaf: 0 * leaf if name.startswith(f"params/{module}/BatchNorm_1") else leaf, variables)


@pytest.mark.parametrize("pick, dropped", [(cutting.first, "124"), (cutting.alternate, "124")])
def test_blocks_that_do_nothing_can_be_dropped(pick, dropped):
  (fn, teacher), (small, student) = (build("zoo.resnet:ResNet", **kwargs) for kwargs in (DEEP, SHALLOW))
  for number in dropped:
    teacher = idle(teacher, f"Block_{number}")
  np.testing.assert_allclose(small(drop(student, teacher, pick), images()), fn(teacher, images()), rtol=1e-6)


def test_a_block_without_parameters_is_skipped_and_the_effect_finds_the_one_that_works():
  (fn, whole), (small, student) = (build("zoo.resnet:ResNet", **kwargs) for kwargs in (DEEP, SHALLOW))
  teacher = idle(idle(idle(whole, "Block_0"), "Block_1"), "Block_4")
  x = images()

  def effect(module):
    return float(jnp.abs(fn(cutting.without(teacher, module), x) - fn(teacher, x)).max())

  assert effect("Block_0") == effect("Block_1") == 0 < effect("Block_2")
  found = drop(student, teacher, cutting.by_effect(effect))
  np.testing.assert_allclose(small(found, x), fn(teacher, x), rtol=1e-6)
  same(found["params"]["Block_0"], teacher["params"]["Block_2"])


def test_a_map_goes_before_the_rule():
  (_, teacher), (_, student) = (build("zoo.resnet:ResNet", **kwargs) for kwargs in (DEEP, SHALLOW))
  found = drop(student, teacher, cutting.first, [("Block_0/*", "Block_2/*")])
  for kind in ("params", "batch_stats"):
    same(found[kind]["Block_0"], teacher[kind]["Block_2"])
  names = cutting.counterparts(student, teacher, cutting.first, [("*lock_0/Conv_*", "*lock_1/Conv_*")])
  assert names["Block_0/Conv_1/kernel"] == "Block_1/Conv_1/kernel"
  assert names["Block_0/BatchNorm_1/scale"] == "Block_0/BatchNorm_1/scale"


def test_lists_of_layers_are_numbered_too():
  (_, teacher), (_, student) = build("zoo.mlp:plain_mlp", widths=(8, 8, 8)), build("zoo.mlp:plain_mlp", widths=(8, 8))
  names = cutting.counterparts(student, teacher, cutting.alternate)
  assert {a.split("/")[0]: b.split("/")[0] for a, b in names.items()} == {"0": "0", "1": "1", "2": "3"}
  same(drop(student, teacher, cutting.alternate)["params"][2], teacher["params"][3])


def test_mistakes_are_named():
  (_, teacher), (_, student) = (build("zoo.resnet:ResNet", **kwargs) for kwargs in (DEEP, SHALLOW))
  with pytest.raises(UserError, match=r"'cut.map': 'Blok_0/\*' matches no leaf of the student; near it: Block_0"):
    drop(student, teacher, cutting.first, [("Blok_0/*", "Block_2/*")])
  with pytest.raises(UserError, match=r"'cut.map' has \('Block_0/\*', 'Block_2'\); expected"):
    drop(student, teacher, cutting.first, [("Block_0/*", "Block_2")])
  with pytest.raises(UserError, match="'batch_stats/Block_0/.*' has no counterpart, 'batch_stats/Blck_2/.*',"):
    drop(student, teacher, cutting.first, [("Block_0/*", "Blck_2/*")])
  with pytest.raises(
    UserError, match="'batch_stats/Block_0/.*' has no counterpart among its teacher's leaves; near it"
  ):
    drop(teacher, student, cutting.first)  # the student is the larger one


def test_the_student_does_not_share_its_teachers_arrays():
  _, teacher = build("zoo.mlp:MLP", widths=(4,))
  found = drop(teacher, teacher, cutting.first)
  for copied, original in zip(jax.tree.leaves(found), jax.tree.leaves(teacher), strict=True):
    assert copied.unsafe_buffer_pointer() != original.unsafe_buffer_pointer()
