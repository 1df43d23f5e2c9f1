"""Lifts a model into the layer IR: equations to layers, each proven against its equations, then codes for the weights.

Recognition is by structure (deploy/recognise.py), so any framework's model is served, and a model that was folded, cut
or factorised by edits too. Each layer is then run on random inputs, by the reference interpreter and by the equations
it stands for; a difference is an error and not a worse file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, reference
from leanax.deploy.drafts import Draft
from leanax.deploy.integers import to_int8
from leanax.deploy.kernels import of_sites
from leanax.deploy.preprocessing import Preprocessing
from leanax.deploy.recognise import recognise
from leanax.deploy.traced import Traced
from quant.grid import Grid

TOLERANCE = 1e-4  # of the largest value: float32 sums in another order


def lift(
  fn: Callable[..., Any],
  variables: Any,
  example: Any,
  grids: Mapping[str, Grid] | None = None,
  preprocessing: Preprocessing | None = None,
  *,
  prove: bool = True,
) -> ir.Network:
  """Returns the layers of `fn(variables, x) -> logits`, a model's forward in evaluation mode.

  Args:
    fn: the function; batch norms must be folded before grids are given.
    variables: its variables, as arrays.
    example: an input (N, ...), or its `jax.ShapeDtypeStruct`; only the shape and the type count.
    grids: a grid for each kernel by its leaf's name, and for each activation by its tensor's name, as
      `Quantized.grids` gives them; None for a float network.
    preprocessing: the step from raw images to inputs; it is stored in the file.
    prove: whether each layer is run beside its equations. Without, `variables` may be shapes: other numbers
      stand for the weights, and the network is for `Format.check`, before anything is trained.

  Returns:
    A float network, or with grids an int8 one. Tensors have the names that the graph gives them.

  Raises:
    UserError: an equation that is no layer (its primitive and its line are named), a layer that computes something else
      than its equations, weights that are not finite, or a grid that is missing or that the runtime lacks.
  """
  traced = Traced(fn, variables, example, numbers=prove)
  drafts, output = recognise(traced, foldable=grids is None)
  network = _network(traced, drafts, output)
  if prove:
    _prove(traced, drafts, network)
  if grids is not None:
    network = to_int8(network, of_sites(traced, drafts, grids))
  return ir.check(network._replace(preprocessing=preprocessing))


def _network(traced: Traced, drafts: list[Draft], output: int) -> ir.Network:
  """Returns the drafts as layers, every tensor float32; a layer with weights has the name of its kernel's leaf."""
  ends = [traced.input, *(draft.end for draft in drafts)]
  layer_names, names = _Names(), _Names(name for n in ends if (name := traced.tensor(n)) is not None)
  source = traced.tensor(traced.input) or names("input")
  found, tensors, layers = {traced.input: source}, {}, []
  tensors[source] = ir.Tensor(source, (None, *traced.aval(traced.input).shape[1:]))
  for draft in drafts:
    inputs = tuple(found[number] for number in draft.inputs)
    name = layer_names(draft.name or f"{inputs[0].removesuffix(':out')}:{draft.kind.__name__.lower()}")
    fields = dict(draft.fields)
    if issubclass(draft.kind, ir.Conv2D | ir.Dense):
      fields.update(_weights(draft, name, tensors))
    if issubclass(draft.kind, ir.Conv2D | ir.Dense | ir.Add):
      fields["relu"] = draft.relu
    # A pool or a reshape holds its input's numbers, and the graph gives it its input's name: it needs one of its own.
    own = traced.tensor(draft.end)
    out = found[draft.end] = names(f"{name}:out") if own is None or own in tensors else own
    tensors[out] = ir.Tensor(out, (None, *traced.aval(draft.end).shape[1:]))
    layers.append(draft.kind(name, inputs, out, **fields))
  return ir.Network(tuple(layers), tensors, source, found[output])


def _weights(draft: Draft, name: str, tensors: dict[str, ir.Tensor]) -> dict[str, str | None]:
  assert draft.kernel is not None
  if not np.isfinite(draft.kernel).all() or (draft.bias is not None and np.isnan(draft.bias).any()):
    raise UserError(f"the kernel or the bias of {name!r} holds NaN or infinity; a file needs finite numbers")
  tensors[name] = ir.Tensor(name, draft.kernel.shape, data=draft.kernel.astype(np.float32))
  if draft.bias is None:
    return {"kernel": name, "bias": None}
  bias = f"{name}:bias"
  tensors[bias] = ir.Tensor(bias, draft.bias.shape, data=draft.bias.astype(np.float32))
  return {"kernel": name, "bias": bias}


class _Names:
  """Hands out each name once, and none of those `taken`; a name that was given already gets a number."""

  def __init__(self, taken: Iterable[str] = ()) -> None:
    self._given: Counter[str] = Counter(set(taken))

  def __call__(self, name: str) -> str:
    count = self._given[name]
    self._given[name] += 1
    return self(f"{name}#{count}") if count else name


def _prove(traced: Traced, drafts: list[Draft], network: ir.Network) -> None:
  """Runs each layer and its slice of the equations on random inputs.

  Raises:
    UserError: they differ.
  """
  rng = np.random.default_rng(0)
  for draft, layer in zip(drafts, network.layers, strict=True):
    given = {n: rng.normal(size=traced.aval(n).shape).astype(np.float32) for n in draft.inputs}
    if draft.positive:
      given = {n: np.abs(x) for n, x in given.items()}
    expected = traced.run(draft.end, given)
    if draft.early:
      expected = np.maximum(expected, 0)
    got = reference.step(layer, [given[n] for n in draft.inputs], network.tensors)
    largest = np.abs(expected, where=np.isfinite(expected), out=np.zeros_like(expected)).max()
    near = TOLERANCE * max(largest, 1e-6)
    if got.shape != expected.shape or not np.allclose(got, expected, rtol=0, atol=near):
      raise traced.refuse(draft.node, f"the layer {layer.name!r} made of it computes something else")
