"""A part of a function, between named tensors, as a function of its own."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core as jex

from leanax.core.errors import UserError, unknown
from leanax.graph.emit import Emitter, Replacement
from leanax.graph.live import calls, needed
from leanax.graph.program import Missing, leaf_name, read, touched
from leanax.graph.shapes import leaves_by_name, struct
from leanax.graph.sites import Analysis
from leanax.graph.taps import outermost_makers, watched

Block = Callable[[Any, Mapping[str, Any]], dict[str, Any]]


def slice(
  fn: Callable[..., Any], variables: Any, inputs: Sequence[str], outputs: Sequence[str], *example: Any
) -> Block:
  """Returns the part of a function between named tensors: `block(variables, tensors) -> tensors`, both by name.

  Given the tensors that the whole function has at `inputs`, it returns those that the whole has at `outputs`. It is a
  plain function for `jit`, `grad` and `vmap`, and takes another batch size than the example's where the function does.

  Args:
    fn: `fn(variables, *example) -> out`.
    variables: a tree of arrays or shapes. The block takes the same tree, or one that holds the leaves that it reads.
    inputs: names of activations or operations, as of `graph.taps`, where the part begins; "input", "input_1" and so on
      are the function's own inputs.
    outputs: names where it ends.
    *example: the function's inputs, or their shapes.

  Raises:
    UserError: an unknown name, or one inside a scan, a branch, a loop or a custom rule; outputs that depend on an input
      of the function by a way round the part's inputs; an input that no output depends on.
  """
  for what, names in (("inputs", inputs), ("outputs", outputs)):
    if isinstance(names, str) or not names or len(set(names)) != len(names):
      raise UserError(f"the {what} of a slice are {names!r}; expected a list of different names, one at least")
  shapes = jax.tree.map(struct, (variables, example))
  first = _Part(Analysis(read(fn, shapes[0], *shapes[1])), inputs, outputs)

  def block(variables: Any, tensors: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(tensors, Mapping) or set(tensors) != set(inputs):
      given = list(tensors) if isinstance(tensors, Mapping) else tensors
      raise UserError(f"the tensors are {given!r}; expected a dict of {', '.join(map(repr, inputs))}")
    given = leaves_by_name(variables)
    whole = jax.tree_util.tree_map_with_path(lambda path, leaf: _like(leaf, leaf_name(path), given), shapes[0])
    batch = _batched(shapes[1], first, tensors)
    part = _Part(Analysis(read(fn, whole, *batch)), inputs, outputs)
    for name in inputs:
      aval, tensor = part.analysis.program.avals[part.values[name]], jax.typeof(tensors[name])
      if (aval.shape, aval.dtype) != (tensor.shape, tensor.dtype):
        raise UserError(
          f"the tensor {name!r} is {tensor.str_short()}; expected {aval.str_short()}, or another size of its first axis"
        )
    return part.run(given, tensors)

  return block


def _like(leaf: Any, name: str, given: Mapping[str, Any]) -> Any:
  """Returns the shape of a leaf in the type of the given one; the caller may have cast the variables."""
  now = given.get(name)
  if now is None:
    return leaf
  if jax.numpy.shape(now) != leaf.shape:
    raise UserError(f"{name!r} has the shape {jax.numpy.shape(now)}; expected {leaf.shape}")
  return struct(now)


def _batched(example: Any, first: "_Part", tensors: Mapping[str, Any]) -> Any:
  """Returns the example's shapes with as many examples as the tensors hold."""
  batch = next((leaf.shape[0] for leaf in jax.tree.leaves(example) if leaf.shape), 0)
  for name, tensor in tensors.items():
    before, now = first.analysis.program.avals[first.values[name]].shape, jax.numpy.shape(tensor)
    if len(before) != len(now) or before[1:] != now[1:] or before == now or not before[0]:
      continue
    size, rest = divmod(batch * now[0], before[0])
    if not rest:
      return jax.tree.map(functools.partial(_resized, batch, size), example)
  return example


def _resized(batch: int, size: int, x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) if x.shape[:1] == (batch,) else x


class _Start(NamedTuple):
  """The place where a tensor is put in: the number of an input of the function, or a node and which of its results."""

  number: int
  node: int | None


