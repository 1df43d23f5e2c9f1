"""The exact k-th largest magnitude or number without sorting, and top-k masks with a stated tie rule.

Magnitudes of IEEE floats are ordered as their bit patterns without the sign, and signed numbers as their bit patterns
with the sign flipped (all bits of a negative one), so the k-th largest is found digit by
digit from the top (radix select): one histogram of a digit's values among the entries that agree with the digits found
so far, counted in int32, then the digit in which the k-th lies. Two passes find a float32, one a bfloat16. Histograms
of several leaves, or of several devices, add up, so that ranking across leaves needs no concatenation. NaN of either
sign counts as larger than infinity: it is kept and stays visible. The two zeros are equal.

On a CPU a histogram is a scatter-add. For small leaves, and on accelerators, where scatters collide, the same pattern
is found bit by bit with one count per bit.

Tie rule: among equals the earlier leaf, then the earlier device, then the lower flat index is kept.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core import axis as device_axis
from leanax.core import ranges
from leanax.core.errors import UserError

WIDTHS = {"float16": 15, "bfloat16": 15, "float32": 31, "float64": 63}
MOST_DIGIT_BITS = 16  # 65,536 counters stay in a core's second-level cache
BLOCK = 4096
CHUNK = 2**17
SMALL = 2**16  # up to so many entries one count per bit is no slower, and compiles faster


class Order(NamedTuple):
  """The kind of what is ranked: floats of this dtype, by their magnitude or with their sign."""

  dtype: jnp.dtype
  signed: bool = False

  @property
  def width(self) -> int:
    """The bits of a pattern."""
    return WIDTHS[self.dtype.name] + self.signed

  @property
  def ints(self) -> jnp.dtype:
    """Holds patterns; they are never negative."""
    return jnp.dtype(f"{'u' if self.signed else ''}int{64 if self.dtype.itemsize == 8 else 32}")


class Kth(NamedTuple):
  """The k-th largest: its bit pattern, and how many entries are strictly larger and equal (int32)."""

  pattern: jax.Array
  above: jax.Array
  equal: jax.Array


def kth_magnitude(leaves: Any, k: int | jax.Array, *, axis_name: str | None = None) -> jax.Array:
  """Returns the k-th largest magnitude (k = 1 is the largest) over all entries of a tree, exactly.

  Args:
    leaves: an array or a tree of arrays, float16, bfloat16, float32 or float64; at most 2^31 - 1 entries together.
    k: a Python int, or an int32 scalar when it is computed inside the step.
    axis_name: the device axis over which each device holds a part of every leaf; None when leaves are whole.

  Returns:
    A scalar of the leaves' common dtype. Under vmap the batch is walked by `lax.map`.

  Raises:
    UserError: another dtype, too many entries, or a Python k outside 1..entries.
  """
  xs = jax.tree.leaves(leaves)
  order = Order(_common_dtype(xs))
  _check_count(xs, k, 1, axis_name)

  @jax.custom_batching.sequential_vmap
  def run(k: jax.Array, *xs: jax.Array) -> jax.Array:
    return _from_pattern(_select(xs, k, order, axis_name).pattern, order.dtype)

  return run(jnp.asarray(k, jnp.int32), *map(jax.lax.stop_gradient, xs))


def topk_mask(leaves: Any, keep: int | jax.Array, *, signed: bool = False, axis_name: str | None = None) -> Any:
  """Returns the mask of the `keep` largest entries over a whole tree, exactly, ties by the rule above.

  Args:
    leaves: as for `kth_magnitude`.
    keep: a Python int or an int32 scalar, 0..entries.
    signed: False ranks magnitudes; True ranks the numbers themselves, the negative ones last.
    axis_name: as for `kth_magnitude`; `keep` then counts over all devices.

  Returns:
    A tree of bool arrays like `leaves`.

  Raises:
    UserError: as `kth_magnitude`.
  """
  xs, treedef = jax.tree.flatten(leaves)
  order = Order(_common_dtype(xs), signed)
  _check_count(xs, keep, 0, axis_name)

  @jax.custom_batching.sequential_vmap
  def run(keep: jax.Array, *xs: jax.Array) -> list[jax.Array]:
    kth = _select(xs, keep, order, axis_name)
    ends = _tie_ends(xs, kth, keep, order, axis_name)
    return [_kept(bit_pattern(x, order), kth.pattern, end).reshape(x.shape) for x, end in zip(xs, ends, strict=True)]

  return treedef.unflatten(run(jnp.asarray(keep, jnp.int32), *map(jax.lax.stop_gradient, xs)))


def topk_masks(leaves: Sequence[jax.Array], keep: jax.Array, *, signed: bool = False) -> list[jax.Array]:
  """Returns `topk_mask` of each leaf by itself.

  Small leaves are padded and share one program, so that compiling does not grow with their number. A padding with the
  least number at the end is never kept: by the tie rule it comes after all of the leaf's own entries.

  Args:
    leaves: as for `kth_magnitude`.
    keep: (leaves,) int32, how many entries of each to keep, 0..its entries.
    signed: as for `topk_mask`.

  Returns:
    Bool arrays like the leaves.
  """
  small: dict[str, list[int]] = {}
  masks: dict[int, jax.Array] = {}
  for i, x in enumerate(leaves):
    if x.size <= SMALL:
      small.setdefault(x.dtype.name, []).append(i)
    else:
      masks[i] = topk_mask(x, keep[i], signed=signed)
  for members in small.values():
    size = max(leaves[i].size for i in members)
    least = -jnp.inf if signed else 0.0
    rows = [jnp.pad(leaves[i].reshape(-1), (0, size - leaves[i].size), constant_values=least) for i in members]
    made = jax.vmap(functools.partial(topk_mask, signed=signed))(jnp.stack(rows), keep[np.asarray(members)])
    masks |= {i: row[: leaves[i].size].reshape(leaves[i].shape) for i, row in zip(members, made, strict=True)}
  return [masks[i] for i in range(len(leaves))]


def _common_dtype(xs: list[jax.Array]) -> jnp.dtype:
  """Returns the narrowest float that holds every leaf exactly."""
  if not xs or not all(x.size for x in xs):
    raise UserError("a threshold needs a tree of arrays that are not empty")
  names = {x.dtype.name for x in xs}
  for name in names - set(WIDTHS):
    raise UserError(f"a threshold needs float leaves ({', '.join(WIDTHS)}), not {name}")
  if len(names) > 1:
    names = {"float64"} & names or {"float32"}
  return jnp.dtype(names.pop())


def _check_count(xs: list[jax.Array], k: int | jax.Array, least: int, axis_name: str | None) -> None:
  size = sum(x.size for x in xs) * device_axis.size(axis_name)
  if size >= 2**31:
    raise UserError(
      f"a threshold over {size} entries needs counts beyond int32; rank at most {2**31 - 1} entries together"
    )
  if isinstance(k, jax.Array):
    return
  ranges.check("the count of a threshold", k, ranges.whole(least))
  if k > size:
    raise UserError(f"a threshold over {size} entries needs a count in {least}..{size}, not {k}")


def bit_pattern(x: jax.Array, order: Order) -> jax.Array:
  """Returns flat non-negative ints that are ordered as |x| or, signed, as x."""
  dtype = order.dtype
  bits = jax.lax.bitcast_convert_type(x.astype(dtype).reshape(-1), f"uint{8 * dtype.itemsize}")
  sign = jnp.asarray(2 ** WIDTHS[dtype.name], bits.dtype)
  size = bits & (sign - 1)
  if not order.signed:
    return size.astype(order.ints)
  infinity = jax.lax.bitcast_convert_type(jnp.asarray(jnp.inf, dtype), bits.dtype)
  negative = (bits >= sign) & (size > 0) & (size <= infinity)  # neither -0 nor NaN
  return jnp.where(negative, ~bits, size | sign).astype(order.ints)


def _from_pattern(pattern: jax.Array, dtype: jnp.dtype) -> jax.Array:
  return jax.lax.bitcast_convert_type(pattern.astype(f"uint{8 * dtype.itemsize}"), dtype)


def _kept(pattern: jax.Array, kth: jax.Array, end: jax.Array) -> jax.Array:
  return (pattern > kth) | ((pattern == kth) & (jax.lax.iota(jnp.int32, pattern.size) < end))


def _select(xs: tuple[jax.Array, ...], k: jax.Array, order: Order, axis_name: str | None) -> Kth:
  def radix(k: jax.Array, *xs: jax.Array) -> Kth:
    return _radix_select(xs, k, order, axis_name)

  def bitwise(k: jax.Array, *xs: jax.Array) -> Kth:
    return _bit_select(xs, k, order, axis_name)

  if sum(x.size for x in xs) <= SMALL:
    return bitwise(k, *xs)
  return jax.lax.platform_dependent(k, *xs, cpu=radix, default=bitwise)


def _radix_select(xs: tuple[jax.Array, ...], k: jax.Array, order: Order, axis_name: str | None) -> Kth:
  low = order.width
  prefix, above, equal = jnp.zeros((), order.ints), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
  first = True
  while low:
    size = min(MOST_DIGIT_BITS, low)
    low -= size
    counts = [_histogram(x, order, None if first else prefix, low, size) for x in xs]
    falling = device_axis.psum(sum(counts[1:], counts[0]), axis_name)[::-1]
    place, larger = _reach(falling, k - above)
    equal = falling[place]
    above += larger
    prefix = (prefix << size) | (2**size - 1 - place).astype(prefix.dtype)
    first = False
  return Kth(prefix, above, equal)


def _reach(counts: jax.Array, rank: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Returns the first place where the running sum of `counts` reaches `rank`, and the sum before it; (0, 0) for rank 0.

  A bisection: to compile, a running sum costs several times as much.
  """
  places = jax.lax.iota(jnp.int32, counts.size)
  bits = max(counts.size - 1, 1).bit_length()

  def before(place: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(places < place, counts, jnp.zeros((), counts.dtype)), dtype=jnp.int32)

  def bit(i: jax.Array, place: jax.Array) -> jax.Array:
    candidate = place | (jnp.int32(1) << (bits - 1 - i))
    return jnp.where((candidate < counts.size) & (before(candidate) < rank), candidate, place)

  place = jax.lax.fori_loop(0, bits, bit, (jnp.sum(counts[:1], dtype=jnp.int32) + rank) * 0)
  return place, before(place)


