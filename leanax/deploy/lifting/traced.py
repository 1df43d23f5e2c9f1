"""A traced function for the lifter: its live equations, their readers, constants, and slices to run."""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import path_name
from leanax.deploy.lifting.views import View
from leanax.deploy.stand_ins import distinct, stand_in
from leanax.graph.live import read_by_sites
from leanax.graph.program import Body, Node, leaf_names
from leanax.graph.versions import rebind

_AFFINE = ("add", "sub", "mul", "div")
_QUICKLY = {
  "xla_backend_optimization_level": 0,
  "xla_cpu_parallel_codegen_split_count": 1,
}  # run once, so compiled once
_OURS = (Path(__file__).parents[1], Path(graph.__file__).parent)


class Traced:
  """A function of (variables, *inputs) traced at a batch of 2, with the variables' values at hand.

  Without `numbers` variables may be shapes; numbers stand for what is made of them (`stand_ins`).

  Attributes:
    nodes: the equations that the outputs depend on and that depend on the inputs, in order.
    inputs: numbers of the inputs' values, by name.
    outputs: numbers of the outputs' values, by name.
    uses: how often each value is read, an output once more.
    views: values that the function does not have, by their numbers, which are negative.
    holds: values whose numbers those without a name, such as views, hold in another order of axes.
  """

  BATCH = 2  # not 1, so that the batch is told apart from other axes

  def __init__(self, fn: Callable[..., Any], variables: Any, example: Any, numbers: bool = True) -> None:
    given = example if type(example) is tuple else (example,)
    examples = jax.tree.map(self._example, given)
    for name, leaf in zip(leaf_names(variables), jax.tree.leaves(variables), strict=True):
      if numbers and isinstance(leaf, jax.ShapeDtypeStruct):
        raise UserError(f"the variable {name!r} is a shape without numbers; a file needs its array")
    self.graph = graph.trace(
      graph.highest_precision(graph.unrolled(fn)), variables, *examples
    )  # compared with a reference
    body = self.graph.program.body
    self.views: dict[int, View] = {}
    self.holds: dict[int, int] = {}
    self._known, self._numbers = _constants(body), numbers
    leaves = dict(zip(body.inputs, jax.tree.leaves(variables), strict=False))
    self._known |= leaves if numbers else {at: distinct(leaf.shape, leaf.dtype, at) for at, leaf in leaves.items()}
    self._producer = {number: node for node in self.graph.flat for number in node.outputs}
    self.inputs = dict(zip(input_names(given), body.inputs[len(leaves) :], strict=True))
    self.outputs = self._ends(body)
    self.nodes = self._live()
    analysis = self.graph.analysis
    read = read_by_sites(analysis)[1]
    self._tensors = {base: name for base, name in analysis.tensors.items() if base in read}
    self._tensors |= {analysis.value(one.value).base: name for name, one in graph.exposed(self.graph, ()).items()}
    self.uses = Counter(n for node in self.nodes for n in self.data(node)) + Counter(self.outputs.values())

  @functools.cached_property
  def bounded(self) -> dict[str, str]:
    """The functions of activations whose range is known, by the activation's name."""
    return graph.bounded(self.graph)

  def _example(self, leaf: Any) -> jax.ShapeDtypeStruct:
    shape = tuple(leaf.shape) if hasattr(leaf, "shape") else np.shape(leaf)
    if hasattr(leaf, "dtype") and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      raise UserError("an example input is a random key; a file draws no random numbers: lift a function without them")
    if len(shape) < 1:
      raise UserError(f"an example input needs a batch axis; its shape is {shape}")
    return jax.ShapeDtypeStruct((self.BATCH, *shape[1:]), getattr(leaf, "dtype", np.float32))

  def _ends(self, body: Body) -> dict[str, int]:
    """Returns the outputs' numbers by name: "output", or the paths in the tree that the function returns."""
    names = [name or "output" for name in self.graph.program.out_names]
    for name, ref in zip(names, body.outputs, strict=True):
      if not self.is_data(ref):
        who = "it" if len(names) == 1 else f"its output {name!r}"
        raise UserError(f"the function has no layer to lift: {who} gives what does not depend on its input")
      shape = tuple(self.aval(self.graph.resolve(ref)).shape)
      if shape[:1] != (self.BATCH,):
        raise UserError(f"{name!r}, which the function returns, has no batch axis: its shape is {shape}")
    return {name: self.graph.resolve(ref) for name, ref in zip(names, body.outputs, strict=True)}

  def _live(self) -> list[Node]:
    found, todo = {}, list(self.outputs.values())
    while todo:
      node = self._producer.get(todo.pop())
      if node is not None and node.index not in found:
        found[node.index] = node
        todo.extend(self.data(node))
    return [node for node in self.graph.flat if node.index in found]

  def is_data(self, ref: Any) -> bool:
    """Returns whether a value depends on the input, as one without entries does not."""
    value = self.graph.analysis.value(ref)
    return value.data and 0 not in value.aval.shape

  def data(self, node: Node) -> list[int]:
    """Returns the numbers of the operands that depend on the input."""
    return [self.graph.resolve(ref) for ref in node.inputs if self.is_data(ref)]

  def aval(self, number: int) -> Any:
    if number in self.views:
      return jax.ShapeDtypeStruct(self.views[number].shape, self.aval(self.views[number].number).dtype)
    return self.graph.program.avals[number]

  def view(self, number: int, shape: Sequence[int], see: Callable[[np.ndarray], np.ndarray]) -> int:
    """Adds a view of a value; returns its number."""
    new = -len(self.views) - 1
    self.views[new] = View(number, tuple(shape), see)
    return new

  def base(self, number: int) -> int:
    """Returns the number of the value of the function that a value is a view of, or its own."""
    while number in self.views:
      number = self.views[number].number
    return number

  def seen(self, number: int, values: Mapping[int, np.ndarray]) -> np.ndarray:
    """Returns a value or a view, given the value that it is a view of."""
    if number not in self.views:
      return values[number]
    return self.views[number].see(self.seen(self.views[number].number, values))

  def site(self, node: Node) -> str | None:
    """Returns the name of the operation that ends in this equation, if there is one."""
    site = self.graph.analysis.at.get(node.index)
    return None if site is None else site.op.name

  def tensor(self, number: int) -> str | None:
    """Returns the activation's name, if an operation that the output depends on reads it, or makes it for others.

    A view has the name of what it is made of, or of the value whose numbers it holds.
    """
    while number in self.holds or number in self.views:
      number = self.holds[number] if number in self.holds else self.views[number].number
    return self._tensors.get(self.graph.analysis.value(number).base)

  def constant(self, ref: Any) -> np.ndarray:
    """Returns the value of an operand that does not depend on the input."""

    def real(ref: Any) -> np.ndarray:
      with _on_cpu():
        return np.asarray(self._evaluate(ref, {}))

    return real(ref) if self._numbers else stand_in(self.graph, self._producer, ref, real)

  def run(self, slices: Sequence[tuple[Sequence[int], Mapping[int, np.ndarray]]]) -> list[list[np.ndarray]]:
    """Returns the values of targets for given values: the slices between them, in one program.

    Args:
      slices: for each the numbers of its targets, and values of the function, not views, by their numbers.
    """
    held = {number: value for number, value in self._known.items() if hasattr(value, "shape")}

    def program(held: dict[int, Any], givens: list[dict[int, Any]]) -> list[list[Any]]:
      known, self._known = self._known, {**self._known, **held}
      try:
        made = []
        for (targets, _), given in zip(slices, givens, strict=True):
          env = dict(given)
          made.append([self._evaluate(self.base(target), env) for target in targets])
        return made
      finally:
        self._known = known

    with _on_cpu():
      found = jax.jit(program, compiler_options=_QUICKLY)(held, [dict(given) for _, given in slices])
    return [
      [self.seen(n, {self.base(n): np.asarray(value)}) for n, value in zip(targets, values, strict=True)]
      for (targets, _), values in zip(slices, found, strict=True)
    ]

  def _evaluate(self, ref: Any, env: dict[int, Any]) -> Any:
    """Returns a value, given those in `env`; what is computed for it is added, there or to what is known always."""
    todo = [ref]
    while todo:  # not by recursion: a network may have thousands of equations
      number = self.graph.resolve(todo[-1])
      node = None if self._at_hand(number, env) else self._producer[number]
      missing = [] if node is None else [one for one in node.inputs if not self._at_hand(self.graph.resolve(one), env)]
      if node is not None and not missing:
        values = rebind(node.eqn, tuple(self._value(self.graph.resolve(one), env) for one in node.inputs))
        (env if self.is_data(number) else self._known).update(zip(node.outputs, values, strict=True))
      if missing:
        todo += missing
      else:
        todo.pop()
    return self._value(self.graph.resolve(ref), env)

  def _at_hand(self, ref: Any, env: Mapping[int, Any]) -> bool:
    return isinstance(ref, jex.Literal) or ref in env or ref in self._known or 0 in self.aval(ref).shape

  def _value(self, ref: Any, env: Mapping[int, Any]) -> Any:
    if isinstance(ref, jex.Literal):
      return ref.val
    if ref in env:
      return env[ref]
    if 0 in self.aval(ref).shape:
      return np.zeros(self.aval(ref).shape, self.aval(ref).dtype)
    known = self._known[ref]
    if isinstance(known, jax.core.Tracer) or jnp.issubdtype(known.dtype, jax.dtypes.extended):  # such as a random key
      return known
    return np.asarray(known)

  def leaves(self, node: Node) -> list[str]:
    """Returns the names of the variables' leaves that an equation's constant operands are made of."""
    found = sorted(set().union(*(self.graph.analysis.value(ref).leaves for ref in node.inputs)))
    return [self.graph.program.leaves[leaf] for leaf in found]

  def in_norm(self, node: Node) -> bool:
    """Returns whether an equation that reads variables is part of a batch norm: it or a next one has their root."""
    if not self.leaves(node):
      return False
    for _ in range(4):  # x - mean, * scale / sqrt(variance + epsilon), + bias, however they are spelled
      if any(self._rooted(ref) for ref in node.inputs if not self.is_data(ref)):
        return True
      after = [n for n in self.nodes if set(self.data(n)) & set(node.outputs)]
      if len(after) != 1 or after[0].primitive not in _AFFINE:
        return False
      node = after[0]
    return False

  def _rooted(self, ref: Any) -> bool:
    node = self._producer.get(self.graph.resolve(ref)) if not isinstance(self.graph.resolve(ref), jex.Literal) else None
    if node is None:
      return False
    root = node.primitive in ("sqrt", "rsqrt") and bool(self.leaves(node))
    return root or any(self._rooted(inner) for inner in node.inputs)

  def _behind(self, node: Node) -> str:
    """Returns " behind SITE" for the nearest named operation before an equation whose line is not known."""
    todo, seen = self.data(node), set()
    while todo:
      before = self._producer.get(todo.pop(0))
      if before is not None and before.index not in seen:
        seen.add(before.index)
        if name := self.site(before):
          return f" behind {name!r}"
        todo += self.data(before)
    return ""

  def refuse(self, node: Node, why: str) -> UserError:
    """Returns the error for an equation that cannot be lifted: its primitive, its line in the user's code, why.

    The function that this line calls is named ("hard_silu"), and the layer, where the user's framework tells.
    """
    leaves, calls = self.leaves(node), self._calls(node)
    called, line = next(((one, line) for one in calls if (line := _line(one))), (node, self._behind(node)))
    name = "" if called is node else str(called.eqn.params.get("name", ""))
    layer = next(filter(None, (str(one.eqn.source_info.name_stack) for one in calls)), "")
    parts = [f"part of {name!r}"] if name.strip("_") not in ("", node.primitive) else []
    parts += [f"in {layer!r}"] if "/" in layer else []
    reads = f" (it reads {', '.join(map(repr, leaves))})" if leaves and node.primitive in _AFFINE else ""
    about = f" ({', '.join(parts)})" if parts else ""
    return UserError(f"cannot lift {node.primitive!r}{line}{reads}: {why}{about}")

  def _calls(self, node: Node) -> list[Node]:
    """Returns the equation, and outwards the calls of functions that it is part of."""
    found = [node]
    while node.home is not None:
      outer = next((one for one in self.graph.program.nodes if any(b is node.home for b in one.bodies)), None)
      if outer is None or outer in found:
        break
      node = outer
      found.append(node)
    return found


