"""Compresses a network end to end: trains, distils, prunes, quantizes, exports, measures, and writes report.html.

    python -m scripts.compress --config=configs/digits.py --workdir=runs/digits

The same command resumes a stopped run. With --config.seeds=5 it makes five runs and prints their means.
"""

from absl import flags

from leanax.pipeline.config import flags as program
from leanax.pipeline.config.experiment import Experiment

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the results, such as runs/digits.", required=True)


def main(config: Experiment) -> None:
  from leanax.pipeline.compress import compress
  from leanax.pipeline.seeds import compress_seeds
  from leanax.pipeline.tables.reproduce import markdown, summary
  from leanax.pipeline.tables.tables import format_table

  if config.seeds > 1:
    print(markdown(summary(compress_seeds(config, _WORKDIR.value))))
    print(f"\nreports: {_WORKDIR.value}/seed*/report.html")
    return
  result = compress(config, _WORKDIR.value)
  print(format_table(result["rows"]))
  print(f"\nreport: {_WORKDIR.value}/report.html")


if __name__ == "__main__":
  program.run(main)
