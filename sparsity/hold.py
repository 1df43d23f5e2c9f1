"""Keeps the zeros that parameters have when training starts: for stages that follow pruning (fine-tuning, QAT).

No paper.
"""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from leanax.core import ranges
from sparsity.packed import pack
from sparsity.select import KERNELS, Setting, select
from sparsity.wrapper import wrap


def hold(
  inner: optax.GradientTransformation, *, rules: Sequence[tuple[str, Setting]] = KERNELS, pack_axis: int = -1
) -> optax.GradientTransformationExtraArgs:
  """Wraps an optimizer so that the entries that are zero at `init` stay exactly zero.

  Args:
    inner: any optax optimizer.
    rules: (glob, True or False) pairs that choose leaves; see `sparsity.magnitude`.
    pack_axis: the axis along which masks are bit-packed.

  Raises:
    core.errors.UserError: at `init`, for a rule that matches nothing.
  """
  ranges.check("sparsity.hold: pack_axis", pack_axis, ranges.whole(-32))

  def start(params: Any) -> Any:
    leaves, treedef = jax.tree.flatten(params)
    chosen = select(params, rules)
    return treedef.unflatten([pack(leaf != 0, pack_axis) if i in chosen else None for i, leaf in enumerate(leaves)])

  return wrap(inner, start)
