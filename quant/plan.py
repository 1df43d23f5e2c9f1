"""Which quantizer stands where: a policy resolved on a traced model, as plain data."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from core.errors import UserError
from graph import Graph, Op, exposed
from quant.grid import limits
from quant.policy import Explained, Policy, Setting, explain

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


class KernelQuantizer(NamedTuple):
  """The grid of one kernel: symmetric, one scale a channel along `axis`, or one for all (None)."""

  key: str
  reader: tuple[str, int]
  bits: int
  setting: Setting
  learned: bool
  axis: int | None

  @property
  def limits(self) -> tuple[int, int]:
    return limits(self.bits, True, self.setting.narrow)


class BiasQuantizer(NamedTuple):
  """A bias in int32 steps of s_x * s_w: the operand it is, and the quantizers of its site's operands."""

  operand: int
  tensor: str
  kernel: str


class Plan(NamedTuple):
  """Where a model is rounded.

  Attributes:
    at: quantizers by (site, operand).
    biases: by site.
    explained: every site's setting and its rule.
    made: activations that others than sites read too, such as a ReLU, by the operation that makes them. They are
      rounded there and not where they are read, because a runtime hands their codes to every reader.
    inputs: the same of the network's inputs, by their place among the leaves of the inputs.
  """

  at: Mapping[tuple[str, int], TensorQuantizer | KernelQuantizer]
  biases: Mapping[str, BiasQuantizer]
  explained: Mapping[str, Explained]
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
  kernels = [name for name, op in sites.items() if op.kernel_index is not None]
  explained = explain(policy, sites, kernels)
  chosen = {name: explained[name].setting for name in sites if name in explained}
  for name, setting in chosen.items():
    if sites[name].frozen and (setting.weights or setting.activations):
      raise UserError(f"{name!r} cannot be quantized: it is {sites[name].frozen}; give it the setting 'float'")
  tensors = _tensors(sites, chosen)
  at: dict[tuple[str, int], TensorQuantizer | KernelQuantizer] = {}
  seen: dict[str, tuple[Any, ...]] = {}
  for name, setting in chosen.items():
    for index, operand in enumerate(sites[name].inputs):
      if index == sites[name].kernel_index:
        if setting.weights is not None:
          at[name, index] = _kernel(sites[name], index, setting, setting.weights, seen)
      elif setting.activations is not None and operand.tensor in tensors:
        at[name, index] = tensors[operand.tensor]
  clash = seen.keys() & tensors.keys()
  if clash:
    raise UserError(f"the parameter {min(clash)!r} has the name of an activation; give the parameter another name")
  early = {tensor: maker for tensor, maker in exposed(graph).items() if tensor in tensors}
  made = {maker.op: tensors[tensor] for tensor, maker in early.items() if maker.op is not None}
  inputs = {maker.input: tensors[tensor] for tensor, maker in early.items() if maker.input is not None}
  return Plan(at, _biases(graph, at), explained, made, inputs)


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


def _kernel(op: Op, index: int, setting: Setting, bits: int, seen: dict[str, tuple[Any, ...]]) -> KernelQuantizer:
  """The quantizer of a kernel; one for all sites that use the same leaf in the same way."""
  axis = op.channel_axis if setting.per_channel else None
  leaf = op.inputs[index].leaf or op.name
  use = (op.inputs[index].shape, axis, setting)
  key = leaf if seen.get(leaf, use) == use else op.name
  seen.setdefault(key, use)
  return KernelQuantizer(key, (op.name, index), bits, setting, setting.learned, axis)


def _biases(graph: Graph, at: Mapping[tuple[str, int], Any]) -> dict[str, BiasQuantizer]:
  """Biases of the sites of which both operands are quantized."""
  found: dict[str, BiasQuantizer] = {}
  for name, op in graph.sites.items():
    if op.kind != "bias" or op.site is None:
      continue
    kernel = graph.sites[op.site].kernel_index
    operand = next(i for i, value in enumerate(op.inputs) if value.tensor is None)
    if kernel is not None and (op.site, kernel) in at and (op.site, 1 - kernel) in at:
      found[name] = BiasQuantizer(operand, at[op.site, 1 - kernel].key, at[op.site, kernel].key)
  return found


def _is_float(dtype: Any) -> bool:
  return jax.dtypes.issubdtype(dtype, jax.numpy.floating)