def input_names(given: tuple[Any, ...]) -> list[str]:
  """Returns "input" and "input_1" for a tuple of arrays, and the paths of arrays in trees, such as a dict's keys."""
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(given)]
  names = [path_name(path[1:] if len(given) == 1 else path) for path in paths]
  plain = ["input", *(f"input_{place}" for place in range(1, len(names)))]
  return plain if all(not name or name.isdigit() for name in names) else names


def _constants(body: Body) -> dict[int, Any]:
  """Returns the constants of a body and of the bodies inside it."""
  found = dict(body.consts)
  for node in body.nodes:
    for inner in node.bodies:
      found.update(_constants(inner))
  return found


def _on_cpu() -> Any:
  """Returns the context in which slices run: on the CPU, where float32 products are float32 products."""
  try:
    return jax.default_device(jax.local_devices(backend="cpu")[0])
  except RuntimeError:
    return nullcontext()


def _line(node: Node) -> str:
  """Returns " at file:line" for the innermost frame of the user's own code; empty where there is none."""
  trace = getattr(node.eqn.source_info, "traceback", None)
  for frame in getattr(trace, "frames", ()):
    path = Path(frame.file_name)
    if "site-packages" not in path.parts and not any(path.is_relative_to(ours) for ours in _OURS):
      return f" at {path.name}:{frame.line_num}"
  return ""
