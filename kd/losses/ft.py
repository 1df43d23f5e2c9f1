"""Factor transfer: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer"
(arXiv:1802.04977), equations 1 to 3.

    loss_i = mean |F_t / ||F_t|| - F_s / ||F_s|||  +  w * mean (decoder(encoder(f_t)) - f_t)^2,
    F_t = encoder(f_t),  F_s = translator(f_s)

The paraphraser is an autoencoder of the teacher's map, with three 3x3 convolutions each in encoder and decoder and
leaky ReLUs; the translator has three convolutions of the student's map with batch normalisation. The second term alone
trains the paraphraser: the first takes F_t as a constant, and the second does not depend on the student. The paper
trains the paraphraser first: `pretrain` steps with the second term only, then the first term only, with a fixed
paraphraser. Logs "reconstruction", the second term without w.

Variant: `form="factors"` is the paper's, the flattened factors over their norms; `form="attention"`, also in use, takes
the channel mean of the squared factors instead. The larger of two factors is averaged down. Reduction: a mean of the
paper's L1 norm (p = 1), one number per example, summed over pairs of taps.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.layers import Layer, layer, layer_init, mean_square
from kd.maps import align, unit
from kd.reads import MAPS, require_count
from kd.taps import Names, paired
from leanax.core import ranges
from leanax.core.errors import UserError


def ft(
  student: Names,
  teacher: Names,
  form: str = "factors",
  rate: float = 0.5,
  reconstruction: float = 1.0,
  pretrain: int = 0,
) -> Loss:
  """Factor transfer.

  Args:
    student: taps of maps.
    teacher: as many of the teacher.
    form: "factors" or "attention".
    rate: the factor's channels over the teacher's, above 0.
    reconstruction: w, above 0.
    pretrain: steps that train only the paraphraser, which is fixed afterwards; 0 trains both throughout.
  """
  student_taps, teacher_taps = paired("ft", student, teacher)
  ranges.check("ft: rate", rate, ranges.POSITIVE)
  ranges.check("ft: reconstruction", reconstruction, ranges.POSITIVE)
  ranges.check("ft: pretrain", pretrain, ranges.whole(0))
  if form not in ("factors", "attention"):
    raise UserError(f"ft: form is {form!r}; expected 'factors' or 'attention'")

  def normalised(factor: Array) -> Array:
    factor = factor if form == "factors" else jnp.mean(factor**2, -1, keepdims=True)
    factor = factor.reshape(factor.shape[0], -1)
    require_count("ft", "numbers of a factor", factor.shape[1])
    return unit(factor)

  def transfer(s: Array, factor: Array, aux: dict, context: Context) -> Array:
    f_s, f_t = align("ft", stack(aux["translator"], s, context), jax.lax.stop_gradient(factor))
    return jnp.mean(jnp.abs(normalised(f_s) - normalised(f_t)), -1)

  def fn(s: Outputs, t: Outputs, context: Context) -> LossOut:
    transfers, rebuilt = [], []
    for aux, a, b in zip(context.aux, student_taps, teacher_taps, strict=True):
      factor = stack(aux["encoder"], t.taps[b], context)
      rebuilt.append(mean_square(stack(aux["decoder"], factor, context) - t.taps[b]))
      transfers.append(transfer(s.taps[a], factor, aux, context))
    error = sum(rebuilt[1:], rebuilt[0])
    first = jnp.asarray(context.step) < pretrain
    student = jnp.where(first, 0.0, sum(transfers[1:], transfers[0]))
    paraphraser = jnp.where(first | (pretrain == 0), reconstruction * error, 0.0)
    return LossOut(student + paraphraser, logs={"reconstruction": error})

  def init(key: Array, s: Outputs, t: Outputs, variables):
    del variables
    out = []
    for k, a, b in zip(jax.random.split(key, len(student_taps)), student_taps, teacher_taps, strict=True):
      keys = jax.random.split(k, 3)
      wide, narrow = t.taps[b].shape[-1], max(1, int(t.taps[b].shape[-1] * rate))
      out.append(
        {
          "encoder": stack_init(keys[0], (wide, wide, narrow, narrow)),
          "decoder": stack_init(keys[1], (narrow, narrow, wide, wide)),
          "translator": stack_init(keys[2], (s.taps[a].shape[-1],) * 2 + (narrow, narrow), normalise=True),
        }
      )
    return out, None

  return Loss("ft", fn, taps=Taps(student_taps, teacher_taps, MAPS), init_fn=init, relational=True)


def stack_init(key: Array, sizes: tuple[int, ...], normalise: bool = False) -> list[Layer]:
  """Initialises 3x3 convolutions from each number of channels to the next."""
  keys = jax.random.split(key, len(sizes) - 1)
  return [layer_init(k, a, b, 3, normalise) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def stack(aux: list[Layer], x: Array, context: Context) -> Array:
  """Applies the convolutions of `stack_init`, each with a leaky ReLU of slope 0.1."""
  for part in aux:
    x = jax.nn.leaky_relu(layer(part, x, context), 0.1)
  return x
