"""One label for each leaf: whether it gets weight decay, and its learning rate.

| label  | which leaves | weight decay | learning rate |
| kernel | matrices and convolution kernels of the model | yes | the schedule's |
| other  | biases, scales and shifts of normalisation, other vectors | no | the schedule's |
| scale  | trained scales of quantizers | no | the schedule's times `rates["scale"]` |
| aux    | parameters of the losses | no | the schedule's times `rates["aux"]` |
| reparam | what a reparametrization trains, such as thresholds | no | the schedule's times `rates["reparam"]` |
"""

from collections.abc import Sequence
from typing import Any

from leanax.core import rules, trees
from leanax.core.errors import unknown
from leanax.engine.train.state import REPARAM

LABELS = ("kernel", "other", "scale", "aux", "reparam")
PREFIXES = {"qparams/": "scale", f"aux/{REPARAM}/": "reparam", "aux/": "aux"}
# Names of leaves that are no kernels whatever their shape: a scanned model stacks its biases into matrices.
VECTORS = ("bias", "scale", "mean", "var")


def label(name: str, ndim: int) -> str:
  """Returns the label of one leaf of the tree {"params", "qparams", "aux"}, by its name and rank."""
  found = [given for prefix, given in PREFIXES.items() if f"{name}/".startswith(prefix)]
  if found:
    return found[0]
  return "kernel" if ndim >= 2 and name.rsplit("/", 1)[-1] not in VECTORS else "other"


def labels(tree: Any, overrides: Sequence[tuple[str, str]] = ()) -> Any:
  """Returns a tree of labels.

  Args:
    tree: {"params": ..., "qparams": ..., "aux": ...}; leaves may be shapes.
    overrides: ordered (glob of `params/...` names, label), before the table above.

  Raises:
    UserError: an unknown label, or a rule that matches nothing.
  """
  for _, given in overrides:
    if given not in LABELS:
      raise unknown("label", given, LABELS)
  chosen = rules.match(overrides, trees.named_leaves(tree), "label rule")
  return trees.map_named(lambda name, x: chosen[name].setting if name in chosen else label(name, x.ndim), tree)