def _histogram(x: jax.Array, order: Order, prefix: jax.Array | None, low: int, size: int) -> jax.Array:
  """Counts of the digit of `size` bits at bit `low` among entries whose higher bits are `prefix` (all when None).

  By chunks: digits of a whole leaf would be written to memory, and a step that holds a mask update, done or not, would
  own that memory.
  """

  def add(counts: jax.Array, part: jax.Array) -> jax.Array:
    pattern = bit_pattern(part, order)
    digit = ((pattern >> low) & (2**size - 1)).astype(jnp.uint32)  # unsigned: no index from the end to look for
    if prefix is not None:
      digit = jnp.where((pattern >> (low + size)) == prefix, digit, 2**size)  # out of range: dropped
    return counts.at[digit].add(1, mode="drop")

  flat = x.reshape(-1)
  chunks = flat.size // CHUNK

  def chunk(i: jax.Array, counts: jax.Array) -> jax.Array:
    return add(counts, jax.lax.dynamic_slice(flat, (i * CHUNK,), (CHUNK,)))

  rest = add(jnp.zeros(2**size, jnp.int32), flat[chunks * CHUNK :])
  return jax.lax.fori_loop(0, chunks, chunk, rest) if chunks else rest


def _bit_select(xs: tuple[jax.Array, ...], k: jax.Array, order: Order, axis_name: str | None) -> Kth:
  def count(test: Callable[[jax.Array], jax.Array]) -> jax.Array:
    counts = [jnp.sum(test(bit_pattern(x, order)), dtype=jnp.int32) for x in xs]
    return device_axis.psum(sum(counts[1:], counts[0]), axis_name)

  width = order.width

  def bit(i: jax.Array, found: jax.Array) -> jax.Array:
    candidate = found | (jnp.ones((), found.dtype) << (width - 1 - i).astype(found.dtype))
    return jnp.where(count(lambda p: p >= candidate) >= k, candidate, found)

  # The start varies over devices as the result will: replication checking asks that of a loop.
  start = count(lambda p: p < 0).astype(order.ints)
  found = jax.lax.fori_loop(0, width, bit, start)
  return Kth(found, count(lambda p: p > found), count(lambda p: p == found))


