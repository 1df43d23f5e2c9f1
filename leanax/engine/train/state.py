"""Everything that training changes, in one tree, which a checkpoint holds and a step maps to the next one."""

from typing import Any

import jax
from flax import struct

from leanax.graph.kinds import Reparam

Tree = Any
REPARAM = "reparam"  # where `aux` and `aux_state` hold what a reparametrization trains and remembers


class TrainState(struct.PyTreeNode):
  """One home for every kind of state.

  Attributes:
    step: int32 scalar, how many updates were made. With (seed, step) the batch and all randomness are known.
    params: the model's parameters.
    qparams: trained scales of quantizers.
    aux: what losses train: regressors, temperatures; and what a reparametrization trains, under "reparam".
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
    """The variables that the model is applied with."""
    return {"params": self.params, **self.model_state}

  @property
  def averaged(self) -> "TrainState":
    """The state with the averages in place of the values, for evaluation; unchanged where there are none."""
    return self if self.ema is None else self.replace(**self.ema)


def deployed(state: TrainState, reparam: Reparam | None = None) -> TrainState:
  """Returns the state that is evaluated and exported: its averages, with the parameters that the model is applied with.

  Args:
    state: of a training with this reparametrization, if any.
    reparam: the weights as a function of what is trained.
  """
  now = state.averaged
  if reparam is None:
    return now
  params, _ = reparam.forward(now.params, now.aux[REPARAM], step=now.step, key=jax.random.key(0), train=False)
  return now.replace(params=params)
