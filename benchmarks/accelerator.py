"""Measures on an accelerator: differing codes, the time of kernels and of training steps, and the digits job.

python -m benchmarks.accelerator [--small] [--seconds 440] [--out=benchmarks/results/accelerator.json]

All parts run at the device's default precision, one after the other; each is printed and written when it ends, and a
part that would start after `--seconds` is skipped. `--small` is for trying the script on a CPU.
"""

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the digits job runs in its own process

import jax
import jax.numpy as jnp
import numpy as np

import quant
from benchmarks import step_cost
from benchmarks.common import in_turns, load, write
from benchmarks.step_cost import Case, Variant
from leanax import deploy, graph
from leanax.deploy import ir, reference
from leanax.zoo.convnet import ConvNet
from leanax.zoo.lenet import LeNet5, LeNet300
from leanax.zoo.mlp import MLP
from leanax.zoo.resnet import ResNet
from quant.carrier import CARRIERS

Remaining = Callable[[], float]  # seconds


def codes(small: bool, remaining: Remaining) -> dict[str, Any]:
  """Counts output codes that differ between simulations on the device and the integer reference in numpy."""
  nets = {
    "LeNet-300-100": (LeNet300(), (28, 28, 1)),
    "LeNet-5": (LeNet5(), (28, 28, 1)),
    "ResNet": (ResNet((1, 1), (16, 32)), (16, 16, 3)),
  }
  found: dict[str, Any] = {}
  for name, (module, shape) in nets.items():
    if remaining() < 0:
      break
    x = jax.random.normal(jax.random.key(0), (32 if small else 256, *shape))
    variables = jax.jit(module.init)(jax.random.key(1), x[:1])
    fn = module.apply
    if "batch_stats" in variables:
      net = graph.fold_batch_norms(graph.net(fn, variables, x[:1]))
      fn, variables = net.infer, net.variables
    found[name] = attempt(functools.partial(_differing, fn, variables, x))
  return found


def _differing(fn: Any, variables: Any, x: jax.Array) -> dict[str, Any]:
  """Returns per carrier the number of differing codes, of all codes, and the largest difference."""
  qparams, state = quant.quantize(fn, "w8a8").init(variables, x)
  grids = quant.quantize(fn, "w8a8").grids(qparams, state, variables, x)
  network = deploy.lift(fn, variables, x[:1], grids)
  expected = reference.run(network, np.asarray(x))

  def count(carrier: str) -> str:
    model = quant.quantize(fn, "w8a8", carrier)
    logits = jax.jit(lambda v, x: model.apply(qparams, state, v, x)[0])(variables, x)
    return str(deploy.compare(ir.quantize(np.asarray(logits), network.tensors[network.output]), expected))

  return {carrier: attempt(functools.partial(count, carrier)) for carrier in CARRIERS}


def kernels(small: bool, remaining: Remaining) -> dict[str, Any]:
  """Measures milliseconds, and 10^12 multiplications and additions per second, of products alone."""
  n, image = (256, (2, 14, 14, 32)) if small else (8192, (256, 56, 56, 256))
  forms = {
    "float32": (jnp.float32, jnp.float32, None),
    "float32, highest": (jnp.float32, jnp.float32, "highest"),
    "bfloat16 to float32": (jnp.bfloat16, jnp.float32, None),
    "int8 to int32": (jnp.int8, jnp.int32, None),
  }
  found: dict[str, Any] = {}
  channels = image[-1]
  for name, (kind, result, precision) in forms.items():
    kwargs: dict[str, Any] = {"precision": precision, "preferred_element_type": result}
    dot = functools.partial(jax.lax.dot, **kwargs)
    conv = functools.partial(
      jax.lax.conv_general_dilated,
      window_strides=(1, 1),
      padding="SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      **kwargs,
    )
    cases = {
      f"dot, {name}": (dot, (n, n), (n, n), 2.0 * n**3),
      f"conv, {name}": (conv, image, (3, 3, channels, channels), 2.0 * np.prod(image) * 9 * channels),
    }
    for case, (call, a, b, operations) in cases.items():
      if remaining() > 0:
        found[case] = attempt(functools.partial(_timed, call, a, b, kind, operations))
  return found


