"""A leaf that holds many layers is pruned as these layers would be, each by itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from tests.sparsity import nets

LAYERS, SHAPE = 3, (7, 5)
SIZES = [2.0, 1.0, 0.25]  # so that one ranking over all of them would empty the last


def trees(axis):
  """The same numbers as one leaf with the layers along an axis, and as a leaf a layer; and a layer of another kind."""
  rng = np.random.default_rng(0)
  layers = [np.asarray(rng.normal(size=SHAPE) * size, np.float32) for size in SIZES]
  head = np.asarray(rng.normal(size=(7, 2)), np.float32)
  stacked = {"blocks": {"kernel": jnp.stack(layers, axis)}, "head": {"kernel": jnp.asarray(head)}}
  apart = {"blocks": {str(i): {"kernel": jnp.asarray(w)} for i, w in enumerate(layers)}, "head": stacked["head"]}
  return stacked, apart


def masks_of(tree, **keywords):
  *_, (_, tree, state) = nets.train(sparsity.magnitude(optax.sgd(0.0), **keywords), tree, 3)
  found = sparsity.masks(state)
  jax.tree.map(nets.assert_bit_zero, found, tree)
  return found


KEYWORDS = [
  {"density": 0.4},
  {"density": 0.4, "allocation": "erk"},
  {"density": 0.4, "allocation": "global"},
  {"threshold": 0.5},
  {"density": 0.4, "schedule": sparsity.cubic(0, 5, 2)},
]


@functools.cache
def masks_apart(case):
  return masks_of(trees(0)[1], **KEYWORDS[case])  # the same for every axis


@pytest.mark.sampled(4)
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("case", range(len(KEYWORDS)))
def test_as_leaves_of_their_own(axis, case):
  stacked, _ = trees(axis)
  got, want = masks_of(stacked, stacked=[("blocks/*", axis)], **KEYWORDS[case]), masks_apart(case)
  for i in range(LAYERS):
    np.testing.assert_array_equal(
      np.take(np.asarray(got["blocks"]["kernel"]), i, axis), want["blocks"][str(i)]["kernel"]
    )
  np.testing.assert_array_equal(got["head"]["kernel"], want["head"]["kernel"])


def test_each_layer_keeps_its_share():
  stacked, _ = trees(0)
  kept = np.sum(masks_of(stacked, density=0.5, stacked=["blocks/*"])["blocks"]["kernel"], (1, 2))
  np.testing.assert_array_equal(kept, [18, 18, 18])  # 17.5, to even
  alone = np.sum(masks_of(stacked, density=0.5)["blocks"]["kernel"], (1, 2))
  assert alone[2] < 4 and sum(alone) == 52  # without a rule a leaf is one layer


def test_layers_larger_than_a_program_for_small_leaves():
  rng = np.random.default_rng(1)
  w = jnp.asarray(rng.normal(size=(2, 300, 256)) * [[[1.0]], [[0.1]]], jnp.float32)
  tx = sparsity.magnitude(optax.sgd(0.0), density=0.25, stacked=["kernel"])
  _, state = jax.jit(tx.update)({"kernel": w}, tx.init({"kernel": w}), {"kernel": w})
  mask = sparsity.masks(state)["kernel"]
  for layer in range(2):
    np.testing.assert_array_equal(mask[layer], nets.oracle_mask(w[layer], 300 * 64))


def test_several_axes_and_densities_by_layer():
  rng = np.random.default_rng(2)
  w = {"kernel": jnp.asarray(rng.normal(size=(2, 10, 3)), jnp.float32)}
  seen = {}

  def rising(shapes, density):
    seen.update(shapes)
    return {name: density * (i + 1) / 6 for i, name in enumerate(shapes)}

  mask = masks_of(w, density=0.6, allocation=rising, stacked=[("*", (0, -1))])["kernel"]
  assert seen == {f"kernel[{i}]": (10,) for i in range(6)}
  np.testing.assert_array_equal(np.sum(mask, 1), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_dict_of_axes(axis):
  tree, _ = trees(axis)
  found = masks_of(tree, density=0.3, stacked={"blocks/kernel": (axis,)})
  expected = masks_of(tree, density=0.3, stacked=[("blocks/kernel", axis)])
  np.testing.assert_array_equal(found["blocks"]["kernel"], expected["blocks"]["kernel"])


@pytest.mark.parametrize(
  ("stacked", "sentence"),
  [
    ("blcks/*", "the rule of stacked= 'blcks/\\*' matches nothing; names near it: blocks/kernel"),
    ([("blocks/*",)], r"the rule of stacked= \('blocks/\*',\) is no pair; expected \(glob, setting\)"),
    (["blcks/*"], "the rule of stacked= 'blcks/\\*' matches nothing; names near it: blocks/kernel"),
    ([("blocks/*", 3)], r"gives 'blocks/\*' the axis 3, but 'blocks/kernel' has the shape \(3, 7, 5\)"),
    ([("blocks/*", (0, 1, 2))], "names every axis of 'blocks/kernel'"),
    ([("blocks/*", "0")], "the axis '0'"),
    ([("blocks/*", 0.0)], "the axis 0.0"),
    ({"blocks/*": (3,)}, r"the axis \(3,\)"),
    (None, "stacked= is None; expected"),
  ],
)
def test_mistakes(stacked, sentence):
  tree, _ = trees(0)
  with pytest.raises(UserError, match=sentence):
    sparsity.magnitude(optax.sgd(0.1), density=0.5, stacked=stacked).init(tree)
