"""The batch norms of a function, and for each whether it can be folded, or why not.

A batch norm is an activation that is multiplied by, or divided by, something made with a root of the variables alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from leanax.graph.affine import AFFINE, Users
from leanax.graph.fold import Fold, folds
from leanax.graph.ops import moves
from leanax.graph.program import Node, leaf_name, read
from leanax.graph.scales import batch_norm_chains, root, scaled
from leanax.graph.sites import Analysis

_POOLS = {"reduce_window_max": "a max pool", "reduce_window_sum": "an average pool", "reduce_sum": "a sum"}


class Norm(NamedTuple):
  """A batch norm.

  Attributes:
    name: of the module whose variance it reads ("batch_stats/BatchNorm_0"), or of that leaf where it is in none; `#1`
      is appended on the second use.
    site: the dot or convolution that takes it up; None where it stays.
    reason: why it stays; "" where it is folded.
    kernel: of one that stays, the leaf that is the kernel of the depthwise convolution that `depthwise_batch_norms`
      makes of it; None where it makes none.
  """

  name: str
  site: str | None
  reason: str
  kernel: str | None = None

  @property
  def folded(self) -> bool:
    """Returns whether `fold_batch_norms` folds it."""
    return self.site is not None


def batch_norms(fn: Callable[..., Any], variables: Any, *inputs: Any) -> list[Norm]:
  """Returns each batch norm that `fold_batch_norms` finds, in order, and whether it folds it.

  Args:
    fn: `fn(variables, *inputs) -> out` in evaluation mode.
    variables: a tree of arrays.
    *inputs: example inputs.
  """
  analysis = Analysis(read(fn, variables, *inputs))
  users = Users(analysis)
  plan = {node.index: fold for fold in folds(users, variables) for node in fold.chain.nodes}
  standing = scaled(users, batch_norm_chains(users), variables)
  kernels = {node.index: leaf_name(one.scale) for one in standing for node in one.chain.nodes}
  found: list[Norm] = []
  uses: dict[str, int] = {}
  for node in analysis.flat:
    made = root(analysis, node)
    if made is None:
      continue
    leaf = analysis.program.leaves[min(analysis.value(made.inputs[0]).leaves)]
    name = leaf.rpartition("/")[0] or leaf
    uses[name] = uses.get(name, 0) + 1
    name = f"{name}#{uses[name] - 1}" if uses[name] > 1 else name
    fold = plan.get(node.index)
    if fold is not None and not fold.reason:
      found.append(Norm(name, fold.chain.site.op.name, ""))
    else:
      found.append(Norm(name, None, _reason(users, node, fold), kernels.get(node.index)))
  return found


def _reason(users: Users, node: Node, fold: Fold | None) -> str:
  """Returns why a batch norm stays: what the chain says that it is in, or what stands before it."""
  analysis, scope = users.analysis, users.analysis.scopes[node.index]
  if fold is not None:
    return fold.reason
  if scope.frozen:
    return f"it is {scope.frozen}"
  if scope.scans:
    return "it is inside a scan"
  place = next(i for i, ref in enumerate(node.inputs) if analysis.value(ref).data)
  while True:
    number = analysis.resolve(node.inputs[place])
    source = analysis.values[number].producer
    if source is None:
      return "it stands at the function's input"
    data = [i for i, ref in enumerate(source.inputs) if analysis.value(ref).data]
    result = analysis.program.avals[number]
    affine = source.primitive in AFFINE or moves(source.primitive, analysis.value(source.inputs[0]).aval, result)
    site = analysis.at.get(source.index)
    is_dot = site is not None and site.op.kind in ("dot", "conv")
    if not is_dot and not (affine and len(data) == 1):
      return f"it follows {_called(analysis, source)}, and not a dot or a convolution"
    if len(users.readers[number]) > 1:
      return f"what it normalises, {_called(analysis, source)}, has another reader"
    if is_dot:
      return f"a checkpoint, a loop or a branch stands between it and {_called(analysis, source)}"
    node, place = source, data[0]


def _called(analysis: Analysis, node: Node) -> str:
  site = analysis.at.get(node.index)
  return repr(site.op.name) if site is not None else _POOLS.get(node.primitive, repr(node.primitive))
