"""A user's module as a `graph.Net`."""

import sys
from typing import Any

from leanax import graph
from leanax.core.errors import UserError
from leanax.engine.models.interface import Variables
from leanax.engine.models.model import adapt_linen


def net(module: Any, variables: Variables | None, *example: Any) -> graph.Net:
  """Returns the net of a linen or nnx module, which does not change.

  Args:
    module: built, of flax.linen or flax.nnx.
    variables: {"params": tree, other collections}; None for the variables of an nnx module.
    *example: an input, or its shape; a batch of one is enough.

  Raises:
    UserError: this is not a module, or its call needs more than a batch and the mode.
  """
  if len(example) != 1:
    raise UserError(
      f"a module is called with one batch, and the net got {len(example)} examples; expected one, or for several "
      "inputs graph.net(lambda variables, inputs: module.apply(variables, *inputs), variables, inputs)"
    )
  name, nnx = type(module).__name__, sys.modules.get("flax.nnx")
  if nnx is not None and isinstance(module, nnx.Module):
    from leanax.engine.models import nnx_model  # importing nnx takes a second

    copy = nnx.clone(module)
    given = nnx_model.variables_of(copy) if variables is None else variables
    return graph.net_of(nnx_model.functions(name, copy), given, *example)
  adapted = adapt_linen(name, {False: module})
  if adapted is None:
    raise UserError(f"the model is a {name}; expected a linen or an nnx Module, or a function for graph.net")
  if variables is None:
    raise UserError("a linen module holds no variables; expected those of its init")
  return graph.net_of(adapted.apply, variables, *example)
