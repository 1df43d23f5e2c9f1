"""Records what training, export and reports compute, bit for bit: a change of structure must change none of it.

python -m tests.golden.record --out=FILE          before the change
python -m tests.golden.record --against=FILE      after it: names what is no longer equal, and ends with status 1

Each experiment runs as `scripts.compress` does, two epochs per stage with a checkpoint after 20 steps. Recorded are, of
each stage, the checksums of the leaves of its whole state after 20 steps (sorted, for the names of leaves may change),
those of the arrays in its model file, the bytes of its exported file, the numbers of its row in the report and its
curves. Numbers hold for one processor and jax; another's record is refused.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENTS = {
  "digits": ["--config=configs/digits.py"],
  "batch norm": ["--config=tests/golden/nets.py:batch_norm"],
  "nnx": ["--config=tests/golden/nets.py:nnx"],
}
TIMES = ("latency", "milliseconds", "ms", "runs")  # of a row: what is measured by a clock


def record() -> dict[str, Any]:
  """Everything that is recorded, as JSON data."""
  found: dict[str, Any] = {"environment": environment()}
  for name, arguments in EXPERIMENTS.items():
    with tempfile.TemporaryDirectory() as folder:
      subprocess.run([*command(arguments), f"--workdir={folder}"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
      found[name] = experiment(Path(folder))
  return found


def command(arguments: list[str]) -> list[str]:
  stages = subprocess.run(
    [sys.executable, "-c", _STAGES, arguments[0].removeprefix("--config=")],
    cwd=ROOT,
    check=True,
    capture_output=True,
    text=True,
  ).stdout.split()
  epochs = [f"--config.stages.{stage}.epochs=2" for stage in stages]
  more = ["--config.evaluations=16", "--config.checkpoint_every=20", "--config.latency_runs=1"]
  more.append("--config.layer_seconds=0")
  return [sys.executable, "-m", "scripts.compress", *arguments, *epochs, *more]


_STAGES = """
import importlib.util, sys
path, _, argument = sys.argv[1].partition(":")
spec = importlib.util.spec_from_file_location("config", path)
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(*(module.get_config(argument) if argument else module.get_config()).run)
"""


def environment() -> dict[str, str]:
  """The properties of the machine that the bits depend on."""
  import jax

  lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").is_file() else []
  processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
  flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
  sets = " ".join(flag for flag in flags if flag.startswith(("avx", "amx", "fma")))
  return {"processor": processor, "instruction sets": sets, "jax": jax.__version__}


def experiment(folder: Path) -> dict[str, Any]:
  """The results of a finished run, by stage."""
  result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
  found = {}
  for row in result["rows"]:
    name = row["name"]
    found[name] = {
      "state": state(folder / "checkpoints" / name),
      "model": arrays(folder / "models" / f"{name}.safetensors"),
      "file": hashlib.sha256((folder / "files" / f"{name}.tflite").read_bytes()).hexdigest(),
      "row": numbers(row),
      "curves": result["curves"][name],
    }
  return found


def state(folder: Path) -> list[Any]:
  """[step, [checksum of each leaf, sorted]] of the newest checkpoint."""
  step = max(int(path.name) for path in folder.iterdir() if path.name.isdigit())
  (entry,) = [
    data for path in (folder / str(step)).rglob("*") if path.is_file() and (data := _description(path)) is not None
  ]
  return [step, sorted(str(checksum) for _, _, checksum, _ in entry["leaves"].values())]


def _description(path: Path) -> dict[str, Any] | None:
  try:
    data = json.loads(path.read_bytes())
  except ValueError:
    return None
  return data if isinstance(data, Mapping) and "leaves" in data else None


def arrays(path: Path) -> list[str]:
  """The hash of each array of a model file, sorted."""
  import numpy as np
  from safetensors.numpy import load_file

  return sorted(hashlib.sha256(np.ascontiguousarray(a).tobytes()).hexdigest()[:16] for a in load_file(path).values())


def numbers(value: Any) -> Any:
  """A row without what a clock measured."""
  if isinstance(value, Mapping):
    return {key: numbers(v) for key, v in value.items() if not any(word in key for word in TIMES)}
  return value


def differences(before: Any, after: Any, path: str = "") -> list[str]:
  """The places where two records differ."""
  if isinstance(before, Mapping) and isinstance(after, Mapping):
    keys = sorted(before.keys() | after.keys())
    return [line for key in keys for line in differences(before.get(key), after.get(key), f"{path}/{key}".strip("/"))]
  return [] if before == after else [path]


def main() -> None:
  parser = argparse.ArgumentParser(description="Records what training, export and reports compute.")
  parser.add_argument("--out")
  parser.add_argument("--against")
  options = parser.parse_args()
  before = json.loads(Path(options.against).read_text(encoding="utf-8")) if options.against else None
  if before is not None and before["environment"] != environment():
    sys.exit(f"{options.against} was recorded elsewhere: {before['environment']}; here is {environment()}")
  found = json.loads(json.dumps(record()))
  if options.out:
    Path(options.out).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
  if before is not None:
    changed = differences(before, found)
    print("\n".join(f"differs: {line}" for line in changed) or "equal")
    sys.exit(bool(changed))


if __name__ == "__main__":
  main()
