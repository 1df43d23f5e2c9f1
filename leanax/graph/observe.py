"""Statistics of a function's tensors over many batches, without touching the model."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError, unknown
from leanax.graph.emit import Emitter
from leanax.graph.kinds import Statistic
from leanax.graph.ops import Op
from leanax.graph.program import read, touched
from leanax.graph.rows import refusal, rows
from leanax.graph.sites import Analysis, Site
from leanax.graph.taps import outermost_makers, watched

What = Mapping[str, Sequence[Statistic]]
States = dict[str, dict[str, Any]]


class Observer(NamedTuple):
  """Functions that gather statistics, for a loop of one's own; all but `value` may be jitted.

  Attributes:
    init: `init(variables, *inputs) -> states` before the first batch; arguments may be shapes.
    update: `update(states, variables, *inputs) -> states` after one more batch.
    merge: `merge(states, states) -> states` of disjoint sets of batches.
    value: `value(states) -> {name: {statistic: value}}`.
  """

  init: Callable[..., States]
  update: Callable[..., States]
  merge: Callable[[States, States], States]
  value: Callable[[States], dict[str, dict[str, Any]]]


def observe(fn: Callable[..., Any], variables: Any, batches: Iterable[Any], what: What) -> dict[str, dict[str, Any]]:
  """Returns statistics over batches: `{name: {statistic: value}}`.

  The memory does not grow with the number of batches. Their order, and how examples are split over batches and devices,
  do not matter: exactly for counts and extrema, to about 1e-6 for sums; a statistic that is `ordered` is the exception.
  Each new shape of a batch is compiled once.

  Args:
    fn: `fn(variables, *inputs) -> out`; its mode (training or evaluation) is the one that is observed.
    variables: a tree of arrays.
    batches: an iterable of batches: an array, or a tuple of the function's inputs.
    what: statistics by the name of what they read: an activation ("Conv_0/kernel:out", as `graph.taps` has it), or a
      dot or convolution with a kernel ("Conv_0/kernel"), of which the rows are read that it multiplies (`graph.rows`).
      Inside a scan every layer has values of its own, along a leading axis.

  Raises:
    UserError: an unknown name, one inside a while loop or a custom rule, or no batch.
  """
  observer = observing(fn, what)
  update = jax.jit(observer.update, donate_argnums=0)
  states = None
  for inputs in inputs_of(batches):
    states = observer.init(variables, *inputs) if states is None else states
    states = update(states, variables, *inputs)
  return observer.value(states or {})


def inputs_of(batches: Iterable[Any], purpose: str = "observe") -> Iterator[tuple[Any, ...]]:
  """Yields the inputs of a function from each batch: an array, or a tuple of inputs; `purpose` is for errors.

  Raises:
    UserError: no iterable of batches, or an empty one.
  """
  if hasattr(batches, "dtype") or isinstance(batches, str | Mapping) or not isinstance(batches, Iterable):
    raise UserError(f"the batches are a {type(batches).__name__}; expected an iterable of batches, such as [x]")
  empty = True
  for batch in batches:
    empty = False
    yield batch if isinstance(batch, tuple) else (batch,)
  if empty:
    raise UserError(
      f"there are no batches to {purpose}; expected one at least (an iterator gives its batches only once)"
    )


def observing(fn: Callable[..., Any], what: What, axis_name: str | None = None) -> Observer:
  """Returns the functions behind `observe`.

  Args:
    fn: `fn(variables, *inputs) -> out`.
    what: as of `observe`.
    axis_name: the device axis, inside `shard_map` or `pmap`, over which each batch is split in equal parts.
  """
  statistics = _checked(what)

  def run(step: Callable[[str, Any, Any], Any], states: States, variables: Any, *inputs: Any) -> States:
    """Returns the states after `step(name, x, state)` of everything that is read."""
    analysis = Analysis(read(fn, variables, *inputs))
    program = analysis.program
    chosen = {site.node.index: site for site in analysis.sites[:-1] if site.op.name in statistics}
    chosen = {index: site for index, site in chosen.items() if _has_rows(site)}
    sites = {site.op.name for site in chosen.values()}
    _check_readers(statistics, sites, analysis)
    watch = watched(analysis, [name for name in statistics if name not in sites], operations=False)

    def visit(op: Op, operands: tuple[Any, ...], extras: States) -> Any:
      x = _numbers(op.name, operands[1 - (op.kernel_index or 0)])
      return op.bind(*operands), {op.name: step(op.name, rows(op, x), extras.get(op.name))}

    def record(name: str, x: Any, extras: States) -> Any:
      return step(name, _numbers(name, x), extras.get(name))

    makers = outermost_makers(analysis)
    opened = touched(program, [*chosen, *(makers[number].index for number in watch if number in makers)])
    emitter = Emitter(analysis, visit, chosen, touched=opened, watch=watch, record=record)
    return emitter.run(program.body, jax.tree.leaves((variables, inputs)), states)[1]

  def init(variables: Any, *inputs: Any) -> States:
    seen: dict[str, jax.ShapeDtypeStruct] = {}

    def first(name: str, x: Any, state: Any) -> Any:
      seen[name] = jax.ShapeDtypeStruct(x.shape, x.dtype)
      return {one.name: one.init(seen[name]) for one in statistics[name]}

    stacked = jax.eval_shape(lambda *args: run(first, {}, *args), variables, *inputs)
    starts = {name: {one.name: one.init(x) for one in statistics[name]} for name, x in seen.items()}
    return jax.tree.map(lambda start, like: jnp.broadcast_to(start, like.shape).copy(), starts, stacked)

  def update(states: States, variables: Any, *inputs: Any) -> States:
    def more(name: str, x: Any, state: Any) -> Any:
      for one in statistics[name]:
        _check_state(name, one, x, state[one.name])
      return {one.name: one.update(state[one.name], x, axis_name) for one in statistics[name]}

    return run(more, states, variables, *inputs)

  def merge(a: States, b: States) -> States:
    def both(name: str, one: Statistic) -> Any:
      if one.merge is None:
        raise UserError(f"{one.name!r} of {name!r} depends on the order of the batches; it cannot be merged")
      return one.merge(a[name][one.name], b[name][one.name])

    return {name: {one.name: both(name, one) for one in ones} for name, ones in statistics.items()}

  def value(states: States) -> dict[str, dict[str, Any]]:
    return {name: {one.name: one.value(states[name][one.name]) for one in ones} for name, ones in statistics.items()}

  return Observer(init, update, merge, value)


def _checked(what: What) -> dict[str, tuple[Statistic, ...]]:
  if not isinstance(what, Mapping) or not what:
    raise UserError(f"what to observe is {what!r}; expected a dict of statistics by the name of a tensor or a site")
  for name, ones in what.items():
    if not isinstance(ones, list | tuple) or not ones or not all(isinstance(one, Statistic) for one in ones):
      raise UserError(f"the statistics of {name!r} are {ones!r}; expected a list, such as [graph.extrema()]")
    names = [one.name for one in ones]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice:
      raise UserError(f"{name!r} has two statistics named {twice!r}; give one another name (dataclasses.replace)")
  return {name: tuple(ones) for name, ones in what.items()}


def _has_rows(site: Site) -> bool:
  """Returns whether the site's rows can be read; refuses one that is named and has none."""
  op, why = site.op, refusal(site.op) or (f"it is {site.op.frozen}" if site.op.frozen else "")
  if why:
    tensors = ", ".join(repr(operand.tensor) for operand in op.inputs if operand.tensor) or "none"
    raise UserError(f"{op.name!r} cannot be observed: {why}; the tensors that it reads are {tensors}")
  return True