def _tie_ends(
  xs: tuple[jax.Array, ...], kth: Kth, keep: jax.Array, order: Order, axis_name: str | None
) -> list[jax.Array]:
  """Returns, per leaf, the flat position before which entries equal to the threshold are kept."""
  wanted = keep - kth.above

  def search() -> list[jax.Array]:
    # From the leaves, not from patterns made outside: what a branch reads is written to memory first.
    leaves = [_Ties(x.reshape(-1), lambda part: bit_pattern(part, order) == kth.pattern) for x in xs]
    blocks = [ties.counts() for ties in leaves]
    here = jnp.stack([jnp.sum(counts, dtype=jnp.int32) for counts in blocks])
    total = device_axis.psum(here, axis_name)
    before = jnp.cumsum(total, dtype=jnp.int32) - total
    if axis_name is not None:
      every = jax.lax.all_gather(here, axis_name)
      earlier = jnp.arange(len(every)) < jax.lax.axis_index(axis_name)
      before += jnp.sum(jnp.where(earlier[:, None], every, 0), axis=0, dtype=jnp.int32)
    ranks = jnp.clip(wanted - before, 0, here)
    return [ties.end(counts, rank) for ties, counts, rank in zip(leaves, blocks, ranks, strict=True)]

  def all_of_them() -> list[jax.Array]:
    return [wanted * 0 + (2**31 - 1)] * len(xs)

  if axis_name is not None:  # the ends differ by device: the two branches of a cond could not have one type
    return search()
  return jax.lax.cond(wanted == kth.equal, all_of_them, search)


