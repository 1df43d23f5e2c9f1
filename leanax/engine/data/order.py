"""The order of examples as a pure function of (seed, epoch), and batches as a function of the step: there is no state
to save or resume.

The shuffle is swap-or-not (V. T. Hoang, B. Morris, P. Rogaway, "An Enciphering Scheme Based on a Card Shuffle", CRYPTO
2012, figure 1): a keyed bijection on [0, n) that is evaluated per place. A step computes only the rows of its batch,
without sorting the whole set, and a device only its own part. The rounds' bits come from MurmurHash3's finaliser
(public domain) instead of a cipher.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32, UInt32

from leanax.core.errors import UserError
from leanax.core.keys import step_key

# Enough that places and neighbouring pairs are as even as in a fair shuffle (a test counts them); a batch of 256 then
# takes about 25 us, and the whole order of 60,000 examples under 1 ms, where sorting random numbers takes 34 ms.
ROUNDS = 48


def steps_per_epoch(examples: int, batch_size: int) -> int:
  """Returns the number of full batches in an epoch; the remaining examples are dropped in that epoch.

  Raises:
    UserError: the batch is larger than the split.
  """
  if not 0 < batch_size <= examples:
    raise UserError(f"batch_size is {batch_size}; expected 1 to the {examples} examples of the training split")
  return examples // batch_size


def shuffled(
  seed: int | Int[Array, ""],
  epoch: int | Int[Array, ""],
  places: Int[Array, "b"],
  examples: int | Int[Array, "b"],
  stream: str = "order",
) -> Int32[Array, "b"]:
  """Returns the rows at places of an epoch's order.

  Args:
    seed: of the order.
    epoch: each epoch has its own order.
    places: (B,) numbers in [0, examples).
    examples: N below 2^31; an array has one for each place, such as the size of its class.
    stream: the name of the random numbers.

  Returns:
    (B,) rows; over all places, each row of [0, N) once.
  """
  keys = jax.random.bits(step_key(seed, epoch, stream), (ROUNDS, 2), jnp.uint32)
  size = jnp.asarray(examples, jnp.uint32)

  def swap_or_not(rows: UInt32[Array, "b"], key: UInt32[Array, "2"]) -> tuple[UInt32[Array, "b"], None]:
    partner = key[0] % size + size - rows
    partner = jnp.where(partner >= size, partner - size, partner)
    # Both rows of a pair use the coin of the larger one, which makes a round a bijection.
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
  """Returns the whole order of an epoch, (N,), which `batch_rows` follows."""
  return shuffled(seed, epoch, jnp.arange(examples), examples)


def batch_rows(
  seed: int | Int[Array, ""],
  step: int | Int[Array, ""],
  examples: int,
  batch_size: int,
  part: tuple[int | Int[Array, ""], int] = (0, 1),
  classes: tuple[int, ...] = (),
) -> Int32[Array, "b"]:
  """Returns the rows of a training step's batch.

  Args:
    seed: of the order.
    step: counts batches from 0 over all epochs.
    examples: N, a Python int.
    batch_size: of all devices.
    part: (k, n) selects the k-th of n equal parts of the batch, such as a device's.
    classes: the number of examples of each class, whose rows follow each other, if an epoch is to draw all of them
      equally often (`of_classes`); () for each row once.

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
  places = place * batch_size + index * local + jnp.arange(local, dtype=jnp.int32)
  return of_classes(seed, epoch, places, classes) if classes else shuffled(seed, epoch, places, examples)


def of_classes(
  seed: int | Int[Array, ""], epoch: int | Int[Array, ""], places: Int[Array, "b"], classes: tuple[int, ...]
) -> Int32[Array, "b"]:
  """Returns the rows at places of an epoch's order that draws every class equally often.

  The order has ceil(N / K) places of each of the K classes, shuffled. A class with more rows has others in each epoch;
  one with fewer has all of them again and again, and each as often as the others, or once more.

  Args:
    seed: of the order.
    epoch: each epoch has its own order.
    places: (B,) numbers in [0, N).
    classes: the number of rows of each class, above 0, whose rows follow each other; N together.
  """
  counts = np.asarray(classes)
  each = -(-int(counts.sum()) // len(classes))
  drawn = shuffled(seed, epoch, places, each * len(classes))
  label, turn = drawn % len(classes), drawn // len(classes)
  size = jnp.asarray(counts, jnp.int32)[label]
  start = jnp.asarray(np.cumsum(counts) - counts, jnp.int32)[label]
  return start + shuffled(seed, epoch, turn % size, size, "order of a class")


def epoch_of(step: int | Int[Array, ""], examples: int, batch_size: int) -> Int32[Array, ""]:
  """Returns the epoch of a step."""
  return jnp.asarray(step, jnp.int32) // steps_per_epoch(examples, batch_size)


def gather(arrays: Mapping[str, Array], rows: Int[Array, "b"]) -> dict[str, Array]:
  """Returns rows of every array, also of those in mappings.

  Rows out of range are clipped, since a device cannot raise an error.
  """
  return jax.tree.map(lambda array: jnp.take(array, rows, axis=0, mode="clip"), dict(arrays))


def batch_at(
  arrays: Mapping[str, Array],
  seed: int | Int[Array, ""],
  step: int | Int[Array, ""],
  batch_size: int,
  part: tuple[int | Int[Array, ""], int] = (0, 1),
) -> dict[str, Array]:
  """Returns the raw batch of a training step, inside jit or scan: "image", "label", "id" and all other arrays.

  Args:
    arrays: of N rows each; see `splits.device_arrays`. Pass them as arguments of the jitted function: arrays that are
      closed over become constants of the program.
    seed: of the order.
    step: counts batches from 0 over all epochs.
    batch_size: of all devices.
    part: see `batch_rows`.
  """
  return gather(arrays, batch_rows(seed, step, arrays["id"].shape[0], batch_size, part))


def padded_batch_at(
  arrays: Mapping[str, Array], step: int | Int[Array, ""], batch_size: int
) -> tuple[dict[str, Array], Bool[Array, "b"]]:
  """Returns a batch of an evaluation: in stored order, every example once.

  Returns:
    The batch, and its valid rows; the last of the `ceil(N / batch_size)` batches is padded with row N-1.
  """
  examples = arrays["id"].shape[0]
  rows = jnp.asarray(step, jnp.int32) * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
  return gather(arrays, rows), rows < examples
