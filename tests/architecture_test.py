"""Rules of the whole repository: who imports whom, where heavy libraries load, the sizes of files and functions."""

import ast
import functools
import pathlib
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
METHODS = {"leanax.core", "leanax.graph"}  # our packages that packages of methods may import; never each other

# All of our packages: what programs may import.
OURS = {
  "leanax.core",
  "leanax.graph",
  "kd",
  "quant",
  "sparsity",
  "lowrank",
  "leanax.zoo",
  "leanax.engine",
  "leanax.deploy",
  "leanax.pipeline",
}

# package: (what it may import of ours, third parties beside jax, numpy and jaxtyping)
TABLE: dict[str, tuple[set[str], set[str]]] = {
  "leanax.core": (set(), set()),
  "leanax.graph": ({"leanax.core"}, set()),
  "kd": (METHODS, {"optax", "chex"}),
  "quant": (METHODS, {"optax", "chex"}),
  "sparsity": (METHODS, {"optax", "chex"}),
  "lowrank": (METHODS, {"optax", "chex"}),
  "leanax.zoo": (set(), {"flax"}),
  "leanax.engine": (
    {"leanax.core", "leanax.graph", "kd", "quant", "sparsity", "lowrank", "leanax.zoo"},
    {"absl", "array_record", "flax", "grain", "ml_collections", "optax", "orbax", "PIL", "safetensors", "sklearn"}
    | {"tensorboardX", "tensorflow_datasets", "tqdm", "msgpack", "importlib_resources"},
  ),
  "leanax.deploy": (
    {"leanax.core", "leanax.graph", "quant", "sparsity", "lowrank"},
    {"ai_edge_litert", "flatbuffers", "onnx", "onnxruntime"},
  ),
  "leanax.pipeline": (
    {
      "leanax.core",
      "leanax.graph",
      "kd",
      "quant",
      "sparsity",
      "lowrank",
      "leanax.zoo",
      "leanax.engine",
      "leanax.deploy",
    },
    {"absl", "flax", "ml_collections", "optax", "scipy", "tqdm"},
  ),
  "configs": (set(), {"ml_collections"}),
  "scripts": (
    OURS,
    {"absl", "ml_collections", "flax", "orbax", "PIL", "safetensors"},  # the drills write files of others
  ),
  "examples": (
    OURS,
    {"absl", "ai_edge_litert", "flax", "ml_collections", "PIL"},
  ),
}
EVERYWHERE = {"jax", "numpy", "jaxtyping"}
HEAVY = {"orbax", "tensorflow_datasets", "grain", "array_record", "sklearn", "tensorboardX", "safetensors", "PIL"}
HEAVY |= {"ai_edge_litert", "flatbuffers", "onnx", "onnxruntime"}
LIGHT = (
  "leanax.core.errors",
  "leanax.pipeline.config.experiment",
  "leanax.pipeline.config.flags",
  "leanax.pipeline.workdir",
  "leanax.pipeline.report.report",
)  # these answer before jax could load

FILE_LINES, FUNCTION_LINES, SCRIPT_LINES = 350, 80, 80


class Import(NamedTuple):
  """One import: the module's dotted name, its line, and whether it runs when the file is imported."""

  name: str
  line: int
  eager: bool


def sources() -> list[pathlib.Path]:
  return [path for package in TABLE for path in sorted((ROOT / package.replace(".", "/")).rglob("*.py"))]


FILES = {str(path.relative_to(ROOT)): path for path in sources()}


@functools.cache
def tree(path: pathlib.Path) -> ast.Module:
  return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: pathlib.Path) -> tuple[Import, ...]:
  def walk(node: ast.AST, eager: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.Import):
        yield from (Import(alias.name, child.lineno, eager) for alias in child.names)
      elif isinstance(child, ast.ImportFrom):
        assert child.level == 0, f"{path}:{child.lineno} imports relatively"
        assert child.module is not None
        yield Import(child.module, child.lineno, eager)
        yield from (Import(f"{child.module}.{alias.name}", child.lineno, eager) for alias in child.names)
      typing_only = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
      inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
      yield from walk(child, eager and not inside and not typing_only)

  return tuple(walk(tree(path), True))


def top(name: str) -> str:
  """The package of a module or of a file: one of the table, or a third party's."""
  first, *rest = name.replace("/", ".").split(".")
  return f"{first}.{rest[0]}" if first == "leanax" and rest else first


def allowed(name: str) -> set[str]:
  """The packages that a file may import."""
  package = top(name)
  ours, others = TABLE[package]
  if name == "leanax/core/errors.py":
    return set(sys.stdlib_module_names)
  return {package, *ours, *others, "leanax", *sys.stdlib_module_names, *(() if package == "configs" else EVERYWHERE)}


