"""Optimizers and schedules from plain values, as optax transformations over the one tree {"params", "qparams", "aux"}.

The order inside is: clip the gradient's norm, the method, weight decay of kernels, the rate of each label, the
schedule. A transformation that prunes wraps all of it, and only the accumulation of gradients may wrap that.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

import sparsity
from core.errors import UserError, unknown
from engine.labels import LABELS, labels


def schedule(
  name: str,
  peak: float,
  steps: int,
  *,
  warmup: int = 0,
  end: float = 0.0,
  milestones: Sequence[int] = (),
  factor: float = 0.1,
) -> optax.Schedule:
  """A learning rate as a function of the optimizer's step, the first of which is 0.

  Args:
    name: "constant"; "cosine" from `peak` down to `end`; "step": times `factor` at each of `milestones`.
    peak: the rate after the warm-up.
    steps: of the optimizer in all, the warm-up included.
    warmup: so many steps rise linearly, `peak * (step + 1) / warmup`; the first step is not wasted on a rate of 0.
    end: the rate of "cosine" at `steps`.
    milestones: optimizer steps.
    factor: of "step".
  """
  if name not in ("constant", "cosine", "step"):
    raise unknown("schedule", name, ("constant", "cosine", "step"))
  if warmup > steps:
    raise UserError(f"schedule: warmup is {warmup} steps of {steps} in all; expected fewer")

  def rate(step: jax.typing.ArrayLike) -> Array:
    step = jnp.asarray(step, jnp.float32)
    if name == "cosine":
      share = jnp.clip((step - warmup) / max(steps - warmup, 1), 0.0, 1.0)
      after = end + (peak - end) * 0.5 * (1 + jnp.cos(jnp.pi * share))
    elif name == "step":
      passed = sum((step >= m).astype(jnp.float32) for m in milestones) if milestones else jnp.zeros_like(step)
      after = peak * factor**passed
    else:
      after = jnp.full_like(step, peak)
    return jnp.where(step < warmup, peak * (step + 1) / max(warmup, 1), after)

  return rate


def optimizer(
  name: str,
  learning_rate: optax.ScalarOrSchedule,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
  rates: Mapping[str, float] | None = None,
  overrides: Sequence[tuple[str, str]] = (),
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum, Adam or AdamW, with decay of kernels only and a learning rate for each label.

  Args:
    name: "sgd" (weight decay joins the gradient, before the momentum), "adam" (none), "adamw" (apart from it:
      arXiv:1711.05101).
    learning_rate: a number, or a function of the optimizer's step.
    momentum: of "sgd".
    nesterov: of "sgd".
    b1: of "adam" and "adamw", decay of the mean gradient.
    b2: the same, of its square.
    eps: the same, added to the root of the square.
    weight_decay: of leaves labelled "kernel".
    clip_norm: largest norm of the whole gradient.
    rates: factors on the learning rate by label ("scale" and "aux" are the useful ones), 1 where not given.
    overrides: rules that change labels; see `labels`.
  """
  if name not in ("sgd", "adam", "adamw"):
    raise unknown("optimizer", name, ("sgd", "adam", "adamw"))
  if name == "adam" and weight_decay:
    raise UserError("optimizer 'adam' has no weight decay; 'adamw' has")
  rates = dict(rates or {})
  for given in rates:
    if given not in LABELS:
      raise unknown("label", given, LABELS)

  def kernels(tree: Any) -> Any:
    return jax.tree.map(lambda label: label == "kernel", labels(tree, overrides))

  decay = [optax.add_decayed_weights(weight_decay, mask=kernels)] if weight_decay else []
  adam = [optax.scale_by_adam(b1=b1, b2=b2, eps=eps)]
  sgd = [optax.trace(momentum, nesterov=nesterov)] if momentum else []
  parts = {"sgd": [*decay, *sgd], "adam": adam, "adamw": [*adam, *decay]}[name]
  clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  by_label = [_scale_by_label(rates, overrides)] if rates else []
  return optax.with_extra_args_support(
    optax.chain(*clip, *parts, *by_label, optax.scale_by_learning_rate(learning_rate))
  )


def _scale_by_label(rates: Mapping[str, float], overrides: Sequence[tuple[str, str]]) -> optax.GradientTransformation:
  def scale(updates: Any, params: Any = None) -> Any:
    del params
    return jax.tree.map(lambda label, u: u * rates.get(label, 1.0), labels(updates, overrides), updates)

  return optax.stateless(scale)


def _leniently(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """The same transformation where implicit dtype promotion is forbidden: optax's Adam raises a float to an integer."""
  tx = optax.with_extra_args_support(tx)

  def update(updates, state, params=None, **extra):
    with jax.numpy_dtype_promotion("standard"):
      return tx.update(updates, state, params, **extra)

  return optax.GradientTransformationExtraArgs(tx.init, update)


def check_order(opt_state: Any) -> None:
  """Refuses an optimizer that changes what a sparse method emits: its pruned entries would not be zero.

  Raises:
    UserError: the sparse method is neither outermost nor inside optax's wrappers that hold updates back whole.
  """
  while True:
    if isinstance(opt_state, AccumulateState):
      opt_state = opt_state.inner
    elif isinstance(opt_state, optax.ApplyIfFiniteState):
      opt_state = opt_state.inner_state
    elif isinstance(opt_state, optax.MultiStepsState):
      opt_state = opt_state.inner_opt_state
    else:
      break
  if not isinstance(opt_state, sparsity.SparsityState) and sparsity.masks(opt_state) is not None:
    raise UserError(
      "a sparse method has to be the outermost part of the optimizer, with clipping, decay and schedules inside it: "
      "sparsity.magnitude(optimizer, ...)"
    )


class AccumulateState(NamedTuple):
  """The mean gradient of the micro-batches so far, and the state of what is inside."""

  gradients: Any
  inner: Any


def accumulated(tx: optax.GradientTransformation, every: int) -> optax.GradientTransformationExtraArgs:
  """Updates once in `every` micro-batches, with their mean gradient; other updates are zero.

  Unlike optax.MultiSteps it runs `tx` only when an update is due, and counts nothing itself: `update(..., step=,
  micro=)` gets the number of the update and of the micro-batch in it from the caller. Nothing may enclose it.

  Args:
    tx: the whole optimizer. It receives `step`, which counts updates and never micro-batches.
    every: micro-batches an update; with 1 it is `tx` itself.
  """
  tx = _leniently(tx)
  if every < 1:
    raise UserError(f"accumulate is {every}; expected a number of batches, 1 or more")

  def init(params: Any) -> AccumulateState:
    return AccumulateState(jax.tree.map(jnp.zeros_like, params), tx.init(params))

  def update(updates, state, params=None, **extra):
    micro = extra.pop("micro")
    count = (micro + 1).astype(jnp.float32)
    mean = jax.tree.map(lambda m, g: m + (g - m) / count.astype(g.dtype), state.gradients, updates)

    def due(mean, inner):
      out, inner = tx.update(mean, inner, params, **extra)
      return out, AccumulateState(jax.tree.map(jnp.zeros_like, mean), inner)

    def wait(mean, inner):
      return jax.tree.map(jnp.zeros_like, mean), AccumulateState(mean, inner)

    return jax.lax.cond(micro == every - 1, due, wait, mean, state.inner)

  def plain(updates, state, params=None, **extra):
    extra.pop("micro", None)
    return tx.update(updates, state, params, **extra)

  if every == 1:
    return optax.GradientTransformationExtraArgs(tx.init, plain)
  return optax.GradientTransformationExtraArgs(init, update)
