"""Reproduces a table of the documentation over several seeds, with intervals.

python -m scripts.reproduce --table=digits --workdir=runs/table_digits
"""

from absl import flags

from leanax.pipeline import lock
from leanax.pipeline.config import flags as program

_TABLE = flags.DEFINE_string("table", None, "The table, such as digits.", required=True)
_PRESET = flags.DEFINE_enum("preset", "cpu", ["cpu", "paper"], "The size of the experiment.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=2)
_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of the runs; stopped runs are resumed.", required=True)


def main() -> None:
  with lock.held(_WORKDIR.value):
    from leanax.pipeline.tables.reproduce import reproduce

    print(reproduce(_TABLE.value, _PRESET.value, _SEEDS.value, _WORKDIR.value))


if __name__ == "__main__":
  program.run(main, config=False)