def test_imports_follow_the_table():
  wrong = [
    f"{name}:{i.line} imports {i.name}"
    for name, path in FILES.items()
    for may in [allowed(name)]
    for i in imports(path)
    if top(i.name) not in may
  ]
  assert not wrong


def dotted(path: str) -> str:
  return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


MODULES = {dotted(name): path for name, path in FILES.items()}
CIRCLES: set[frozenset[str]] = set()  # those that are still there; none may be added


def edges(path: pathlib.Path, known: Collection[str]) -> set[str]:
  """Our files that a file imports, inside functions too; imports under TYPE_CHECKING do not run."""
  found: set[str] = set()

  def walk(node: ast.AST) -> None:
    for child in ast.iter_child_nodes(node):
      if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
        continue
      if isinstance(child, ast.Import):
        found.update(alias.name for alias in child.names)
      elif isinstance(child, ast.ImportFrom):
        whole = {f"{child.module}.{alias.name}" for alias in child.names}
        found.update(name if name in known else str(child.module) for name in whole)
      walk(child)

  walk(tree(path))
  return found & set(known)


def circles(graph: Mapping[str, Collection[str]]) -> set[frozenset[str]]:
  """The sets of files that import each other, directly or through others."""
  reached: dict[str, set[str]] = {}
  for start in graph:
    seen, waiting = set(), [start]
    while waiting:
      for name in graph[waiting.pop()]:
        if name not in seen:
          seen.add(name)
          waiting.append(name)
    reached[start] = seen
  return {frozenset(b for b in reached[a] if a in reached[b]) for a in graph if a in reached[a]}


def test_no_circle_between_files():
  assert circles({name: edges(path, MODULES) - {name} for name, path in MODULES.items()}) == CIRCLES


def test_a_circle_is_found(tmp_path):
  (tmp_path / "a.py").write_text("def f():\n  from p import b\n")
  (tmp_path / "b.py").write_text("import p.c\n")
  (tmp_path / "c.py").write_text("from p.a import f\nfrom p.d import x\n")
  (tmp_path / "d.py").write_text("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n  import p.a\n")
  known = [f"p.{name}" for name in "abcd"]
  found = {name: edges(tmp_path / f"{name[-1]}.py", known) for name in known}
  assert circles(found) == {frozenset(("p.a", "p.b", "p.c"))}


def test_heavy_libraries_load_where_they_are_used():
  eager = [
    f"{name}:{i.line} imports {i.name} at the top"
    for name, path in FILES.items()
    for i in imports(path)
    if i.eager and top(i.name) in HEAVY
  ]
  assert not eager


@pytest.mark.parametrize(("folder", "others"), [("train", ("store", "data")), ("data", ("train", "store", "models"))])
def test_training_knows_no_files_and_no_data(folder, others):
  wrong = [
    f"{name}:{i.line} imports {i.name}"
    for name, path in FILES.items()
    if name.startswith(f"leanax/engine/{folder}/")
    for i in imports(path)
    if i.name.startswith(tuple(f"leanax.engine.{other}" for other in others))
  ]
  assert not wrong


def test_only_public_jax():
  everywhere = [*FILES.values(), *(p for d in ("tests", "benchmarks", "examples") for p in (ROOT / d).rglob("*.py"))]
  named = [path for path in everywhere if "_src" in path.read_text(encoding="utf-8")]
  wrong = [f"{path.relative_to(ROOT)}:{i.line}" for path in named for i in imports(path) if "jax._src" in i.name]
  assert not wrong


def test_one_file_says_pmap():
  named = [name for name, path in FILES.items() if "jax.pmap" in path.read_text(encoding="utf-8")]
  assert set(named) <= {"leanax/engine/train/parallel.py", "leanax/graph/versions.py"}


def oversized(name: str, path: pathlib.Path) -> list[str]:
  """The file and its functions, where they have more lines than is allowed."""
  most = SCRIPT_LINES if name.startswith("scripts/") and name.count("/") == 1 else FILE_LINES
  lines = path.read_text(encoding="utf-8").count("\n")
  found = [f"{name} has {lines} lines"] if lines > most else []
  for node in ast.walk(tree(path)):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      lines = (node.end_lineno or node.lineno) - node.lineno + 1
      found += [f"{name}:{node.lineno} {node.name} has {lines} lines"] if lines > FUNCTION_LINES else []
  return found


def test_files_and_functions_keep_their_size():
  assert [problem for name, path in FILES.items() for problem in oversized(name, path)] == []


def vague(path: pathlib.Path) -> list[str]:
  """The parameters of a file that are named for a config and whose type does not tell its keys."""
  functions = [n for n in ast.walk(tree(path)) if isinstance(n, ast.FunctionDef)]
  given = [(f.lineno, a) for f in functions for a in (*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs)]
  kinds = ("config", "stage", "experiment")
  return [
    f"{path}:{line} {a.arg}"
    for line, a in given
    if a.arg in kinds and (a.annotation is None or ast.unparse(a.annotation).split(".")[-1] == "Any")
  ]


