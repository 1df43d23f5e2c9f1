"""Small trained layers of losses: convolutions with a bias or a batch normalisation, and the teacher's classifier.

Their parameters are float32 and are cast to the activations' dtype where they are used.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from kd.kinds import Context
from kd.maps import batch_normalise, check_channels, linear_init
from leanax.core.errors import UserError, unknown

Layer = dict[str, Array]
Normalise = Callable[[Array], Array]


def layer_init(key: Array, inputs: int, outputs: int, size: int = 1, normalise: bool = False) -> Layer:
  """Initialises a `size` x `size` convolution of stride 1 (He et al.); of size 1 a linear map of the last axis.

  Args:
    key: the random key of the kernel.
    inputs: number of input channels.
    outputs: number of output channels.
    size: the odd side of the window.
    normalise: with a batch normalisation, {"kernel", "scale", "offset"}, in place of {"kernel", "bias"}.
  """
  out = linear_init(key, size * size * inputs, outputs)
  if size > 1:
    out["kernel"] = out["kernel"].reshape(size, size, inputs, outputs)
  if normalise:
    out = {"kernel": out["kernel"], "scale": jnp.ones_like(out["bias"]), "offset": out["bias"]}
  return out


def layer(aux: Layer, x: Array, context: Context | Normalise) -> Array:
  """Applies a layer of `layer_init`.

  Args:
    aux: the layer.
    x: (batch, ..., channels); (batch, height, width, channels) for a window.
    context: gives the valid examples and the device axis to the batch normalisation; or a function that normalises the
      channels to mean 0 and variance 1.
  """
  aux = {name: leaf.astype(x.dtype) for name, leaf in aux.items()}
  check_channels(aux["kernel"], x)
  if aux["kernel"].ndim == 2:
    x = x @ aux["kernel"]
  else:
    x = jax.lax.conv_general_dilated(x, aux["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
  if "bias" in aux:
    return x + aux["bias"]
  normalise = partial(batch_normalise, context=context) if isinstance(context, Context) else context
  return normalise(x) * aux["scale"] + aux["offset"]


def relu(x: Array) -> Array:
  """Returns max(x, 0) of finite x; NaN and infinities stay, which XLA's maximum may replace by 0."""
  return jnp.where((x <= 0) & (x > -jnp.inf), 0.0, x)


def mean_square(gap: Array) -> Array:
  """Returns the mean square per example, (batch,)."""
  return jnp.mean(gap.reshape(gap.shape[0], -1) ** 2, -1)


def module_of(loss: str, key: str, variables: Any, path: str, leaves: tuple[str, ...]) -> Layer:
  """Copies the leaves of one module of the teacher.

  Args:
    loss: the loss's name in error messages.
    key: the loss's argument that names the module.
    variables: {"params": tree, ...} of the teacher.
    path: of the module, joined by "/".
    leaves: names of the leaves that it must have.

  Raises:
    UserError: there are no parameters, or no such module.
  """
  params = variables.get("params") if isinstance(variables, Mapping) else None
  if params is None:
    raise UserError(f"the loss {loss!r} copies {path!r} of the teacher's parameters: give its init teacher_variables")
  found = {name: module for name, module in _modules(params, "") if all(leaf in module for leaf in leaves)}
  if path not in found:
    if not found:
      raise UserError(f"{loss}: {key} is {path!r}; the teacher has no module with {' and '.join(leaves)}")
    raise unknown(f"{key} of the loss {loss!r}", path, found)
  # A copy: the training state may be donated, and the teacher's parameters must stay.
  return {name: jnp.array(leaf, copy=True) for name, leaf in found[path].items() if not isinstance(leaf, Mapping)}


def _modules(tree: Mapping[str, Any], path: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
  yield path, tree
  for name, branch in tree.items():
    if isinstance(branch, Mapping):
      yield from _modules(branch, f"{path}/{name}" if path else name)


def last_layer(loss: str, variables: Any, features: int, classes: int, exactly: bool = True) -> str:
  """Returns the path of the one linear layer of the teacher that maps its features to its classes.

  Args:
    loss: the loss's name in error messages.
    variables: {"params": tree, ...} of the teacher.
    features: number of inputs of the layer.
    classes: number of outputs of the layer.
    exactly: False accepts more outputs too.

  Raises:
    UserError: there is no such layer, or there are several.
  """
  params = variables.get("params") if isinstance(variables, Mapping) else None
  modules = _modules(params, "") if isinstance(params, Mapping) else ()
  dense = {path: module["kernel"].shape for path, module in modules if _is_dense(module)}
  fits = [path for path, (a, b) in dense.items() if a == features and (b == classes or (not exactly and b > classes))]
  if len(fits) == 1:
    return fits[0]
  wanted = f"{features} features, as the teacher's tap has them, and gives {classes}{'' if exactly else ' or more'}"
  if fits:
    raise UserError(f"{loss}: {' and '.join(fits)} read {wanted} classes; name the teacher's with the key 'classifier'")
  has = ", ".join(f"{path} ({a} to {b})" for path, (a, b) in dense.items()) or "none"
  raise UserError(
    f"{loss}: no linear layer of the teacher reads {wanted} classes; it has {has}. Expected the tap that its last "
    "layer reads, the last map before its mean or the last hidden layer"
  )


def _is_dense(module: Mapping[str, Any]) -> bool:
  return "kernel" in module and not isinstance(module["kernel"], Mapping) and len(module["kernel"].shape) == 2


def classifier_of(loss: str, variables: Any, path: str) -> Layer:
  """Copies a linear classifier of the teacher, {"kernel": (features, classes), "bias": (classes,)}.

  Raises:
    UserError: there is no linear layer at this path.
  """
  module = module_of(loss, "classifier", variables, path, ("kernel",))
  kernel = module["kernel"]
  if kernel.ndim != 2:
    raise UserError(f"{loss}: classifier {path!r} has a kernel of shape {kernel.shape}; expected (features, classes)")
  return {"kernel": kernel, "bias": module.get("bias", jnp.zeros(kernel.shape[1], kernel.dtype))}
