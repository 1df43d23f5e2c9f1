"""The order of examples as a pure function of (seed, epoch) and batches as one of the step: nothing else to save or
resume.

The shuffle is swap-or-not (V. T. Hoang, B. Morris, P. Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO
2012, figure 1): a keyed bijection on [0, n) that is evaluated place by place. So a step computes the rows of its own
batch only, where a sorted permutation would cost the whole set at each step, and a device can compute its part alone.
The rounds' bits come from MurmurHash3's finaliser (public domain) instead of a cipher: shuffling needs no secrecy.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Int32, UInt32

from leanax.core.errors import UserError
from leanax.core.keys import step_key

# Enough that places and neighbouring pairs are as even as in a fair shuffle (a test counts them); a batch of 256 then
# takes about 25 us, and the whole order of 60,000 examples under 1 ms, where sorting random numbers takes 34 ms.
ROUNDS = 48


def steps_per_epoch(examples: int, batch_size: int) -> int:
  """Full batches in an epoch; the rest of the examples waits for another epoch's shuffle.

  Raises:
    UserError: the batch is larger than the split.
  """
  if not 0 < batch_size <= examples:
    raise UserError(f"batch_size is {batch_size}; expected 1 to the {examples} examples of the training split")
  return examples // batch_size


def shuffled(
  seed: int | Int[Array, ""], epoch: int | Int[Array, ""], places: Int[Array, "b"], examples: int
) -> Int32[Array, "b"]:
  """Which rows stand at these places of an epoch's order.

  Args:
    seed: of the order.
    epoch: each has an order of its own.
    places: (B,) numbers in [0, examples).
    examples: N, a Python int below 2^31.

  Returns:
    (B,) rows; over all places, each row of [0, N) once.
  """
  keys = jax.random.bits(step_key(seed, epoch, "order"), (ROUNDS, 2), jnp.uint32)
  size = jnp.uint32(examples)

  def swap_or_not(rows: UInt32[Array, "b"], key: UInt32[Array, "2"]) -> tuple[UInt32[Array, "b"], None]:
    partner = key[0] % size + size - rows
    partner = jnp.where(partner >= size, partner - size, partner)
    # Both of a pair ask the same coin, the one of the larger number: that is what makes a round a bijection.
    coin = _mix(jnp.maximum(rows, partner) ^ key[1]) >> 31
    return jnp.where(coin == 1, partner, rows), None

  rows, _ = jax.lax.scan(swap_or_not, places.astype(jnp.uint32), keys)
  return rows.astype(jnp.int32)


def _mix(word: UInt32[Array, "b"]) -> UInt32[Array, "b"]:
  """MurmurHash3's 32-bit finaliser."""
  word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
  word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
  return word ^ (word >> 16)


def permutation(seed: int | Int[Array, ""], epoch: int | Int[Array, ""], examples: int) -> Int32[Array, "n"]:
  """The whole order of an epoch, (N,); what `batch_rows` walks along."""
  return shuffled(seed, epoch, jnp.arange(examples), examples)


def batch_rows(
  seed: int | Int[Array, ""],
  step: int | Int[Array, ""],
  examples: int,
  batch_size: int,
  part: tuple[int | Int[Array, ""], int] = (0, 1),
) -> Int32[Array, "b"]:
  """The rows of a training step's batch.

  Args:
    seed: of the order.
    step: counts batches from 0 over all epochs.
    examples: N, a Python int.
    batch_size: of the whole batch.
    part: (k, n) gives the k-th of n equal parts of the batch, such as a device's own.

  Returns:
    (B / n,) rows.

  Raises:
    UserError: the batch is larger than the split, or its parts would be unequal.
  """
  index, parts = part
  if batch_size % parts:
    raise UserError(f"batch_size {batch_size} cannot be divided evenly over {parts} devices")
  epoch, place = jnp.divmod(jnp.asarray(step, jnp.int32), steps_per_epoch(examples, batch_size))
  local = batch_size // parts
  return shuffled(seed, epoch, place * batch_size + index * local + jnp.arange(local, dtype=jnp.int32), examples)


def epoch_of(step: int | Int[Array, ""], examples: int, batch_size: int) -> Int32[Array, ""]:
  """Which epoch a step belongs to."""
  return jnp.asarray(step, jnp.int32) // steps_per_epoch(examples, batch_size)


def gather(arrays: Mapping[str, Array], rows: Int[Array, "b"]) -> dict[str, Array]:
  """These rows of every array. Rows must exist: a wrong one is clipped, as no error can be raised on a device."""
  return {key: jnp.take(array, rows, axis=0, mode="clip") for key, array in arrays.items()}


def batch_at(
  arrays: Mapping[str, Array],
  seed: int | Int[Array, ""],
  step: int | Int[Array, ""],
  batch_size: int,
  part: tuple[int | Int[Array, ""], int] = (0, 1),
) -> dict[str, Array]:
  """The raw batch of a training step: "image", "label", "id" and whatever else lies in `arrays`; for inside jit or
  scan.

  Args:
    arrays: of N rows each; see `splits.device_arrays`. Hand them in as arguments of the jitted function, as one that is
      closed over becomes a constant of the program.
    seed: of the order.
    step: alone determines the batch.
    batch_size: of the whole batch.
    part: see `batch_rows`.
  """
  return gather(arrays, batch_rows(seed, step, arrays["id"].shape[0], batch_size, part))


def padded_batch_at(
  arrays: Mapping[str, Array], step: int | Int[Array, ""], batch_size: int
) -> tuple[dict[str, Array], Bool[Array, "b"]]:
  """The batch of an evaluation: in stored order, every example once.

  Returns:
    The batch, and which of its rows count; the last batch (`ceil(N / batch_size)` in all) is filled up with row N-1.
  """
  examples = arrays["id"].shape[0]
  rows = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
  return gather(arrays, rows), rows < examples
