"""Masked generative distillation: Yang et al., "Masked Generative Distillation" (arXiv:2205.01529), equations 2 to 5.

    loss_i = sum over places and channels of (g(mask_i * r(f_s)) - f_t)^2,   g = 3x3 convolution, ReLU, 3x3 convolution

r, a learned 1x1 convolution, is used where the channels differ. The mask is 0 with probability `hidden`, drawn per step
and example from the example's "id", so it does not depend on the split of the batch. It covers whole places, or whole
channels (`masked="channels"`, the authors' choice for classification); taps of one shape share it. Variant: the larger
of two maps is averaged down. Reduction: a sum, one number per example, summed
over pairs of taps; the paper's weights (2e-5, 7e-5 for classification) belong to this sum.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.layers import layer, layer_init, relu
from kd.maps import align, compared
from kd.reads import MAPS, ids_of
from kd.taps import Names, on_pairs
from leanax.core import ranges
from leanax.core.errors import UserError


def mgd(student: Names, teacher: Names, hidden: float = 0.5, masked: str = "places") -> Loss:
  """Masked generative distillation.

  Args:
    student: taps of maps.
    teacher: as many of the teacher.
    hidden: the masked fraction, between 0 and 1.
    masked: "places" or "channels".
  """
  ranges.check("mgd: hidden", hidden, ranges.INSIDE)
  if masked not in ("places", "channels"):
    raise UserError(f"mgd: masked is {masked!r}; expected 'places' or 'channels'")

  def distance(s: Array, t: Array, aux: dict, context: Context) -> Array:
    s, t = align("mgd", s, t)
    if "reduce" in aux:
      s = layer(aux["reduce"], s, context)
    if "id" in context.batch:
      ids_of("mgd", context.batch, s.shape[0])
    shape = (*s.shape[1:3], 1) if masked == "places" else (1, 1, s.shape[3])
    s = layer(aux["first"], s * random_mask(context, shape, hidden).astype(s.dtype), context)
    s = layer(aux["second"], relu(s), context)
    compared("mgd", s, t)
    return jnp.sum((s - t) ** 2, (1, 2, 3))

  def init(key: Array, s: Array, t: Array) -> dict:
    narrow, wide = s.shape[-1], t.shape[-1]
    keys = jax.random.split(key, 3)
    blocks = {"first": layer_init(keys[0], wide, wide, 3), "second": layer_init(keys[1], wide, wide, 3)}
    return blocks if narrow == wide else {"reduce": layer_init(keys[2], narrow, wide), **blocks}

  return on_pairs("mgd", distance, student, teacher, init, reads=("id",), shapes=MAPS)


def random_mask(context: Context, shape: tuple[int, ...], hidden: float) -> Array:
  """Returns the unmasked entries of each example, (batch, *shape) bools.

  Raises:
    UserError: there is no key, or no "id" in the batch.
  """
  if context.key is None or "id" not in context.batch:
    raise UserError("the loss 'mgd' masks at random: give it a 'key', and a batch with 'id'")
  keys = jax.vmap(lambda example: jax.random.fold_in(context.key, example))(context.batch["id"])
  # Always float32, so that the masks are the same in any precision.
  return jax.vmap(lambda key: jax.random.uniform(key, shape, jnp.float32) >= hidden)(keys)