class _Ties(NamedTuple):
  """The entries of a flat leaf for which `test` holds; the leaf is read once, and one block of it again."""

  flat: jax.Array
  test: Callable[[jax.Array], jax.Array]

  @property
  def block(self) -> int:
    return self.flat.size if self.flat.size <= SMALL else BLOCK

  def counts(self) -> jax.Array:
    """Returns the number of entries that hold, by block; the last block is what remains, and may be empty."""
    whole = self.flat.size // self.block * self.block
    rows = self.test(self.flat[:whole]).reshape(-1, self.block)
    rest = self.test(self.flat[whole:])
    return jnp.append(jnp.sum(rows, axis=1, dtype=jnp.int32), jnp.sum(rest, dtype=jnp.int32))

  def end(self, counts: jax.Array, rank: jax.Array) -> jax.Array:
    """Returns the position after the `rank`-th entry that holds, 0 when rank is 0."""
    block, before = _reach(counts, rank)
    start = jnp.minimum(block * self.block, self.flat.size - self.block)
    ours = start + jax.lax.iota(jnp.int32, self.block) >= block * self.block
    holds = self.test(jax.lax.dynamic_slice(self.flat, (start,), (self.block,))) & ours
    place, _ = _reach(holds, rank - before)
    return jnp.where(rank > 0, start + place + 1, 0)
