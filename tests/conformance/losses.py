"""The losses of kd, found by walking the package and told apart by what they declare: which battery each goes through.

A loss is made with its default arguments, the taps that `TAPS` gives it, and those of "map" if it gives none.
"""

import inspect

import kd
from leanax.core.methods import methods

FOUND = methods(kd, "losses")
# loss -> (taps of the student, taps of the teacher, further arguments)
TAPS: dict[str, tuple] = {
  "fsp": (("early", "twin"), ("early", "twin"), {}),
  "kdsvd": (("early", "twin"), ("early", "twin"), {}),
  "byot": (("early", "map", "vector"), None, {}),
  "crd": (("vector",), ("vector",), {"examples": 16, "negatives": 8, "width": 3}),
  "review": (("early", "late", "vector"), ("early", "late", "vector"), {}),
  "srrl": (("vector",), ("vector",), {"classifier": "head"}),
}


def made(function, **changed):
  """The result of a function of kd, called with the arguments that it needs."""
  takes = inspect.signature(function).parameters
  student, teacher, more = TAPS.get(function.__name__, (("map",), ("map",), {}))
  taps = {key: names for key, names in (("student", student), ("teacher", teacher)) if key in takes}
  return function(**taps, **more, **changed)


def sorted_out(found):
  """(losses on logits, losses on activations) of functions by name: both by kind; what makes no loss is in neither."""
  losses = {name: loss for name, function in found.items() if isinstance(loss := made(function), kd.Loss)}
  on_taps = {name for name, loss in losses.items() if loss.taps.student or loss.taps.teacher}
  return tuple({name: found[name] for name in losses if (name in on_taps) is taps} for taps in (False, True))


ON_LOGITS, ON_TAPS = sorted_out(FOUND)
