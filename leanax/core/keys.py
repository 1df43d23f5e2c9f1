"""Random keys as functions of (seed, step, example), so that the step number is all the random state there is."""

import zlib

import jax


def step_key(seed: int | jax.Array, step: int | jax.Array, stream: str) -> jax.Array:
  """Returns the key of one step of one named stream ("dropout", "augment", ...), independent of all others."""
  key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()) & 0x7FFFFFFF)
  return jax.random.fold_in(key, step)


def example_keys(key: jax.Array, ids: jax.Array) -> jax.Array:
  """Returns one key per example, from its id: how a batch is split over devices does not change them.

  Args:
    key: a typed key.
    ids: (batch,) integer ids of the examples.
  """
  return jax.vmap(jax.random.fold_in, (None, 0))(key, ids)
