import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from leanax.core.errors import UserError
from leanax.engine.data import augment
from leanax.engine.data.augment import Augment

RANDOM = np.random.RandomState(0)
IMAGES = jnp.asarray(RANDOM.randint(1, 256, (400, 5, 6, 2), np.uint8))
IDS = jnp.arange(400) + 1000


def windows(image, rows, columns, mode):
  """All outcomes of a random window, by (row, column), with plain numpy."""
  padded = np.pad(image, ((rows, rows), (columns, columns), (0, 0)), mode)
  height, width = image.shape[:2]
  return {(r, c): padded[r : r + height, c : c + width] for r in range(2 * rows + 1) for c in range(2 * columns + 1)}


@pytest.mark.parametrize(("fill", "mode"), [("zero", "constant"), ("edge", "edge"), ("reflect", "reflect")])
def test_window_is_one_of_the_possible_and_all_are_equally_likely(fill, mode):
  keys = augment.keys_of(0, 0, IDS, "crop")
  out = np.asarray(augment.random_window(keys, IMAGES, (1, 2), fill))
  seen = []
  for image, cut in zip(np.asarray(IMAGES), out):
    hits = [place for place, window in windows(image, 1, 2, mode).items() if np.array_equal(window, cut)]
    assert len(hits) == 1
    seen.append(hits[0])
  counts = np.unique(np.array(seen), axis=0, return_counts=True)[1]
  assert len(counts) == 15
  assert stats.chisquare(counts).pvalue > 0.001


def test_crop_of_nothing_is_the_identity():
  keys = augment.keys_of(0, 0, IDS, "crop")
  np.testing.assert_array_equal(augment.random_window(keys, IMAGES, (0, 0)), IMAGES)


def test_flip_mirrors_half():
  out = np.asarray(augment.random_flip(augment.keys_of(0, 0, IDS, "flip"), IMAGES))
  same = (out == np.asarray(IMAGES)).all((1, 2, 3))
  np.testing.assert_array_equal(out[~same], np.asarray(IMAGES)[~same][:, :, ::-1])
  assert stats.binomtest(int(same.sum()), 400).pvalue > 0.001


SPEC = Augment(crop=1, shift=(0, 2), flip=True, seed=4)


def test_depends_on_id_view_and_seed_only():
  whole = augment.move(IMAGES, IDS, 3, SPEC)
  order = jnp.asarray(RANDOM.permutation(400))
  np.testing.assert_array_equal(augment.move(IMAGES[order], IDS[order], 3, SPEC), whole[order])
  np.testing.assert_array_equal(augment.move(IMAGES[:7], IDS[:7], 3, SPEC), whole[:7])
  traced = jax.jit(augment.move, static_argnums=3)(IMAGES, IDS, jnp.int32(3), SPEC)
  np.testing.assert_array_equal(traced, whole)
  for other in (augment.move(IMAGES, IDS, 2, SPEC), augment.move(IMAGES, IDS, 3, Augment(1, (0, 2), True, seed=5))):
    assert (other == whole).all((1, 2, 3)).mean() < 0.2


@pytest.mark.parametrize("change", [{"crop": 1}, {"shift": (2, 2)}, {"flip": True}])
def test_each_change_differs_by_id_by_view_and_by_seed(change):
  """One image as 400 examples shows every outcome, and others in another view or under another seed."""
  one = jnp.broadcast_to(IMAGES[:1], IMAGES.shape)
  moved = np.asarray(augment.move(one, IDS, 0, Augment(**change)))
  assert len(np.unique(moved, axis=0)) == (2 if "flip" in change else 9 if "crop" in change else 25)
  for view, seed in ((1, 0), (0, 1)):
    other = np.asarray(augment.move(one, IDS, view, Augment(**change, seed=seed)))
    assert (other == moved).all((1, 2, 3)).mean() < 0.65


