"""A student that is deployed with what a loss trained and with its teacher's classifier (`kd.simkd`), as one model.

Its variables are those of the student that its tap depends on, and beside them, under a name of their own among the
parameters, those of the head. The layers behind the tap are gone: nothing trained them, and nothing reads them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

import kd
from kd.maps import common_size
from leanax import graph
from leanax.core.errors import UserError
from leanax.core.trees import map_named, named_leaves
from leanax.engine.models.model import Model
from leanax.graph.shapes import structs

if TYPE_CHECKING:
  from leanax.pipeline.trained import Recipe

Head = Mapping[str, Any]


class Plan(NamedTuple):
  """How a stage's student is put together when it is evaluated or left.

  Attributes:
    head: what the recipe of the whole says of it, plain JSON data: its "name" among the parameters, the "tap" that it
      reads, the "size" of the maps, whether it stands "beside" the student's parameters in one dict, the student's
      leaves that are "dropped", and the "shapes" of its own.
    params: `params(aux, aux_state)`, its parameters.
  """

  head: Head
  params: Callable[[Any, Any], Any]


def plan(
  objective: kd.Weighted,
  recipe: "Recipe",
  model: Model,
  variables: Any,
  outputs: tuple[Any, Any],
  aux: tuple[Any, Any],
  teacher: Any,
  chosen: Sequence[int] = (),
  folded: bool = False,
) -> Plan | None:
  """How the student of a stage is put together; None where its objective trains nothing that is deployed.

  Args:
    objective: what the stage minimises.
    recipe: of the student.
    model: its function.
    variables: its variables, or their shapes.
    outputs: the student's and its teacher's (`kd.Outputs`), or their shapes.
    aux: (aux, aux_state), or their shapes.
    teacher: the teacher's variables, or their shapes.
    chosen: the teacher's class for each of the student's; () where they are the same.
    folded: whether the student's batch norms are folded or its integers are simulated.

  Raises:
    UserError: there are two such terms, the student is edited, or the teacher has no such classifier.
  """
  terms = {term.name: term.loss for term in objective.terms if term.loss.head}
  if not terms:
    return None
  if len(terms) > 1:
    raise UserError(f"{' and '.join(terms)} train a classifier each; expected one such term")
  ((term, loss),) = terms.items()
  if folded:
    raise UserError(f"{loss.name} puts a new model together: expected a float stage, and one that quantizes after it")

  def params(aux: Any, aux_state: Any, teacher: Any = teacher) -> Any:
    assert loss.head is not None
    return loss.head(aux[term], aux_state[term], teacher, len(recipe.classes), tuple(chosen))

  tap = loss.taps.student[0]
  mine, its = outputs[0].taps[tap], outputs[1].taps[loss.taps.teacher[0]]
  example = jax.ShapeDtypeStruct((1, *recipe.image), jnp.float32)
  read = graph.leaves_read(
    lambda v, x: graph.taps(lambda v, x: model.apply(v, x)[0], [tap])(v, x)[1], variables, example
  )
  floats = [name for name, leaf in named_leaves(variables).items() if jnp.issubdtype(leaf.dtype, jnp.floating)]
  beside = isinstance(variables["params"], Mapping)
  taken = variables["params"] if beside else ()
  head = {
    "name": next(n for n in (loss.name, *(f"{loss.name}_{i}" for i in range(2, 99))) if n not in taken),
    "tap": tap,
    "size": common_size(mine, its) if len(mine.shape) == 4 else None,
    "beside": beside,
    "dropped": tuple(name for name in floats if name.removeprefix("params/") not in read),
    "shapes": _tuples(graph.shapes(jax.eval_shape(params, *aux, teacher))),
  }
  return Plan(head, params)


def join(variables: Any, head: Head, params: Any) -> Any:
  """The variables of the whole, of those of the student and the head's parameters."""
  own = _kept(variables, frozenset(head["dropped"]))
  trunk = own.get("params", {})
  return {**own, "params": {**(trunk if head["beside"] else {"student": trunk}), head["name"]: params}}


def assembled(model: Model, head: Head, image: tuple[int, ...]) -> Model:
  """The student with its head; `init` gives a head of zeros, for a stage fills it."""
  example = jax.ShapeDtypeStruct((1, *image), jnp.float32)
  shapes = jax.eval_shape(lambda x: model.init(jax.random.key(0), x), example)

  def init(key: jax.Array, x: jax.Array) -> Any:
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structs(head["shapes"]))
    return join(model.init(key, x), head, zeros)

  def apply(variables: Any, x: jax.Array, *, train: bool = False, key: Any = None) -> tuple[jax.Array, Any]:
    params = {name: tree for name, tree in variables["params"].items() if name != head["name"]}
    trunk = {**variables, "params": params if head["beside"] else params["student"]}

    def features(trunk: Any, x: jax.Array) -> Any:
      # What was dropped is zeros: the user's function wants it, and what it makes of it is dropped in turn.
      given = named_leaves(trunk)
      whole = map_named(lambda name, leaf: given[name] if name in given else jnp.zeros(leaf.shape, leaf.dtype), shapes)
      tapped = graph.taps(lambda v, x: model.apply(v, x, train=train, key=key), [head["tap"]])
      (_, state), found = tapped(whole, x)
      return found[head["tap"]], _kept(state, frozenset(head["dropped"])) if train else {}

    state = {name: tree for name, tree in variables.items() if name != "params"}
    out, after = graph.live(features)(trunk, x)
    return kd.simkd_logits(variables["params"][head["name"]], out, head["size"]), {**state, **after}

  return Model(init, apply)


def _kept(tree: Any, dropped: frozenset[str], path: tuple[str, ...] = ()) -> Any:
  """A tree without some leaves, and without the dicts that they leave empty."""
  if isinstance(tree, Mapping):
    inner = {name: _kept(branch, dropped, (*path, str(name))) for name, branch in tree.items()}
    return {name: branch for name, branch in inner.items() if jax.tree.leaves(branch)}
  return map_named(lambda name, leaf: None if "/".join(filter(None, (*path, name))) in dropped else leaf, tree)


def _tuples(value: Any) -> Any:
  return tuple(map(_tuples, value)) if isinstance(value, list) else value
