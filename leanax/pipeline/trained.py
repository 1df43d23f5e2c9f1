"""The result of a stage: a model as plain data and trees, from which its functions are made again at any time.

A model is an import path with keywords, a list of edits of its traced function, a quantization policy, and parameters.
All of it is saved in one file, so that a compressed model loads for inference without the config that trained it.
"""

import functools
import json
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
    edits: changes of its function, in order (`graph.Net`).
    rules: (site glob, setting) pairs; none for a float model.
    ends: least widths of the first and the last site.
    output: of a model with several outputs the one that has the logits; all that is left of it by edits and rules.
  """

  name: str
  kwargs: Mapping[str, Any]
  image: tuple[int, ...]
  classes: tuple[str, ...]
  preprocess: Mapping[str, Any]
  edits: tuple[Any, ...] = ()
  rules: tuple[tuple[str, Any], ...] = ()
  ends: Any = "w8a8"
  output: str = ""


class Trained(NamedTuple):
  """A recipe and its trees: the variables ({"params": ...} and other collections), and those of the quantizers."""

  recipe: Recipe
  variables: Any
  qparams: Any
  quant_state: Any


class Functions(NamedTuple):
  """The functions of a recipe.

  Attributes:
    model: the model as its user wrote it.
    net: it with its edits and grids (`joined`).
    fn: `fn(variables, x) -> logits` of it without grids, in evaluation mode; x is preprocessed.
    quantized: `quant.quantize` of `fn`, or None.
    output: the recipe's.
  """

  model: models.Model
  net: graph.Net
  fn: Callable[..., jax.Array]
  quantized: quant.Quantized | None
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
  whole = not recipe.edits and not recipe.rules
  plain = graph.Net(model.apply if whole else one, None, example, original, recipe.edits)

  def fn(variables: Any, x: jax.Array) -> jax.Array:
    out = plain.infer(variables, x)
    return only(out) if whole else out

  if not recipe.rules:
    return Functions(model, plain, fn, None, recipe.output)
  policy, carrier = quant.policy(recipe.rules, recipe.ends or None), "bfloat16" if half else "float32"
  net = plain.edited([quant.edit.data(policy, carrier, half)], None, quant.edit.KIND)
  return Functions(model, net, fn, quant.quantize(fn, policy, carrier, half), recipe.output)


def initial(recipe: Recipe, key: jax.Array, x: jax.Array) -> Any:
  """Returns fresh variables of a recipe whose edits replace heads; those are zeros, which a stage fills."""
  variables = models.load(recipe.name, dict(recipe.kwargs)).init(key, x)
  for one in recipe.edits:
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structs(one["shapes"]))
    variables = replace_head.joined(variables, one, zeros)
  return variables


def variable_shapes(recipe: Recipe) -> Any:
  """Returns the shapes of `initial`; nothing is run."""
  image = jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)
  return jax.eval_shape(lambda x: initial(recipe, jax.random.key(0), x), image)


def is_folded(recipe: Recipe) -> bool:
  """Returns whether the model's function was changed for inference: its batch norms are folded."""
  return any(one["edit"] != "replace_head" for one in recipe.edits)


def logits(parts: Functions, trees: tuple[Any, Any, Any], x: jax.Array) -> jax.Array:
  """The logits of preprocessed inputs, integers simulated; `trees` are (variables, qparams, quant_state)."""
  return parts.fn(trees[0], x) if parts.quantized is None else parts.net.infer(joined(*trees), x)


def joined(variables: Any, qparams: Any, quant_state: Any) -> Any:
  """Returns the variables of a net with grids."""
  return {**variables, "qparams": qparams, "quant_state": quant_state}


def outputs(parts: Functions, trees: tuple[Any, Any, Any], x: jax.Array) -> Any:
  """As `logits`; of a model with several outputs their tree, as far as edits and rules have left them."""
  if parts.output and parts.quantized is None and not parts.edited:
    return parts.net.apply(trees[0], x)[0]
  return named(logits(parts, trees, x), parts)


def named(logits: Any, parts: Functions) -> Any:
  """The only output that is left of a model, under its name where it had several."""
  return {parts.output: logits} if parts.output else logits


