"""Everything that training changes, in one tree: what a checkpoint holds and a step maps to its successor."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.engine.train import optim

Tree = Any


class TrainState(struct.PyTreeNode):
  """One home for every kind of state.

  Attributes:
    step: int32 scalar, how many batches were seen. With (seed, step) the batch and all randomness are known.
    params: the model's parameters.
    qparams: trained scales of quantizers.
    aux: what losses train: regressors, temperatures.
    model_state: the model's other collections, such as batch statistics.
    quant_state: what quantizers know and do not train: observed ranges, fixed grids.
    aux_state: what losses remember.
    opt_state: of the optimizer over {"params", "qparams", "aux"}; masks live here.
    ema: averages of {"params", "qparams", "model_state"}, perhaps of {"aux", "aux_state"} too, or None.
    teacher: the state of a teacher that is trained in the same step (`engine.train.together`), without its step; or
      None.
  """

  step: Any  # a jax.Array; a shape, an axis or a sharding where the state is a tree of those
  params: Tree
  qparams: Tree
  aux: Tree
  model_state: Tree
  quant_state: Tree
  aux_state: Tree
  opt_state: Tree
  ema: Tree
  teacher: Any = None

  @property
  def trained(self) -> dict[str, Tree]:
    """The one tree that the optimizer sees."""
    return {"params": self.params, "qparams": self.qparams, "aux": self.aux}

  @property
  def variables(self) -> dict[str, Tree]:
    """What the model is called with."""
    return {"params": self.params, **self.model_state}

  @property
  def averaged(self) -> "TrainState":
    """The same state with the averages in place of the values, for evaluation; itself where there are none."""
    return self if self.ema is None else self.replace(**self.ema)


def create(
  variables: Mapping[str, Tree],
  tx: optax.GradientTransformation,
  *,
  qparams: Tree | None = None,
  quant_state: Tree | None = None,
  aux: Tree | None = None,
  aux_state: Tree | None = None,
  ema: float | None = None,
  accumulate: int = 1,
  average_aux: bool = False,
) -> TrainState:
  """The state before the first step.

  Args:
    variables: {"params": ..., other collections}.
    tx: the optimizer, the same that `make_train_step` gets.
    qparams: trained scales of a quantized model.
    quant_state: its other state.
    aux: what the losses train, by term name.
    aux_state: what they remember, by term name.
    ema: the decay that `make_train_step` gets, or None for no averages.
    accumulate: as `make_train_step` gets it.
    average_aux: average what the losses train and remember too, where the student is deployed with it.

  Raises:
    UserError: the variables have no parameters, or `ema` is no decay.
  """
  if not isinstance(variables, Mapping) or "params" not in variables:
    given = ", ".join(map(repr, variables)) if isinstance(variables, Mapping) else f"a {type(variables).__name__}"
    raise UserError(f"a model's variables are {given or 'nothing'}; expected {{'params': tree, ...}}")
  check_decay(ema)
  trained = {"params": variables["params"], "qparams": qparams or {}, "aux": aux or {}}
  model_state = {name: tree for name, tree in variables.items() if name != "params"}
  averages = {"params": trained["params"], "qparams": trained["qparams"], "model_state": model_state}
  if average_aux:
    averages |= {"aux": trained["aux"], "aux_state": aux_state or {}}
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    **trained,
    model_state=model_state,
    quant_state=quant_state or {},
    aux_state=aux_state or {},
    opt_state=optim.accumulated(tx, accumulate).init(trained),
    ema=None if ema is None else jax.tree.map(jnp.copy, averages),
  )


def check_decay(ema: float | None) -> None:
  """Raises a UserError where a decay of averages is none."""
  if ema is not None:
    ranges.check("ema", ema, ranges.BELOW_ONE)


def check_made_for(state: TrainState, ema: float | None, accumulate: int) -> None:
  """Refuses a state that was made for another step: its averages would stand still, or it would update too often.

  Raises:
    UserError: names what differs.
  """
  averages = state.ema is not None
  if averages != (ema is not None):
    raise UserError(
      f"make_train_step has ema {ema}, and the state has {'' if averages else 'no '}averages; expected engine.create "
      "to get the same ema"
    )
  several = isinstance(state.opt_state, optim.AccumulateState)
  if several != (accumulate > 1):
    raise UserError(
      f"make_train_step has accumulate {accumulate}, and the state is of {'more' if several else '1'}; expected "
      "engine.create to get the same accumulate"
    )
