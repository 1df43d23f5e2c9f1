"""Which quantizer stands where: a policy resolved on a traced model, as plain data."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from graph import Graph, Op, exposed
from quant.kernels import KernelQuantizer, kernels, notes
from quant.policy import Explained, Policy, Setting, explain
from quant.policy import policy as make_policy
from quant.sharing import Use

SITES = ("dot", "conv", "add", "mean", "avg_pool", "output")

# The scale of the network's input stays static: to learn it one would need the gradient with respect to the images.
_INPUT = re.compile(r"input(_\d+)?(#\d+)?")


class TensorQuantizer(NamedTuple):
  """The grid of one activation: affine, one for the tensor.

  Attributes:
    key: the tensor's name.
    reader: the first (site, operand) that reads it; there it is observed, once.
    bits: the widest that its readers ask for.
    setting: that reader's setting.
    learned: its scale is trained.
  """

  key: str
  reader: tuple[str, int]
  bits: int
  setting: Setting
  learned: bool

  @property
  def outside(self) -> bool:
    """It is the network's input, which comes from outside."""
    return _INPUT.fullmatch(self.key) is not None


class BiasQuantizer(NamedTuple):
  """A bias in int32 steps of s_x * s_w: the operand it is, the tensor that its site reads, and the site itself."""

  operand: int
  tensor: str
  kernel: str


class Plan(NamedTuple):
  """Where a model is rounded.

  Attributes:
    at: quantizers by (site, operand).
    biases: by site.
    explained: every site's setting and its rule.
    uses: where a kernel's operand lies in its leaf, and which of its axes are kept; by (site, operand).
    made: activations that others than sites read too, such as a ReLU, by the operation that makes them. They are
      rounded there and not where they are read, because a runtime hands their codes to every reader.
    inputs: the same of the network's inputs, by their place among the leaves of the inputs.
  """

  at: Mapping[tuple[str, int], TensorQuantizer | KernelQuantizer]
  biases: Mapping[str, BiasQuantizer]
  explained: Mapping[str, Explained]
  uses: Mapping[tuple[str, int], Use]
  made: Mapping[str, TensorQuantizer]
  inputs: Mapping[int, TensorQuantizer]

  @property
  def visited(self) -> frozenset[str]:
    return frozenset(name for name, _ in self.at) | frozenset(self.biases) | frozenset(self.made)

  @property
  def rounded_early(self) -> frozenset[str]:
    """The keys of the tensors that are rounded before they are read."""
    return frozenset(quantizer.key for quantizer in (*self.made.values(), *self.inputs.values()))

  @property
  def quantizers(self) -> dict[str, TensorQuantizer | KernelQuantizer]:
    """Each quantizer once, by its key, in the order of first use."""
    found: dict[str, TensorQuantizer | KernelQuantizer] = {}
    for quantizer in self.at.values():
      found.setdefault(quantizer.key, quantizer)
    return found


def make_plan(graph: Graph, policy: Policy) -> Plan:
  """Resolves a policy on a traced model.

  Raises:
    UserError: a rule applies nowhere; a site is to be quantized where no operation can be replaced; a parameter has the
      name of an activation.
  """
  sites = {name: op for name, op in graph.sites.items() if op.kind in SITES}
  holding = [name for name, op in sites.items() if op.kernel_index is not None]
  explained = explain(policy, sites, holding)
  chosen = {name: explained[name].setting for name in sites if name in explained}
  for name, setting in chosen.items():
    if sites[name].frozen and (setting.weights or setting.activations):
      raise UserError(f"{name!r} cannot be quantized: it is {sites[name].frozen}; give it the setting 'float'")
  tensors = _tensors(sites, chosen)
  kernels_at = kernels(graph, chosen)
  at: dict[tuple[str, int], TensorQuantizer | KernelQuantizer] = {}
  for name, setting in chosen.items():
    for index, operand in enumerate(sites[name].inputs):
      if index == sites[name].kernel_index:
        if (name, index) in kernels_at:
          at[name, index] = kernels_at[name, index][0]
      elif setting.activations is not None and operand.tensor in tensors:
        at[name, index] = tensors[operand.tensor]
  clash = {quantizer.key for quantizer, _ in kernels_at.values()} & tensors.keys()
  if clash:
    raise UserError(f"the parameter {min(clash)!r} has the name of an activation; give the parameter another name")
  uses = {place: use for place, (_, use) in kernels_at.items() if use is not None}
  noted = {name: explained[name]._replace(note=note) for name, note in notes(at, uses).items()}
  early = {tensor: maker for tensor, maker in exposed(graph).items() if tensor in tensors}
  made = {maker.op: tensors[tensor] for tensor, maker in early.items() if maker.op is not None}
  inputs = {maker.input: tensors[tensor] for tensor, maker in early.items() if maker.input is not None}
  return Plan(at, _biases(graph, at), {**explained, **noted}, uses, made, inputs)


def _tensors(sites: Mapping[str, Op], chosen: Mapping[str, Setting]) -> dict[str, TensorQuantizer]:
  """A quantizer for each activation that a site with quantized activations reads."""
  found: dict[str, TensorQuantizer] = {}
  for name, setting in chosen.items():
    bits = setting.activations
    for index, operand in enumerate(sites[name].inputs):
      if bits is None or operand.tensor is None or index == sites[name].kernel_index or not _is_float(operand.dtype):
        continue
      old = found.get(operand.tensor)
      if old is None or old.bits < bits:
        learned = setting.learned and not _INPUT.fullmatch(operand.tensor)
        reader = (name, index) if old is None else old.reader
        found[operand.tensor] = TensorQuantizer(operand.tensor, reader, bits, setting, learned)
  return found


def kernel_axes(graph: Graph, policy: Any) -> dict[str, KernelQuantizer]:
  """How each leaf that is a kernel is quantized: what `latent_weights` takes as `axes`.

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
  found: dict[str, KernelQuantizer] = {}
  for (name, index), quantizer in plan.at.items():
    if not isinstance(quantizer, KernelQuantizer):
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
  """Biases of the sites of which both operands are quantized."""
  found: dict[str, BiasQuantizer] = {}
  for name, op in graph.sites.items():
    if op.kind != "bias" or op.site is None:
      continue
    kernel = graph.sites[op.site].kernel_index
    operand = next(i for i, value in enumerate(op.inputs) if value.tensor is None)
    if kernel is not None and (op.site, kernel) in at and (op.site, 1 - kernel) in at:
      per_channel = at[op.site, kernel].setting.per_channel
      if (
        per_channel and len(graph.sites[op.site].channel_axes) > 1
      ):  # a step for each combination of them; the bias has one axis
        continue
      found[name] = BiasQuantizer(operand, at[op.site, 1 - kernel].key, op.site)
  return found


def _is_float(dtype: Any) -> bool:
  return jax.dtypes.issubdtype(dtype, jax.numpy.floating)
