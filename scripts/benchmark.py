"""Size, latency and memory of exported files of any formats in their runtimes, all interleaved in one run.

python -m scripts.benchmark --model=runs/digits/files/teacher.tflite --model=runs/digits/files/int8.tflite
"""

from absl import flags

from leanax.pipeline.config import flags as program

_MODEL = flags.DEFINE_multi_string("model", None, "An exported file; repeat the flag for several.", required=True)
_THREADS = flags.DEFINE_multi_integer(
  "threads", None, "Threads that the runtime may use; repeat the flag for several. By default 1, and all cores.", 1
)
_ROUNDS = flags.DEFINE_integer("rounds", 20, "Number of interleaved rounds.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "A file for the results.")


def main() -> None:
  import json

  from leanax.core.files import check_place, write
  from leanax.pipeline.benchmark import benchmark, table
  from leanax.pipeline.environment import cores

  if _JSON.value:
    check_place(_JSON.value)  # measuring takes a while
  threads = _THREADS.value or sorted({1, cores()})
  result = benchmark(_MODEL.value, threads=[*dict.fromkeys(threads)], rounds=_ROUNDS.value)
  print(table(result))
  if _JSON.value:
    write(_JSON.value, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
  program.run(main, config=False)
