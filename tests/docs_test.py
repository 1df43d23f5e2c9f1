"""The examples in README.md and docs/ run as they stand.

The python blocks of a page run one after the other in one namespace; a text block after one is what it prints. What
pages link to is there, and the page of methods is the one that the packages give.
"""

import contextlib
import io
import itertools
import pathlib
import re
import subprocess
import sys
import types
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import kd
import sparsity
from benchmarks import methods_page, operators_page
from leanax.core.errors import UserError
from leanax.core.methods import methods
from leanax.engine import metrics
from leanax.pipeline import build, stage
from leanax.pipeline.config import loading
from leanax.zoo import mlp
from tests.conformance import test_kd

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def reader() -> dict[str, Any]:
  """The names that README.md assumes: a model, its variables, a batch, logits."""
  model, x = mlp.MLP((4,), 3), jnp.ones((2, 5))
  variables = model.init(jax.random.key(0), x)
  logits = model.apply(variables, x)
  return {
    "optax": optax,
    "apply": model.apply,
    "variables": variables,
    "teacher_variables": model.init(jax.random.key(1), x),
    "x": x,
    "student_logits": logits,
    "teacher_logits": 2.0 * logits,
    "array": jnp.linspace(-0.7, 1.3, 50),
    "low": -0.5,
    "high": 1.0,
    "bits": 5,
    "batches": [x + k / 10 for k in range(10)],
  }


def my_tasks() -> dict[str, Any]:
  """The names of a module `my_tasks`, which docs/tasks.md is the file of: configs find its functions by their paths."""
  module = sys.modules["my_tasks"] = types.ModuleType("my_tasks")
  return vars(module)


GIVEN = {"README.md": reader, "tasks.md": my_tasks}
PAGES = [
  path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(path.read_text("utf-8"))
]


SLOW = {"tasks.md"}  # several jobs from config to file; pipeline/tasks tests what each of them shows


@pytest.mark.parametrize(
  "page",
  [pytest.param(page, marks=pytest.mark.slow if page.name in SLOW else ()) for page in PAGES],
  ids=lambda path: path.name,
)
def test_examples_run(page, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)  # for the files that they write
  run(page)


def run(page: pathlib.Path) -> dict[str, Any]:
  """Runs the blocks of a page and returns the names that they leave."""
  text = page.read_text("utf-8")
  names = GIVEN.get(page.name, dict)()
  for block in BLOCK.finditer(text):
    line = text[: block.start(1)].count("\n")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      exec(compile("\n" * line + block[1], str(page), "exec"), names)
    assert block[2] is None or printed.getvalue() == block[2], f"{page.name}, line {line}, prints something else"
  return names


def test_the_examples_of_the_readme_compute_their_comments():
  """Exact densities, the rounding written out in float64, and the loop written out with jax alone."""
  given, names = reader(), run(ROOT / "README.md")
  for layer, entries, ratio in (("Dense_0", 20, 0.75), ("Dense_1", 12, 0.5)):
    before, after = (np.asarray(v["params"][layer]["kernel"]) for v in (given["variables"], names["pruned"]))
    kept = np.argsort(-np.abs(before), axis=None)[: round(entries * (1 - ratio))]
    np.testing.assert_array_equal(np.flatnonzero(after), np.sort(kept))
    np.testing.assert_array_equal(after.flat[kept], before.flat[kept])

  array, step = np.asarray(given["array"], np.float64), 1.5 / 31
  zero_point = -16 + round(0.5 / step)
  q = np.clip(np.round(array / step) + zero_point, -16, 15)
  np.testing.assert_array_equal(names["codes"], q)
  np.testing.assert_allclose(names["restored"], step * (q - zero_point), rtol=1e-5, atol=1e-7)

  tx, params = optax.sgd(0.1), given["variables"]["params"]
  opt_state = tx.init(params)

  def loss(params, x):
    z, t = given["apply"]({"params": params}, x), given["apply"](given["teacher_variables"], x)
    p, log_q = jax.nn.softmax(t / 4), jax.nn.log_softmax(z / 4)
    return 16 * jnp.mean(jnp.sum(p * (jax.nn.log_softmax(t / 4) - log_q), -1))

  for x in given["batches"]:
    updates, opt_state = tx.update(jax.grad(loss)(params, x), opt_state, params)
    params = optax.apply_updates(params, updates)
  chex.assert_trees_all_close(names["params"], params, rtol=1e-4, atol=1e-6)


def test_the_page_of_tasks_names_every_metric():
  text = (ROOT / "docs/tasks.md").read_text("utf-8")
  assert [name for name in methods(metrics) if f"`{name}`" not in text] == []


LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
LINKING = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", LINKING, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
  links = LINK.findall(page.read_text("utf-8"))
  assert [link for link in links if not (page.parent / link).exists()] == []
  assert links or page.name not in ("README.md", "methods.md")


def test_the_page_of_operators_is_generated():
  assert operators_page.page() == operators_page.PAGE.read_text("utf-8"), "run python -m benchmarks.operators_page"
  assert all((ROOT / "tests/deploy" / row.test).is_file() for row in operators_page.layers())
  assert all("refused" not in row[3:] or row.name in ("erf",) for row in operators_page.of_one_number())


def test_the_page_of_methods_is_generated():
  assert methods_page.page() == methods_page.PAGE.read_text("utf-8"), "run python -m benchmarks.methods_page"


METHODS = [method for family in methods_page.families() for method in family.methods]


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.key)
def test_a_method_has_a_sentence_and_a_source(method):
  assert methods_page.source(method), f"{method.file}: name the paper in the docstring, or write 'No paper'"
  assert methods_page.sentence(method)
  assert methods_page.test_of(method) is not None, f"{method.key} has no test"


def test_the_page_of_methods_has_them():
  assert {"kd.hinton", "kd.trainers.dot", "quant.lsq", "sparsity.magnitude"} <= {method.key for method in METHODS}
  assert {method.key.rpartition(".")[2] for method in METHODS} >= set(methods(kd, "losses")) | set(methods(sparsity))


@pytest.fixture
def gap(tmp_path, monkeypatch):
  """The file that README shows, beside those of kd, with its import."""
  file = tmp_path / "losses" / "probability_gap.py"
  file.parent.mkdir()
  file.write_text(
    next(b[1] for b in BLOCK.finditer((ROOT / "README.md").read_text("utf-8")) if "def probability" in b[1])
  )
  names: dict[str, object] = {"__name__": "kd.losses.probability_gap"}
  exec(compile(file.read_text(), file.name, "exec"), names)
  monkeypatch.setattr(kd, "__path__", [*kd.__path__, str(tmp_path)])
  monkeypatch.setattr(kd, "probability_gap", names["probability_gap"], raising=False)
  return file


def test_the_loss_of_the_readme_is_one_that_a_config_finds(gap):
  """It is a method with its keywords, weight and name checked."""
  objective = build.objective("distilled", {"hard_labels": {}, "probability_gap": {"weight": 0.5, "power": 1.0}})
  assert [term.name for term in objective.terms] == ["hard_labels", "probability_gap"]
  loss, far = objective.terms[1].loss, jnp.asarray([[0.0, 2.0]])
  want = 2 * (jax.nn.softmax(far)[:, 1] - 0.5)
  np.testing.assert_allclose(loss(far, 0 * far)[0], want, rtol=1e-6)
  with pytest.raises(UserError, match="probability_gap.powre'; did you mean 'stages.distilled.objective.probability_g"):
    build.objective("distilled", {"probability_gap": {"powre": 2.0}})


@pytest.mark.slow
def test_the_loss_of_the_readme_passes_the_battery(gap, monkeypatch):
  """Every check of every loss on logits, with each of its parameters."""
  assert set(methods(kd, "losses")) > {"probability_gap", *test_kd.LOSSES}
  monkeypatch.setitem(test_kd.LOSSES, "probability_gap", kd.probability_gap)
  ran = [check for check in test_kd.CHECKS if _run(getattr(test_kd, f"test_{check}"), "probability_gap")]
  assert len(ran) == len(test_kd.CHECKS) > 25


def _run(test, name):
  """A check of one loss, with all the values of its other parameters."""
  marks = [mark.args for mark in test.pytestmark if mark.name == "parametrize" and mark.args[0] != "name"]
  plain = [
    [value.values[0] if isinstance(value, type(pytest.param())) else value for value in each] for _, each in marks
  ]
  for values in itertools.product(*plain):
    test(name, **{key: value for (key, _), value in zip(marks, values, strict=True)})
  return True


def test_the_loss_of_the_readme_is_as_all_files_are(gap):
  """Its lint, its form and its types, by the settings of the package."""
  ruff = pathlib.Path(sys.executable).with_name("ruff")
  for command in (["check"], ["format", "--check"]):
    done = subprocess.run(
      [ruff, *command, "--config", ROOT / "pyproject.toml", "--no-cache", gap], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_config_of_the_page_of_distillation_is_accepted():
  """All its stages, with their taps and masks, pass what is checked before anything trains."""
  names: dict[str, object] = {}
  for block in BLOCK.finditer((ROOT / "docs/kd.md").read_text("utf-8")):
    if "stages" in block[1]:
      exec(block[1], names)
  config = loading.resolve(names["get_config"]())
  assert len(config.run) > 8
  stage.check(config)
  stage.prepare(config, build.dataset(config))
