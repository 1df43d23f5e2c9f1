"""Prints every site of an experiment's models: shapes, cost, and each stage's settings with their rules.

python -m scripts.explain --config=configs/digits.py
"""

from typing import Any

from leanax.pipeline import flags as program


def main(config: Any) -> None:
  from leanax.pipeline.explain import explain

  print(explain(config))


if __name__ == "__main__":
  program.run(main)