def _timed(call: Any, a: tuple[int, ...], b: tuple[int, ...], kind: Any, operations: float) -> dict[str, float]:
  rng = np.random.default_rng(0)
  operands = [jnp.asarray(rng.integers(-127, 128, shape), kind) for shape in (a, b)]
  run = jax.jit(call)
  jax.block_until_ready(run(*operands))
  times = []
  for _ in range(5):
    start = time.perf_counter()
    for _ in range(4):
      out = run(*operands)
    jax.block_until_ready(out)
    times.append((time.perf_counter() - start) / 4)
  best = statistics.median(times)
  return {"ms": round(1e3 * best, 3), "tera_per_s": round(operations / best / 1e12, 1)}


def steps(small: bool, remaining: Remaining) -> dict[str, Any]:
  """Measures milliseconds of training steps, interleaved, and their ratio to the plain float step."""
  variants = {
    step_cost.PLAIN: Variant(),
    step_cost.AGAIN: Variant(),
    "masks, bit-packed": Variant(masks=True),
    **{f"static, {carrier}": Variant(policy="w8a8", carrier=carrier) for carrier in CARRIERS},
    **{f"learned, {carrier}": Variant(policy="w8a8 learned", carrier=carrier) for carrier in CARRIERS},
    "learned, bfloat16 products": Variant(policy="w8a8 learned", carrier="bfloat16", half=True),
  }
  size = 64 if small else 4096
  cases = {
    "mlp": Case(MLP((size, size)), (64 if small else 4096, 28, 28, 1), {}),
    "cnn": Case(ConvNet((8, 16) if small else (64, 128, 128), ()), (8 if small else 512, 28, 28, 1), {}),
  }
  found: dict[str, Any] = {}
  for name, case in cases.items():
    calls, rows = {}, {}
    for variant, what in variants.items():
      if remaining() < 0:
        break
      made = attempt(functools.partial(_compiled, case, what))
      if callable(made):
        calls[variant] = made
      else:
        rows[variant] = made
    wall, _ = in_turns(calls, 3 if small else 20, 1)
    for variant, times in wall.items():
      ratio = step_cost.ratio(times, wall[step_cost.PLAIN])
      rows[variant] = {"ms": round(1e3 * statistics.median(times), 3), "ratio": ratio}
    found[name] = rows
  return found


def _compiled(case: Case, variant: Variant) -> Callable[[], Any]:
  once = step_cost.make(case, variant)
  once()
  return once


def digits(small: bool, remaining: Remaining) -> dict[str, Any]:
  """Runs the digits job in a subprocess with the remaining time as its limit, and returns its rows."""
  with tempfile.TemporaryDirectory() as folder:
    short = [f"--config.stages.{stage}.epochs=2" for stage in ("teacher", "alone", "distilled", "pruned", "int8")]
    command = [sys.executable, "-m", "scripts.compress", "--config=configs/digits.py", f"--workdir={folder}/run"]
    short = short if small else []
    job = subprocess.run([*command, *short], check=False, capture_output=True, text=True, timeout=max(remaining(), 1))
    if job.returncode:
      raise RuntimeError(job.stderr.strip().splitlines()[-1])
    rows = json.loads(Path(folder, "run", "result.json").read_text(encoding="utf-8"))["rows"]
  keys = ("accuracy", "file_accuracy", "codes_differ")
  return {row["name"]: {key: row[key] for key in keys if key in row} for row in rows}


def attempt(call: Callable[[], Any]) -> Any:
  """Returns the result of a call, or its error, so that the other parts still run."""
  try:
    return call()
  except Exception as error:
    return {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200] if str(error) else ''}"}


PARTS = {"codes": codes, "kernels": kernels, "steps": steps, "digits": digits}


def main() -> None:
  parser = argparse.ArgumentParser(description="Codes, kernels, steps and the digits job on an accelerator.")
  parser.add_argument("--small", action="store_true")
  parser.add_argument("--seconds", type=float, default=440.0)
  parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
  parser.add_argument("--out", default="benchmarks/results/accelerator.json")
  options = parser.parse_args()
  start, before = time.monotonic(), load()

  def remaining() -> float:
    return options.seconds - (time.monotonic() - start)

  results: dict[str, Any] = {}
  for name in options.parts:
    if remaining() < 0:
      results[name] = {"skipped": "no time remaining"}
    else:
      results[name] = attempt(functools.partial(PARTS[name], options.small, remaining))
    print(f"{options.seconds - remaining():6.1f} s  {name}: {json.dumps(results[name], indent=1)}", flush=True)
    what = "codes that differ, kernels, training steps and the digits job at the device's default precision"
    command = "python -m benchmarks.accelerator" + " --small" * options.small
    write(options.out, what, command, before, results)


if __name__ == "__main__":
  main()
