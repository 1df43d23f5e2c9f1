"""A model with simulated integers: quantizers placed on the traced function, its scales and ranges as plain trees.

Grids stand at the consumers: whatever a dot, a convolution, a residual sum, a mean or the output reads is rounded
there, one quantizer per tensor, however many sites read it. A tensor that other operations read (a sigmoid, a norm, a
gate) is rounded where it is made, if sites read it too, or if a layer of integers makes it: its kernel hands out codes.
Kernels are symmetric, by default narrow, one scale for each combination of output and batch axes, written in the axes
of their leaf: uses of slices of one leaf share its grid. Activations are affine, one scale per tensor, 0 always in the
range, so that after a ReLU the zero point is the lowest code. Max-pools, reshapes and transposes keep a tensor's name
and so its grid: rounding is monotone and commutes with them. Biases are rounded to int32 steps of s_x * s_w
(`quant.biases`).
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leanax import graph
from leanax.core.errors import UserError, unknown
from leanax.graph import Op
from leanax.graph.program import leaf_names
from quant import biases, calibration, checks
from quant.carrier import CARRIERS, Coded, product, serves
from quant.estimators import ste
from quant.estimators.base import to_parameter, to_scale
from quant.grid import Grid
from quant.plan import Plan, make_plan
from quant.policy import Explained
from quant.policy import policy as make_policy
from quant.quantizer import Quantizer
from quant.scales import at_sites, finite, kernel_start, leaf_grids

State = dict[str, Any]
Scales = dict[str, jax.Array]

_PRODUCTS = ("dot", "conv")


class Quantized(NamedTuple):
  """A quantized model; every member is a pure function.

  `qparams` (logarithms of trained scales) and `quant_state` are flat dicts by the name of a kernel's leaf
  (`Dense_0/kernel`) or of a tensor (`Dense_0/kernel:out`); inside a scan their arrays have a leading layer axis. A
  state knows the widths and levels of its grids, in its structure (`quant.labels`): a model of others refuses it.

  Attributes:
    init: `(variables, *inputs) -> (qparams, quant_state)`: shapes, and start values from these inputs.
    observe: `(quant_state, variables, *inputs, axis_name=None) -> (out, quant_state)`: the float model; ranges seen.
      What holds NaN or infinity, and what did not run, has a scale of NaN.
    freeze: `(qparams, quant_state, variables=None) -> (qparams, quant_state)`: puts the ranges seen so far into use.
      Those of the kernels are the ranges of the last `observe`; the variables are not needed. Outside of jit it refuses
      a scale of NaN, naming the tensor and the batch.
    apply: `(qparams, quant_state, variables, *inputs, axis_name=None, key=None) -> (out, quant_state)`: the simulated
      integers; `key` is of estimators that round at random while they train.
      With static scales it costs elementwise work only; `quant_state` is handed back as it came.
    grids: `(qparams, quant_state, variables, *inputs) -> {name: Grid}`: the grids that `apply` uses. A kernel's is for
      the leaf, as the variables hold it, by the leaf's name; where a site has another grid, by the site's. Of a kernel
      that is computed it is for the operand.
    explain: `(variables, *inputs) -> {site: (setting, rule, note)}`; the note tells what a file makes of the kernel.
    plan: `(variables, *inputs) -> Plan`: where the model is rounded; arguments may be shapes.
  """

  init: Callable[..., tuple[Scales, State]]
  observe: Callable[..., tuple[Any, State]]
  freeze: Callable[..., tuple[Scales, State]]
  apply: Callable[..., tuple[Any, State]]
  grids: Callable[..., dict[str, Grid]]
  explain: Callable[..., dict[str, Explained]]
  plan: Callable[..., Plan]

  def calibrate(self, variables: Any, batches: Iterable[Any]) -> tuple[Scales, State]:
    """Returns `(qparams, quant_state)` with the ranges of calibration batches in use: `init`, `observe` and `freeze`.

    Args:
      variables: of the float model.
      batches: an iterable of batches: an array, or a tuple of the model's inputs. One is in memory at a time.

    Raises:
      UserError: no batch, or one that holds NaN or infinity.
    """
    observe = jax.jit(lambda state, variables, *inputs: self.observe(state, variables, *inputs)[1])
    qparams: Scales = {}
    state: State = {}
    for place, inputs in enumerate(graph.inputs_of(batches, "calibrate with")):
      if place == 0:
        qparams, state = self.init(variables, *inputs)  # start values from the first batch
      state = observe(state, variables, *inputs)
    return self.freeze(qparams, state, variables)


def quantize(fn: Callable[..., Any], policy: Any, carrier: str = "float32", half: bool = False) -> Quantized:
  """Quantizes `fn(variables, *inputs) -> out`, a model of any framework, unchanged.

  Args:
    fn: the model; fold its batch norms first where the integers are to be exported.
    policy: a `Policy`, or what `quant.policy` makes one from, such as "w8a8 learned".
    carrier: the type in which products of codes are taken (`quant.carrier`): "float32", "bfloat16" or "int8". All give
      the same numbers; which is fast depends on the machine. Where only one operand is on a grid the product is one of
      floats, at the precision of the model's own equation.
    half: bfloat16 operands in all other products, those with cotangents and those of sites that are left in float.
      Scales, master weights and what lies between the products stay float32.

  Raises:
    UserError: an unknown carrier.
  """
  if carrier not in CARRIERS:
    raise unknown("carrier of codes", str(carrier), CARRIERS)
  chosen = make_policy(policy)
  plans: dict[Any, Plan] = {}

  def plan_of(variables: Any, *inputs: Any) -> Plan:
    leaves, tree = jax.tree.flatten((variables, inputs))
    key = (tree, tuple((leaf.shape, leaf.dtype) for leaf in map(_array, leaves)))
    if key not in plans:
      traced = graph.trace(fn, variables, *inputs)
      plans[key] = make_plan(traced, chosen)
      checks.types(traced, plans[key])
    return plans[key]

  def run(visit: Any, plan: Plan, extras: State, variables: Any, inputs: tuple[Any, ...], kinds: Any = ()) -> Any:
    names = plan.visited
    changed = graph.rewrite(fn, visit, select=lambda op: op.name in names or op.kind in kinds, tensors=plan.made)
    return changed(extras, variables, *inputs)

  def observe(quant_state: State, variables: Any, *inputs: Any, axis_name: str | None = None) -> tuple[Any, State]:
    plan = plan_of(variables, *inputs)
    if quant_state != {}:
      checks.state(plan, quant_state)
    starts = leaf_grids(plan, quant_state, variables, axis_name)
    visit = _observing(plan, axis_name, {key: starts.pop(key) for key in plan.branched})
    others = {name: entry for name, entry in quant_state.items() if name not in starts}
    state = others or calibration.unseen(plan, lambda: run(visit, plan, {}, variables, inputs)[1])
    out, state = run(visit, plan, calibration.before_batch(plan, state), variables, inputs)
    return out, {**calibration.after_batch(state), **starts}

  def init(variables: Any, *inputs: Any) -> tuple[Scales, State]:
    plan = plan_of(variables, *inputs)
    _, state = jax.jit(observe)({}, variables, *inputs)
    start = {name: jnp.ones(()) for name, quantizer in plan.quantizers.items() if quantizer.estimator.trains}
    calibration.refuse(state, every=False)
    qparams, state = _put_into_use(start, state)
    return qparams, {name: calibration.forgotten(plan, name, entry) for name, entry in state.items()}

  def apply(
    qparams: Scales, quant_state: State, variables: Any, *inputs: Any, axis_name: str | None = None, key: Any = None
  ) -> tuple[Any, State]:
    del axis_name  # no grid follows the data while it is in use
    plan = plan_of(variables, *inputs)
    checks.state(plan, quant_state)
    checks.scales(plan, qparams)
    used, kinds = _in_use(plan, qparams, quant_state, variables), _PRODUCTS if half else ()
    out, _ = run(_rounding(plan, carrier, half), plan, at_sites(plan, used, key), variables, inputs, kinds)
    return out, quant_state

  def grids(qparams: Scales, quant_state: State, variables: Any, *inputs: Any) -> dict[str, Grid]:
    plan = plan_of(variables, *inputs)
    checks.state(plan, quant_state)
    checks.scales(plan, qparams)
    used = _in_use(plan, qparams, quant_state, variables)
    found = {name: q.grid(used[name]) for name, q in plan.quantizers.items()}
    later = {site: q for (site, _), q in plan.at.items() if q.kernel and q.key != q.leaf}
    return {**found, **{name: found[q.key] for name, q in {**later, **plan.tensors}.items()}}

  def explain(variables: Any, *inputs: Any) -> dict[str, Explained]:
    return dict(plan_of(variables, *inputs).explained)

  return Quantized(init, observe, freeze, apply, grids, explain, plan_of)


def freeze(qparams: Scales, quant_state: State, variables: Any = None) -> tuple[Scales, State]:
  """Puts the grids of the ranges seen so far into use; trained scales start anew from them.

  Raises:
    UserError: a tensor held NaN or infinity, or was never seen; inside jit its scale is NaN instead.
  """
  del variables
  checks.alike(qparams, quant_state)
  calibration.refuse(quant_state)
  return _put_into_use(qparams, quant_state)


def _put_into_use(qparams: Scales, quant_state: State) -> tuple[Scales, State]:
  state = {name: {**entry, "used": entry["seen"]} for name, entry in quant_state.items()}
  return {name: to_parameter(state[name]["used"]["scale"]) for name in qparams}, state


def _array(leaf: Any) -> Any:
  return leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def _observing(plan: Plan, axis_name: str | None, branched: State) -> Any:
  """Returns the visitor that lets the float model run and writes down ranges, and the grids that they give.

  `branched` has the entries of kernels that only branches read, written down where one of them runs.
  """

  def visit(op: Op, inputs: tuple[Any, ...], extras: State) -> tuple[tuple[Any, ...], State]:
    updates: State = {}
    for index, x in enumerate(inputs):
      quantizer = plan.at.get((op.name, index))
      if quantizer is None or (op.name, index) not in plan.observed[quantizer.key]:
        continue
      if x.size == 0:
        raise UserError(f"{quantizer.key!r} has the shape {x.shape}: an empty tensor has no range to observe")
      old = extras.get(quantizer.key)
      if quantizer.kernel:
        if quantizer.leaf is not None:
          updates |= {key: branched[key] for key in (quantizer.key,) if key in branched}
          continue
        start = finite(kernel_start(quantizer, x, axis_name))
        updates[quantizer.key] = quantizer.entry(start, old)
      else:
        observer = quantizer.spec.make_observer()
        found = calibration.observed(observer, old, x, axis_name)
        start = quantizer.start(*observer.ends(found["stats"], quantizer.bits))
        updates[quantizer.key] = {**found, **quantizer.entry(start, old)}
    return op.bind(*inputs), updates

  return visit


def _in_use(plan: Plan, qparams: Scales, quant_state: State, variables: Any) -> State:
  """Returns the scale (and zero point) of each quantizer, trained scales replacing frozen ones, so that biases fit."""
  calibration.refuse_used(quant_state)
  trained = {name: {"scale": to_scale(parameter)} for name, parameter in qparams.items()}
  used = {name: {**entry["used"], **trained.get(name, {})} for name, entry in quant_state.items()}
  leaves = dict(zip(leaf_names(variables), jax.tree.leaves(variables), strict=True)) if plan.biases else {}
  return _on_estimators_grids(plan, biases.raised(plan, _on_estimators_grids(plan, used), leaves))


def _on_estimators_grids(plan: Plan, used: State) -> State:
  """Returns the grids in use with the scales that estimators make of the trained ones."""
  maps = {name: q.estimator.scale for name, q in plan.quantizers.items() if q.estimator.trains}
  return {name: {**e, "scale": maps[name](e["scale"])} if name in maps else e for name, e in used.items()}


def _rounding(plan: Plan, carrier: str, half: bool) -> Any:
  """Returns the visitor that rounds what each site reads, or makes for other readers, too, and each bias.

  Products of codes are taken in the carrier.
  """

  def visit(op: Op, inputs: tuple[Any, ...], extras: State) -> tuple[tuple[Any, ...], State] | None:
    if half and op.kind in _PRODUCTS and op.name not in plan.visited:
      return None if op.frozen else (_in_bfloat16(op, inputs), {})
    values = list(inputs)
    bias = plan.biases.get(op.name)
    if bias is not None:
      values[bias.operand] = biases.rounded(values[bias.operand], bias, extras)
    grids = [plan.at.get((op.name, index)) for index in range(len(inputs))]
    used = [extras[op.name if q.kernel else q.key] if q is not None else {} for q in grids]
    rounded = [operand.tensor in plan.made for operand in op.inputs]
    operands = zip(grids, inputs, used, rounded, strict=True)
    read = [(q, x, scale, before) for q, x, scale, before in operands if q is not None]
    whole = op.kind in _PRODUCTS and all(q is not None and q.format == "integer" for q in grids)
    coded = [_coded(*one) for one in read] if whole else []
    if coded and serves(op, [one.scale for one in coded]):
      outputs: tuple[Any, ...] = (product(op, coded, carrier, half),)
    else:
      for index, quantizer in enumerate(grids):
        if quantizer is not None and (op.kind == "tensor" or not rounded[index]):
          values[index] = _round(quantizer, inputs[index], used[index])
      outputs = op.bind(*values)
    return outputs, {}

  return visit


def _in_bfloat16(op: Op, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
  """Returns a float product of operands rounded to bfloat16, in its own type."""
  if any(operand.dtype != jnp.float32 for operand in op.inputs):
    return op.bind(*inputs)
  kind = jnp.dtype(jnp.bfloat16)
  (out,) = op.bind(*(x.astype(kind) for x in inputs), preferred_element_type=kind)
  return (out.astype(op.outputs[0].dtype),)


def _round(quantizer: Quantizer, x: jax.Array, used: State) -> jax.Array:
  """Returns one operand on its grid."""
  return quantizer.estimator.values(quantizer.place(x, used))


def _coded(quantizer: Quantizer, x: jax.Array, used: State, rounded: bool) -> Coded:
  """Returns the codes of one operand, less the zero point; one that is `rounded` has had its gradient's rule."""
  placed = quantizer.place(x, used)
  steps = (ste() if rounded else quantizer.estimator).steps(placed)
  return Coded(steps, placed.scale, None if quantizer.kernel else placed.zero_point, quantizer.largest)
