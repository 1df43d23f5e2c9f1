"""Optimizers and schedules from plain values, as optax transformations over the one tree {"params", "qparams", "aux"}.

The order inside is: clip the gradient's norm, the method, weight decay of kernels, the rate of each label, the
schedule. A transformation that prunes wraps all of it.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
  name: str | optax.Schedule,
  peak: float,
  steps: int,
  *,
  warmup: int = 0,
  end: float = 0.0,
  milestones: Sequence[int] = (),
  factor: float = 0.1,
) -> optax.Schedule:
  """Returns a learning rate as a function of the optimizer's step, the first of which is 0.

  Args:
    name: "constant"; "cosine" from `peak` down to `end`; "step": times `factor` at each of `milestones`; or a function
      of the step, which counts the warm-up, too.
    peak: the rate after the warm-up.
    steps: of the optimizer in all, the warm-up included.
    warmup: steps that rise linearly, `peak * (step + 1) / warmup`; the first step is not wasted on a rate of 0.
    end: the rate of "cosine" at `steps`.
    milestones: optimizer steps.
    factor: of "step".
  """
  if not callable(name) and name not in ("constant", "cosine", "step"):
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
    elif callable(name):
      after = jnp.asarray(name(step), jnp.float32)
    else:
      after = jnp.full_like(step, peak)
    return jnp.where(step < warmup, peak * (step + 1) / max(warmup, 1), after)

  return rate


def optimizer(
  name: str | Callable[[optax.ScalarOrSchedule], optax.GradientTransformation],
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
  """Returns SGD with momentum, Adam, AdamW, DOT or another one, with a learning rate for each label.

  Args:
    name: "sgd" (weight decay joins the gradient, before the momentum), "adam" (none), "adamw" (apart from it:
      arXiv:1711.05101), "dot" (as "sgd", with a momentum of its own for the teacher's gradient: `kd.dot`); or a
      function of the learning rate, such as `optax.lion`, which brings its own momenta and weight decay.
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
  if not callable(name) and name not in OPTIMIZERS:
    raise unknown("optimizer", name, OPTIMIZERS)
  if callable(name) and weight_decay:
    raise UserError("an optimizer of your own has no weight decay but its own; expected it among its keywords")
  if name == "adam" and weight_decay:
    raise UserError("optimizer 'adam' has no weight decay; 'adamw' has")
  rates = dict(rates or {})
  for given in rates:
    if given not in LABELS:
      raise unknown("label", given, LABELS)

  def kernels(tree: Any) -> Any:
    return jax.tree.map(lambda label: label == "kernel", labels(tree, overrides))

  def outside_losses(tree: Any) -> Any:  # parameters of a loss are reached by that loss alone
    return jax.tree.map(lambda label: label != "aux", labels(tree, overrides))

  decay = [optax.add_decayed_weights(weight_decay, mask=kernels)] if weight_decay else []
  adam = [optax.scale_by_adam(b1=b1, b2=b2, eps=eps)]
  sgd = [optax.trace(momentum, nesterov=nesterov)] if momentum else []
  parts: list[Any] = {"sgd": [*decay, *sgd], "adam": adam, "adamw": [*adam, *decay]}.get(str(name), [])
  if name == "dot":
    options: Any = {"weight_decay": weight_decay, "mask": kernels, "nesterov": nesterov}
    parts = [kd.scale_by_dot(momentum, delta, **options, both=outside_losses)]
  clip = [] if clip_norm is None else [optax.clip_by_global_norm(clip_norm)]
  scales: Any = {label: optax.scale(rates.get(label, 1.0)) for label in LABELS}
  by_label = [optax.partition(scales, lambda tree: labels(tree, overrides))] if rates else []
  last = [*by_label, optax.scale_by_learning_rate(learning_rate)]
  if callable(name):
    last = [lenient(name(learning_rate)), *by_label]
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


def lenient(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
  """Returns a transformation that works where dtypes are promoted strictly: optax's Adam raises a float to an integer.

  Its update takes further keyword arguments, whatever the given one takes.
  """
  if not all(callable(getattr(tx, name, None)) for name in ("init", "update")):
    raise UserError(f"the optimizer is {tx!r}; expected a transformation of optax, such as optax.adam(1e-3)")
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
    if isinstance(opt_state, optax.ApplyIfFiniteState):
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
