"""Contrastive representation distillation: Tian, Krishnan, Isola, "Contrastive Representation Distillation"
(arXiv:1910.10699), equations 17 to 19, with two memory banks.

    v = W f / ||W f||, one trained W for each network;   n examples, K negatives, tau the temperature
    P(v, w) = exp(v . w / tau) / Z,   h = P / (P + K / n)
    loss_i = - log h(s_i, bank_t[i]) - sum over negatives j of log(1 - h(s_i, bank_t[j]))
             - log h(t_i, bank_s[i]) - sum over negatives j of log(1 - h(t_i, bank_s[j]))
    bank[i] <- normalised(m bank[i] + (1 - m) v_i),  after the loss

All is computed in logarithms; the authors add 1e-7 to a denominator. Three choices differ from their code:

- Negatives are any other examples, drawn uniformly per example by its id, so they do not depend on the split of the
  batch. The authors draw among all examples, and in their CIFAR-100 runs among those of other classes.
- Z is a constant. They take n times the mean of exp(v . w / tau) over the first batch; the banks are random then, so
  this is an estimate of n 0F1(width / 2; 1 / (4 tau^2)), the mean over the unit sphere, which is used here.
- The banks start as random unit vectors, where theirs start uniform in a cube of about that size.

An example's loss depends on the banks and not on the other examples of its batch, so this loss is not `relational`. The
banks are equal on all devices: each adds the rows of all. Of rows with the same id, the last one is stored. Reduction:
a sum over the negatives and the two anchors, one number per example.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kd.kinds import Context, Loss, LossOut, Outputs, Taps
from kd.maps import linear, linear_init, unit
from kd.reads import ids_of
from kd.taps import Names, named
from leanax.core import axis, ranges
from leanax.core.errors import UserError
from leanax.core.keys import example_keys

Bank = Float[Array, "examples width"]


def crd(
  student: Names,
  teacher: Names,
  examples: int,
  negatives: int = 16384,
  width: int = 128,
  temperature: float = 0.07,
  momentum: float = 0.5,
) -> Loss:
  """Contrastive representation distillation.

  Args:
    student: one tap of any shape; in the paper the vector before the last layer.
    teacher: one of the teacher.
    examples: n, above every "id" of the training data; another id makes the loss NaN. The banks hold
      2 * examples * width floats.
    negatives: K, per example.
    width: of the embeddings.
    temperature: tau > 0.
    momentum: m, from 0 to below 1.
  """
  taps, others = named("crd", "student", student), named("crd", "teacher", teacher)
  if len(taps) != 1 or len(others) != 1:
    raise UserError("crd: expected one tap of the student and one of the teacher")
  ranges.check("crd: examples", examples, ranges.whole(2))
  ranges.check("crd: negatives", negatives, ranges.whole(1))
  ranges.check("crd: width", width, ranges.whole(1))
  ranges.check("crd: temperature", temperature, ranges.TEMPERATURE)
  ranges.check("crd: momentum", momentum, ranges.BELOW_ONE)
  (student_tap,), (teacher_tap,) = taps, others
  log_z = math.log(examples) + log_mean(width, temperature)
  log_noise = math.log(negatives / examples)

  def contrast(v: Array, bank: Bank, index: Array) -> Array:
    """Returns the loss of anchors v (b, width) against the rows `index` (b, 1 + K) of a bank, the positives first."""
    scores = v @ jax.lax.stop_gradient(bank).astype(v.dtype).T  # less memory than gathered rows
    logits = jnp.take_along_axis(scores, index, 1, mode="fill", fill_value=jnp.nan) / temperature - log_z - log_noise
    return jax.nn.softplus(-logits[:, 0]) + jnp.sum(jax.nn.softplus(logits[:, 1:]), -1)

  def loss(s: Outputs, t: Outputs, context: Context) -> LossOut:
    if context.key is None or "id" not in context.batch:
      raise UserError("the loss 'crd' draws negatives and stores examples: it needs a 'key', and 'id' in the batch")
    ids, banks = ids_of("crd", context.batch, s.taps[student_tap].shape[0]), context.aux_state
    valid = context.batch.get("valid")
    valid = jnp.ones(ids.shape, bool) if valid is None else valid
    ids = ids if ids.dtype.itemsize > 4 else ids.astype(jnp.int32)  # `examples` may not fit 8 or 16 bits
    ids = jnp.where(valid, jnp.where((ids < 0) | (ids >= examples), examples, ids), 0).astype(jnp.int32)
    index = jnp.concatenate([ids[:, None], draw(context.key, ids, negatives, examples)], 1)
    v = {
      "student": embed(context.aux["student"], s.taps[student_tap]),
      "teacher": embed(context.aux["teacher"], t.taps[teacher_tap]),
    }
    per_example = contrast(v["student"], banks["teacher"], index) + contrast(v["teacher"], banks["student"], index)
    v, ids, valid = jax.lax.stop_gradient(axis.share((v, ids, valid), context.axis_name))
    return LossOut(per_example, {name: update_bank(banks[name], v[name], ids, valid, momentum) for name in v})

  def init(key: Array, s: Outputs, t: Outputs, variables: Any) -> tuple[Any, Any]:
    del variables
    keys = jax.random.split(key, 4)
    taps = {"student": s.taps[student_tap], "teacher": t.taps[teacher_tap]}
    aux = {
      name: linear_init(k, math.prod(x.shape[1:]), width) for k, (name, x) in zip(keys, taps.items(), strict=False)
    }
    banks = {n: unit(jax.random.normal(k, (examples, width), jnp.float32)) for k, n in zip(keys[2:], taps, strict=True)}
    return aux, banks

  return Loss("crd", loss, reads=("id",), taps=Taps((student_tap,), (teacher_tap,)), init_fn=init)


def embed(aux: dict[str, Array], x: Array) -> Float[Array, "batch width"]:
  """Returns activations as unit vectors."""
  return unit(linear(aux, x.reshape(x.shape[0], -1)))


def draw(key: Array, ids: Int[Array, " batch"], count: int, examples: int) -> Int[Array, "batch count"]:
  """Returns ids of negatives per example: uniform over all other examples, with replacement, for any batch."""
  other = jax.vmap(lambda k: jax.random.randint(k, (count,), 0, examples - 1, jnp.int32))(example_keys(key, ids))
  return other + (other >= ids[:, None]).astype(jnp.int32)


def update_bank(bank: Bank, v: Array, ids: Array, valid: Array, momentum: float) -> Bank:
  """Returns the bank after a batch of all devices; it skips invalid rows, and stores the last row of equal ids."""
  place = jnp.arange(len(ids), dtype=jnp.int32)
  # Each id is written once: scatters of equal indices have no defined order on accelerators.
  repeated = (ids[:, None] == ids) & (place[:, None] < place) & valid
  new = unit(momentum * bank[ids] + (1 - momentum) * v.astype(bank.dtype))
  return bank.at[jnp.where(valid & ~jnp.any(repeated, 1), ids, len(bank))].set(new, mode="drop")


def log_mean(width: int, temperature: float) -> float:
  """Returns log of the mean of exp(v . w / tau) over unit vectors w, by the series of 0F1(width / 2; 1 / (4 tau^2))."""
  a, log_x = width / 2, -2 * math.log(2 * temperature)
  last = 50 + 4 * int(math.exp(log_x / 2))  # the largest term is near the root of the argument, or before
  terms = [k * log_x - math.lgamma(k + 1) - math.lgamma(k + a) + math.lgamma(a) for k in range(last)]
  return float(np.logaddexp.reduce(terms))
