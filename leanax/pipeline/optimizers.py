"""The optimizer of a stage: its schedules, its sparsity, and the reparameterization of the weights."""

import glob
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

import sparsity
from leanax.core import imports
from leanax.core.errors import UserError, unknown
from leanax.core.methods import method, methods
from leanax.engine.train import optim
from leanax.graph.kinds import Reparam
from leanax.pipeline.build import SHARES, call, in_steps, named
from leanax.pipeline.config import experiment
from leanax.pipeline.config.experiment import Stage

Stacked = Callable[[], Mapping[str, Sequence[int]]]
# The keywords of methods of sparsity that are methods themselves.
PARTS = {
  "score": sparsity.criteria,
  "drop": sparsity.criteria,
  "grow": sparsity.criteria,
  "pattern": sparsity.patterns,
}


def check_sparsity(name: str, stage: Stage) -> None:
  """Refuses an unknown method; its keywords are checked where the stage's number of updates is known."""
  if stage.sparsity.get("name"):
    sparse_method(stage.sparsity["name"])
  elif set(stage.sparsity) - {"name"}:
    raise UserError(f"config key 'stages.{name}.sparsity.name' is missing; expected a method of sparsity")


def check_reparam(name: str, stage: Stage) -> None:
  """Refuses an unknown reparameterization, and keywords that it does not take."""
  if stage.reparam.get("name"):
    reparam(name, stage)
  elif set(stage.reparam) - {"name"}:
    raise UserError(f"config key 'stages.{name}.reparam.name' is missing; expected a method of sparsity.reparam")


def sparse_method(name: Any) -> Callable[..., Any]:
  """Returns the method that wraps an optimizer; its kind is what it returns.

  Raises:
    UserError: there is none of this name.
  """
  found = methods(sparsity) | methods(sparsity, "dynamic")
  kind = optax.GradientTransformationExtraArgs
  wraps = {key: fn for key, fn in found.items() if inspect.signature(fn).return_annotation is kind}
  if not isinstance(name, str) or name not in wraps:
    raise unknown("method of sparsity", name, wraps, "docs/methods.md")
  return wraps[name]


def reparam(name: str, stage: Stage, stacked: Stacked = dict) -> Reparam | None:
  """Returns a stage's weights as functions of what is trained, or None; arguments as of `transformation`."""
  group = stage.reparam
  if not group.get("name"):
    return None
  where = f"stages.{name}.reparam"
  return named(where, sparsity.reparam, _stacked(where, method(sparsity.reparam, group["name"]), group, stacked))


def transformation(
  name: str, stage: Stage, batches: int, stacked: Stacked = dict, seed: int | None = None
) -> optax.GradientTransformationExtraArgs:
  """Returns a stage's optimizer, wrapped by its sparsity method if it has one.

  Args:
    name: the stage's, for errors.
    stage: its config.
    batches: of the whole stage; schedules go over its updates, at least one.
    stacked: gives the axes along which leaves hold layers (`graph.stacked_axes`), for a method that wants to know.
    seed: of random masks, unless the config has one; None: that of the step.
  """
  updates = batches // stage.optimizer.accumulate
  if batches and not updates:
    raise UserError(
      f"config key 'stages.{name}.optimizer.accumulate' is {stage.optimizer.accumulate}, but the stage has {batches} "
      f"batches, so that it would never update; expected at most {batches}"
    )
  try:
    inner = _optimizer(stage.optimizer, max(updates, 1))
  except UserError as error:
    raise UserError(f"config group 'stages.{name}.optimizer': {error}") from error
  group = dict(stage.sparsity)
  if not group.get("name"):
    return inner
  where, chosen = f"stages.{name}.sparsity", group.pop("name")
  keywords = inspect.signature(sparse_method(chosen)).parameters
  if "schedule" in keywords and not updates:
    raise UserError(
      f"config key 'stages.{name}.epochs' is {stage.epochs}, but {chosen!r} prunes while the stage trains; "
      "expected 1 or more"
    )
  schedule = group.get("schedule")
  if isinstance(schedule, Mapping):
    in_updates = in_steps(f"{where}.schedule", schedule, updates)
    # The last update that runs is number updates - 1: what ends with the stage ends there.
    in_updates |= {key: min(in_updates[key], updates - 1) for key in SHARES if key in in_updates}
    group["schedule"] = named(f"{where}.schedule", sparsity.schedules, in_updates)
  if "seed" in keywords:
    group.setdefault("seed", seed)
  group = _stacked(where, sparse_method(chosen), group, stacked)
  for key, package in PARTS.items():
    if isinstance(group.get(key), Mapping):
      group[key] = named(f"{where}.{key}", package, group[key])
  return call(where, sparse_method(chosen), group, inner)