def test_streams_are_independent():
  """Switching the flip on does not change the crops."""
  crops = np.asarray(augment.move(IMAGES, IDS, 0, Augment(crop=1)))
  both = np.asarray(augment.move(IMAGES, IDS, 0, Augment(crop=1, flip=True)))
  assert all(np.array_equal(b, c) or np.array_equal(b, c[:, ::-1]) for b, c in zip(both, crops))


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_mixup_draws_are_beta_and_uniform(alpha):
  ids = jnp.arange(4000)
  spec = Augment(mixup=alpha)
  rows, weights, *_ = augment.mix_draw(ids, 0, spec, 10, (5, 6))
  assert stats.kstest(np.asarray(weights, np.float64), stats.beta(alpha, alpha).cdf).pvalue > 0.001
  assert stats.chisquare(np.bincount(rows, minlength=10)).pvalue > 0.001
  np.testing.assert_array_equal(augment.mix_draw(ids[5:9], 0, spec, 10, (5, 6)).rows, rows[5:9])


def test_mix_by_hand():
  ones = jnp.ones((2, 1, 1, 1))
  np.testing.assert_allclose(augment.mix(ones, 5 * ones, jnp.asarray([1.0, 0.25])).ravel(), [1.0, 4.0])


@pytest.mark.parametrize(
  ("spec", "sentence"),
  [
    (Augment(fill="zeros"), "augment.fill 'zeros'; did you mean 'zero'"),
    (Augment(crop=5), r"augment\.crop is 5; expected 0 to below the images' 5x6"),
    (Augment(shift=(1, -1)), r"augment\.shift is \(1, -1\)"),
    (Augment(mixup=-0.1), r"augment\.mixup is -0\.1"),
    (Augment(views=0), r"augment\.views is 0"),
    (Augment(cutmix=-1.0), r"augment\.cutmix is -1\.0; expected a number, 0 or more"),
    (Augment(erase=1.5), r"augment\.erase is 1\.5; expected a number from 0 to 1"),
    (Augment(hue=0.6), r"augment\.hue is 0\.6; expected a number from 0 to 0\.5"),
    (Augment(brightness=11.0), r"augment\.brightness is 11\.0; expected a number from 0 to 10"),
    (Augment(saturation=0.1), r"augment\.saturation is 0\.1, of images with 2 channels; expected 3"),
    (Augment(hue=0.1), r"augment\.hue is 0\.1, of images with 2 channels; expected 3"),
    (Augment(contrast=0.1), r"augment\.contrast is 0\.1, of images with 2 channels; expected 1 or 3"),
    (
      Augment(resized_crop=(0.5,)),
      r"augment\.resized_crop is \(0\.5,\); expected \(least, largest\) share of the area",
    ),
    (Augment(resized_crop=(0.5, 0.2)), r"augment\.resized_crop is \(0\.5, 0\.2\)"),
    (Augment(resized_crop=(0.0, 0.2)), r"augment\.resized_crop is \(0\.0, 0\.2\)"),
    (
      Augment(resized_crop=(0.2, 1.0), resized_crop_ratio=(0.0, 1.0)),
      r"resized_crop_ratio is \(0\.0, 1\.0\); expected",
    ),
    (Augment(erase=0.5, erase_area=(0.1, 2.0)), r"augment\.erase_area is \(0\.1, 2\.0\)"),
    (
      Augment(erase=0.5, erase_fill="noise"),
      r"unknown augment\.erase_fill 'noise'; expected one of mean, random, zero",
    ),
  ],
)
def test_impossible_specs(spec, sentence):
  with pytest.raises(UserError, match=sentence):
    augment.check(spec, (5, 6, 2))


