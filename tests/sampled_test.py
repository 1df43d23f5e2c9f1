"""Of the cases of a function that says `sampled(k)` a run in short takes one in k, and one by itself always."""

import pytest

from tests import conftest


class Item:
  """A collected test, as far as the hook reads it."""

  def __init__(self, nodeid, **marks):
    self.nodeid, self.marks = nodeid, {name: getattr(pytest.mark, name)(*args) for name, args in marks.items()}

  def get_closest_marker(self, name):
    mark = self.marks.get(name)
    return mark and mark.mark

  def add_marker(self, mark):
    self.marks[mark.name] = mark


def short(items):
  conftest.pytest_collection_modifyitems(items)
  return [item.nodeid for item in items if "slow" not in item.marks]


def test_one_case_in_k_is_left():
  found = short([Item(f"a.py::f[{i}]", sampled=(4,)) for i in range(12)])
  assert len(found) == 3
  numbers = [int(name.split("[")[1][:-1]) for name in found]
  assert numbers == list(range(numbers[0], 12, 4))


def test_one_case_by_itself_is_left_and_other_tests_are_untouched():
  assert short([Item("a.py::f[7]", sampled=(4,)), Item("a.py::g"), Item("a.py::h[0]"), Item("a.py::h[1]")]) == [
    *("a.py::f[7]", "a.py::g", "a.py::h[0]", "a.py::h[1]")
  ]


def test_cases_that_are_slow_anyway_are_not_counted():
  items = [Item(f"a.py::f[{i}]", sampled=(2,), **({"slow": ()} if i % 2 else {})) for i in range(8)]
  assert len(short(items)) == 2


def test_functions_have_different_cases():
  names = [f"a.py::f{i}" for i in range(20)]
  found = short([Item(f"{name}[{i}]", sampled=(5,)) for name in names for i in range(5)])
  assert len(found) == 20 and len({name.split("[")[1] for name in found}) == 5
