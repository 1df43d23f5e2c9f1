"""Mutated files against their readers: each is read, or refused in one sentence, fast and in little memory.

python -m scripts.drills.fuzz --format=onnx [--cases 100000] [--seed 0] [--keep DIR]

The cases run in a child process, which serves them until it ends: where a
file ends it, or keeps it busy for a minute, that is a failure with a number, and another child goes on behind it. Case
N of a seed is the same file each time; --keep writes those that failed.
"""

import argparse
import json
import resource
import sys
from pathlib import Path

from scripts.drills.fuzz import drill

MEMORY = 2**34  # bytes of addresses; what a case really takes is measured


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--format", choices=drill.FORMATS, required=True)
  parser.add_argument("--cases", type=int, default=100_000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--minutes", type=float, default=600, help="end after so long")
  parser.add_argument("--keep", type=Path, help="a directory for the files that failed")
  parser.add_argument("--child", type=int, help="run the cases from this one on in this process")
  args = parser.parse_args()
  if args.child is not None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    drill.serve(args.format, range(args.child, args.cases), args.seed, lambda line: print(json.dumps(line), flush=True))
    return
  found = drill.drill(args.format, args.cases, args.seed, args.minutes)
  if args.keep:
    args.keep.mkdir(parents=True, exist_ok=True)
    files = drill.cases(args.format).seeds()
    for line in found["failures"]:
      content = drill.mutant(args.format, files, line["case"], args.seed)
      (args.keep / f"{args.format}-{args.seed}-{line['case']}").write_bytes(content)
  print(json.dumps(found, indent=1))
  sys.exit(bool(found["failures"]))


if __name__ == "__main__":
  main()
