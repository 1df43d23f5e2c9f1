"""Edit: a batch norm folded into the dot or convolution before it (`graph.fold` finds them).

{"edit": "fold_batch_norm", "site": name, "bias": leaf, "chain": primitives}, one for each; those of one call are
applied in one trace. The site's kernel is scaled, the chain after it becomes the sum with its bias.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from leanax.core.errors import UserError
from leanax.graph import versions
from leanax.graph.affine import AFFINE, Users, find_chain, out_axes
from leanax.graph.batch_statistics import normalisations
from leanax.graph.edits.kind import Edit, Editable, check_net
from leanax.graph.emit import Emitter, Replacement
from leanax.graph.fold import folds, new_bias
from leanax.graph.live import needed
from leanax.graph.program import Node, leaf_name, read, touched
from leanax.graph.retrace import Retraced, retrace
from leanax.graph.shapes import GONE, changed, leaves_by_name
from leanax.graph.sites import Analysis, Site

N = TypeVar("N", bound=Editable)


def fold_batch_norms(net: N) -> N:
  """Folds every batch norm that follows a dot or a convolution into it.

  A site is left as it is when its kernel is used twice or computed from others, when its output has another reader,
  inside a scan, or when the variables have no place for a bias beside its kernel; `batch_norms` says which and why.

  Args:
    net: of variables in any containers; what comes back has the same.

  Returns:
    The net whose outputs in evaluation mode are the same, to rounding. Its kernels are scaled, biases new
    (`<module>/bias`) or replaced, the batch norms' leaves gone. In training mode the batch norms are gone too.
  """
  check_net(net)
  variables = net.variables
  users = Users(Analysis(read(net.infer, variables, *net.example)))
  found = [(fold, fold.chain.site.op) for fold in folds(users, variables) if not fold.reason]
  if not found:
    return net
  paths = _paths(variables)
  edits: list[Edit] = []
  values: dict[str, Any] = {}
  for fold, op in found:
    paths[fold.bias] = fold.path
    values |= {name: jax.device_put(value) for name, value in fold.values.items()}
    names = [node.primitive for node in fold.chain.nodes]
    edits.append({"edit": "fold_batch_norm", "site": op.name, "bias": fold.bias, "chain": names})
  values |= dict.fromkeys(_gone(users, edits), GONE)
  return net.edited(edits, changed(variables, {paths[name]: value for name, value in values.items()}))


def apply(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any) -> Callable[..., Any]:
  """Returns the function of the folded variables."""

  def folded(variables: Any, *inputs: Any) -> Any:
    traced = retrace(fn, shapes, variables, inputs)
    program, users = traced.analysis.program, Users(traced.analysis)
    for one in edits:
      if one["bias"] not in traced.given:
        raise UserError(f"the variables lack {one['bias']!r}, which folding a batch norm had made")
    replaced = _replaced(users, edits, traced.given, traced.training)
    live, _ = needed(traced.analysis, replaced, outputs=traced.wanted)
    if traced.training:
      _refuse_other_readers(users, traced, replaced, live)
    emitter = Emitter(traced.analysis, edits=replaced, live=live, touched=touched(program, replaced))
    return traced.output(emitter.run(program.body, traced.values, {})[0])

  return folded


def after(fn: Callable[..., Any], edits: Sequence[Edit], shapes: Any, inputs: tuple[Any, ...]) -> Any:
  """Returns the shapes of the folded variables; `fn` is in evaluation mode."""
  users = Users(Analysis(read(fn, shapes, *inputs)))
  paths, given = _paths(shapes), leaves_by_name(shapes)
  gone = dict.fromkeys((paths[name] for name in _gone(users, edits)), GONE)
  new: dict[Any, Any] = {}
  for one in edits:
    site = users.sites[one["site"]]
    kernel = site.op.inputs[site.op.kernel_index or 0].leaf or ""
    path = paths.get(one["bias"]) or new_bias(shapes, paths[kernel], name=one["bias"])
    if path is None:
      raise UserError(f"the variables have no place for {one['bias']!r}, which folding a batch norm had made")
    sizes = tuple(site.op.outputs[0].shape[axis] for axis in out_axes(site))
    new[path] = jax.ShapeDtypeStruct(sizes, given[kernel].dtype)
  return changed(shapes, {**gone, **new})


def joins(edits: Sequence[Edit], other: Edit) -> bool:
  """Returns whether these edits and the next one are applied in one trace: where they are of different sites."""
  return other.get("site") not in [one.get("site") for one in edits]


def _paths(variables: Any) -> dict[str, Any]:
  return {leaf_name(path): path for path, _ in jax.tree_util.tree_leaves_with_path(variables)}


def _gone(users: Users, edits: Sequence[Edit]) -> list[str]:
  """Returns the leaves that nothing reads once these batch norms are folded."""
  analysis = users.analysis
  replaced = _replaced(users, edits, {})
  read_after, read_before = needed(analysis, replaced)[1], needed(analysis, {})[1]
  biases, program = {one["bias"] for one in edits}, analysis.program
  return [
    name
    for name, number in zip(program.leaves, program.body.inputs, strict=False)
    if number in read_before and number not in read_after and name not in biases
  ]


def _replaced(
  users: Users, edits: Sequence[Edit], given: Mapping[str, Any], training: bool = False
) -> dict[int, Replacement]:
  each = _in_training if training else _replacement
  return {index: new for one in edits for index, new in each(users, one, given).items()}


def _replacement(users: Users, one: Edit, given: Mapping[str, Any]) -> dict[int, Replacement]:
  """The chain of a folded site becomes: its output, plus the bias, moved as the chain moved it."""
  site, names = users.sites.get(one["site"]), list(one["chain"])
  chain = None if site is None else find_chain(users, site)
  if site is None or chain is None or [node.primitive for node in chain.nodes] != names:
    raise UserError(
      f"the function has no batch norm after {one['site']!r} as it had when it was folded; the edits are for the "
      "function in evaluation mode that they were made from"
    )
  return _sum(site, one["bias"], chain.nodes, given)


def _in_training(users: Users, one: Edit, given: Mapping[str, Any]) -> dict[int, Replacement]:
  """The same in training mode, where the chain's coefficients may also be statistics of the batch."""
  site, names = users.sites.get(one["site"]), list(one["chain"])
  chains = [] if site is None else normalisations(users, site, names)
  if site is None or len(chains) != 1:
    raise UserError(
      f"the batch norm after {one['site']!r} is folded, and in training mode {len(chains)} chains of "
      f"{', '.join(names)} with statistics of the batch follow that site; expected one, or evaluation mode"
    )
  return _sum(site, one["bias"], chains[0], given)


