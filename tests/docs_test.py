"""The examples in README.md and docs/ run as they stand.

The python blocks of a page run one after the other in one namespace; a text block after one is what it prints.
"""

import contextlib
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import optax
import pytest

from zoo import mlp

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)


def reader() -> dict[str, object]:
  """What a reader of README.md has already: a model, its variables, a batch, logits."""
  model, x = mlp.MLP((4,), 3), jnp.ones((2, 5))
  variables = model.init(jax.random.key(0), x)
  logits = model.apply(variables, x)
  return {
    "optax": optax,
    "apply": model.apply,
    "variables": variables,
    "x": x,
    "student_logits": logits,
    "teacher_logits": 2.0 * logits,
  }


GIVEN = {"README.md": reader}
PAGES = [
  path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if BLOCK.search(path.read_text("utf-8"))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_examples_run(page):
  text = page.read_text("utf-8")
  names = GIVEN.get(page.name, dict)()
  for block in BLOCK.finditer(text):
    line = text[: block.start(1)].count("\n")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
      exec(compile("\n" * line + block[1], str(page), "exec"), names)
    assert block[2] is None or printed.getvalue() == block[2], f"{page.name}, line {line}, prints something else"
