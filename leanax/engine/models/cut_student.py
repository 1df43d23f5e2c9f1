"""A student cut out of its teacher: every leaf of a smaller model of the same family filled from a trained larger one.

Two ways. "width": a narrower model takes the leading channels along each axis. An axis that was made by flattening
takes the leading part of each axis that went into it, as the traced function says (`graph.axis_parts`): of a dense
kernel that reads height * width * channels numbers the leading channels of every place stay, not the leading rows.
Numbers are copied as they are: units whose inputs are cut give smaller sums than their teacher's. "layers": a model
with fewer blocks takes whole modules, as DistilBERT takes every other layer (arXiv:1910.01108, section 2).

Leaves are found by name, `counterparts` says as data which is whose, and nothing is guessed: a leaf without a
counterpart, and an axis whose order cannot be followed, are refused by name. Pure functions on trees of variables,
{"params": tree, other collections}, of arrays or shapes.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from leanax.core.errors import UserError, nearest
from leanax.core.trees import map_named, named_leaves
from leanax.graph import Made

Parts = Mapping[str, Sequence[Made]]
Pick = Callable[[Sequence[str], int], Sequence[int]]


class Run(NamedTuple):
  """Neighbouring modules of one kind (same leaves, same shapes), of which the student has as many or fewer.

  Attributes:
    student: paths of its modules in order, such as "Block_0".
    teacher: paths of those that they may be copies of, in order.
  """

  student: tuple[str, ...]
  teacher: tuple[str, ...]


def first(modules: Sequence[str], count: int) -> list[int]:
  """The first ones."""
  del modules
  return list(range(count))


def alternate(modules: Sequence[str], count: int) -> list[int]:
  """Evenly spread ones from the first on: of six, three are 0, 2 and 4."""
  return [index * len(modules) // count for index in range(count)]


def by_effect(effect: Callable[[str], float]) -> Pick:
  """Those with the largest effect, in their own order; of equal ones the earlier.

  Args:
    effect: of a module's path, such as the loss without it; asked only where there is a choice.
  """

  def pick(modules: Sequence[str], count: int) -> list[int]:
    if count == len(modules):
      return list(range(count))
    effects = [effect(module) for module in modules]
    return sorted(sorted(range(len(modules)), key=lambda index: -effects[index])[:count])

  return pick


def without(variables: Mapping[str, Any], module: str) -> dict[str, Any]:
  """The variables with a module's parameters at zero, which makes a residual block the identity, or its shortcut."""

  def zero(name: str, leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if f"{name}/".startswith(f"{module}/") else leaf

  return {**variables, "params": map_named(zero, variables["params"])}


def module_runs(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> tuple[list[Run], list[str]]:
  """Numbered modules of which the two have different numbers, matched in order: the runs, and modules without one.

  A run of the student's belongs to the next run of the same kind that is long enough. Modules are numbered where a
  part of a path ends in digits: "Block_3/Conv_0/kernel", "layers/3/kernel". Of nested ones the outermost that differ
  count.
  """
  mine, its = _numbered(student), _numbered(teacher)
  found, lost = [], []
  for group in _differing(student, mine, its):
    left = _kinds(group, its.get(group, {}))
    for kind, modules in _kinds(group, mine[group]):
      later = next((i for i, (other, them) in enumerate(left) if other == kind and len(them) >= len(modules)), None)
      if later is None:
        lost += modules
      else:
        found.append(Run(tuple(modules), tuple(left[later][1])))
        left = left[later + 1 :]
  return found, lost


def counterparts(
  student: Mapping[str, Any], teacher: Mapping[str, Any], pick: Pick | None = None, pairs: Sequence[Any] = ()
) -> dict[str, str]:
  """Which of the teacher's leaves each of the student's is filled from, by name ("batch_stats/Block_0/...").

  Args:
    student: its variables.
    teacher: its teacher's.
    pick: which modules of a run are kept, as `first` does; None: leaves of the same name.
    pairs: (student's path, teacher's path), which go before all else; `*` stands for anything, the same on both sides
      in order. Paths are those within a collection, so one pair moves parameters and statistics.

  Raises:
    UserError: a pair that matches nothing, a leaf that has no counterpart, or, where neither `pick` nor `pairs` say
      what is left out, a leaf of the teacher's that is nobody's.
  """
  moved: dict[str, str | None] = {}
  if pick is not None:
    runs, lost = module_runs(student, teacher)
    moved = dict.fromkeys(lost)
    for run in runs:
      moved |= {
        module: run.teacher[i] for module, i in zip(run.student, pick(run.teacher, len(run.student)), strict=True)
      }
  there = set(_leaves(teacher))
  rules, used, out = [_rule(pair) for pair in pairs], set(), {}
  for collection, path in _leaves(student):
    other = _moved(path, moved)
    for index, (pattern, replacement) in enumerate(rules):
      if re.fullmatch(pattern, path):
        used.add(index)
        other = re.sub(pattern, replacement, path)
        break
    if other is None or (collection, other) not in there:
      raise _missing(_name(collection, path), other and _name(collection, other), there)
    out[_name(collection, path)] = _name(collection, other)
  if pick is None and not pairs and (left := sorted(_name(*key) for key in there if _name(*key) not in out.values())):
    raise UserError(
      f"no leaf of the student is cut out of its teacher's {left[0]!r}; expected a student with the same leaves, or "
      "'cut.way' as 'layers', or 'cut.map'"
    )
  if idle := [pair[0] for index, pair in enumerate(pairs) if index not in used]:
    paths = {"/".join(path.split("/")[:depth]) for _, path in _leaves(student) for depth in range(1, 9)}
    near = nearest(idle[0].strip("*/"), sorted(paths))
    raise UserError(f"'cut.map': {idle[0]!r} matches no leaf of the student; near it: {', '.join(near) or 'none'}")
  return out


def fill(
  student: Mapping[str, Any],
  teacher: Mapping[str, Any],
  names: Mapping[str, str],
  parts: tuple[Parts, Parts] | None = None,
) -> Any:
  """The student's variables with the teacher's numbers.

  Args:
    student: its variables; only shapes are read.
    teacher: its teacher's.
    names: of `counterparts`.
    parts: `graph.axis_parts` of the student and of the teacher, for narrower leaves; None: all shapes are the same.

  Raises:
    UserError: a leaf that is larger than its counterpart or cannot be cut from it.
  """
  there = {_name(*key): leaf for key, leaf in _leaves(teacher).items()}

  def one(name: str, leaf: Any) -> jax.Array:
    name = name.removeprefix("params/")
    source, shape = there[names[name]], tuple(leaf.shape)
    where = f"the student's {name!r} of shape {shape}", f"its teacher's {names[name]!r} of {tuple(source.shape)}"
    if len(shape) != source.ndim or (parts is None and shape != source.shape):
      raise UserError(f"{where[0]} cannot be copied from {where[1]}; expected the same shape")
    if parts is not None:
      source = _leading(source, shape, parts[0][name], parts[1][names[name]], where)
    return jnp.array(source, copy=True)  # the state in training may be donated, and the teacher's numbers must live on

  return map_named(one, student)


def _leading(
  source: Any, shape: tuple[int, ...], mine: Sequence[Made], its: Sequence[Made], where: tuple[str, str]
) -> Any:
  for axis, (small, large) in enumerate(zip(mine, its, strict=True)):
    if small.sizes == large.sizes:
      continue
    differ = f"axis {axis} is made of {small.sizes} in the student and of {large.sizes} in its teacher"
    if shape[axis] > source.shape[axis] or any(a > b for a, b in zip(small.sizes, large.sizes, strict=False)):
      raise UserError(f"{where[0]} is larger than {where[1]}: {differ}")
    if len(small.sizes) != len(large.sizes):
      raise UserError(f"{where[0]} cannot be cut out of {where[1]}: {differ}; expected as many sizes")
    for a, b, lost in zip(small.sizes, large.sizes, map(max, small.lost, large.lost), strict=True):
      if a != b and lost:
        raise UserError(f"{where[0]} cannot be cut out of {where[1]}: axis {axis} cannot be followed through {lost!r}")
  whole = source.reshape([n for made in its for n in made.sizes])
  return whole[tuple(slice(n) for made in mine for n in made.sizes)].reshape(shape)


def _leaves(variables: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
  """{(collection, path): leaf}."""
  return {(kind, path): leaf for kind, tree in variables.items() for path, leaf in named_leaves(tree).items()}


def _name(collection: str, path: str) -> str:
  return path if collection == "params" else f"{collection}/{path}"


Group = tuple[str, str]  # the path before the numbered part, and that part without its number
Modules = dict[int, set[Any]]  # by number: (collection, path within the module, shape) of its leaves


def _places(path: str) -> list[tuple[Group, int, str]]:
  """Every numbered part of a path: (group, number, what follows)."""
  parts = path.split("/")
  found = []
  for place, part in enumerate(parts):
    if match := re.fullmatch(r"(.*?)(\d+)", part):
      found.append((("/".join(parts[:place]), match[1]), int(match[2]), "/".join(parts[place + 1 :])))
  return found


def _path(group: Group, number: int) -> str:
  return f"{group[0]}/{group[1]}{number}".lstrip("/")


def _numbered(variables: Mapping[str, Any]) -> dict[Group, Modules]:
  found: dict[Group, Modules] = {}
  for (collection, path), leaf in _leaves(variables).items():
    for group, number, rest in _places(path):
      found.setdefault(group, {}).setdefault(number, set()).add((collection, rest, tuple(leaf.shape)))
  return found


def _differing(student: Mapping[str, Any], mine: Mapping[Group, Modules], its: Mapping[Group, Modules]) -> list[Group]:
  """The outermost groups of which the student does not have the same numbers as its teacher."""
  found: dict[Group, None] = {}
  for _, path in _leaves(student):
    groups = [group for group, _, _ in _places(path) if set(mine[group]) != set(its.get(group, {}))]
    found |= dict.fromkeys(groups[:1])
  return list(found)


def _kinds(group: Group, modules: Modules) -> list[tuple[frozenset[Any], list[str]]]:
  """Neighbours with the same leaves: (those, the modules' paths)."""
  ordered = [(frozenset(modules[number]), _path(group, number)) for number in sorted(modules)]
  return [(kind, [path for _, path in run]) for kind, run in itertools.groupby(ordered, lambda one: one[0])]


def _moved(path: str, moved: Mapping[str, str | None]) -> str | None:
  """A path in the module that its own module is moved to; None where that has no counterpart."""
  parts = path.split("/")
  for place in range(len(parts), 0, -1):
    module = "/".join(parts[:place])
    if module in moved:
      to = moved[module]
      return None if to is None else "/".join([to, *parts[place:]])
  return path


def _rule(pair: Any) -> tuple[str, Callable[[re.Match[str]], str]]:
  """A pair of a map as a regular expression and what its match becomes."""
  if not (len(pair) == 2 and all(isinstance(side, str) for side in pair) and pair[0].count("*") == pair[1].count("*")):
    raise UserError(f"'cut.map' has {tuple(pair)!r}; expected (student's path, teacher's path), '*' as often in both")
  pieces = pair[1].split("*")

  def other(match: re.Match[str]) -> str:
    return "".join(itertools.chain(*zip(pieces, (*match.groups(), ""), strict=True)))

  return "(.*)".join(map(re.escape, pair[0].split("*"))), other


def _missing(name: str, other: str | None, there: Iterable[tuple[str, str]]) -> UserError:
  names = [_name(*key) for key in there]
  near = nearest(other or name, names) or sorted(names)[:3]
  wanted = "" if other in (None, name) else f", {other!r},"
  return UserError(
    f"the student's {name!r} has no counterpart{wanted} among its teacher's leaves; near it: {', '.join(near)}; "
    "'cut.map' can name one"
  )
