"""Exact sums of products of integer codes, in types that an accelerator multiplies exactly (see quant/carrier.py)."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax.core.errors import UserError
from leanax.graph import Op
from leanax.graph.versions import varying_axes

_EXACT = 2**24  # float32 holds every whole number up to it
_BYTE = 256


class Digit(NamedTuple):
  """A part of an operand's codes: 256^power * (values - zero). `largest` is the largest magnitude of the values."""

  power: int
  values: jax.Array
  zero: jax.Array | None
  largest: int


def out_axes(op: Op, index: int) -> list[int | None]:
  """Returns, for each axis of an operand, the axis of the result where it comes out; None where it is summed."""
  numbers = op.params["dimension_numbers"]
  found: list[int | None] = [None] * len(op.inputs[index].shape)
  if op.kind == "conv":
    spec, place = (numbers.lhs_spec, 0) if index == 0 else (numbers.rhs_spec, 1)
    found[spec[0]] = numbers.out_spec[place]
    return found
  contract, batch = numbers
  for out, axis in enumerate(batch[index]):
    found[axis] = out
  free = [axis for axis in range(len(found)) if axis not in (*batch[index], *contract[index])]
  before = len(batch[0]) if index == 0 else len(op.outputs[0].shape) - len(free)
  for place, axis in enumerate(free):
    found[axis] = before + place
  return found


def placed(op: Op, index: int, values: jax.Array) -> jax.Array:
  """Values along an operand's axes, () or of its rank, as they broadcast against the result."""
  if values.size == 1:
    return values.reshape(())
  pairs = sorted(
    (out, axis) for axis, out in enumerate(out_axes(op, index)) if values.shape[axis] > 1 and out is not None
  )
  order, shape = [axis for _, axis in pairs], [1] * len(op.outputs[0].shape)
  for out, axis in pairs:
    shape[out] = values.shape[axis]
  return values.transpose([*order, *(i for i in range(values.ndim) if i not in order)]).reshape(shape)


def digits(
  steps: jax.Array, zero_point: jax.Array | None, largest: int, carrier: str, raw: bool = False
) -> list[Digit]:
  """Codes less their zero point, whole numbers of at most `largest`, as digits in the carrier's type.

  Where `raw`, a float carrier holds the codes themselves, as int8 does.
  """
  if carrier != "int8":
    if raw and zero_point is not None:
      return [Digit(0, (steps + zero_point.astype(steps.dtype)).astype(carrier), zero_point, _half(largest))]
    if largest < _BYTE:
      return [Digit(0, steps.astype(carrier), None, largest)]
    high = jnp.floor(steps * (1 / _BYTE))
    low = steps - high * _BYTE
    return [Digit(0, low.astype(carrier), None, _BYTE - 1), Digit(1, high.astype(carrier), None, _BYTE)]
  codes = steps.astype(jnp.int32) if zero_point is None else steps.astype(jnp.int32) + zero_point
  if largest < _BYTE:
    return [Digit(0, codes.astype(jnp.int8), zero_point, 128)]
  given = jnp.zeros((), jnp.int32) if zero_point is None else zero_point
  low, zero = ((part & (_BYTE - 1)) - 128 for part in (codes, given))
  high = None if zero_point is None else zero_point >> 8
  return [Digit(0, low.astype(jnp.int8), zero, 128), Digit(1, (codes >> 8).astype(jnp.int8), high, 128)]


def terms(op: Op) -> int:
  """Returns the number of products that one number of the result sums."""
  numbers = op.params["dimension_numbers"]
  axes = numbers.rhs_spec[1:] if op.kind == "conv" else numbers[0][1]
  return math.prod(op.inputs[1].shape[axis] for axis in axes)