class _Part:
  """A part of a program.

  Attributes:
    values: the number of each input's value, by name.
    starts: where they are put in.
    live: the nodes to evaluate.
  """

  def __init__(self, analysis: Analysis, inputs: Sequence[str], outputs: Sequence[str]):
    program = analysis.program
    self.analysis, self.outputs = analysis, outputs
    self.arguments = program.body.inputs[len(program.leaves) :]
    self.makers = outermost_makers(analysis)
    self.values = {name: _number(analysis, name, self.arguments) for name in inputs}
    self.starts = {name: self._start(name, number) for name, number in self.values.items()}
    self.watch = watched(analysis, outputs)
    for number, names in self.watch.items():
      if number in self.makers:
        self._check(names[0], self.makers[number])
    ends = [self.makers[number].index for number in self.watch if number in self.makers]
    replaced = {start.node: Replacement((), tuple) for start in self.starts.values() if start.node is not None}
    self.opened = touched(program, {*calls(program.body), *replaced, *ends})
    self.live, self.read = needed(analysis, replaced, self.opened, list(self.watch), effects=False)
    self._refuse()

  def _start(self, name: str, number: int) -> _Start:
    """Returns the innermost place where a tensor can be put in, so that whatever else is made beside it stays."""
    if number in self.analysis.program.body.inputs:
      return _Start(number, None)
    same = [n for n in self.makers if self.analysis.resolve(n) == number]
    same.sort(key=lambda n: self.makers[n].index)
    free = [n for n in same if _reason(self.analysis, self.makers[n]) is None]
    if not free:
      self._check(name, self.makers[same[-1]])
    return _Start(free[0], self.makers[free[0]].index)

  def _check(self, name: str, node: Any) -> None:
    why = _reason(self.analysis, node)
    if why:
      raise UserError(f"a slice cannot begin or end at {name!r}: it is {why}")

  def _refuse(self) -> None:
    analysis, given = self.analysis, {start.number: name for name, start in self.starts.items()}
    outputs = ", ".join(map(repr, self.outputs))
    for place, number in enumerate(self.arguments):
      if number in self.read and number not in given:
        around = "input" if place == 0 else f"input_{place}"
        raise UserError(
          f"{outputs} depend on {around!r} by a way round {', '.join(map(repr, self.starts))}; expected inputs that "
          "cut every way"
        )
    for name, (number, index) in self.starts.items():
      if (number not in self.read) if index is None else (index not in self.live):
        raise UserError(f"the input {name!r} of the slice is read by nothing that {outputs} depend on")
      beside = () if index is None else [n for n in analysis.program.nodes[index].outputs if n != number]
      if any(n in self.read or analysis.resolve(n) in self.read for n in beside):
        raise UserError(f"a slice cannot begin at {name!r}: what makes it makes another result, which is read too")

  def run(self, given: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the outputs by name."""
    program = self.analysis.program
    values: list[Any] = [given.get(name, Missing(name)) for name in program.leaves]
    for name, number, value in zip(program.leaves, program.body.inputs, values, strict=False):
      if isinstance(value, Missing) and number in self.read:
        raise UserError(f"the slice reads {name!r}, which the variables do not hold")
    put = {start.number: tensors[name] for name, start in self.starts.items()}
    values += [put.get(number, Missing(f"input {place}")) for place, number in enumerate(self.arguments)]

    def results(index: int) -> Callable[..., tuple[Any, ...]]:
      node = program.nodes[index]
      return lambda: tuple(put.get(number, Missing(f"a result of {node.primitive}")) for number in node.outputs)

    edits = {
      start.node: Replacement((), results(start.node)) for start in self.starts.values() if start.node is not None
    }
    emitter = Emitter(self.analysis, edits=edits, live=self.live, touched=self.opened, watch=self.watch)
    found = emitter.run(program.body, values, {})[1]
    return {name: found[name] for name in self.outputs}


def _number(analysis: Analysis, name: str, arguments: Sequence[int]) -> int:
  """Returns the value that a name stands for, looked through calls."""
  names = {"input" if place == 0 else f"input_{place}": number for place, number in enumerate(arguments)}
  names |= {tensor: number for number, tensor in analysis.tensors.items()}
  names |= {site.op.name: site.node.outputs[0] for site in analysis.sites if site.node is not None}
  if name not in names:
    raise unknown("activation or operation", name, names)
  number = analysis.resolve(names[name])
  if isinstance(number, jex.Literal):
    raise UserError(f"a slice cannot begin at {name!r}: it is a constant")
  return number


def _reason(analysis: Analysis, node: Any) -> str | None:
  """Returns why a tensor cannot be put in, or read, where a node makes it."""
  scope = analysis.scopes[node.index]
  return scope.frozen or ("inside a scan" if scope.scans else "inside a branch" if scope.branches else None)
