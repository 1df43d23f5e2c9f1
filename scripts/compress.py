"""Compresses a network end to end: trains, distils, prunes, quantizes, exports, measures, and writes report.html.

    python -m scripts.compress --config=configs/digits.py --workdir=runs/digits

The same command resumes a stopped run. With --config.seeds=5 it makes five runs and prints their means. The status is 1
where a stage was trained and has no file, unless its 'export_failure' is 'report'; its row says why.
"""

import sys

from absl import flags

from leanax.pipeline import lock
from leanax.pipeline.config import flags as program
from leanax.pipeline.config.experiment import Experiment

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the results, such as runs/digits.", required=True)


def main(config: Experiment) -> None:
  with lock.held(_WORKDIR.value):
    compress_all(config)


def compress_all(config: Experiment) -> None:
  from leanax.pipeline.compress import compress
  from leanax.pipeline.report import joint, joint_pages
  from leanax.pipeline.report.shipping import sentence
  from leanax.pipeline.seeds import compress_seeds
  from leanax.pipeline.tables.reproduce import markdown, summary
  from leanax.pipeline.tables.tables import format_table

  if config.seeds > 1:
    results = compress_seeds(config, _WORKDIR.value)
    print(markdown(summary(results)))
    if words := joint_pages.sentence(joint.joint(results)):
      print(f"\n{words}")
    print(f"\nreport: {_WORKDIR.value}/report.html, and of each seed seed*/report.html beside it")
  else:
    results = [compress(config, _WORKDIR.value)]
    print(format_table(results[0]["rows"], results[0]["metrics"]))
    if words := sentence(results[0]["shipping"], results[0]["examples"]):
      print(f"\n{words}")
    print(f"\nreport: {_WORKDIR.value}/report.html")
  failed = [row["name"] for result in results for row in result["rows"] if row.get("export")]
  if any(config.stages[name].export_failure == "refuse" for name in failed):
    sys.exit(1)


if __name__ == "__main__":
  program.run(main)
