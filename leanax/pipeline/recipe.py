"""The description of a model without its arrays: plain data, from which its functions are made."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import kd
import quant
from leanax.core.errors import UserError
from leanax.core.texts import quoted
from leanax.engine.data.preprocess import from_json

SOURCES = ("uint8", "float32", "int32")
MOST = 2**27  # numbers of one input, as of an exported file
ALL = "*"  # the output of a model of which all are kept


class Recipe(NamedTuple):
  """The description of a model without its arrays; plain JSON data.

  Attributes:
    name: the model's import path.
    kwargs: its keywords.
    image: (height, width, channels) of its input; of other inputs their shape without the batch.
    classes: the classes' names.
    preprocess: {"scale", "mean", "std"}, from pixels to its input.
    edits: changes of its function, in order (`graph.Net`); the last one of a quantized model is "quantize".
    output: of a model with several outputs the one that has the logits; all that is left of it by edits. "*" for all.
    source: the type of what preprocessing reads: "uint8" pixels, "float32", or "int32", which stay as they are.
  """

  name: str
  kwargs: Mapping[str, Any]
  image: tuple[int, ...]
  classes: tuple[str, ...]
  preprocess: Mapping[str, Any]
  edits: tuple[Any, ...] = ()
  output: str = ""
  source: str = "uint8"

  @property
  def dtype(self) -> str:
    """Returns the type of the model's input."""
    return "int32" if self.source == "int32" else "float32"

  @property
  def is_quantized(self) -> bool:
    """Returns whether the model has grids."""
    return bool(self.edits) and self.edits[-1]["edit"] == "quantize"

  @property
  def in_float(self) -> "Recipe":
    """Returns the recipe without grids."""
    return self._replace(edits=self.edits[:-1]) if self.is_quantized else self

  @property
  def is_folded(self) -> bool:
    """Returns whether the model's function was changed for inference: its batch norms are folded."""
    return any(one["edit"] != "replace_head" for one in self.in_float.edits)


def read(given: Mapping[str, Any], source: str) -> Recipe:
  """Returns the recipe that is described by JSON data, as `_asdict` gives it.

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
    if math.prod(recipe.image) > MOST:
      raise TypeError(f"its input of {recipe.image} has more than {MOST:,} numbers")
    if not isinstance(recipe.output, str) or not all(isinstance(one, Mapping) for one in recipe.edits):
      raise TypeError("'output' must be a name, and 'edits' groups")
    if not all(isinstance(name, str) for name in recipe.classes):
      raise TypeError("'classes' must be names")
    if recipe.source not in SOURCES:
      raise TypeError(f"'source' must be one of {', '.join(SOURCES)}")
  except (TypeError, ValueError, AttributeError, KeyError, RecursionError, UserError) as error:
    raise UserError(f"{source} is damaged: its model is not described as one: {quoted(error)}") from error
  return recipe


def _head(head: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a replaced head, as files of before have it in a list of their own, as an edit."""
  steps = kd.simkd_steps(head["size"])
  dropped = [name.removeprefix("params/") for name in head["dropped"]]
  kept = {key: head[key] for key in ("name", "tap", "beside", "shapes")}
  return {"edit": "replace_head", **kept, "steps": steps, "dropped": dropped}


def _tuples(value: Any) -> Any:
  """Returns JSON's lists as the tuples that they were."""
  if isinstance(value, Mapping):
    return {key: _tuples(child) for key, child in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
