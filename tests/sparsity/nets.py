"""Small trees of parameters, and training on them, for the tests of sparse optimizers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import sparsity
from tests.numbers import array

masks = jax.jit(sparsity.masks)  # one program for each tree of shapes, not one for each mask


def params(seed=0):
  """Two layers; a third of the entries share one magnitude, so that ties are broken in every mask."""
  rng = np.random.default_rng(seed)

  def kernel(*shape):
    w = rng.normal(size=shape)
    return array(np.where(rng.random(shape) < 0.3, 0.5 * np.sign(w), w), jnp.float32)

  return {
    "Conv_0": {"kernel": kernel(3, 3, 2, 4), "bias": jnp.zeros(4)},
    "Dense_0": {"kernel": kernel(17, 9), "bias": jnp.ones(9)},
  }


@jax.jit
def gradients(tree, step):
  """Made-up gradients that are nowhere zero and change with the step."""
  phase = jnp.asarray(step, jnp.float32) + 1

  def leaf(p):
    return jnp.cos(jnp.arange(p.size, dtype=jnp.float32) * 0.7 + phase).reshape(p.shape).astype(p.dtype)

  return jax.tree.map(leaf, tree)


def plain(inner):
  """An optimizer that takes and drops `step`."""
  inner = optax.with_extra_args_support(inner)
  return optax.GradientTransformationExtraArgs(
    inner.init, lambda u, s, p=None, *, step, **extra: inner.update(u, s, p, **extra)
  )


@functools.cache
def compiled(tx):
  """The start and the update of a sparse optimizer by made-up gradients, and the list of the update's traces so far."""
  traced = []

  @jax.jit
  def update(tree, state, step):
    traced.append(step)
    updates, state = tx.update(gradients(tree, step), state, tree, step=step)
    return optax.apply_updates(tree, updates), state

  return jax.jit(tx.init), update, traced


def train(tx, tree, steps, start=0, state=None):
  """Yields (step, params, state) after each optimizer update; one compilation for all."""
  init, update, traced = compiled(tx)
  before = len(traced)
  state = init(tree) if state is None else state
  for step in range(start, start + steps):
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam raises a float to an int
      tree, state = update(tree, state, np.int32(step))
    yield step, tree, state
  assert len(traced) <= before + 1


def oracle_mask(w, keep):
  """The `keep` largest magnitudes, ties to the lower flat index."""
  flat = np.abs(np.asarray(w, np.float64)).reshape(-1)
  mask = np.zeros(flat.size, bool)
  mask[np.lexsort((np.arange(flat.size), -flat))[:keep]] = True
  return mask.reshape(np.shape(w))


def first(scores, allowed, count):
  """The `count` largest among what is allowed, ties to the lower flat index."""
  flat, allowed = np.asarray(scores, np.float64).reshape(-1), np.asarray(allowed).reshape(-1)
  order = [i for i in np.lexsort((np.arange(flat.size), -flat)) if allowed[i]]
  mask = np.zeros(flat.size, bool)
  mask[order[:count]] = True
  return mask.reshape(np.shape(scores))


def assert_bit_zero(mask, w):
  """Pruned entries are +0."""
  bits = np.asarray(w)[~np.asarray(mask)].tobytes()
  assert bits == bytes(len(bits))
