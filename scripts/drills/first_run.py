"""What a first run of a file of others costs: python -m scripts.drills.first_run [FILE]

Of a .tflite or .onnx file, by default a small one: seconds of wall clock and of processors' time for the first file,
which starts the child process, for the same file again, and for opening it in this process.
"""

import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from leanax import deploy
from leanax.deploy import trial
from scripts.drills.fuzz import runners


def main() -> None:
  path = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("small.tflite")
  made = deploy.format_of(path)
  content = path.read_bytes() if len(sys.argv) > 1 else made.write(runners.networks()[0])
  runtime, options = ("litert", {"kernels": "xnnpack"}) if path.suffix == ".tflite" else ("onnx", {})
  found = {}
  for name in ("first", "again"):
    trial._passed.clear()
    found[name] = _seconds(lambda: trial.check(runtime, content, str(path), **options))
  trial.note(content)
  found["open here"] = _seconds(lambda: made.open(content))
  trial._last()
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  print(json.dumps({**found, "child's processor time": round(used.ru_utime + used.ru_stime, 3)}))


def _seconds(call: Callable[[], Any]) -> float:
  start = time.perf_counter()
  call()
  return round(time.perf_counter() - start, 3)


if __name__ == "__main__":
  main()
