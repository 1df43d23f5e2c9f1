"""The places of quantizers: a policy resolved on a traced model, as plain data."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from leanax.core.errors import UserError
from leanax.graph import Graph, Maker, Op, bounded, exposed, second_factor
from leanax.graph.channels import Moves, shape_of
from leanax.graph.makers import pooled
from quant.estimators import ste
from quant.joined import share
from quant.kernels import kernels, notes
from quant.policy import Explained, Policy, explain
from quant.policy import policy as make_policy
from quant.quantizer import FIXED, Quantizer, is_input
from quant.sharing import Use
from quant.spec import Setting, Spec

SITES = ("dot", "conv", "add", "mean", "avg_pool", "output")

Place = tuple[str, int]  # a site, one of its operands


class BiasQuantizer(NamedTuple):
  """A bias in int32 steps of s_x * s_w.

  Attributes:
    operand: which operand of the sum it is.
    leaf: its leaf.
    tensor: the quantizer of what its site reads.
    kernel: the (site, operand) of its site's kernel.
    moves: how a value for each output channel gets from the kernel operand's axes to those of the sum.
    read: from the leaf to values in those axes, behind the axes of scans; None where only the leaf as a whole is known.
  """

  operand: int
  leaf: str
  tensor: str
  kernel: Place
  moves: Moves
  read: Callable[[Any], Any] | None


class Plan(NamedTuple):
  """The places at which a model is rounded.

  Attributes:
    at: quantizers by (site, operand), and those of `made` by (tensor, 0).
    biases: by site.
    explained: every site's setting and its rule.
    uses: where a kernel's operand lies in its leaf, and which of its axes are kept; by (site, operand).
    branched: the kernels in the axes of a leaf that only branches read; they count as seen once one of these has run.
    observed: by quantizer the readers at which it is observed: the first, or the first of each branch where no reader
      stands outside of the branches. A reader of the tensor itself comes before those of what was max-pooled.
    made: activations, inputs too, that are rounded where they are made and not where they are read, because others than
      sites read them, such as a sigmoid: a runtime hands the codes that a layer makes to every reader.
  """

  at: Mapping[Place, Quantizer]
  biases: Mapping[str, BiasQuantizer]
  explained: Mapping[str, Explained]
  uses: Mapping[tuple[str, int], Use]
  branched: frozenset[str]
  observed: Mapping[str, Sequence[Place]]
  made: frozenset[str]
  parts: frozenset[str]
  tensors: Mapping[str, Quantizer]

  @property
  def visited(self) -> frozenset[str]:
    return frozenset(name for name, _ in self.at) | frozenset(self.biases)

  @property
  def quantizers(self) -> dict[str, Quantizer]:
    """Each quantizer once, by its key, in the order of first use."""
    found: dict[str, Quantizer] = {}
    for quantizer in self.at.values():
      found.setdefault(quantizer.key, quantizer)
    return found

  @property
  def shared(self) -> list[tuple[str, ...]]:
    """The names of activations that share one quantizer, of each that several have."""
    groups: dict[str, list[str]] = {}
    for name, quantizer in self.tensors.items():
      groups.setdefault(quantizer.key, []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]

  @property
  def leaf_grids(self) -> dict[str, Quantizer]:
    """Those of kernels that are written in the axes of a leaf."""
    return {key: q for key, q in self.quantizers.items() if q.leaf is not None}


def make_plan(graph: Graph, policy: Policy) -> Plan:
  """Resolves a policy on a traced model.

  Raises:
    UserError: a rule applies nowhere, or only to what cannot be quantized; a site is to be quantized where no operation
      can be replaced; a parameter has the name of an activation.
  """
  # Settings: the first rule that matches a site; a site that cannot be replaced has to stay in float.
  sites = {name: op for name, op in graph.sites.items() if op.kind in SITES}
  explained = _explained(graph, sites, policy)
  chosen = {name: explained[name].setting for name in sites if name in explained}
  for name, setting in chosen.items():
    if sites[name].frozen and (setting.weights or setting.activations):
      raise UserError(f"{name!r} cannot be quantized: it is {sites[name].frozen}; give it the setting 'float'")
  # Quantizers: one per activation and one per kernel, so that all readers of a tensor see the same codes.
  tensors = _tensors(sites, chosen, bounded(graph))
  kernels_at = kernels(graph, chosen)
  at: dict[Place, Quantizer] = {}
  for name, setting in chosen.items():
    for index, operand in enumerate(sites[name].inputs):
      if index == sites[name].kernel_index:
        if (name, index) in kernels_at:
          at[name, index] = kernels_at[name, index][0]
      elif setting.activations is not None and operand.tensor in tensors:
        at[name, index] = tensors[operand.tensor]
  # Tensors that other operations read are rounded where they are made: a runtime hands codes to every reader.
  makers = exposed(graph, {name for name, _ in at})
  tensors |= _results(sites, chosen, at, {name: maker for name, maker in makers.items() if name not in tensors})
  made = {name: maker for name, maker in makers.items() if name in tensors}
  # Activations and kernels share the keys of one state, those that are made the names of sites.
  clash = {quantizer.key for quantizer, _ in kernels_at.values()} & tensors.keys() | made.keys() & graph.sites.keys()
  if clash:
    raise UserError(f"the parameter {min(clash)!r} has the name of an activation; give the parameter another name")
  # Activations whose numbers are moved into another one share its grid, so that a file moves codes.
  seen = {**_observed(sites, at, pooled(graph)), **{name: [(name, 0)] for name in made}}
  joined = share(graph, tensors, made, seen)
  at = {place: q if q.kernel else joined.tensors[q.key] for place, q in at.items()}
  uses = {place: use for place, (_, use) in kernels_at.items() if use is not None}
  results = {name: maker.site for name, maker in made.items() if maker.site is not None and maker.gates is None}
  noted = {name: explained[name]._replace(note=note) for name, note in notes(at, uses, results).items()}
  return Plan(
    {**at, **{(name, 0): joined.tensors[name] for name in made}},
    _biases(graph, at),
    {**explained, **noted},
    uses,
    _branched(sites, at, uses),
    joined.observed,
    frozenset(made),
    joined.parts,
    joined.tensors,
  )


def _explained(graph: Graph, sites: Mapping[str, Op], policy: Policy) -> dict[str, Explained]:
  """Returns each site's setting; what cannot be quantized, or has no parameter and no rule, stays in float."""
  left = graph.skipped | {name: why for name, op in graph.sites.items() if (why := _unserved(op)) is not None}
  constant = {name for name, op in sites.items() if op.kernel_index is not None and _kernel_leaf(op) is None}
  kernels = [n for n, op in sites.items() if op.kernel_index is not None and n not in constant and n not in left]
  explained = explain(policy, dict.fromkeys((*sites, *left)), kernels)
  served: dict[str, bool] = {}
  for name, (setting, rule, _) in explained.items():
    rule = rule.removesuffix(" (ends)")
    everything = not rule.strip("*?")
    why = left.get(name, "its kernel is a constant" if name in constant and everything else None)
    if why is None or (setting.weights is None and setting.activations is None):
      served[rule] = True
      continue
    explained[name] = Explained(Setting(), f"{rule}, but {why}")
    served.setdefault(rule, everything)
  for rule, any_served in served.items():
    if not any_served:
      name, why = next((n, left[n]) for n, (_, text, _) in explained.items() if text.startswith(f"{rule}, but "))
      raise UserError(f"the quantization rule {rule!r} means {name!r}, which cannot be quantized: {why}")
  return explained


