"""Generates docs/methods.md from the packages, their docstrings, the configs and the results.

python -m benchmarks.methods_page
"""

import ast
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import kd
import quant
import sparsity
from leanax.core.errors import UserError
from leanax.core.methods import methods
from leanax.pipeline.config import loading
from leanax.pipeline.config.experiment import Stage

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/methods.md"
HEAD = """# Methods

All methods that the packages export; `python -m benchmarks.methods_page` generates this page. The description and the
source are from the method's file, which also has the equations and the differences from the paper.

"configs" are the files of `configs/` that use the method without changes, "tables" those of `docs/results`, with seeds,
intervals and the command. **unproven** means that no table shows its effect on a student yet; its test compares it with
its paper. Metrics are listed in [tasks.md](tasks.md#metrics).
"""
OF_LOSSES = """
The marks of a loss, with its default arguments:

- *teacher*: the loss compares with a teacher; without the mark it needs labels only.
- *activations*: the loss reads taps besides the logits. Its teacher runs in the step, because only logits are cached.
- *relational*: an example's loss depends on the other examples of its batch, by a relation between examples or by a
  batch normalisation in the loss's own layers. Such a loss sees the batch of all devices, and is refused with
  `optimizer.accumulate`, which would split the batch. `crd` is not relational: its negatives come from a memory bank.
  `fitnet` is with `normalise=True`.
- *trains*: the loss has parameters (`aux`), which the stage's optimizer trains with the student's. `cc` has them with
  `width`.
"""
NO_PAPER = "No paper"
VENUES = re.compile(r"\b((?:CVPR|ICCV|ECCV|ICLR|ICML|NeurIPS|NIPS|AAAI|BMVC|WACV) \d{4})\b")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
MOST = 3  # configs per row
# Methods that share a file with others, so that the walk over files does not find them.
FOLDERS = {"kd": "losses", "quant": "estimators", "sparsity": "dynamic"}
MORE = {"quant": ("fake_quant", "latent_weights")}


class Method(NamedTuple):
  """A row: the exporting package, the method's name and its function."""

  package: ModuleType
  name: str
  function: Callable[..., Any]

  @property
  def key(self) -> str:
    return f"{self.package.__name__}.{self.name}"

  @property
  def file(self) -> Path:
    return Path(inspect.getfile(self.function)).resolve().relative_to(ROOT)

  @property
  def own_file(self) -> bool:
    return self.file.stem == self.name

  @property
  def doc(self) -> str:
    """The docstring of its file, after its own docstring where it shares the file."""
    module = ast.get_docstring(ast.parse((ROOT / self.file).read_text("utf-8"))) or ""
    own = inspect.getdoc(self.function) or ""
    return module if self.own_file else f"{own}\n\n{module}"


class Family(NamedTuple):
  """A section of the page."""

  title: str
  methods: list[Method]
  marks: bool = False


def of(package: ModuleType, chosen: Callable[[Callable[..., Any]], bool] = lambda _: True) -> list[Method]:
  """Returns the methods of a package that `chosen` accepts."""
  files = methods(package) | methods(package, FOLDERS.get(package.__name__, ""))
  found = {**files, **{name: getattr(package, name) for name in MORE.get(package.__name__, ())}}
  return [Method(package, name, function) for name, function in sorted(found.items()) if chosen(function)]


def parameters(function: Callable[..., Any]) -> list[str]:
  return list(inspect.signature(function).parameters)


def families() -> list[Family]:
  """Returns all methods by section. Of quant these are the functions that round numbers or wrap an optimizer."""
  return [
    Family("Distillation: losses on logits", of(kd, lambda f: not made(f).taps.student), marks=True),
    Family("Distillation: losses on activations", of(kd, lambda f: bool(made(f).taps.student)), marks=True),
    Family("Distillation: optimizers", of(kd.trainers)),
    Family("Distillation: schedules of weights and temperatures", of(kd.schedules)),
    Family("Quantization", of(quant, lambda f: parameters(f)[:1] in (["x"], ["inner"]))),
    Family("Quantization: estimators", of(quant, lambda f: f in methods(quant.estimators).values())),
    Family("Quantization: observers", of(quant.observers)),
    Family("Quantization: formats", of(quant.formats)),
    Family("Sparsity", of(sparsity)),
    Family("Sparsity: criteria", of(sparsity.criteria)),
    Family("Sparsity: patterns", of(sparsity.patterns)),
    Family("Sparsity: allocations", of(sparsity.allocations)),
    Family("Sparsity: reparameterizations", of(sparsity.reparam)),
    Family("Sparsity: schedules", of(sparsity.schedules)),
  ]


def sentence(method: Method) -> str:
  """Returns the beginning of the docstring, up to the explanation or the authors."""
  text = " ".join(method.doc.split("\n\n")[0].split())
  return re.split(r"[:;] | \(|\.(?: |$)", text)[0]


def source(method: Method) -> str:
  """Returns the paper as a link or a venue; "none" for "No paper", and "" if the docstring has neither."""
  own = method.doc if method.own_file else inspect.getdoc(method.function) or ""
  if NO_PAPER in own:
    return "none"
  for part in (method.doc.split("\n\n")[0], method.doc):
    if found := ARXIV.search(part):
      return f"[arXiv:{found[1]}](https://arxiv.org/abs/{found[1]})"
    if found := VENUES.search(part):
      return found[1]
  return ""


