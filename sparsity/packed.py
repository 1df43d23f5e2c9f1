"""Bit-packed masks: eight entries of a bool mask in a byte, packed along one axis and unpacked inside the step.

A mask costs 1/32 of its float32 weights in memory and in a checkpoint. The axis matters when parameters are sharded:
pack along one that is whole on each device.
"""

import dataclasses

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
  """A packed bool mask; a pytree node with one array leaf.

  Attributes:
    bits: uint8, the mask's shape with `axis` shortened to ceil(count / 8); unused bits are zero.
    axis: the packed axis, negative, so that it stays true when a leading (seed) axis is added.
    count: the mask's length along `axis`.
  """

  bits: jax.Array
  axis: int = dataclasses.field(metadata={"static": True})
  count: int = dataclasses.field(metadata={"static": True})


def pack(mask: jax.Array, axis: int = -1) -> Packed:
  """Packs a bool mask (at least one axis) along `axis`.

  Raises:
    UserError: the mask has no such axis.
  """
  if not -mask.ndim <= axis < mask.ndim:
    raise UserError(f"pack_axis {axis} does not exist in a mask of shape {mask.shape}")
  axis = axis % mask.ndim - mask.ndim
  return Packed(jnp.packbits(mask, axis=axis), axis, mask.shape[axis])


def unpack(packed: Packed) -> jax.Array:
  """Returns the bool mask again, with any leading axes that `packed.bits` gained since it was packed."""
  return jnp.unpackbits(packed.bits, axis=packed.axis, count=packed.count).astype(jnp.bool_)


def is_packed(x: object) -> bool:
  """Returns whether `x` is one packed mask (for `is_leaf=`)."""
  return isinstance(x, Packed)