def _unserved(op: Op) -> str | None:
  """Returns why an operation cannot be on a grid; None where it can."""
  if op.kind == "ragged_dot":
    return "ragged dots are not served"
  if op.kind not in ("dot", "conv"):
    return None
  other = next((operand.dtype for operand in op.inputs if not _is_float(operand.dtype)), None)
  return None if other is None else f"it multiplies {other} numbers"


def _kernel_leaf(op: Op) -> str | None:
  return None if op.kernel_index is None else op.inputs[op.kernel_index].leaf


def _branched(sites: Mapping[str, Op], at: Mapping[Place, Any], uses: Mapping[Place, Use]) -> frozenset[str]:
  keys = {place: q.key for place, q in at.items() if q.leaf is not None}
  always = {key for place, key in keys.items() if not sites[place[0]].branches or uses[place].view.scans}
  return frozenset(keys.values()) - always


def _observed(sites: Mapping[str, Op], at: Mapping[Place, Any], pooling: Mapping[Place, int]) -> dict[str, list[Place]]:
  """Returns the readers at which each tensor is observed: in each branch, before max-pooling where possible."""
  found: dict[str, list[Place]] = {}
  for place, quantizer in sorted(at.items(), key=lambda one: pooling[one[0]]):
    path, others = sites[place[0]].branches, found.setdefault(quantizer.key, [])
    if not any(path[: len(outer)] == outer for outer in (sites[name].branches for name, _ in others)):
      others[:] = [one for one in others if sites[one[0]].branches[: len(path)] != path]
      others.append(place)
  return found


def _tensors(
  sites: Mapping[str, Op], chosen: Mapping[str, Setting], functions: Mapping[str, str]
) -> dict[str, Quantizer]:
  """Returns a quantizer for each activation that a site with quantized activations reads.

  Args:
    sites: by their names.
    chosen: their settings.
    functions: those that make activations whose range is known, by the activation's name.
  """
  found: dict[str, Quantizer] = {}
  for name, setting in chosen.items():
    spec = setting.activations
    for index, operand in enumerate(sites[name].inputs):
      if spec is None or operand.tensor is None or index == sites[name].kernel_index or not _is_float(operand.dtype):
        continue
      old = found.get(operand.tensor)
      if old is None or old.bits < spec.bits:
        found[operand.tensor] = _activation(operand.tensor, spec, functions.get(operand.tensor))
  centred = _second(sites, found, functions)
  return {name: q._replace(centred=q.fixed is None and name in centred) for name, q in found.items()}


