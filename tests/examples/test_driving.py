"""The scenes of examples/driving by hand, its networks as int8 files, and its whole job at a tiny size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from examples.driving import config, scenes
from examples.driving.models import Net
from leanax import deploy, graph
from leanax.engine import models
from leanax.pipeline.compress import compress
from leanax.pipeline.config import loading

# 8 rows of 15 pixels, horizon at half of the height: the rows below have the nearness 1/8, 3/8, 5/8 and 7/8, and the
# road is 0.84, 2.53, 4.22 and 5.91 pixels wide to either side of column 7. The outer lines, at 0.885 to 0.955 of that,
# meet pixels 2.24 to 2.42 (none), 3.73 to 4.03 (4 away) and 5.23 to 5.64 (none) beside it. The dash is there where
# 1.5 / nearness has a fraction below a half: 12, 4 and 2.4, but not 1.71. The vehicle is 10.45 +- 1.77 pixels, from 7.5
# up by 1.5 * 1.77; the house from 1.58 to 4.42 and 3 pixels high.
BY_HAND = """
...............
..gg...........
..gg...........
..gg...........
gggggggMggggggg
gggggrrMrVVVggg
gggMrrrMrVVVggg
ggrrrrrrrrrrrgg
"""


def noise():
  return np.random.default_rng(0)


def test_a_mask_is_exact():
  scene = scenes.Scene(
    horizon=0.5, vehicles=(scenes.Vehicle(0.5, 0.875, 1.0, (10, 200, 30)),), houses=((0.2, 0.19, 0.2),)
  )
  pixels, mask = scenes.draw(scene, (8, 15), noise())
  assert ["".join(".grMV"[c] for c in row) for row in mask] == BY_HAND.split()
  assert pixels.dtype == mask.dtype == np.uint8
  assert tuple(pixels[6, 10]) == (10, 200, 30)  # the body, without light or noise
  assert set(map(tuple, pixels[mask == scenes.MARKING])) == {(215, 215, 215)}
  dark = scenes.draw(scene._replace(light=0.5, noise=3.0), (8, 15), noise())
  assert np.array_equal(dark[1], mask)
  assert dark[0].mean() < 0.6 * pixels.mean()


def test_dashes_move_along_the_road():
  _, mask = scenes.draw(scenes.Scene(horizon=0.5, start=0.2), (8, 15), noise())  # fractions 0.2, 0.2, 0.6 and 0.91
  assert list(mask[4:, 7]) == [scenes.MARKING, scenes.MARKING, scenes.ROAD, scenes.ROAD]


def test_a_cabin_is_three_quarters_of_its_body():
  _, mask = scenes.draw(scenes.Scene(vehicles=(scenes.Vehicle(0.0, 0.9, 1.0, (0, 0, 0)),)), (200, 400), noise())
  rows = (mask == scenes.VEHICLE).sum(1)
  half = 0.3 * 0.45 * 0.9 * 400
  assert abs(rows.max() - 2 * half) <= 1 and abs(rows[rows > 0][0] - 1.5 * half) <= 1
  assert abs((rows > 0).sum() - 1.5 * half) <= 1


def test_noise_has_its_deviation():
  one = scenes.Scene(horizon=0.5)
  clean, noisy = (scenes.draw(one._replace(noise=n), (60, 80), noise())[0].astype(float) for n in (0.0, 10.0))
  road = scenes.draw(one, (60, 80), noise())[1] == scenes.ROAD
  assert abs((noisy - clean)[road].std() - 10) < 0.5


def test_a_nearer_vehicle_hides_a_farther_one():
  near, far = scenes.Vehicle(0.0, 0.9, 1.0, (0, 0, 250)), scenes.Vehicle(0.0, 0.8, 1.0, (250, 0, 0))
  both = [scenes.draw(scenes.Scene(vehicles=order), (40, 80), noise())[0] for order in ((near, far), (far, near))]
  assert np.array_equal(*both)
  row = int(0.4 * 40 + 0.6 * 40 * 0.9) - 4
  assert tuple(both[0][row, 40]) == (0, 0, 250)


def test_the_road_bends_by_the_equation():
  _, mask = scenes.draw(scenes.Scene(horizon=0.4, bend=-0.25), (100, 200), noise())
  for row in (45, 60, 90):
    near = (row + 0.5 - 40) / 60
    columns = np.flatnonzero(mask[row] >= scenes.ROAD)
    assert abs(columns.mean() + 0.5 - 200 * (0.5 - 0.25 * (1 - near) ** 2)) <= 0.5
    assert abs(len(columns) - 0.9 * 200 * near) <= 1


def test_scenes_are_functions_of_their_seed():
  few, many = scenes.load((16, 32), (2, 1, 2)), scenes.load((16, 32), (3, 1, 2))
  for split in scenes.SPLITS:
    assert all(np.array_equal(a, b[: len(a)]) for a, b in zip(few[split], many[split]))
  assert not np.array_equal(few["train"][0], scenes.load((16, 32), (2, 1, 2), seed=1)["train"][0])
  drawn = [scenes.scene(split, 0, (16, 32))[0].tobytes() for split in scenes.SPLITS]
  assert len({*drawn, scenes.scene("train", 1, (16, 32))[0].tobytes()}) == 4
  assert few["classes"] == scenes.CLASSES
  images, masks = few["test"]
  assert (images.shape, masks.shape, masks.dtype) == ((2, 16, 32, 3), (2, 16, 32), np.uint8)
  assert np.array_equal(scenes.drive(3, (16, 32)), scenes.drive(3, (16, 32)))
  assert not np.array_equal(scenes.drive(3, (16, 32)), scenes.drive(4, (16, 32)))


def figures(scene):
  """The parameters of a scene under the names of `RANGES`."""
  sizes = [vehicle.size for vehicle in scene.vehicles]
  return {**scene._asdict(), "bend": abs(scene.bend), "size": sizes, "vehicles": len(sizes)}


def test_no_test_scene_has_a_parameter_of_a_training_scene():
  for name, ((low, high), (low_test, high_test)) in scenes.RANGES.items():
    assert low < high and low_test < high_test
    assert high < low_test or high_test < low, name
  for index in range(50):
    rng = np.random.default_rng(index)
    for split, place in (("train", 0), ("validation", 0), ("test", 1)):
      found = figures(scenes.sample(split, rng))
      for name, ranges in scenes.RANGES.items():
        low, high = ranges[place]
        assert np.all(low <= np.asarray(found[name])) and np.all(np.asarray(found[name]) <= high), (split, name)


def products(preset):
  """The products of the teacher and the student of a preset for one image, after the shapes of their outputs."""
  sizes = config.PRESETS[preset]
  x = jax.ShapeDtypeStruct((1, *sizes.size, 3), jnp.float32)
  for small, widths in ((False, sizes.teacher), (True, sizes.student)):
    net = Net(small=small, **widths)
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    trace = graph.trace(net.apply, variables, x)
    assert jax.eval_shape(net.apply, variables, x).shape == (1, *sizes.size, len(scenes.CLASSES))
    yield trace.total


def test_the_student_has_a_tenth_of_the_teachers_products():
  teacher, student = products("cpu")
  assert teacher >= 10 * student


def test_products_by_hand():
  """Of the tiny student: stem, inverted residual, the way back, logits."""
  _, student = products("tiny")
  stem = 8 * 16 * 27 * 4
  block = 8 * 16 * 4 * 12 + 4 * 8 * 9 * 12 + 4 * 8 * 12 * 4
  back = 4 * 8 * 4 * 4 + 4 * 8 * 4 * 4 + 8 * 16 * 4 * 4 + 8 * 16 * 9 * 4
  assert student == stem + block + back + 8 * 16 * 4 * 5


def test_the_student_is_whole_numbers_in_the_file():
  """No layer of it stays float, and the runtime's codes are those of the simulation, each of them."""
  images = jnp.asarray(scenes.load((16, 32), (4, 1, 1))["train"][0], jnp.float32) / 255
  net = Net(small=True, **config.PRESETS["tiny"].student)
  variables = jax.jit(net.init)(jax.random.key(0), images)
  quantized = quant.post_training(graph.fold_batch_norms(models.net(net, variables, images)), [images], "w8a8")
  plain = quant.float_net(quantized)
  network = deploy.lift(plain.infer, plain.variables, images, quant.grids(quantized), islands=False)
  runner = deploy.litert().open(deploy.litert().write(network))
  simulated = jax.jit(quantized.infer)(quantized.variables, images)
  found = deploy.parity(network, runner, np.asarray(images), np.asarray(simulated))
  assert [codes.count for codes in found.values()] == [0, 0, 0]
  assert np.asarray(simulated).std() > 0


def test_the_config_is_one():
  for preset in config.PRESETS:
    found = loading.resolve(config.get_config(preset))
    assert found.metrics[0] == "mean_iou" and found.run[-1] == "int8"
  with pytest.raises(ValueError, match=r"unknown preset 'gpu' of examples/driving; expected one of cpu, tiny"):
    config.get_config("gpu")


@pytest.mark.slow
def test_the_tiny_job(tmp_path):
  rows = compress(loading.resolve(config.get_config("tiny")), tmp_path)["rows"]
  assert [row["name"] for row in rows] == ["teacher", "alone", "distilled", "int8"]
  assert rows[-1]["codes_differ"] == 0
  assert all(0 < row["file_mean_iou"] < 1 for row in rows)
