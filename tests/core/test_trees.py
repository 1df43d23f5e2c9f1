from typing import NamedTuple

from leanax.core.trees import map_named, named_leaves


class Pair(NamedTuple):
  left: int
  right: int


def test_leaves_are_named_by_keys_indices_and_attributes():
  tree = {"encoder": [{"kernel": 1}, {"kernel": 2}], "pair": Pair(3, 4)}
  assert named_leaves(tree) == {"encoder/0/kernel": 1, "encoder/1/kernel": 2, "pair/left": 3, "pair/right": 4}


def test_map_named_keeps_the_structure():
  tree = {"a": 1, "b": (2, 3)}
  assert map_named(lambda name, x, y: f"{name}:{x + y}", tree, tree) == {"a": "a:2", "b": ("b/0:4", "b/1:6")}