def _second(sites: Mapping[str, Op], tensors: Mapping[str, Quantizer], functions: Mapping[str, str]) -> set[str]:
  """Returns the activations that are only read as the second factor of products of two activations, in 8 bits.

  Integer kernels for such a product want 0 as the zero point of the second factor.
  """
  second, others = set[str | None](), set[str | None]()
  for op in sites.values():
    place = second_factor(op, functions) if op.kind == "dot" and op.kernel_index is None else None
    for index, operand in enumerate(op.inputs):
      (second if index == place else others).add(operand.tensor)
  return {name for name in second - others if name in tensors and _eight(tensors[name].spec) and not is_input(name)}


def _activation(name: str, spec: Spec, function: str | None = None) -> Quantizer:
  """Returns an activation's quantizer; the grid of a function's results is fixed where runtimes have it so."""
  fixed = FIXED.get(function or "") if _eight(spec) else None
  estimator = ste() if is_input(name) or fixed is not None else spec.make_estimator()
  return Quantizer(name, spec, estimator, fixed=fixed)


def _eight(spec: Spec) -> bool:
  return spec.bits == 8 and spec.format == "integer"


def _results(
  sites: Mapping[str, Op], chosen: Mapping[str, Setting], at: Mapping[Place, Any], makers: Mapping[str, Maker]
) -> dict[str, Quantizer]:
  """Returns a quantizer for each of these tensors that its site makes out of integers alone, and for their gates."""
  found: dict[str, Quantizer] = {}
  rounded = {q.key for q in at.values() if not q.kernel}
  for name, maker in makers.items():  # gates are the last
    spec = chosen[maker.site].activations if maker.site in chosen else None
    if maker.site is None or spec is None or (maker.gates is not None and maker.gates not in rounded | found.keys()):
      continue
    if maker.product is not None and not (_eight(spec) and maker.product in rounded):
      continue  # a silu that no file multiplies on codes: a sigmoid is not rounded for nothing
    op = sites[maker.site]
    operands = [at.get((op.name, i)) for i, x in enumerate(op.inputs) if x.tensor is not None or i == op.kernel_index]
    if all(q is not None and q.format == "integer" and q.spec.group is None for q in operands):
      found[name] = _activation(name, spec, maker.function)
  return found


def kernel_axes(graph: Graph, policy: Any) -> dict[str, Quantizer]:
  """Returns the quantizer of each leaf that is a kernel, as `latent_weights` takes them for `axes`.

  Args:
    graph: `graph.trace` of the model.
    policy: as for `quantize`; rules without a width for weights leave a leaf out. Ends are not raised unless it is a
      `Policy` that says so.

  Returns:
    For each leaf its quantizer, of which `shape` and `axis` count.

  Raises:
    UserError: a leaf has two grids, or a kernel is computed from leaves instead of read from one.
  """
  plan = make_plan(graph, make_policy(policy, ends=None))
  found: dict[str, Quantizer] = {}
  for (name, index), quantizer in plan.at.items():
    if not quantizer.kernel:
      continue
    leaf = graph.sites[name].inputs[index].leaf
    if quantizer.leaf is None:
      raise UserError(
        f"the kernel of {name!r} is not simply read from {leaf or 'a leaf'!r}: it is computed, or a part with "
        "scales of its own; give it the setting 'float'"
      )
    if found.setdefault(quantizer.leaf, quantizer).key != quantizer.key:
      raise UserError(
        f"{leaf!r} has two grids, {found[quantizer.leaf].key!r} and {quantizer.key!r}, and cannot lie on both; give it "
        "'per_tensor' or 'float'"
      )
  return found


def _biases(graph: Graph, at: Mapping[tuple[str, int], Any]) -> dict[str, BiasQuantizer]:
  """Biases of the sites of which both operands are integers."""
  found: dict[str, BiasQuantizer] = {}
  for name, op in graph.sites.items():
    if op.kind != "bias" or op.site is None:
      continue
    kernel = graph.sites[op.site].kernel_index
    operand = next(i for i, value in enumerate(op.inputs) if value.tensor is None)
    both = kernel is not None and {(op.site, 0), (op.site, 1)} <= at.keys()
    if both and all(at[op.site, i].format == "integer" and at[op.site, i].spec.group is None for i in (0, 1)):
      kept = graph.sites[op.site].channel_axes if at[op.site, kernel].spec.per_channel else ()
      shape = graph.sites[op.site].inputs[kernel].shape
      if any(shape_of(op.moves)[axis] != shape[axis] for axis in kept):
        continue  # a step for each number of an axis that a bias does not have
      leaf = op.inputs[operand].leaf or name
      found[name] = BiasQuantizer(operand, leaf, at[op.site, 1 - kernel].key, (op.site, kernel), op.moves, op.bias)
  return found


def _is_float(dtype: Any) -> bool:
  return jax.dtypes.issubdtype(dtype, jax.numpy.floating)
