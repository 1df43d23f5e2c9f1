"""Products of integer codes: exact sums on every backend, scaled afterwards.

    y = s_x s_w sum_k (q_x - z_x)(q_w - z_w)                                        (arXiv:1712.05877, equation 4)

An accelerator rounds the operands of a float product: bfloat16 keeps 8 significant bits, tf32 keeps 11. A product of
rounded values s (q - z) is another one there. Codes are whole numbers that such formats hold, and so the sum is taken
on codes, in the type of a *carrier*:

- "float32" and "bfloat16": the codes less their zero point, at most 255 in magnitude, with float32 results. Sums stay
  below 2^24, where float32 holds every whole number: a longer sum is taken on the codes themselves, half as large, and
  z_x times the sum of the weights is subtracted; one that is longer still is cut into parts that are added exactly.
- "int8": the codes themselves, with int32 sums. z_x times the sum of the weights over the inputs that are there (not
  over padding, nor over the zeros between dilated inputs) is subtracted; two activations have four terms.

Codes of 16 bits go as two bytes. All carriers give the same sums, rounded once to float32, and thus the same bits. NaN
stays NaN (with int8 in a whole image, and not only where the kernel meets it). The gradient is that of the product of
the values s_x (q_x - z_x) and s_w (q_w - z_w): products of cotangents and codes at the precision of the model's own
equation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leanax.graph import Op
from quant.sums import digits, fits, lost, out_axes, placed, shorter_raw, total, varying_alike

CARRIERS = ("float32", "bfloat16", "int8")


class Coded(NamedTuple):
  """An operand on its grid.

  Attributes:
    steps: the codes less the zero point, whole floats; a cotangent of theirs is one of the value scale * steps.
    scale: () or of the operand's rank.
    zero_point: int32, () or of the operand's rank; None for 0.
    largest: the largest magnitude that the steps can have.
  """

  steps: jax.Array
  scale: jax.Array
  zero_point: jax.Array | None
  largest: int


def serves(op: Op, scales: Sequence[jax.Array]) -> bool:
  """Returns whether these scales, () or of the operands' ranks, can be taken out of an operation."""
  if op.kind not in ("dot", "conv") or op.params.get("batch_group_count", 1) != 1:
    return False
  summed = ((i, a) for i in (0, 1) for a, out in enumerate(out_axes(op, i)) if out is None)
  return all(scales[index].ndim == 0 or scales[index].shape[axis] == 1 for index, axis in summed)


def product(op: Op, operands: Sequence[Coded], carrier: str, half: bool = False) -> jax.Array:
  """Returns the product of both operands' values, of the operation's shape and type, where `serves` allows it.

  Args:
    op: a dot or convolution.
    operands: both.
    carrier: one of `CARRIERS`.
    half: the operands of products with cotangents are rounded to bfloat16, as they are where the model's own are.
  """
  if carrier == "int8" and not fits(op, [operand.largest for operand in operands]):
    carrier = "float32"  # which adds parts of the sum in more than 32 bits
  kept = op.outputs[0].dtype
  wide = jnp.promote_types(kept, jnp.float32)
  kind = jnp.dtype(jnp.bfloat16) if half or all(operand.dtype.itemsize == 2 for operand in op.inputs) else wide
  scales = tuple(jax.lax.stop_gradient(operand.scale) for operand in operands)
  outside = [placed(op, index, scale) for index, scale in enumerate(scales)]
  # Behind a barrier: the compiler must not move a factor that it takes for a constant into the sums.
  factor = jax.lax.optimization_barrier(outside[0] * outside[1]).astype(wide)

  @jax.custom_vjp
  def scaled(steps: tuple[jax.Array, ...], zeros: Any, scales: Any, factor: jax.Array) -> jax.Array:
    del scales
    raw = shorter_raw(op, [o.largest for o in operands], [z is not None for z in zeros])
    coded = [digits(s, z, o.largest, carrier, raw) for s, z, o in zip(steps, zeros, operands, strict=True)]
    out = total(op, coded, carrier).astype(wide) * factor
    if carrier == "int8":
      out += lost(op, 0, steps[0]).astype(wide) + lost(op, 1, steps[1]).astype(wide)
    return out.astype(kept)

  def forward(steps: tuple[jax.Array, ...], zeros: Any, scales: Any, factor: jax.Array) -> tuple[jax.Array, Any]:
    return scaled(steps, zeros, scales, factor), (steps, scales)

  def backward(saved: Any, cotangent: jax.Array) -> tuple[Any, ...]:
    steps, scales = saved
    return _gradients(op, steps, scales, cotangent.astype(wide), kind), None, None, None

  scaled.defvjp(forward, backward)
  zeros = tuple(operand.zero_point for operand in operands)
  return scaled(varying_alike([operand.steps for operand in operands]), zeros, scales, factor)


def _gradients(op: Op, steps: Any, scales: Any, cotangent: jax.Array, kind: Any) -> tuple[jax.Array, ...]:
  """Returns the gradients of the product of scale * steps, for those values; operands of the type `kind`."""
  wide, spread = cotangent.dtype, [scale.size > 1 for scale in scales]
  for index, scale in enumerate(scales):
    if spread[index]:  # inside the sums of the other operand's gradient
      cotangent = cotangent * placed(op, index, scale).astype(wide)
  values = [array.astype(kind) for array in steps]
  _, transpose = jax.vjp(lambda a, b: op.bind(a, b, preferred_element_type=kind)[0], *values)
  found = []
  for index, gradient in enumerate(transpose(cotangent.astype(kind))):
    gradient = gradient.astype(wide)
    if not spread[1 - index]:
      gradient = gradient * scales[1 - index].reshape(()).astype(wide)
    if spread[index]:
      gradient = gradient / scales[index].astype(wide)
    found.append(gradient.astype(steps[index].dtype))
  return tuple(found)
