"""The result of a stage: a model as plain data and trees, from which its functions are made again at any time.

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

import kd
import quant
from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import map_named, named_leaves
from leanax.engine.data import Preprocess, normalise
from leanax.engine.data.preprocess import from_json
from leanax.engine.models import model as models
from leanax.engine.store import model_file
from leanax.engine.train import evaluate
from leanax.engine.train import outputs as outputs_of_models
from leanax.graph.edits import replace_head
from leanax.graph.shapes import structs


class Recipe(NamedTuple):
  """The description of a model without its arrays; plain JSON data.

  Attributes:
    name: the model's import path.
    kwargs: its keywords.
    image: (height, width, channels) of its input.
    classes: the classes' names.
    preprocess: {"scale", "mean", "std"}, from pixels to its input.
    edits: changes of its function, in order (`graph.Net`); the last one of a quantized model is "quantize".
    output: of a model with several outputs the one that has the logits; all that is left of it by edits.
  """

  name: str
  kwargs: Mapping[str, Any]
  image: tuple[int, ...]
  classes: tuple[str, ...]
  preprocess: Mapping[str, Any]
  edits: tuple[Any, ...] = ()
  output: str = ""


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


def functions(recipe: Recipe, half: bool = False) -> Functions:
  """Makes the functions that a recipe describes; nothing is run.

  `half`: quantized models are trained with bfloat16 products.
  """
  model = models.load(recipe.name, dict(recipe.kwargs))

  def only(out: Any) -> jax.Array:
    return outputs_of_models.only(out, recipe.output, f"model {recipe.name!r}")

  def one(variables: Any, x: jax.Array, *, train: bool = False, key: Any = None) -> tuple[jax.Array, Any]:
    out, state = model.apply(variables, x, train=train, key=key)
    return only(out), state

  example, original = (jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32),), None
  if recipe.edits:
    original = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), *example)
  if not recipe.edits:
    net = graph.Net(model.apply, None, example, original)
    fn = lambda variables, x: only(net.infer(variables, x))  # noqa: E731
    return Functions(model, net, fn, fn, recipe.output)
  plain = graph.Net(one, None, example, original, unquantized(recipe).edits)
  if not is_quantized(recipe):
    return Functions(model, plain, plain.infer, plain.infer, recipe.output)
  trained = {"carrier": "bfloat16", "half": True} if half else {}
  net = plain.edited([{**recipe.edits[-1], **trained}], None, quant.edit.KIND)
  return Functions(model, net, plain.infer, net.infer, recipe.output)


def is_quantized(recipe: Recipe) -> bool:
  """Returns whether the model has grids."""
  return bool(recipe.edits) and recipe.edits[-1]["edit"] == "quantize"


def unquantized(recipe: Recipe) -> Recipe:
  """Returns the recipe without grids."""
  return recipe._replace(edits=recipe.edits[:-1]) if is_quantized(recipe) else recipe


def in_float(trained: Trained) -> Trained:
  """Returns the model without its grids."""
  return Trained(unquantized(trained.recipe), trees(trained.variables)[0])


def grids(trained: Trained) -> dict[str, quant.Grid] | None:
  """Returns the grids of a model by the names of its kernels and activations; None for a float model."""
  net = functions(trained.recipe).net
  return quant.grids(dataclasses.replace(net, variables=trained.variables)) if is_quantized(trained.recipe) else None


def initial(recipe: Recipe, key: jax.Array, x: jax.Array) -> Any:
  """Returns fresh variables of a recipe whose edits replace heads; those are zeros, which a stage fills."""
  variables = models.load(recipe.name, dict(recipe.kwargs)).init(key, x)
  for one in unquantized(recipe).edits:
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structs(one["shapes"]))
    variables = replace_head.joined(variables, one, zeros)
  return variables


def variable_shapes(recipe: Recipe) -> Any:
  """Returns the shapes of `initial`; nothing is run."""
  image = jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)
  return jax.eval_shape(lambda x: initial(recipe, jax.random.key(0), x), image)


def is_folded(recipe: Recipe) -> bool:
  """Returns whether the model's function was changed for inference: its batch norms are folded."""
  return any(one["edit"] != "replace_head" for one in unquantized(recipe).edits)