def _stacked(where: str, fn: Callable[..., Any], group: Mapping[str, Any], stacked: Stacked) -> dict[str, Any]:
  """Returns a method's keywords, with the layers of leaves where it wants to know them and the config does not say."""
  if "stacked" not in inspect.signature(fn).parameters or "stacked" in group:
    return dict(group)
  try:
    found = stacked()
  except UserError as error:
    raise UserError(f"the model cannot be traced, so '{where}.stacked' has to name its layers: {error}") from error
  return {**group, "stacked": tuple((glob.escape(leaf), tuple(axes)) for leaf, axes in found.items())}


def own(spec: str, kind: str) -> Callable[..., Any]:
  """Returns the function of an import path, such as "my.optim:lion".

  Args:
    spec: the import path.
    kind: what it is to be, for errors: "optimizer" or "schedule".

  Raises:
    UserError: it cannot be imported, or is no function.
  """
  fn = imports.found(spec, f"{kind} {spec!r}")
  if not callable(fn):
    raise UserError(f"{kind} {spec!r} is {type(fn).__name__}; expected a function of the learning rate")
  return fn


def _called(spec: str, kind: str, kwargs: Mapping[str, Any], *positional: Any) -> Any:
  """Returns what a user's function gives; whatever it raises is one sentence with its own line."""
  with imports.failing(f"{kind} {spec!r}"):
    return call(f"{kind} {spec}", own(spec, kind), kwargs, *positional)


def _schedule(given: experiment.Optimizer, updates: int) -> str | optax.Schedule:
  """Returns the schedule's name, or the user's function of the step, once it gives one number."""
  spec = given.schedule
  if not imports.is_path(spec):
    return spec
  rate = _called(spec, "schedule", given.schedule_kwargs, given.learning_rate, updates)
  if not callable(rate):
    raise UserError(f"schedule {spec!r} returns {type(rate).__name__}; expected a function of the step")
  with imports.failing(f"schedule {spec!r}"):
    shape = jax.eval_shape(rate, jax.ShapeDtypeStruct((), jnp.float32))
  if getattr(shape, "shape", None) != ():
    raise UserError(f"schedule {spec!r} gives {shape} for a step; expected one number, the learning rate")
  return rate


# A tree of parameters on which an optimizer of a user's own is tried.
TRIED = {
  "params": {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32), "bias": jax.ShapeDtypeStruct((3,), jnp.float32)},
  "qparams": {},
  "aux": {},
}


def _method(given: experiment.Optimizer) -> str | Callable[..., optax.GradientTransformation]:
  """Returns the optimizer's name, or the user's function of the learning rate."""
  if not imports.is_path(given.name):
    return given.name

  def method(learning_rate: optax.ScalarOrSchedule) -> optax.GradientTransformation:
    tx = _called(given.name, "optimizer", given.kwargs, learning_rate)
    plain = optim.lenient(tx)
    with imports.failing(f"optimizer {given.name!r}"):
      state = jax.eval_shape(plain.init, TRIED)
      updates, after = jax.eval_shape(lambda g, s, p: plain.update(g, s, p, step=0), TRIED, state, TRIED)
    if _kinds((updates, after)) != _kinds((TRIED, state)):
      raise UserError(
        f"optimizer {given.name!r} gives updates or a state of other shapes than it got; expected updates as the "
        "gradients, and a state as that of its init"
      )
    return tx

  return method


def _kinds(tree: Any) -> Any:
  """Returns the structure of a tree, and the shape and dtype of each leaf."""
  return jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]


def _optimizer(given: experiment.Optimizer, updates: int) -> optax.GradientTransformationExtraArgs:
  rate = optim.schedule(
    _schedule(given, updates),
    given.learning_rate,
    updates,
    warmup=given.warmup_steps,
    milestones=[round(share * updates) for share in given.milestones],
    factor=given.decay,
  )
  rates = {"scale": given.scale_rate, "reparam": given.reparam_rate}
  return optim.optimizer(
    _method(given),
    rate,
    momentum=given.momentum,
    delta=given.delta,
    nesterov=given.nesterov,
    weight_decay=given.weight_decay,
    clip_norm=given.clip_norm or None,
    rates={label: rate for label, rate in rates.items() if rate != 1.0} or None,
  )
