"""A traced function for the lifter: its live equations, their readers, constants, and slices to run."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend import core as jex

from leanax import graph
from leanax.core.errors import UserError
from leanax.deploy.stand_ins import distinct, stand_in
from leanax.graph.live import read_by_sites
from leanax.graph.program import Body, Node, leaf_names
from leanax.graph.versions import rebind

_AFFINE = ("add", "sub", "mul", "div")
_OURS = (Path(__file__).parent, Path(graph.__file__).parent)


class Traced:
  """A function of (variables, x) traced at a batch of 2, with the variables' values at hand.

  Without `numbers` variables may be shapes; numbers stand for what is made of them (`stand_ins`).

  Attributes:
    nodes: the equations that the output depends on and that depend on the input, in order.
    input: number of the input's value.
    output: number of the output's value.
    uses: how often each value is read.
  """

  BATCH = 2  # not 1, so that the batch is told apart from other axes

  def __init__(self, fn: Callable[..., Any], variables: Any, example: Any, numbers: bool = True) -> None:
    if not hasattr(example, "shape") and any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(example)):
      raise UserError(f"an example input is one array, because a file has one input; got a {type(example).__name__}")
    shape = tuple(np.shape(example)) if not hasattr(example, "shape") else tuple(example.shape)
    if len(shape) < 2:
      raise UserError(f"an example input needs a batch axis and at least one more; its shape is {shape}")
    for name, leaf in zip(leaf_names(variables), jax.tree.leaves(variables), strict=True):
      if numbers and isinstance(leaf, jax.ShapeDtypeStruct):
        raise UserError(f"the variable {name!r} is a shape without numbers; a file needs its array")
    dtype = getattr(example, "dtype", np.float32)
    x = jax.ShapeDtypeStruct((self.BATCH, *shape[1:]), dtype)
    self.graph = graph.trace(graph.highest_precision(fn), variables, x)  # it is compared with a reference
    body = self.graph.program.body
    if len(body.outputs) != 1:
      raise UserError(f"the function returns {len(body.outputs)} arrays; lift one that returns its logits alone")
    self._known, self._numbers = _constants(body), numbers
    leaves = dict(zip(body.inputs, jax.tree.leaves(variables), strict=False))
    self._known |= leaves if numbers else {at: distinct(leaf.shape, leaf.dtype, at) for at, leaf in leaves.items()}
    self._producer = {number: node for node in self.graph.flat for number in node.outputs}
    self.input, self.output = body.inputs[len(leaves)], self.graph.resolve(body.outputs[0])
    self.nodes = self._live()
    self._read = read_by_sites(self.graph.analysis)[1]
    self.uses = Counter(n for node in self.nodes for n in self.data(node))

  def _live(self) -> list[Node]:
    found, todo = {}, [self.output]
    while todo:
      node = self._producer.get(todo.pop())
      if node is not None and node.index not in found:
        found[node.index] = node
        todo.extend(self.data(node))
    return [node for node in self.graph.flat if node.index in found]

  def is_data(self, ref: Any) -> bool:
    """Returns whether a value depends on the input."""
    return self.graph.analysis.value(ref).data

  def data(self, node: Node) -> list[int]:
    """Returns the numbers of the operands that depend on the input."""
    return [self.graph.resolve(ref) for ref in node.inputs if self.is_data(ref)]

  def aval(self, number: int) -> Any:
    return self.graph.program.avals[number]

  def site(self, node: Node) -> str | None:
    """Returns the name of the operation that ends in this equation, if there is one."""
    site = self.graph.analysis.at.get(node.index)
    return None if site is None else site.op.name

  def tensor(self, number: int) -> str | None:
    """Returns the activation's name, if an operation that the output depends on reads it."""
    base = self.graph.analysis.value(number).base
    return self.graph.analysis.tensors.get(base) if base in self._read else None

  def constant(self, ref: Any) -> np.ndarray:
    """Returns the value of an operand that does not depend on the input."""

    def real(ref: Any) -> np.ndarray:
      with _on_cpu():
        return np.asarray(self._evaluate(ref, {}))

    return real(ref) if self._numbers else stand_in(self.graph, self._producer, ref, real)

  def run(self, target: int, given: Mapping[int, np.ndarray]) -> np.ndarray:
    """Returns the value of `target` for given values: the slice between them, equation by equation."""
    with _on_cpu():
      return np.asarray(self._evaluate(target, dict(given)))

  def _evaluate(self, ref: Any, env: dict[int, Any]) -> Any:
    ref = self.graph.resolve(ref)
    if isinstance(ref, jex.Literal):
      return ref.val
    if ref in env:
      return env[ref]
    if ref not in self._known:
      node = self._producer[ref]
      values = rebind(node.eqn, tuple(self._evaluate(r, env) for r in node.inputs))
      (env if self.is_data(ref) else self._known).update(zip(node.outputs, values, strict=True))
      return values[node.outputs.index(ref)]
    return np.asarray(self._known[ref])

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