def trees(variables: Any) -> tuple[Any, Any, Any]:
  """Returns (variables without grids, trained scales, the quantizers' state); the last two are empty in float."""
  plain = {name: tree for name, tree in variables.items() if name not in quant.edit.GRIDS}
  return plain, *(variables.get(name, {}) for name in quant.edit.GRIDS)


def joined(variables: Any, qparams: Any, quant_state: Any) -> Any:
  """Returns the variables with their grids, where there are some."""
  return {**variables, "qparams": qparams, "quant_state": quant_state} if quant_state else variables


def outputs(parts: Functions, variables: Any, x: jax.Array) -> Any:
  """Returns the logits; of a model with several outputs their tree, as far as edits have left them."""
  if parts.output and not parts.edited:
    return parts.net.apply(variables, x)[0]
  return named(parts.logits(variables, x), parts)


def named(logits: Any, parts: Functions) -> Any:
  """The only output that is left of a model, under its name where it had several."""
  return {parts.output: logits} if parts.output else logits


def example(recipe: Recipe, batch: int = 1) -> jax.Array:
  """A batch of the model's input, all zeros."""
  return jnp.zeros((batch, *recipe.image), jnp.float32)


def forward(recipe: Recipe, precise: bool = False) -> Callable[[Any, jax.Array], jax.Array]:
  """`(variables, uint8 images) -> logits`, to be jitted: preprocessing, then the logits, integers simulated.

  Equal recipes give the same function object, so that models which differ in their numbers only are compiled once.
  With `precise` products have the highest precision (`graph.highest_precision`).
  """
  plain = _forward(json.dumps(recipe._asdict(), sort_keys=True))
  return _precise(plain) if precise else plain


_precise = functools.lru_cache(maxsize=32)(graph.highest_precision)


@functools.lru_cache(maxsize=32)
def _forward(text: str) -> Callable[[Any, jax.Array], jax.Array]:
  recipe = _recipe(json.loads(text), "a recipe")
  parts = functions(recipe)
  spec = Preprocess(**recipe.preprocess)
  return lambda variables, images: parts.logits(variables, normalise(images, spec))


def folds(recipe: Recipe, variables: Any) -> bool:
  """Returns whether `fold` looks for batch norms in a model with these variables: it has neither edits nor grids."""
  return not is_folded(recipe) and not is_quantized(recipe) and "batch_stats" in variables


def fold(trained: Trained) -> Trained:
  """The same model with its batch norms folded into convolutions and dense layers; itself where it has none.

  Batch norms are found in the evaluation trace; from then on the model is one for inference, without dropout.
  """
  if not folds(trained.recipe, trained.variables):
    return trained
  fn, edits = functions(trained.recipe).fn, trained.recipe.edits
  net = graph.fold_batch_norms(graph.net(fn, trained.variables, example(trained.recipe)))
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
  """The axes along which the model's parameters hold layers, by leaf; `variables` may be shapes."""
  shape = jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)  # an array of zeros would be compiled
  found = graph.stacked_axes(functions(recipe).fn, trees(variables)[0], shape)
  return {name: axes for name, axes in found.items() if name in named_leaves(variables["params"])}


def save(path: str | Path, trained: Trained, **more: Any) -> None:
  """Writes the model to one file; `more` is JSON data that is kept with it."""
  # Quantizers are named by paths; escaped, their names are not taken for levels of a tree.
  plain, *flat = trees(trained.variables)
  flat = ({quote(name, safe=""): entry for name, entry in tree.items()} for tree in flat)
  written = dict(zip(("variables", *quant.edit.GRIDS), (plain, *flat), strict=True))
  model_file.save_tree(path, written, {"recipe": trained.recipe._asdict(), **more})


