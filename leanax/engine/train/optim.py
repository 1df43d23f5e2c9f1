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

import kd
import sparsity
from leanax.core.errors import UserError, unknown
from leanax.engine.train.labels import LABELS, labels

OPTIMIZERS = ("sgd", "adam", "adamw", "dot")


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
  delta: float = 0.075,
  nesterov: bool = False,
  b1: float = 0.9,
  b2: float = 0.999,
  eps: float = 1e-8,
  weight_decay: float = 0.0,
  clip_norm: float | None = None,
  rates: Mapping[str, float] | None = None,
  overrides: Sequence[tuple[str, str]] = (),
) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum, Adam, AdamW or DOT, with decay of kernels only and a learning rate for each label.

  Args:
    name: "sgd" (weight decay joins the gradient, before the momentum), "adam" (none), "adamw" (apart from it:
      arXiv:1711.05101), "dot" (as "sgd", with a momentum of its own for the teacher's gradient: `kd.dot`).
    learning_rate: a number, or a function of the optimizer's step.
    momentum: of "sgd" and "dot".
    delta: of "dot", how far its two momenta are from `momentum`.
    nesterov: of "sgd" and "dot".
    b1: of "adam" and "adamw", decay of the mean gradient.
    b2: the same, of its square.
    eps: the same, added to the root of the square.
    weight_decay: of leaves labelled "kernel".
    clip_norm: largest norm of the whole gradient.
    rates: factors on the learning rate by label ("scale" and "aux" are the useful ones), 1 where not given.
    overrides: rules that change labels; see `labels`.
  """
  if name not in OPTIMIZERS:
    raise unknown("optimizer", name, OPTIMIZERS)
  if name == "adam" and weight_decay:
    raise UserError("optimizer 'adam' has no weight decay; 'adamw' has")
  rates = dict(rates or {})
  for given in rates:
    if given not in LABELS:
      raise unknown("label", given, LABELS)

  def kernels(tree: Any) -> Any:
    return jax.tree.map(lambda label: label == "kernel", labels(tree, overrides))

  def of_the_model(tree: Any) -> Any:  # what a loss trains is reached by that loss alone
    return jax.tree.map(lambda label: label != "aux", labels(tree, overrides))

  decay = [optax.add_decayed_weights(weight_decay, mask=kernels)] if weight_decay else []
  adam = [optax.scale_by_adam(b1=b1, b2=b2, eps=eps)]
  sgd = [optax.trace(momentum, nesterov=nesterov)] if momentum else []
  parts = {"sgd": [*decay, *sgd], "adam": adam, "adamw": [*adam, *decay], "dot": []}[name]
  if name == "dot":
    about: Any = {"weight_decay": weight_decay, "mask": kernels, "nesterov": nesterov}
    parts = [kd.scale_by_dot(momentum, delta, **about, both=of_the_model)]
  clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  by_label = [_scale_by_label(rates, overrides)] if rates else []
  last = [*by_label, optax.scale_by_learning_rate(learning_rate)]
  if name == "dot" and clip_norm is not None:
    return _clip_both(clip_norm, optax.chain(*parts, *last))
  return optax.with_extra_args_support(optax.chain(*clip, *parts, *last))


def _clip_both(largest: float, inner: optax.GradientTransformationExtraArgs) -> optax.GradientTransformationExtraArgs:
  """Clips the whole gradient's norm, and its part `task` by the same factor."""
  clip = optax.clip_by_global_norm(largest)

  def update(updates, state, params=None, *, task=None, **extra):
    norm = optax.tree.norm(updates)
    task = jax.tree.map(lambda t: jnp.where(norm < largest, t, t / norm.astype(t.dtype) * largest), task)
    return inner.update(clip.update(updates, optax.EmptyState())[0], state, params, task=task, **extra)

  return optax.GradientTransformationExtraArgs(inner.init, update)


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
  """The mean gradient of the micro-batches so far, and the state of what is inside.

  For an optimizer that wants `task=` the first is a pair: the mean of that one, too.
  """

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
    inner = tx.init(params)
    zeros = jax.tree.map(jnp.zeros_like, (params, params) if kd.wants_task(inner) else params)
    return AccumulateState(zeros, inner)

  def update(updates, state, params=None, **extra):
    micro = extra.pop("micro")
    count = (micro + 1).astype(jnp.float32)
    split = kd.wants_task(state.inner)
    given = (updates, extra.pop("task")) if split else updates
    mean = jax.tree.map(lambda m, g: m + (g - m) / count.astype(g.dtype), state.gradients, given)

    def due(mean, inner):
      whole, more = (mean[0], {"task": mean[1]}) if split else (mean, {})
      out, inner = tx.update(whole, inner, params, **extra, **more)
      return out, AccumulateState(jax.tree.map(jnp.zeros_like, mean), inner)

    def wait(mean, inner):
      return jax.tree.map(jnp.zeros_like, mean[0] if split else mean), AccumulateState(mean, inner)

    return jax.lax.cond(micro == every - 1, due, wait, mean, state.inner)

  def plain(updates, state, params=None, **extra):
    extra.pop("micro", None)
    return tx.update(updates, state, params, **extra)

  if every == 1:
    return optax.GradientTransformationExtraArgs(tx.init, plain)
  return optax.GradientTransformationExtraArgs(init, update)
