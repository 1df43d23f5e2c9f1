"""Initialises a student from its teacher: every leaf of a smaller model of the same family is cut from a larger one.

There are two ways. "width": a narrower model takes the leading channels along each axis. For a flattened axis it takes
the leading part of each original axis (`graph.axis_parts`): a dense kernel on height * width * channels inputs keeps
the leading channels of every place, not the leading rows. Values are copied without rescaling, so units with fewer
inputs give smaller sums than the teacher's. "layers": a model with fewer blocks takes whole modules, as DistilBERT
takes every other layer (arXiv:1910.01108, section 2).

Leaves are matched by name; `counterparts` returns the match as data. A leaf without a counterpart, and an axis whose
order cannot be followed, are refused by name. All are pure functions on trees of variables, {"params": tree, other
collections}, of arrays or shapes.
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
  """Consecutive modules of one kind (same leaves, same shapes), at most as many in the student as in the teacher.

  Attributes:
    student: paths of the student's modules in order, such as "Block_0".
    teacher: paths of the matching teacher's modules in order.
  """

  student: tuple[str, ...]
  teacher: tuple[str, ...]


def first(modules: Sequence[str], count: int) -> list[int]:
  """Picks the first `count` modules."""
  del modules
  return list(range(count))


def alternate(modules: Sequence[str], count: int) -> list[int]:
  """Picks evenly spaced modules from the first on: three of six are 0, 2 and 4."""
  return [index * len(modules) // count for index in range(count)]


def by_effect(effect: Callable[[str], float]) -> Pick:
  """Returns a function that picks the modules with the largest effect, in order; of equal ones the earlier.

  Args:
    effect: a function of a module's path, such as the loss without it; called only where there is a choice.
  """

  def pick(modules: Sequence[str], count: int) -> list[int]:
    if count == len(modules):
      return list(range(count))
    effects = [effect(module) for module in modules]
    return sorted(sorted(range(len(modules)), key=lambda index: -effects[index])[:count])

  return pick


def without(variables: Mapping[str, Any], module: str) -> dict[str, Any]:
  """Sets a module's parameters to zero, which turns a residual block into its shortcut."""

  def zero(name: str, leaf: Any) -> Any:
    return jnp.zeros_like(leaf) if f"{name}/".startswith(f"{module}/") else leaf

  return {**variables, "params": map_named(zero, variables["params"])}


def module_runs(student: Mapping[str, Any], teacher: Mapping[str, Any]) -> tuple[list[Run], list[str]]:
  """Matches numbered modules of which student and teacher have different numbers, in order.

  A run of the student matches the next run of the same kind that is long enough. Modules are numbered where a part of a
  path ends in digits: "Block_3/Conv_0/kernel", "layers/3/kernel". Of nested modules the outermost that differ are
  matched.

  Returns:
    The runs, and the student's modules without a match.
  """
  student_groups, teacher_groups = _numbered(student), _numbered(teacher)
  runs, unmatched = [], []
  for group in _differing(student, student_groups, teacher_groups):
    remaining = _kinds(group, teacher_groups.get(group, {}))
    for kind, modules in _kinds(group, student_groups[group]):
      fits = (i for i, (other, paths) in enumerate(remaining) if other == kind and len(paths) >= len(modules))
      later = next(fits, None)
      if later is None:
        unmatched += modules
      else:
        runs.append(Run(tuple(modules), tuple(remaining[later][1])))
        remaining = remaining[later + 1 :]
  return runs, unmatched


def counterparts(
  student: Mapping[str, Any], teacher: Mapping[str, Any], pick: Pick | None = None, pairs: Sequence[Any] = ()
) -> dict[str, str]:
  """Returns the teacher's leaf for each leaf of the student, by name ("batch_stats/Block_0/...").

  Args:
    student: its variables.
    teacher: its variables.
    pick: selects modules of a run, such as `first`; None matches leaves of the same name.
    pairs: (student's path, teacher's path), with priority; `*` matches anything, the same on both sides in order. Paths
      are within a collection, so one pair maps parameters and statistics.

  Raises:
    UserError: a pair matches nothing, a leaf has no counterpart, or, without `pick` and `pairs`, a leaf of the teacher
      is not used.
  """
  moved: dict[str, str | None] = {}
  if pick is not None:
    runs, unmatched = module_runs(student, teacher)
    moved = dict.fromkeys(unmatched)
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
  unused = sorted(_name(*key) for key in there if _name(*key) not in out.values())
  if pick is None and not pairs and unused:
    raise UserError(
      f"no leaf of the student is cut out of its teacher's {unused[0]!r}; expected a student with the same leaves, or "
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
  """Returns the student's variables with values of the teacher.

  Args:
    student: its variables; only shapes are read.
    teacher: its variables.
    names: of `counterparts`.
    parts: `graph.axis_parts` of the student and of the teacher, for narrower leaves; None if all shapes are equal.

  Raises:
    UserError: a leaf is larger than its counterpart or cannot be cut from it.
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
    return jnp.array(source, copy=True)  # the training state may be donated

  return map_named(one, student)


def _leading(
  source: Any, shape: tuple[int, ...], student: Sequence[Made], teacher: Sequence[Made], where: tuple[str, str]
) -> Any:
  for axis, (small, large) in enumerate(zip(student, teacher, strict=True)):
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
  whole = source.reshape([n for made in teacher for n in made.sizes])
  return whole[tuple(slice(n) for made in student for n in made.sizes)].reshape(shape)


def _leaves(variables: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
  """Returns {(collection, path): leaf}."""
  return {(kind, path): leaf for kind, tree in variables.items() for path, leaf in named_leaves(tree).items()}


def _name(collection: str, path: str) -> str:
  return path if collection == "params" else f"{collection}/{path}"


Group = tuple[str, str]  # the path before the numbered part, and that part without its number
Modules = dict[int, set[Any]]  # by number: (collection, path within the module, shape) of its leaves


def _places(path: str) -> list[tuple[Group, int, str]]:
  """Returns every numbered part of a path: (group, number, rest of the path)."""
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


def _differing(
  student: Mapping[str, Any], student_groups: Mapping[Group, Modules], teacher_groups: Mapping[Group, Modules]
) -> list[Group]:
  """Returns the outermost groups whose numbers differ between student and teacher."""
  found: dict[Group, None] = {}
  for _, path in _leaves(student):
    groups = [group for group, _, _ in _places(path)]
    differ = [group for group in groups if set(student_groups[group]) != set(teacher_groups.get(group, {}))]
    found |= dict.fromkeys(differ[:1])
  return list(found)


def _kinds(group: Group, modules: Modules) -> list[tuple[frozenset[Any], list[str]]]:
  """Returns consecutive modules with the same leaves: (leaves, the modules' paths)."""
  ordered = [(frozenset(modules[number]), _path(group, number)) for number in sorted(modules)]
  return [(kind, [path for _, path in run]) for kind, run in itertools.groupby(ordered, lambda one: one[0])]


def _moved(path: str, moved: Mapping[str, str | None]) -> str | None:
  """Returns a path with its module replaced by the counterpart; None where there is none."""
  parts = path.split("/")
  for place in range(len(parts), 0, -1):
    module = "/".join(parts[:place])
    if module in moved:
      to = moved[module]
      return None if to is None else "/".join([to, *parts[place:]])
  return path


def _rule(pair: Any) -> tuple[str, Callable[[re.Match[str]], str]]:
  """Returns a pair of a map as a regular expression and a replacement function."""
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
