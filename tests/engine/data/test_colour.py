"""Changes of colour against pillow's ImageEnhance, colorsys and hand."""

import colorsys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy import stats

from leanax.engine.data import colour, draws

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (40, 7, 9, 3), np.uint8)
KEYS = draws.keys_of(0, 0, jnp.arange(40), "x")
ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


@pytest.mark.parametrize("name", ENHANCE)
@pytest.mark.parametrize("amount", [0.4, 1.7])
def test_blends_are_those_of_pillow(name, amount):
  out = np.asarray(getattr(colour, name)(KEYS, jnp.asarray(IMAGES), amount), np.int32)
  drawn = np.asarray(colour.factors(KEYS, amount)) / 4096
  assert len(set(drawn)) > 30
  for image, one, factor in zip(IMAGES, out, drawn):
    want = np.asarray(ENHANCE[name](Image.fromarray(image)).enhance(float(factor)), np.int32)
    assert np.abs(one - want).max() <= 1  # pillow cuts off where we round


def test_grey_images_have_brightness_and_contrast():
  grey = IMAGES[..., :1]
  for name in ("brightness", "contrast"):
    out = np.asarray(getattr(colour, name)(KEYS, jnp.asarray(grey), 0.9), np.int32)
    for image, one, factor in zip(grey, out, np.asarray(colour.factors(KEYS, 0.9)) / 4096):
      want = np.asarray(ENHANCE[name](Image.fromarray(image[..., 0])).enhance(float(factor)), np.int32)
      assert np.abs(one[..., 0] - want).max() <= 1


def test_hue_is_that_of_hsv():
  steps = jnp.asarray(RANDOM.integers(-12288, 12289, 40), jnp.int32)
  out = np.asarray(colour.turn(jnp.asarray(IMAGES), steps), np.float64)
  for image, one, step in zip(IMAGES[:8], out, np.asarray(steps)):
    for pixel, found in zip(image.reshape(-1, 3), one.reshape(-1, 3)):
      hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
      want = 255 * np.array(colorsys.hsv_to_rgb((hue + step / 24576) % 1, saturation, value))
      np.testing.assert_allclose(found, want, atol=0.6)


def test_no_turn_and_a_factor_of_one_change_no_pixel():
  every = np.stack(np.meshgrid(*[np.arange(0, 256, 5)] * 3, indexing="ij"), -1).reshape(1, 52, -1, 3).astype(np.uint8)
  np.testing.assert_array_equal(colour.turn(jnp.asarray(every), jnp.zeros(1, jnp.int32)), every)
  np.testing.assert_array_equal(colour.turn(jnp.asarray(every), jnp.full(1, 24576)), every)
  one = jnp.full(1, 4096)
  np.testing.assert_array_equal(colour.blend(jnp.asarray(every), jnp.int32(77), one), every)
  thirds = colour.turn(jnp.asarray([[[[200, 10, 30]]]], jnp.uint8), jnp.asarray([8192]))
  np.testing.assert_array_equal(thirds, [[[[30, 200, 10]]]])


def test_amounts_are_uniform():
  keys = draws.keys_of(0, 0, jnp.arange(4000), "x")
  for amount, low, high in ((0.4, 0.6, 1.4), (2.0, 0.0, 3.0)):
    drawn = np.asarray(colour.factors(keys, amount)) / 4096
    assert stats.kstest((drawn - low) / (high - low), "uniform").pvalue > 0.001
  red = jnp.broadcast_to(jnp.asarray([250, 0, 0], jnp.uint8), (4000, 1, 1, 3))
  out = np.asarray(colour.hue(keys, red, 0.25), np.float64)[:, 0, 0]
  turned = np.array([colorsys.rgb_to_hsv(*pixel)[0] for pixel in out])
  turned = np.where(turned > 0.5, turned - 1, turned)
  assert np.abs(turned).max() < 0.252 and stats.kstest(turned / 0.5 + 0.5, "uniform").pvalue > 0.001