def example(recipe: Recipe, batch: int = 1) -> jax.Array:
  """A batch of the model's input, all zeros."""
  return jnp.zeros((batch, *recipe.image), jnp.float32)


def forward(recipe: Recipe, precise: bool = False) -> Callable[[Any, jax.Array], jax.Array]:
  """`((variables, qparams, quant_state), uint8 images) -> logits`, to be jitted: preprocessing, then `logits`.

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
  return lambda trees, images: logits(parts, trees, normalise(images, spec))


def folds(recipe: Recipe, variables: Any) -> bool:
  """Returns whether `fold` looks for batch norms in a model with these variables."""
  return not is_folded(recipe) and "batch_stats" in variables


def fold(trained: Trained) -> Trained:
  """Returns the model with its batch norms folded into convolutions and dense layers; itself where it has none.

  Batch norms are found in the evaluation trace. In training mode they are gone too, and dropout stays.
  """
  if not folds(trained.recipe, trained.variables):
    return trained
  fn, edits = functions(trained.recipe).fn, trained.recipe.edits
  net = graph.fold_batch_norms(graph.net(fn, trained.variables, example(trained.recipe)))
  return trained._replace(recipe=trained.recipe._replace(edits=(*edits, *net.edits)), variables=net.variables)


def fold_shapes(trained: Trained) -> Trained:
  """Returns what `fold` gives of a model whose variables are shapes, as shapes.

  Norms are folded as unit ones would be. Of a trained model one may stay that is folded here, where its numbers are not
  the same at every position.
  """
  if not folds(trained.recipe, trained.variables):
    return trained
  folded = fold(trained._replace(variables=unit(trained.variables)))
  return folded._replace(variables=structs(folded.variables))


def unit(variables: Any) -> Any:
  """Returns ones in the shapes of variables: numbers that stand for any others, without compiling anything."""
  return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables)


def stacked_axes(recipe: Recipe, variables: Any) -> dict[str, tuple[int, ...]]:
  """The axes along which the model's parameters hold layers, by leaf; `variables` may be shapes."""
  shape = jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)  # an array of zeros would be compiled
  found = graph.stacked_axes(functions(recipe).fn, variables, shape)
  return {name: axes for name, axes in found.items() if name in named_leaves(variables["params"])}


def save(path: str | Path, trained: Trained, **more: Any) -> None:
  """Writes the model to one file; `more` is JSON data that is kept with it."""
  # Quantizers are named by paths; escaped, their names are not taken for levels of a tree.
  flat = ({quote(name, safe=""): entry for name, entry in tree.items()} for tree in trained[2:])
  trees = dict(zip(("variables", "qparams", "quant_state"), (trained.variables, *flat), strict=True))
  model_file.save_tree(path, trees, {"recipe": trained.recipe._asdict(), **more})


def load(path: str | Path, code: Collection[str] = ()) -> tuple[Trained, dict[str, Any]]:
  """Reads what `save` wrote: the model, and the JSON data that was kept with it.

  A file is data and may come from anyone: what it names is imported only where its reader names it too.

  Args:
    path: the file.
    code: the import paths of models that it may hold beside those of `zoo`.

  Raises:
    UserError: no such file, a damaged one, one that holds no model, or one of code that is not in `code`.
  """
  trees, meta = model_file.load_tree(path)
  if "recipe" not in meta:
    raise UserError(f"{str(path)!r} holds arrays but no model; expected a file that a stage has written")
  recipe = _recipe(meta.pop("recipe"), str(path))
  models.permit(recipe.name, code, str(path))
  try:
    flat = ({unquote(name): entry for name, entry in trees.get(key, {}).items()} for key in ("qparams", "quant_state"))
    trained = Trained(recipe, _as_written(recipe, trees["variables"]), *flat)
    images = jax.ShapeDtypeStruct((1, *recipe.image), jnp.uint8)
    jax.eval_shape(forward(recipe), trained[1:], images)
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
    fields["edits"] = (*map(_head, given.get("heads", ())), *fields["edits"])
    fields.pop("heads", None)
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
  trees = (trained.variables, trained.qparams, trained.quant_state)
  return evaluate.logits(forward(trained.recipe, precise), trees, images)