def _check_readers(statistics: Mapping[str, Sequence[Statistic]], sites: set[str], analysis: Analysis) -> None:
  tensors = set(analysis.tensors.values())
  for name, ones in statistics.items():
    if name not in sites | tensors:
      products = [site.op.name for site in analysis.sites[:-1] if not refusal(site.op)]
      raise unknown("activation or product", name, [*tensors, *products])
    wrong = next((one.name for one in ones if one.rows and name not in sites), None)
    if wrong:
      raise UserError(f"{wrong!r} reads the rows of a site, and {name!r} is a tensor; expected a dot or a convolution")


def _check_state(name: str, one: Statistic, x: Any, state: Any) -> None:
  """Refuses a tensor of another size than before along an axis that the statistic keeps; it might broadcast."""
  expected = jax.eval_shape(lambda: one.init(jax.ShapeDtypeStruct(x.shape, x.dtype)))
  shapes = [[leaf.shape for leaf in jax.tree.leaves(tree)] for tree in (expected, state)]
  if shapes[0] != shapes[1]:
    raise UserError(
      f"{one.name!r} of {name!r} cannot take a batch whose shape there is {x.shape}: an axis that it keeps has another "
      "size than in the batches before"
    )


def _numbers(name: str, x: Any) -> jax.Array:
  """Returns a tensor in float32, without a gradient."""
  if not (jnp.issubdtype(x.dtype, jnp.number) or x.dtype == bool) or jnp.issubdtype(x.dtype, jnp.complexfloating):
    raise UserError(f"{name!r} holds {x.dtype}; expected real numbers")
  return jax.lax.stop_gradient(x).astype(jnp.float32)
