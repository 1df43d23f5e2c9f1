"""The result of a stage: a recipe and variables, from which the model's functions are made again at any time.

A model is an import path with keywords, a list of edits of its traced function, and variables.
All of it is saved in one file, so that a compressed model loads for inference without the config that trained it.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import jax
import jax.numpy as jnp
import numpy as np

import quant
from leanax import deploy, graph
from leanax.core import limits
from leanax.core.errors import UserError
from leanax.core.texts import quoted
from leanax.core.trees import map_named, named_leaves
from leanax.engine.data import Preprocess, normalise
from leanax.engine.models import model as models
from leanax.engine.store import model_file
from leanax.engine.train import evaluate
from leanax.engine.train import outputs as outputs_of_models
from leanax.graph.edits import replace_head
from leanax.graph.shapes import structs
from leanax.pipeline import recipe as recipes
from leanax.pipeline.recipe import Recipe

TRACING: float = 120  # seconds, the most that the model of a file may take
PACKED = ".packed"  # the suffix of packed files


class Trained(NamedTuple):
  """A recipe and its variables: {"params": ...} and other collections, of a quantized model its grids too."""

  recipe: Recipe
  variables: Any


class Functions(NamedTuple):
  """The functions of a recipe.

  Attributes:
    model: the model as its user wrote it.
    net: it with its edits, without variables.
    fn: `fn(variables, x) -> logits` of it without grids, in evaluation mode; x is preprocessed.
    logits: the same of it with its grids, that is with its integers simulated.
    output: the recipe's.
  """

  model: models.Model
  net: graph.Net
  fn: Callable[..., jax.Array]
  logits: Callable[..., jax.Array]
  output: str = ""

  @property
  def edited(self) -> bool:
    """Returns whether the model has edits."""
    return bool(self.net.edits)

  @property
  def quantized(self) -> bool:
    """Returns whether the last one is its grids."""
    return self.edited and self.net.edits[-1]["edit"] == "quantize"


def functions(recipe: Recipe, half: bool = False) -> Functions:
  """Makes the functions that a recipe describes; nothing is run.

  `half`: quantized models are trained with bfloat16 products.
  """
  model = models.load(recipe.name, dict(recipe.kwargs))

  def only(out: Any) -> Any:
    if recipe.output == recipes.ALL:
      return outputs_of_models.every(out, f"model {recipe.name!r}")
    return outputs_of_models.only(out, recipe.output, f"model {recipe.name!r}")

  def one(variables: Any, x: jax.Array, *, train: bool = False, key: Any = None) -> tuple[jax.Array, Any]:
    out, state = model.apply(variables, x, train=train, key=key)
    return only(out), state

  example = (example_shape(recipe),)
  if not recipe.edits:

    def fn(variables: Any, x: jax.Array) -> jax.Array:
      return one(variables, x)[0]

    return Functions(model, graph.Net(model.apply, None, example, None), fn, fn, recipe.output)
  original = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), *example)
  plain = graph.Net(one, None, example, original, recipe.in_float.edits)
  if not recipe.is_quantized:
    return Functions(model, plain, plain.infer, plain.infer, recipe.output)
  trained = {"carrier": "bfloat16", "half": True} if half else {}
  net = plain.edited([{**recipe.edits[-1], **trained}], None, quant.edit.KIND)
  return Functions(model, net, plain.infer, net.infer, recipe.output)


def in_float(trained: Trained) -> Trained:
  """Returns the model without its grids."""
  return Trained(trained.recipe.in_float, trees(trained.variables)[0])


def net(trained: Trained) -> graph.Net:
  """Returns the model as one value, with its variables."""
  return dataclasses.replace(functions(trained.recipe).net, variables=trained.variables)


def grids(trained: Trained) -> dict[str, quant.Grid] | None:
  """Returns the grids of a model by the names of its kernels and activations; None for a float model."""
  return quant.grids(net(trained)) if trained.recipe.is_quantized else None


def initial(recipe: Recipe, key: jax.Array, x: jax.Array) -> Any:
  """Returns fresh variables of a recipe whose edits replace heads; those are zeros, which a stage fills."""
  variables = models.load(recipe.name, dict(recipe.kwargs)).init(key, x)
  for one in recipe.in_float.edits:
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structs(one["shapes"]))
    variables = replace_head.joined(variables, one, zeros)
  return variables


def variable_shapes(recipe: Recipe) -> Any:
  """Returns the shapes of `initial`; nothing is run."""
  return jax.eval_shape(lambda x: initial(recipe, jax.random.key(0), x), example_shape(recipe))


def trees(variables: Any) -> tuple[Any, Any, Any]:
  """Returns (variables without grids, trained scales, the quantizers' state); the last two are empty in float."""
  plain = {name: tree for name, tree in variables.items() if name not in quant.edit.GRIDS}
  return plain, *(variables.get(name, {}) for name in quant.edit.GRIDS)


def joined(variables: Any, qparams: Any, quant_state: Any) -> Any:
  """Returns the variables with their grids, where there are some."""
  return {**variables, "qparams": qparams, "quant_state": quant_state} if quant_state else variables


def outputs(parts: Functions, variables: Any, x: jax.Array) -> Any:
  """Returns the logits; of a model with several outputs their tree, as far as edits have left them."""
  if parts.output and parts.output != recipes.ALL and not parts.edited:
    return parts.net.apply(variables, x)[0]
  return named(parts.logits(variables, x), parts)


def named(logits: Any, parts: Functions) -> Any:
  """Returns the only output that is left of a model, under its name where it had several."""
  return {parts.output: logits} if parts.output and parts.output != recipes.ALL else logits


def outputs_of(trained: Trained) -> Any:
  """Returns the shapes of a model's outputs for one example: one, or a dict by name; nothing is run."""
  logits = functions(trained.recipe).logits
  return jax.eval_shape(logits, structs(trained.variables), example_shape(trained.recipe))


def example(recipe: Recipe, batch: int = 1) -> jax.Array:
  """Returns a batch of the model's input, all zeros."""
  return jnp.zeros((batch, *recipe.image), recipe.dtype)


def example_shape(recipe: Recipe, batch: int = 1) -> jax.ShapeDtypeStruct:
  """Returns the shape of `example`."""
  return jax.ShapeDtypeStruct((batch, *recipe.image), recipe.dtype)


def forward(recipe: Recipe, precise: bool = False) -> Callable[[Any, jax.Array], jax.Array]:
  """Returns `(variables, images) -> logits`, to be jitted: preprocessing, then the logits, integers simulated.

  Equal recipes give the same function object, so that models which differ in their numbers only are compiled once.
  With `precise` products have the highest precision (`graph.highest_precision`).
  """
  plain = _forward(json.dumps(recipe._asdict(), sort_keys=True))
  return _precise(plain) if precise else plain


_precise = functools.lru_cache(maxsize=32)(graph.highest_precision)


@functools.lru_cache(maxsize=32)
def _forward(text: str) -> Callable[[Any, jax.Array], jax.Array]:
  recipe = recipes.read(json.loads(text), "a recipe")
  parts = functions(recipe)
  spec = Preprocess(**recipe.preprocess)
  return lambda variables, images: parts.logits(variables, normalise(images, spec))


def folds(recipe: Recipe, variables: Any) -> bool:
  """Returns whether `fold` looks for batch norms in a model with these variables: it has neither edits nor grids."""
  return not recipe.is_folded and not recipe.is_quantized and "batch_stats" in variables


def fold(trained: Trained) -> Trained:
  """Returns the model with its batch norms folded into convolutions and dense layers; itself where it has none.

  Those that stay become depthwise convolutions, where they can. Batch norms are found in the evaluation trace. In
  training mode they are gone too, and dropout stays.
  """
  if not folds(trained.recipe, trained.variables):
    return trained
  fn, edits = functions(trained.recipe).fn, trained.recipe.edits
  net = graph.fold_batch_norms(graph.net(fn, trained.variables, example(trained.recipe)))
  net = graph.depthwise_batch_norms(net)
  return trained._replace(recipe=trained.recipe._replace(edits=(*edits, *net.edits)), variables=net.variables)


def fold_shapes(trained: Trained) -> Trained:
  """Returns what `fold` gives of a model whose variables are shapes, as shapes.

  Norms are folded as those of `distinct` numbers would be. One that stays here may be folded in a model whose numbers
  are the same at every position, such as one that was never trained.
  """
  if not folds(trained.recipe, trained.variables):
    return trained
  folded = fold(trained._replace(variables=distinct(trained.variables)))
  return folded._replace(variables=structs(folded.variables))


def distinct(variables: Any) -> Any:
  """Returns numbers from 1 to 2, no two of a leaf alike, that stand for trained ones; nothing is compiled."""

  def numbers(leaf: Any) -> np.ndarray:
    return np.linspace(1.0, 2.0, math.prod(leaf.shape)).reshape(leaf.shape).astype(leaf.dtype)

  return jax.tree.map(numbers, variables)


def stacked_axes(recipe: Recipe, variables: Any) -> dict[str, tuple[int, ...]]:
  """Returns the axes along which the model's parameters hold layers, by leaf; `variables` may be shapes."""
  shape = example_shape(recipe)  # an array of zeros would be compiled
  found = graph.stacked_axes(functions(recipe).fn, trees(variables)[0], shape)
  return {name: axes for name, axes in found.items() if name in named_leaves(variables["params"])}


def save(path: str | Path, trained: Trained, **more: Any) -> None:
  """Writes the model to one file; `more` is JSON data that is kept with it."""
  # Quantizers are named by paths; escaped, their names are not taken for levels of a tree.
  plain, *flat = trees(trained.variables)
  flat = ({quote(name, safe=""): entry for name, entry in tree.items()} for tree in flat)
  written = dict(zip(("variables", *quant.edit.GRIDS), (plain, *flat), strict=True))
  model_file.save_tree(path, written, {"recipe": trained.recipe._asdict(), **more})


def pack(trained: Trained, **more: Any) -> bytes:
  """Returns the model as a packed file, kernels on grids as their codes; `more` is JSON data that is kept with it."""
  net = dataclasses.replace(functions(trained.recipe).net, variables=trained.variables)
  meta = {"recipe": trained.recipe._asdict(), **more}
  return deploy.pack(trained.variables, deploy.packed.stored_grids(net), meta)


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
  """Returns the trees and the JSON data of a file of `save` or `pack`."""
  if Path(path).suffix == PACKED:
    variables, _, meta = deploy.unpack(path)
    if not isinstance(variables, Mapping):
      raise UserError(f"{str(path)!r} holds arrays but no model; expected a file of scripts.export")
    return dict(zip(("variables", *quant.edit.GRIDS), trees(variables), strict=True)), meta
  read, meta = model_file.load_tree(path)
  if not all(isinstance(read.get(key, {}), Mapping) for key in ("variables", *quant.edit.GRIDS)):
    raise UserError(f"{str(path)!r} is damaged: its variables are no groups of arrays")
  named = {key: {unquote(name): one for name, one in read.get(key, {}).items()} for key in quant.edit.GRIDS}
  return {**read, **named}, meta


def load(path: str | Path, code: Collection[str] = ()) -> tuple[Trained, dict[str, Any]]:
  """Reads what `save` or `pack` wrote: the model, and the JSON data that was kept with it.

  A file is data and may come from anyone: what it names is imported only where its reader names it too.

  Args:
    path: the file.
    code: the import paths of models that it may hold beside those of `zoo`.

  Raises:
    UserError: no such file, a damaged one, one that holds no model, or one of code that is not in `code`.
  """
  read, meta = _read(path)
  if "recipe" not in meta:
    raise UserError(f"{str(path)!r} holds arrays but no model; expected a file that a stage has written")
  recipe = recipes.read(meta.pop("recipe"), str(path))
  models.permit(recipe.name, code, str(path))
  try:
    with limits.within(TRACING):  # a number of layers in its description may be any
      grids = (read[key] for key in quant.edit.GRIDS)
      trained = Trained(recipe, joined(_as_written(recipe, read["variables"]), *grids))
      images = jax.ShapeDtypeStruct((1, *recipe.image), recipe.source)
      jax.eval_shape(forward(recipe), trained.variables, images)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  except TimeoutError as error:
    model = f"{recipe.name!r} with {quoted(recipe.kwargs, 100)}"
    raise UserError(f"{path} is damaged: tracing its model, {model}, takes more than {TRACING} s") from error
  except Exception as error:  # a description that is none, or a user's code, may raise anything
    raise UserError(
      f"{path} does not fit its model {recipe.name!r}: {type(error).__name__}: {quoted(error)}"
    ) from error
  return trained, meta


def _as_written(recipe: Recipe, variables: Any) -> Any:
  """Returns nested dicts from a file in the user's containers, such as lists; an edited function needs none."""
  if recipe.is_folded:
    return variables
  saved = named_leaves(variables)
  target = variable_shapes(recipe)
  if changed := saved.keys() ^ named_leaves(target).keys():
    has = "holds" if min(changed) in saved else "lacks"
    raise UserError(f"it {has} {min(changed)!r}; model {recipe.name!r} is not what it was when the file was written")
  return map_named(lambda name, _: saved[name], target)


def prepared(recipe: Recipe, images: np.ndarray) -> np.ndarray:
  """Returns a model's inputs of (N, ...) images as a split holds them."""
  spec = Preprocess(**recipe.preprocess)
  return np.asarray(jax.jit(lambda images: normalise(images, spec))(images))


def predict(trained: Trained, images: np.ndarray, precise: bool = False) -> Any:
  """Returns outputs (N, ...), of a model that keeps several a dict by name, of images as a split holds them.

  `precise` is as of `forward`.
  """
  return evaluate.logits(forward(trained.recipe, precise), trained.variables, images)