def shorter_raw(op: Op, largest: Sequence[int], affine: Sequence[bool]) -> bool:
  """Returns whether a float carrier sums fewer parts with the codes of `affine` operands than without zero points.

  Those are half as large as codes less zero points are, so that a part may have twice as many terms.
  """
  if max(largest) >= _BYTE or not fits(op, largest):
    return False
  halves = [_half(most) if shifted else most for most, shifted in zip(largest, affine, strict=True)]
  before, after = (-(-terms(op) // ((_EXACT - 1) // math.prod(sizes))) for sizes in (largest, halves))
  return after < before


def _half(largest: int) -> int:
  return (largest + 1) // 2


def fits(op: Op, largest: Sequence[int]) -> bool:
  """Returns whether the sums fit into int32, whatever the codes are."""
  return terms(op) * math.prod(largest) < 2**31


def total(op: Op, coded: Sequence[Sequence[Digit]], carrier: str) -> jax.Array:
  """Returns the exact sum of products of both operands' digits, rounded once to float32; NaN where a carrier has it."""
  wide = not fits(op, [max(digit.largest for digit in digits) for digits in coded])
  if wide and max(map(len, coded)) > 1:
    raise UserError(
      f"{op.name!r} sums {terms(op)} products of 16-bit codes, more than are exact; give it 8 bits or 'float'"
    )
  sums: dict[int, list[jax.Array]] = {}
  for a in coded[0]:
    for b in coded[1]:
      sums.setdefault(a.power + b.power, []).extend(_products(op, a, b, carrier))
  if len(sums) == 1 and carrier != "int8" and len(sums[0]) <= 2:
    return _added([part.astype(jnp.float32) for part in sums[0]])  # two whole numbers below 2^24, rounded once
  floats = [part for found in sums.values() for part in found if part.dtype == jnp.float32]
  parts = {power: [part.astype(jnp.int32) for part in sums[power]] for power in sums}
  if wide:
    parts = {0: [part & (_BYTE - 1) for part in parts[0]], 1: [part >> 8 for part in parts[0]]}
  places = [_added(parts[power]) for power in sorted(parts)]
  whole = places[0].astype(jnp.float32) if len(places) == 1 else _joined(places)
  return jnp.where(jnp.isnan(_added(floats)), jnp.nan, whole) if floats else whole  # as int32 NaN would be a number


def lost(op: Op, index: int, steps: jax.Array) -> jax.Array:
  """Returns NaN for what an operand's NaN reaches, else 0, against the result: integers cannot hold it."""
  summed = tuple(axis for axis, out in enumerate(out_axes(op, index)) if out is None)
  return placed(op, index, jnp.sum(jnp.zeros((), steps.dtype) * steps, summed, keepdims=True))


def _added(parts: Sequence[jax.Array]) -> jax.Array:
  return sum(parts[1:], parts[0])


def _joined(places: list[jax.Array]) -> jax.Array:
  """Places of a number to the base 256, the lowest first, each any int32: the number, rounded once to float32.

  It is below 2^44 in magnitude: 16-bit codes times 16-bit codes, 8192 terms.
  """
  low = jnp.zeros((), jnp.int32)
  for power in range(len(places) - 1):
    places[power + 1] = places[power + 1] + (places[power] >> 8)
    low = low + (places[power] & (_BYTE - 1)) * _BYTE**power
  free = 20 - 8 * (len(places) - 1)  # low has 8 bits a place; filled up to 20, it and what is above are exact floats
  below = (places[-1] & (2**free - 1)) * 2 ** (20 - free) + low
  return (places[-1] >> free).astype(jnp.float32) * 2.0**20 + below.astype(jnp.float32)


def _products(op: Op, a: Digit, b: Digit, carrier: str) -> list[jax.Array]:
  """Returns whole numbers, as float32 or int32, whose sum is that of (a - zero)(b - zero)."""

  def plain(x: jax.Array, y: jax.Array) -> list[jax.Array]:
    x, y = varying_alike([x, y])  # ones vary over no devices
    if carrier != "int8":
      return _cut(op, x, y, (_EXACT - 1) // (a.largest * b.largest), {})
    return list(op.bind(x, y, preferred_element_type=np.dtype(np.int32), precision=None))

  def times(zero: jax.Array, x: jax.Array, y: jax.Array) -> list[jax.Array]:
    return [zero * part.astype(jnp.int32) for part in plain(x, y)]

  found = plain(a.values, b.values)
  zero_a, zero_b = (None if d.zero is None else placed(op, i, d.zero) for i, d in enumerate((a, b)))
  if zero_a is not None:
    found += times(-zero_a, _ones(op, 0, a.values), b.values)
  if zero_b is not None:
    found += times(-zero_b, a.values, _ones(op, 1, b.values))
  if zero_a is not None and zero_b is not None:
    found += times(zero_a * zero_b, _ones(op, 0, a.values), _ones(op, 1, b.values))
  return found


def _ones(op: Op, index: int, values: jax.Array) -> jax.Array:
  """Ones in an operand's place: what is padded, or lies between dilated inputs, is not there to be counted.

  Axes that come out of this operand alone have length 1, where that is free.
  """
  numbers, shape = op.params["dimension_numbers"], values.shape
  if op.kind == "dot":
    contract, batch = numbers
    return jnp.ones([n if i in (*contract[index], *batch[index]) else 1 for i, n in enumerate(shape)], values.dtype)
  return jnp.ones([1 if index == 0 and i == numbers.lhs_spec[0] else n for i, n in enumerate(shape)], values.dtype)


def varying_alike(arrays: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
  """Makes a replicated operand vary as the other does inside shard_map, so that its gradient is summed there.

  That is done by adding an empty sum of the other, outside of rules for derivatives; it compiles to nothing.
  """
  axes = [varying_axes(array) for array in arrays]
  if axes[0] == axes[1]:
    return tuple(arrays)
  empty = [jnp.sum(jax.lax.stop_gradient(array).reshape(-1)[:0]) for array in arrays]
  return tuple(array + other.astype(array.dtype) for array, other in zip(arrays, reversed(empty), strict=True))


# Sums cut into parts that float32 holds.


def _cut(op: Op, a: jax.Array, b: jax.Array, limit: int, changed: dict[str, Any]) -> list[jax.Array]:
  """Returns float32 products of parts of the operands, sums of at most `limit` terms; they add up to the whole."""
  numbers = op.params["dimension_numbers"]
  axes = list(numbers.rhs_spec[1:] if op.kind == "conv" else numbers[0][1])
  lengths = [b.shape[axis] for axis in axes]
  count = math.prod(lengths)
  if count <= limit:
    return [op.bind(a, b, preferred_element_type=np.dtype(np.float32), precision=None, **changed)[0]]
  place = int(np.argmax(lengths))
  if op.kind == "conv" and lengths[0] > 1 and count // lengths[0] <= limit:
    place = 0  # its input channels
  length = lengths[place]
  width = max(limit * length // count, 1)
  width = -(-length // -(-length // width))  # parts of about one size
  found = []
  for start in range(0, length, width):
    stop = min(start + width, length)
    part = jax.lax.slice_in_dim(b, start, stop, axis=axes[place])
    if op.kind == "dot":
      found += _cut(op, jax.lax.slice_in_dim(a, start, stop, axis=numbers[0][0][place]), part, limit, changed)
    elif place == 0:
      found += _cut(op, _channels(op, a, length, start, stop), part, limit, changed)
    else:
      found += _cut(op, a, part, limit, {**changed, "padding": _shifted(op, changed, place - 1, start, length - stop)})
  return found


def _channels(op: Op, a: jax.Array, length: int, start: int, stop: int) -> jax.Array:
  """Returns some input channels of each group."""
  axis = op.params["dimension_numbers"].lhs_spec[1]
  before, after = a.shape[:axis], a.shape[axis + 1 :]
  groups = a.reshape(*before, -1, length, *after)
  return jax.lax.slice_in_dim(groups, start, stop, axis=axis + 1).reshape(*before, -1, *after)


def _shifted(op: Op, changed: dict[str, Any], axis: int, before: int, after: int) -> tuple[tuple[int, int], ...]:
  """Returns the padding of a kernel without its first and last positions along an axis."""
  padding = [tuple(pair) for pair in changed.get("padding", op.params["padding"])]
  dilation = op.params["rhs_dilation"][axis]
  low, high = padding[axis]
  padding[axis] = (low - before * dilation, high - after * dilation)
  return tuple(padding)