@pytest.mark.parametrize("change", [field.name for field in dataclasses.fields(Augment)])
def test_what_changes_no_image_is_still(change):
  """Every key that moves pixels makes views differ: a teacher's stored logits depend on it."""
  alone = {"crop": 1, "shift": (0, 1), "flip": True, "resized_crop": (0.5, 1.0)}
  other = {"fill": "edge", "seed": 1, "views": 2, "erase_fill": "mean"}
  other |= dict.fromkeys(("resized_crop_ratio", "erase_area", "erase_ratio"), (0.5, 0.6))
  alone |= dict.fromkeys(("brightness", "contrast", "saturation", "hue", "erase", "mixup", "cutmix"), 0.5)
  alone |= {"function": "tests.engine.data.own:dimmed"}
  other |= {"keywords": (("most", 3),)}
  assert Augment(**{change: {**alone, **other}[change]}).is_still == (change in other)


def test_possible_spec():
  augment.check(SPEC, (5, 6, 2))


OWN = "tests.engine.data.own"


def test_a_function_of_ones_own_is_called_last_with_a_key_of_each_example():
  spec = Augment(flip=True, function=f"{OWN}:dimmed", keywords=(("most", 50),), seed=2)
  augment.check(spec, (5, 6, 2))
  out = np.asarray(jax.jit(augment.move, static_argnums=3)(IMAGES, IDS, jnp.int32(1), spec))
  before = np.asarray(augment.move(IMAGES, IDS, 1, Augment(flip=True, seed=2)))
  less = (before.astype(int) - out) % 256
  assert (less == less[:, :1, :1, :1]).all() and set(less.ravel()) == set(range(50))
  np.testing.assert_array_equal(augment.move(IMAGES[3:5], IDS[3:5], 1, spec), out[3:5])
  assert (np.asarray(augment.move(IMAGES, IDS, 2, spec)) != out).any()


@pytest.mark.parametrize(
  ("name", "keywords", "sentence"),
  [
    ("dimed", {}, r"unknown name in module 'tests\.engine\.data\.own' 'dimed'; did you mean 'dimmed'"),
    (
      "dimmed",
      {"mots": 3},
      r"own:dimmed' cannot be called as \(keys, images, mots=\): got an unexpected keyword .*mots",
    ),
    ("one", {}, r"own:one' cannot be called as \(keys, images\): too many positional arguments"),
    (
      "floats",
      {},
      r"own:floats' returns float32 of shape \(3, 5, 6, 2\); expected uint8 of shape \(3, 5, 6, 2\), as its",
    ),
    ("smaller", {}, r"own:smaller' returns uint8 of shape \(3, 4, 6, 2\); expected uint8 of shape \(3, 5, 6, 2\)"),
    ("nothing", {}, r"own:nothing' returns NoneType of shape None; expected uint8"),
    ("failing", {}, r"own:failing' cannot be traced: ValueError: no such colour \(.*own\.py:\d+\)"),
    ("NUMBER", {}, r"own:NUMBER' is no function; expected function\(keys, images\) -> images"),
    ("dimmed", {"most": [3]}, r"augment\.function has keywords \{'most': \[3\]\}; expected numbers, texts or tuples"),
  ],
)
def test_functions_that_are_none_are_refused_before_anything_trains(name, keywords, sentence):
  spec = Augment(function=f"{OWN}:{name}", keywords=tuple(keywords.items()))
  with pytest.raises(UserError, match=sentence) as caught:
    augment.check(spec, (5, 6, 2))
  assert "\n" not in str(caught.value)


def test_modules_that_cannot_be_imported_are_named(tmp_path, monkeypatch):
  monkeypatch.syspath_prepend(tmp_path)
  (tmp_path / "broken_changes.py").write_text("x = 1\n\ny = x / 0\n")
  for path, sentence in (
    (
      "broken_changes:f",
      r"'broken_changes:f': importing 'broken_changes' failed: ZeroDivisionError: .*broken_changes\.py:3",
    ),
    ("no_changes_here:f", "there is no module 'no_changes_here' on the Python path"),
    ("nonsense", "is no import path; expected 'package.module:Name'"),
  ):
    with pytest.raises(UserError, match=sentence):
      augment.check(Augment(function=path), (5, 6, 2))
