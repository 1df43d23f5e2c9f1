"""Lifts a model into the layer IR: equations to layers, each proven against its equations, then codes for the weights.

Recognition is by structure (deploy/recognise.py), so any framework's model is served, and a model that was folded, cut
or factorised by edits too. Each layer is then run on random inputs, by the reference interpreter and by the equations
it stands for, and so are all of them together; a difference is an error and not a worse file.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir, proof
from leanax.deploy.integers import to_int8
from leanax.deploy.kernels import of_sites
from leanax.deploy.lifting.drafts import Draft
from leanax.deploy.lifting.recognise import recognise
from leanax.deploy.lifting.traced import Traced
from leanax.deploy.preprocessing import Preprocessing
from quant.grid import Grid


def lift(
  fn: Callable[..., Any],
  variables: Any,
  example: Any,
  grids: Mapping[str, Grid] | None = None,
  preprocessing: Preprocessing | None = None,
  *,
  islands: bool = True,
  prove: bool = True,
) -> ir.Network:
  """Returns the layers of `fn(variables, *inputs) -> outputs`, a model's forward in evaluation mode.

  Args:
    fn: the function; batch norms must be folded before grids are given.
    variables: its variables, as arrays.
    example: an input (N, ...), or its `jax.ShapeDtypeStruct`; only the shape and the type count. Of a function of
      several inputs a tuple of them; a dict or another tree is one input of several arrays, named by their paths. A
      tree of outputs gives a file several outputs, named likewise.
    grids: a grid for each kernel by its leaf's name, and for each activation by its tensor's name, as
      `Quantized.grids` gives them; None for a float network.
    preprocessing: the step from raw images to inputs; it is stored in the file.
    islands: whether layers that have no grid, or no exact integer kernel, stay float between Dequantize and Quantize
      layers of an int8 network; they are refused by name otherwise. Their kernels are codes where
      they have grids. `print(network)` shows which these are.
    prove: whether each layer is run beside its equations. Without, `variables` may be shapes: other numbers
      stand for the weights, and the network is for `Format.check`, before anything is trained.

  Returns:
    A float network, or with grids an int8 one. Tensors have the names that the graph gives them.

  Raises:
    UserError: an equation that is no layer (its primitive and its line are named), a layer that computes something else
      than its equations, weights that are not finite, or a grid that is missing or that the runtime lacks.
  """
  traced = Traced(fn, variables, example, numbers=prove)
  drafts, outputs = recognise(traced, foldable=grids is None, rounded=grids or ())
  network = _network(traced, drafts, outputs)
  if prove:
    proof.prove(traced, drafts, network)
  if grids is not None:
    network = to_int8(network, of_sites(traced, drafts, grids), islands)
  return ir.check(network._replace(preprocessing=preprocessing))


def _network(traced: Traced, drafts: list[Draft], outputs: dict[str, int]) -> ir.Network:
  """Returns the drafts as layers, every tensor float32; a layer with weights has the name of its kernel's leaf."""
  ends = [*traced.inputs.values(), *(draft.end for draft in drafts)]
  layer_names, names = _Names(), _Names(name for n in ends if (name := traced.tensor(n)) is not None)
  found, tensors, layers = {}, {}, []
  makers: dict[int, str] = {}  # the layer that made a value
  for name, number in traced.inputs.items():
    source = found[number] = makers[number] = traced.tensor(number) or names(name)
    tensors[source] = _activation(source, traced.aval(number))
  for draft in drafts:
    first = next(makers[one] for one in draft.inputs if isinstance(one, int))
    word = draft.fields.get("function", draft.kind.__name__.lower())
    name = makers[draft.end] = layer_names(draft.name or f"{first}:{word}")
    inputs = tuple(found[one] if isinstance(one, int) else _constant(one, name, tensors) for one in draft.inputs)
    held = {key: _constant(one, name, tensors) for key, one in draft.fields.items() if isinstance(one, np.ndarray)}
    fields: dict[str, Any] = {**draft.fields, **held}
    if issubclass(draft.kind, ir.WEIGHTED):
      fields.update(_weights(draft, name, tensors))
    if issubclass(draft.kind, ir.WEIGHTED | ir.Add):
      fields["relu"] = draft.relu
    # A pool or a reshape holds its input's numbers, and the graph gives it its input's name: it needs one of its own.
    own = traced.tensor(draft.end)
    out = found[draft.end] = names(f"{name}:out") if own is None or own in tensors else own
    tensors[out] = _activation(out, traced.aval(draft.end))
    layers.append(draft.kind(name, inputs, out, **fields))
  given, made = ({name: found[number] for name, number in ends.items()} for ends in (traced.inputs, outputs))
  return ir.Network(tuple(layers), tensors, given, made)


def _activation(name: str, aval: Any) -> ir.Tensor:
  return ir.Tensor(name, (None, *aval.shape[1:]), str(aval.dtype))


def _constant(array: np.ndarray, name: str, tensors: dict[str, ir.Tensor]) -> str:
  """Adds a constant that is an input of a layer; returns its name."""
  if array.dtype.kind == "f" and np.isnan(array).any():
    raise UserError(f"a constant of {name!r} holds NaN; a file needs numbers")
  held = sum(key.startswith(f"{name}:constant") for key in tensors)
  key = f"{name}:constant{held or ''}"
  tensors[key] = ir.Tensor(key, array.shape, str(array.dtype), data=array)
  return key


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
    self._given, self._counts = set(taken), Counter[str]()

  def __call__(self, name: str) -> str:
    found = name
    while found in self._given:
      self._counts[name] += 1
      found = f"{name}#{self._counts[name]}"
    self._given.add(found)
    return found