def test_a_config_has_a_type():
  assert [problem for path in FILES.values() for problem in vague(path)] == []


def test_a_config_without_a_type_is_found(tmp_path):
  path = tmp_path / "a.py"
  path.write_text("def f(config: Any): ...\ndef g(x, *, stage): ...\ndef h(config: Experiment, name: Any): ...\n")
  assert vague(path) == [f"{path}:1 config", f"{path}:2 stage"]


def modules_of(package: str) -> dict[str, pathlib.Path]:
  """Dotted name to file, for a package and all below it."""
  found = {}
  for path in sorted((ROOT / package).rglob("*.py")):
    parts = path.relative_to(ROOT).with_suffix("").parts
    found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
  return found


@pytest.mark.parametrize("package", ["kd", "quant", "sparsity", "lowrank"])
def test_every_file_of_methods_is_imported_by_its_package(package):
  """A method that its package does not import is found neither by a config nor by the conformance tests."""
  known = modules_of(package)
  reached, waiting = set(), [package]
  while waiting:
    name = waiting.pop()
    if name in known and name not in reached:
      reached.add(name)
      waiting += [name.rpartition(".")[0], *(i.name for i in imports(known[name]) if i.eager)]
  assert sorted(set(known) - reached) == []


def unexported(name: str, path: pathlib.Path) -> list[str]:
  """The lines that are missing where a file has a function of its own name, unless a sibling uses it."""
  if path.stem not in [node.name for node in tree(path).body if isinstance(node, ast.FunctionDef)]:
    return []
  module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
  beside = [*path.parent.glob("*.py"), ROOT / name.split("/", maxsplit=1)[0] / "__init__.py"]
  if any(i.name == f"{module}.{path.stem}" for file in beside for i in imports(file)):
    return []
  return [f"add `from {module} import {path.stem}` to the package's __init__"]


def test_a_method_is_exported_under_its_name():
  """A file that has a function of its own name is a method, and its package exports it, unless a sibling uses it."""
  methods = {name: path for name, path in FILES.items() if name.split("/")[0] in ("kd", "quant", "sparsity", "lowrank")}
  assert [problem for name, path in methods.items() for problem in unexported(name, path)] == []


def undocumented(name: str, path: pathlib.Path) -> list[str]:
  """The file and its public functions and classes, where they have no docstring."""
  body = tree(path).body
  if not body and name.endswith("__init__.py"):
    return []
  found = [] if ast.get_docstring(tree(path)) else [f"{name} does not say what it is"]
  if top(name) in ("configs", "scripts", "examples"):
    return found
  public = [n for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")]
  return found + [f"{name}:{node.lineno} {node.name}" for node in public if not ast.get_docstring(node)]


def test_modules_and_public_functions_have_a_docstring():
  assert [problem for name, path in FILES.items() for problem in undocumented(name, path)] == []


def test_light_modules_load_neither_jax_nor_numpy():
  code = f"import sys, {', '.join(LIGHT)}; print([m for m in ('jax', 'numpy', 'flax', 'optax') if m in sys.modules])"
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
  assert result.stdout.strip() == "[]"


def test_what_is_imported_is_required_by_setup():
  text = (ROOT / "setup.py").read_text(encoding="utf-8").lower()
  names = {"PIL": "pillow", "absl": "absl-py", "orbax": "orbax-checkpoint", "sklearn": "scikit-learn"}
  names |= {"tensorflow_datasets": "tensorflow-datasets", "ai_edge_litert": "ai-edge-litert"}
  used = (
    {top(i.name) for path in FILES.values() for i in imports(path)} - set(sys.stdlib_module_names) - {"leanax", *TABLE}
  )
  missing = sorted(name for name in used if f'"{names.get(name, name).lower()}' not in text)
  assert missing == []


def test_the_rules_can_fail(tmp_path):
  """The reader of imports sees what it must: nested, renamed, conditional and typing-only ones."""
  path = tmp_path / "bad.py"
  path.write_text(
    "from typing import TYPE_CHECKING\nimport leanax.engine.train.loop as x\nif TYPE_CHECKING:\n  import onnx\n"
    "def f():\n  from jax import _src\n  import orbax.checkpoint\ntry:\n  import grain\nexcept ImportError:\n  pass\n"
  )
  found = {(i.name, i.eager) for i in imports(path)}
  assert ("leanax.engine.train.loop", True) in found and ("onnx", False) in found
  assert ("jax._src", False) in found and ("orbax.checkpoint", False) in found and ("grain", True) in found