def test_of(method: Method) -> Path | None:
  """Returns the test file of the method, of its file or of its folder; else the one that names it most."""
  folder = ROOT / "tests" / method.file.parts[0]
  for stem in (method.name, method.file.stem, method.file.parent.name):
    if (folder / f"test_{stem}.py").is_file():
      return (folder / f"test_{stem}.py").relative_to(ROOT)
  count, file = max((f.read_text("utf-8").count(f"{method.key}("), f) for f in sorted(folder.glob("test_*.py")))
  return file.relative_to(ROOT) if count else None


def made(function: Callable[..., Any]) -> kd.Loss:
  """Returns a loss with its default arguments and any tap names."""
  needed = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
  for taps in (("a",), ("a", "b")):
    known = {"student": taps, "teacher": taps, "examples": 2}
    try:
      return function(**{name: known[name] for name in needed})
    except UserError:
      continue
  raise UserError(f"{function.__name__} needs other arguments than {', '.join(known)}")


def marks(method: Method) -> list[str]:
  """Returns the marks of a loss: teacher, activations, relational, trains."""
  loss = made(method.function)
  flags = loss.needs_teacher, loss.taps.student, loss.relational, loss.init
  return ["•" if flag else "" for flag in flags]


def used_by(stage: Stage) -> Iterator[str]:
  """Yields the keys of the methods in a stage of a complete config, such as `kd.hinton`."""
  objective, sparse, rules = stage.objective, stage.sparsity, stage.quant.rules
  for name, given in objective.items():
    yield f"kd.{given.get('loss', name)}"
    yield from (f"kd.schedules.{value['name']}" for value in given.values() if isinstance(value, Mapping))
  yield f"kd.trainers.{stage.optimizer.name}"
  if name := sparse.get("name"):
    yield f"sparsity.{name}"
    keywords = inspect.signature(getattr(sparsity, name)).parameters
    if "allocation" in keywords:
      yield f"sparsity.allocations.{sparse.get('allocation', keywords['allocation'].default)}"
    if name == "magnitude":
      yield "sparsity.criteria.magnitude"
    yield f"sparsity.schedules.{(sparse.get('schedule') or {}).get('name')}"
  for setting in (quant.parse(text) for _, text in rules):
    for spec in setting.specs:
      yield f"quant.{spec.estimator}"
      yield f"quant.formats.{spec.format}"
    if setting.activations is not None:
      yield f"quant.observers.{setting.activations.observer}"


@functools.cache
def of_config(spec: str) -> dict[str, frozenset[str]]:
  """Returns the methods of each stage that a config runs."""
  config = loading.experiment(str(ROOT / spec), [])
  return {name: frozenset(used_by(config.stages[name])) for name in config.run}


def configs() -> dict[str, set[str]]:
  """Returns the methods of each config file without arguments."""
  files = sorted((ROOT / "configs").glob("*.py"))
  return {f.stem: set().union(*of_config(str(f.relative_to(ROOT))).values()) for f in files}


def tables() -> dict[str, set[str]]:
  """Returns the methods of each table of results: those of the stages in its rows."""
  found: dict[str, set[str]] = {}
  for file in sorted((ROOT / "docs/results").glob("*.json")):
    table = json.loads(file.read_text("utf-8"))
    parts = [part for part in table.get("parts", [table]) if "config" in part and "stages" in part]
    for part in parts:
      stages = of_config(part["config"])
      rows = {row["name"] for row in part["stages"]} & set(stages)
      found.setdefault(file.stem, set()).update(*(stages[name] for name in rows))
  return found


def row(method: Method, marked: bool, where: Mapping[str, set[str]], proven: Mapping[str, set[str]]) -> list[str]:
  """Returns the cells of a method."""
  test = test_of(method)
  name = f"[`{method.name}`](../{method.file})" + (f" ([test](../{test}))" if test else "")
  used = [f"[{name}](../configs/{name}.py)" for name, keys in where.items() if method.key in keys]
  shown = [f"[{name}](results/{name}.json)" for name, keys in proven.items() if method.key in keys]
  cells = [name, sentence(method), source(method), *(marks(method) if marked else [])]
  used = [*used[:MOST], "others"] if len(used) > MOST else used
  return [*cells, ", ".join(used), ", ".join(shown) or "unproven"]


def page() -> str:
  """Returns the page as text."""
  where, proven = configs(), tables()
  lines = [HEAD.rstrip(), OF_LOSSES]
  for family in families():
    head = ["method", "what it is", "source"]
    head += ["teacher", "activations", "relational", "trains"] if family.marks else []
    head += ["configs", "tables"]
    lines += [f"## {family.title}", "", *_table(head, [row(m, family.marks, where, proven) for m in family.methods])]
  return "\n".join(lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
  centred = {"teacher", "activations", "relational", "trains"}
  lines = [f"| {' | '.join(head)} |", f"| {' | '.join(':---:' if cell in centred else '---' for cell in head)} |"]
  return [*lines, *(f"| {' | '.join(cell.replace('|', '∣') for cell in row)} |" for row in rows), ""]


def main() -> None:
  PAGE.write_text(page(), encoding="utf-8")
  print(PAGE.relative_to(ROOT))


if __name__ == "__main__":
  main()
