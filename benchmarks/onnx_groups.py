"""An MLP whose kernels have a scale for each group of inputs, in each form that an .onnx file has for them.

python -m benchmarks.onnx_groups [--rounds 200] [--out=benchmarks/results/onnx_groups_cpu.json]

Five dense layers of 1024 by 1024 with their first random weights, and the same with a scale for each output channel, in
int8 and in float32. All files run on one thread, in turns, at batch 1 and at batch 64; outputs are compared with those
of the simulation.
"""

import argparse
from typing import Any

import jax
import numpy as np

import quant
from benchmarks.common import in_turns, load, write
from leanax import deploy, graph
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.groups import GROUPS
from leanax.zoo.mlp import MLP

WIDTH, LAYERS, BATCHES = 1024, 5, (1, 64)
SETTINGS = ("w4g32", "w4g32a8", "w8g32")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=200)
  parser.add_argument("--out", default="benchmarks/results/onnx_groups_cpu.json")
  given = parser.parse_args()
  before, inputs = load(), np.random.default_rng(0).normal(size=(max(BATCHES), WIDTH)).astype(np.float32)
  module = MLP((WIDTH,) * (LAYERS - 1), WIDTH)
  net = graph.net(module.apply, jax.jit(module.init)(jax.random.key(0), inputs[:1]), inputs[:1])
  networks = {"float32": deploy.lift(net.infer, net.variables, inputs[:1])}
  expected = {"float32": np.asarray(net.infer(net.variables, inputs))}
  for setting in (*SETTINGS, "w8a8"):
    rounded = quant.post_training(net, [inputs], quant.policy(setting, None))
    network = deploy.lift(net.infer, net.variables, inputs[:1], quant.grids(rounded))
    networks[setting] = ir.float_ends(network)
    expected[setting] = np.asarray(rounded.infer(rounded.variables, inputs))
  files = {(name, ""): deploy.onnx().write(networks[name]) for name in ("float32", "w8a8")}
  files |= {(name, form): deploy.onnx(groups=form).write(networks[name]) for name in SETTINGS for form in GROUPS}
  runners = {key: deploy.onnx().open(content) for key, content in files.items()}
  calls = {
    (*key, batch): (lambda runner=runner, x=inputs[:batch]: runner.codes(x))
    for key, runner in runners.items()
    for batch in BATCHES
  }
  wall, _ = in_turns({str(key): call for key, call in calls.items()}, given.rounds, warm_up=5)
  rows: list[dict[str, Any]] = []
  for (name, form), content in files.items():
    difference = np.abs(runners[name, form].run(inputs) - expected[name]).max() / np.abs(expected[name]).max()
    times = {f"us_batch_{batch}": 1e6 * min(wall[str((name, form, batch))]) for batch in BATCHES}
    rows.append({"setting": name, "form": form, "bytes": len(content), "difference": float(difference), **times})
    print(rows[-1])
  what = "Dense layers whose kernels have a scale for each group of inputs, in the forms of .onnx files."
  write(given.out, what, f"python -m benchmarks.onnx_groups --rounds {given.rounds}", before, {"rows": rows})


if __name__ == "__main__":
  main()