def _sum(site: Site, bias: str, nodes: Sequence[Node], given: Mapping[str, Any]) -> dict[int, Replacement]:
  axes = out_axes(site)

  def call(y: Any) -> tuple[Any, ...]:
    y = y + given[bias].astype(y.dtype).reshape([n if i in axes else 1 for i, n in enumerate(y.shape)])
    for node in nodes:
      if node.primitive not in AFFINE:
        y = versions.rebind(node.eqn, (y,))[0]
    return (y,)

  return {nodes[-1].index: Replacement(site.node.outputs[:1], call)}


def _refuse_other_readers(users: Users, traced: Retraced, replaced: Mapping[int, Replacement], live: set[int]) -> None:
  """Refuses a batch norm of which something else that is left reads what was normalised."""
  returned = [users.analysis.resolve(ref) for ref in traced.wanted if isinstance(ref, int)]
  folded = {new.refs[0] for new in replaced.values()}
  for name, site in users.sites.items():
    if site.node is None or site.node.outputs[0] not in folded:
      continue
    number = site.node.outputs[0]
    others = [
      node.primitive
      for node, _ in users.readers[number]
      if node is not None and node.index in live - replaced.keys() and not node.bodies
    ]
    if number in returned or others:
      raise UserError(
        f"the batch norm after {name!r} is folded, but in training mode {(others or ['the output'])[0]!r} reads what "
        "it normalises; expected evaluation mode"
      )
