"""The names of arrays in files of weights, and the leaves of a model that they are meant for.

A name of a file and one of the model are the same if their parts are: "layers.0.fc.kernel", "layers_0/fc/kernel" and
"params/layers/0/fc/kernel/value" name one leaf. PyTorch's last parts ("weight", "running_mean") are those of Flax by
what the model has there: a kernel, an embedding or a scale. Nothing is matched by its shape.
"""

import re
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import numpy as np

from leanax.core.errors import UserError

# What training saves beside weights, by the first part of its name.
TRAINING = ("opt_state", "optimizer", "optimizers", "optimizer_state_dict", "optimizer_states", "step", "global_step")
TRAINING += ("epoch", "rng", "rngs", "scheduler", "lr_scheduler", "lr_schedulers", "scaler")
RANDOM = ("key", "count")  # the last part of a random stream's name, as nnx has it
VALUES = ("value", "raw_value")  # behind the name of an nnx variable, where its state is saved
STATISTICS = {"running_mean": "mean", "running_var": "var"}
WEIGHTS = ("kernel", "embedding", "scale")  # what torch calls "weight"
COUNTER = "num_batches_tracked"  # of torch's batch norms; Flax has none
DEPTH = 12  # parts of a prefix that is looked for
BREAK = re.compile(r"[/.]|_(?=\d+(?:[/._]|$))")


class Place(NamedTuple):
  """The leaf of an array, and whether the array's axes are those of torch."""

  leaf: str
  torch: bool = False


def parts(name: str) -> tuple[str, ...]:
  """Returns the parts of a name: those between "/" and ".", and numbers behind "_"."""
  return tuple(BREAK.split(name))


class Names:
  """The names of a model's leaves, to be found by those of files."""

  def __init__(self, leaves: Iterable[str], collections: Collection[str]) -> None:
    """Leaves without "params/" in front; the first part of others is one of `collections`, such as "batch_stats"."""
    self.leaves = frozenset(leaves)
    short = {leaf: leaf.partition("/")[2] for leaf in self.leaves if leaf.partition("/")[0] in collections}
    self.found: dict[tuple[str, ...], str | None] = {}
    for leaf in sorted(self.leaves):
      for name in {parts(leaf), parts(short.get(leaf, leaf))}:
        self.found[name] = None if name in self.found else leaf  # two of one name are not told apart

  def place(self, name: str) -> Place | None:
    """Returns the leaf of a name; None where the model has none of this name."""
    if (plain := name.removeprefix("params/")) in self.leaves:
      return Place(plain)
    given = parts(name)
    given = given[1:] if given[0] == "params" else given
    for one in (given, given[:-1]) if given and given[-1] in VALUES else (given,):
      if leaf := self.found.get(one):
        return Place(leaf)
    for last in WEIGHTS if given[-1:] == ("weight",) else [STATISTICS.get(given[-1], "")] if given else ():
      if leaf := self.found.get((*given[:-1], last)):
        return Place(leaf, torch=True)
    return None


def below(names: Iterable[str], prefix: str) -> dict[str, str]:
  """Returns the names that begin with a prefix, and what is left of them without it."""
  if not prefix:
    return {name: name for name in names}
  return {
    name: name[len(prefix) + 1 :]
    for name in names
    if name.startswith(prefix) and name[len(prefix) : len(prefix) + 1] in ("/", ".")
  }


def prefix(names: Iterable[str], model: Names, needed: Collection[str], path: str) -> str:
  """Returns the prefix behind which a file has the model's names; "" where they are the names themselves.

  Args:
    names: of the file's arrays.
    model: the model's.
    needed: leaves that need an array.
    path: the file, for errors.

  Raises:
    UserError: arrays for all leaves stand behind several prefixes, such as weights and their averages.
  """
  found: dict[str, dict[str, str]] = {"": {}}
  for name in names:
    ends = [match.start() for match in re.finditer(r"[/.]", name)][:DEPTH]
    for end in (-1, *ends):
      place = model.place(name[end + 1 :]) if name[end + 1 :] else None
      if place is not None and place.leaf in needed:
        found.setdefault(name[: max(end, 0)], {}).setdefault(place.leaf, name)
  trees = {one: leaves for one, leaves in found.items() if not {*parts(one)} & {*TRAINING}}
  whole = [one for one, leaves in trees.items() if len(leaves) == len(needed)]
  several = {frozenset(trees[one].values()): one for one in sorted(whole, key=len, reverse=True)}
  if len(several) > 1:
    *others, last = sorted(_shared(names) for names in several)
    raise UserError(
      f"{path} holds all weights of the model {len(several)} times, in {', '.join(map(repr, others))} and {last!r}; "
      "expected the name of one as entry, in a config as the model's key 'entry'"
    )
  return min(whole, key=len) if whole else max(trees, key=lambda one: (len(trees[one]), -len(one)))


def is_training(name: str, dtype: Any) -> bool:
  """Returns whether an array that a model has no leaf for is of training or of a random stream, and so no weight."""
  given = parts(name)
  last = given[-2] if given[-1] in VALUES and len(given) > 1 else given[-1]
  return given[0] in TRAINING or last == COUNTER or (last in RANDOM and np.dtype(dtype).kind == "u")


def _shared(names: Iterable[str]) -> str:
  """Returns what all names begin with, up to a break."""
  first, last = min(names), max(names)
  same = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), len(first))
  return first[: max(first.rfind("/", 0, same), first.rfind(".", 0, same), 0)] or first
