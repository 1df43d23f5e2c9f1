"""Prints every site of an experiment's models: shapes, cost, and each stage's settings with their rules.

python -m scripts.explain --config=configs/digits.py
"""

from leanax.pipeline.config import flags as program
from leanax.pipeline.config.experiment import Experiment


def main(config: Experiment) -> None:
  from leanax.pipeline.explain import explain

  print(explain(config))


if __name__ == "__main__":
  program.run(main)
