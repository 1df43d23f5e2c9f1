import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.engine.data import Preprocess, load, measure, normalise
from leanax.engine.data.preprocess import from_json, to_json


def test_hand_computed():
  spec = Preprocess(mean=(0.5, 1.0), std=(0.5, 2.0), scale=0.5)
  images = jnp.asarray([[[[0, 4], [3, 10]]]], jnp.uint8)
  np.testing.assert_array_equal(jax.jit(normalise, static_argnums=1)(images, spec), [[[[-1.0, 0.5], [2.0, 2.0]]]])


def test_default_only_scales():
  np.testing.assert_allclose(
    normalise(jnp.asarray([[[[0], [255]]]], jnp.uint8), Preprocess()).ravel(), [0, 1], rtol=1e-6
  )


def test_bfloat16_is_a_rounded_float32():
  images = jnp.arange(256, dtype=jnp.uint8).reshape(1, 16, 16, 1)
  spec = Preprocess((0.13,), (0.31,))
  got = normalise(images, spec, jnp.bfloat16)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, normalise(images, spec).astype(jnp.bfloat16))


def test_measured_spec_standardises():
  train = load("synthetic", shape=(8, 8, 3), train=50).train
  spec = measure(train)
  pixels = train.images.reshape(-1, 3) / 255
  np.testing.assert_allclose(spec.mean, pixels.mean(0), rtol=1e-12)
  np.testing.assert_allclose(spec.std, pixels.std(0), rtol=1e-12)
  got = np.asarray(normalise(jnp.asarray(train.images), spec), np.float64).reshape(-1, 3)
  np.testing.assert_allclose(got.mean(0), 0, atol=1e-5)
  np.testing.assert_allclose(got.std(0), 1, atol=1e-5)


def test_constant_channel_is_refused():
  train = load("digits").train
  with pytest.raises(UserError, match="digits/train: channel 0 is the same"):
    measure(train._replace(images=train.images * 0))


def test_round_trip_through_json():
  spec = Preprocess((0.1, 0.2), (0.3, 1 / 3), 1 / 16)
  assert from_json(json.loads(json.dumps(to_json(spec)))) == spec
  assert from_json({"mean": 0.5}) == Preprocess(mean=(0.5,))
  assert "resize" not in to_json(spec)
  padded = Preprocess(resize="pad")
  assert from_json(json.loads(json.dumps(to_json(padded)))) == padded


@pytest.mark.parametrize(
  ("data", "sentence"),
  [
    ({"meen": [0.0]}, "unknown preprocessing key 'meen'; did you mean 'mean'"),
    ({"std": [0.0]}, "must be positive"),
    ({"scale": [1.0, 2.0]}, "scale one number"),
    ({"mean": ["a"]}, "must hold numbers"),
    ({"resize": "padd"}, "unknown way of 'resize' 'padd'; did you mean 'pad'"),
  ],
)
def test_bad_json(data, sentence):
  with pytest.raises(UserError, match=sentence):
    from_json(data)
