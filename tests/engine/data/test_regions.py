"""Changes of regions: boxes by their statistics from the papers, the pixels inside by pillow, numpy and hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from leanax.engine.data import Augment, augment, draws, regions

RANDOM = np.random.default_rng(0)
crop = jax.jit(regions.resized_crop, static_argnums=(2, 3))
stretched = jax.jit(regions.stretched)
erased = jax.jit(regions.erased, static_argnums=(2, 3, 4, 5))
boxes = jax.jit(draws.boxes, static_argnums=(1, 2, 3))
mix_draw = jax.jit(augment.mix_draw, static_argnums=(1, 2, 3, 4))
IDS = jnp.arange(4000)


def keys(count=4000, stream="x"):
  return draws.keys_of(0, 0, IDS[:count], stream)


def test_boxes_are_as_drawn_by_hand():
  """Areas are uniform and ratios log-uniform where every try fits, and places are uniform given the sizes."""
  (top, left, rows, columns), found = (jax.tree.map(np.asarray, one) for one in boxes(
    keys(), (200, 300), (0.1, 0.4), (0.5, 2.0)
  ))  # fmt: skip
  assert found.all() and (top >= 0).all() and (left >= 0).all()
  assert (top + rows <= 200).all() and (left + columns <= 300).all()
  area, ratio = rows * columns / 60000, np.log(columns / rows)
  small = area < 0.25  # boxes of these areas and all ratios fit
  assert stats.kstest((area[small] - 0.1) / 0.15, "uniform").pvalue > 0.001
  assert stats.kstest(ratio[small] / np.log(4) + 0.5, "uniform").pvalue > 0.001
  assert stats.kstest((top + 0.5) / (200 - rows + 1), "uniform").pvalue > 0.001
  assert stats.kstest((left + 0.5) / (300 - columns + 1), "uniform").pvalue > 0.001


def test_a_try_that_does_not_fit_is_drawn_again():
  """By the definition in numpy, of other random numbers: the same mean area and ratio."""
  box, found = jax.tree.map(np.asarray, boxes(keys(), (8, 40), (0.3, 1.0), (0.2, 3.0)))
  own = []
  for _ in range(4000):
    for _ in range(10):
      area, ratio = 320 * RANDOM.uniform(0.3, 1.0), np.exp(RANDOM.uniform(np.log(0.2), np.log(3.0)))
      rows, columns = round(np.sqrt(area / ratio)), round(np.sqrt(area * ratio))
      if 0 < rows <= 8 and 0 < columns <= 40:
        own.append((rows, columns))
        break
  assert abs(found.mean() - len(own) / 4000) < 0.04
  for mine, theirs in zip((box.height[found], box.width[found]), np.array(own).T):
    assert stats.ks_2samp(mine, theirs).pvalue > 0.001


def test_a_box_is_stretched_as_pillow_does():
  images = RANDOM.integers(0, 256, (60, 9, 14, 3), np.uint8)
  box, _ = boxes(keys(60), (9, 14), (0.1, 1.0), (0.5, 2.0))
  found = np.asarray(stretched(jnp.asarray(images), box))
  for image, one, top, left, rows, columns in zip(images, found, *map(np.asarray, box)):
    cut = Image.fromarray(image[top : top + rows, left : left + columns])
    want = np.asarray(cut.resize((14, 9), Image.Resampling.BILINEAR), np.int32)
    assert np.abs(one.astype(np.int32) - want).max() <= 1


def test_the_whole_image_as_its_crop_is_the_image():
  images = jnp.asarray(RANDOM.integers(0, 256, (5, 12, 16, 3), np.uint8))  # of the ratio 4/3
  out = crop(keys(5), images, (1.0, 1.0), (4 / 3, 4 / 3))
  np.testing.assert_array_equal(out, images)


def test_where_no_box_fits_the_crop_is_the_centred_one_of_the_nearest_ratio():
  images = jnp.asarray(RANDOM.integers(0, 256, (3, 6, 30, 1), np.uint8))
  out = crop(keys(3), images, (0.9, 1.0), (1.0, 2.0))
  centred = draws.Boxes(*(jnp.full(3, number) for number in (0, 9, 6, 12)))
  np.testing.assert_array_equal(out, stretched(images, centred))


@pytest.mark.parametrize("fill", ["zero", "mean", "random"])
def test_erasing_fills_boxes_by_chance(fill):
  images = jnp.asarray(RANDOM.integers(1, 256, (1, 20, 30, 3), np.uint8).repeat(1000, 0))
  out = np.asarray(erased(keys(1000), images, 0.3, (0.1, 0.2), (0.5, 2.0), fill))
  changed = (out != np.asarray(images)).any(-1)
  some = changed.any((1, 2))
  assert stats.binomtest(int(some.sum()), 1000, 0.3).pvalue > 0.001
  area = changed[some].mean((1, 2))
  assert 0.08 < area.min() < 0.12 and 0.18 < area.max() < 0.22 and abs(area.mean() - 0.15) < 0.01
  inside = out[some][changed[some]]
  if fill == "zero":
    assert not inside.any()
  if fill == "mean":
    assert (inside == np.floor(np.asarray(images[0], np.float64).mean((0, 1)) + 0.5)).all()
  if fill == "random":
    assert stats.chisquare(np.bincount(inside.ravel() >> 4, minlength=16)).pvalue > 0.001
    assert len(np.unique(out[some][:2], axis=0)) == 2


def test_erasing_nothing_and_everything():
  images = jnp.asarray(RANDOM.integers(1, 256, (50, 4, 4, 3), np.uint8))
  np.testing.assert_array_equal(erased(keys(50), images, 0.0, (0.1, 0.2), (1.0, 1.0), "zero"), images)
  assert not erased(keys(50), images, 1.0, (1.0, 1.0), (1.0, 1.0), "zero").any()


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_cutmix_boxes_have_the_papers_areas(alpha):
  """Against the paper's algorithm in numpy, with integer centres as there: the weights' distribution."""
  mixing = mix_draw(IDS, 0, Augment(cutmix=alpha), 10, (64, 48))
  weights, inside = np.asarray(mixing.weights), np.asarray(mixing.boxes.inside(64, 48))
  np.testing.assert_allclose(weights, 1 - inside.mean((1, 2, 3)), atol=1e-6)
  lam = RANDOM.beta(alpha, alpha, 4000)
  half = np.sqrt(1 - lam) / 2
  sides = []
  for side in (64, 48):
    centre, part = RANDOM.integers(0, side, 4000), (side * half).astype(int)
    sides.append(np.clip(centre + part, 0, side) - np.clip(centre - part, 0, side))
  own = 1 - sides[0] * sides[1] / (64 * 48)
  assert stats.ks_2samp(weights, own).statistic < 0.05 and abs(weights.mean() - own.mean()) < 0.02
  corners = inside[:, [0, 0, -1, -1], [0, -1, 0, -1], 0].mean(0)
  assert corners.max() < 1.2 * corners.min()  # places are even


def test_cutmix_pastes_and_both_are_one_of_them_each():
  images, others = jnp.zeros((200, 8, 8, 1)), jnp.ones((200, 8, 8, 1))
  for spec in (Augment(cutmix=1.0), Augment(cutmix=1.0, mixup=1.0)):
    mixing = mix_draw(IDS[:200], 0, spec, 10, (8, 8))
    out = np.asarray(augment.mixed(images, others, mixing, spec))
    np.testing.assert_allclose(1 - out.mean((1, 2, 3)), mixing.weights, atol=1e-6)
    pasted = np.array([set(np.unique(one)) <= {0.0, 1.0} for one in out])
    assert not np.asarray(mixing.boxes.inside(8, 8))[~pasted].any()  # mixed ones have no box
    assert pasted.all() if not spec.mixup else stats.binomtest(int(pasted.sum()), 200).pvalue > 0.001