def load(path: str | Path, code: Collection[str] = ()) -> tuple[Trained, dict[str, Any]]:
  """Reads what `save` wrote: the model, and the JSON data that was kept with it.

  A file is data and may come from anyone: what it names is imported only where its reader names it too.

  Args:
    path: the file.
    code: the import paths of models that it may hold beside those of `zoo`.

  Raises:
    UserError: no such file, a damaged one, one that holds no model, or one of code that is not in `code`.
  """
  read, meta = model_file.load_tree(path)
  if "recipe" not in meta:
    raise UserError(f"{str(path)!r} holds arrays but no model; expected a file that a stage has written")
  recipe = _recipe(meta.pop("recipe"), str(path))
  models.permit(recipe.name, code, str(path))
  try:
    flat = ({unquote(name): entry for name, entry in read.get(key, {}).items()} for key in quant.edit.GRIDS)
    trained = Trained(recipe, joined(_as_written(recipe, read["variables"]), *flat))
    images = jax.ShapeDtypeStruct((1, *recipe.image), jnp.uint8)
    jax.eval_shape(forward(recipe), trained.variables, images)
  except UserError as error:
    raise UserError(f"{path}: {error}") from error
  except Exception as error:  # a description that is none, or a user's code, may raise anything
    raise UserError(
      f"{path} does not fit its model {recipe.name!r}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
    ) from error
  return trained, meta


def _recipe(given: Mapping[str, Any], source: str) -> Recipe:
  """A recipe from JSON data.

  Raises:
    UserError: it is not one of a recipe's; `source` names the file.
  """
  try:
    fields: dict[str, Any] = {name: value if name == "edits" else _tuples(value) for name, value in given.items()}
    # Files of before have replaced heads and the rules of grids in fields of their own.
    rules, ends, _ = (fields.pop(key, ()) for key in ("rules", "ends", "heads"))
    last = [quant.edit.data(quant.policy(rules, ends or None))] if rules else []
    fields["edits"] = (*map(_head, given.get("heads", ())), *fields["edits"], *last)
    recipe = Recipe(**fields)
    from_json(dict(recipe.preprocess))
    if not isinstance(recipe.kwargs, Mapping) or not all(type(size) is int and size > 0 for size in recipe.image):
      raise TypeError("'kwargs' must be a group, and 'image' sizes")
    if not all(isinstance(name, str) for name in recipe.classes):
      raise TypeError("'classes' must be names")
  except (TypeError, ValueError, AttributeError, KeyError, UserError) as error:
    raise UserError(f"{source} is damaged: its model is not described as one: {error}") from error
  return recipe


def _head(head: Mapping[str, Any]) -> dict[str, Any]:
  """A replaced head as files of before have it, in a list of their own, as an edit."""
  steps = kd.simkd_steps(head["size"])
  dropped = [name.removeprefix("params/") for name in head["dropped"]]
  kept = {key: head[key] for key in ("name", "tap", "beside", "shapes")}
  return {"edit": "replace_head", **kept, "steps": steps, "dropped": dropped}


def _as_written(recipe: Recipe, variables: Any) -> Any:
  """Nested dicts from a file in the containers of the user's model, such as lists; an edited function needs none."""
  if is_folded(recipe):
    return variables
  saved = named_leaves(variables)
  target = variable_shapes(recipe)
  if changed := saved.keys() ^ named_leaves(target).keys():
    has = "holds" if min(changed) in saved else "lacks"
    raise UserError(f"it {has} {min(changed)!r}; model {recipe.name!r} is not what it was when the file was written")
  return map_named(lambda name, _: saved[name], target)


def _tuples(value: Any) -> Any:
  """JSON's lists as the tuples that they were."""
  if isinstance(value, Mapping):
    return {key: _tuples(child) for key, child in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def predict(trained: Trained, images: np.ndarray, precise: bool = False) -> np.ndarray:
  """(N, classes) logits of (N, height, width, channels) uint8 images; `precise` as of `forward`."""
  return evaluate.logits(forward(trained.recipe, precise), trained.variables, images)
