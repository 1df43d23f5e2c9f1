"""Checks of scales, states and types against the model as it was traced."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.graph import Graph
from quant.plan import Plan
from quant.quantizer import Quantizer


def types(traced: Graph, plan: Plan) -> None:
  """Refuses a model that rounds what is between a product of codes and the next grid."""
  for name in dict.fromkeys(site for site, _ in plan.at if site not in plan.made):
    op = traced.sites[name]
    kept = op.outputs[0].dtype
    if op.kind in ("dot", "conv") and kept.itemsize < 4 and all((name, index) in plan.at for index in (0, 1)):
      raise UserError(
        f"{name!r} is computed in {kept}, but what lies between a product of codes and the next grid stays float32; "
        "quantize the model in float32, with carrier='bfloat16' and half=True where its products are to be bfloat16"
      )


def state(plan: Plan, quant_state: Any) -> None:
  """Refuses a state whose grids are not those of the model."""
  _dict("quantizer state", quant_state)
  for name in sorted(quant_state.keys() ^ plan.quantizers.keys()):
    have = "holds" if name in quant_state else "has no"
    this = "needs it" if name in plan.quantizers else "has no such tensor or kernel"
    raise UserError(f"the quantizer state {have} grid {name!r}, and this model {this}; run init on it")
  for name, quantizer in plan.quantizers.items():
    expected = quantizer.label
    label = quant_state[name].get("grid", expected)  # what is read from a file of arrays alone has none
    if label != expected:
      this = f"this model needs {expected.codes!r}"
      raise UserError(f"the quantizer state has the grid {name!r} as {label.codes!r}, and {this}; run init on it")
    if quantizer.kernel:
      _fits(f"the quantizer state has scales of {name!r}", np.shape(quant_state[name]["used"]["scale"]), quantizer)


def scales(plan: Plan, qparams: Any) -> None:
  """Refuses trained scales that are not those of the model: the frozen ones would stand in for them in silence."""
  _dict("qparams", qparams)
  trained = {name for name, quantizer in plan.quantizers.items() if quantizer.estimator.trains}
  for name in sorted(trained ^ qparams.keys()):
    have, this = ("no", "learns it") if name in trained else ("a", "learns no such scale")
    raise UserError(f"qparams have {have} scale {name!r}, and this model {this}; run init on it")
  for name, quantizer in plan.quantizers.items():
    if name in trained and quantizer.kernel:
      _fits(f"qparams have scales {name!r}", np.shape(qparams[name]), quantizer)


def _fits(what: str, shape: tuple[int, ...], quantizer: Quantizer) -> None:
  """Refuses scales of a kernel of another shape: those of a wider one would be taken for some of this one's."""
  expected = tuple(quantizer.shape[axis] for axis in quantizer.axis)
  behind = 0 if quantizer.leaf is not None else len(shape) - len(expected)  # what is no leaf is behind axes of scans
  if behind < 0 or shape[behind:] != expected:
    raise UserError(f"{what} of the shape {shape}, and this model needs {expected}; run init on it")


def alike(qparams: Any, quant_state: Any) -> None:
  """Refuses trained scales without a grid in the state."""
  _dict("qparams", qparams)
  _dict("quantizer state", quant_state)
  for name in sorted(qparams.keys() - quant_state.keys()):
    raise UserError(f"qparams have a scale {name!r}, and the quantizer state has no such grid; run init on the model")


def _dict(what: str, given: Any) -> None:
  if not isinstance(given, Mapping):
    raise UserError(f"the {what} given is of type {type(given).__name__}; expected the dict that init returns")
