"""The cost of tracing and rewriting a model, as a fraction of the first compilation of a quantized train step.

python -m benchmarks.compile_cost [--rounds 3] [--out=benchmarks/results/compile_cost_cpu.json]

The step is the engine's, of a small ResNet with folded batch norms and learned scales. The rewrite's fraction is the
time of tracing the model's operations and interpreting it with the quantizers, minus the time of tracing the model
itself, over trace + lower + compile of the whole step. The persistent compilation cache is off. Figures are medians,
each measured with cleared caches.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import kd
import quant
from benchmarks.common import load, write
from leanax import engine, graph
from leanax.engine.train import forward
from leanax.zoo.resnet import ResNet


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
  """Returns the CPU seconds of this process, and the result."""
  start = time.process_time()
  result = work()
  return time.process_time() - start, result


def measure(rounds: int) -> dict[str, float]:
  module = ResNet(blocks=(3, 3, 3))
  x = jnp.zeros((128, 32, 32, 3))
  variables = jax.jit(module.init)(jax.random.key(0), x)
  net = graph.fold_batch_norms(graph.net(module.apply, variables, x))
  rounded = quant.post_training(net, [x], "w8a8 learned")
  fn, variables, qparams, state = net.infer, net.variables, *(rounded.variables[name] for name in quant.edit.GRIDS)
  batch = {"image": x, "label": jnp.zeros((128,), jnp.int32)}
  tx = engine.optimizer("sgd", 0.01)
  objective = kd.weighted([kd.Term("hard_labels", kd.hard_labels())])
  taken: dict[str, list[float]] = {name: [] for name in ("model", "rewrite", "trace", "lower", "compile")}
  for _ in range(rounds):
    jax.clear_caches()
    model = quant.quantize(fn, "w8a8 learned")  # a new model: each caches its plans
    taken["model"].append(seconds(lambda: jax.make_jaxpr(fn)(variables, x))[0])
    jax.clear_caches()
    taken["rewrite"].append(seconds(lambda model=model: jax.make_jaxpr(model.apply)(qparams, state, variables, x))[0])
    jax.clear_caches()
    init, step = engine.training(forward.plain(rounded.apply), objective, tx)
    step, held = jax.jit(step), init(rounded.variables)
    spent, traced = seconds(lambda step=step, held=held: step.trace(held, batch))
    taken["trace"].append(spent)
    spent, lowered = seconds(traced.lower)
    taken["lower"].append(spent)
    taken["compile"].append(seconds(lowered.compile)[0])
  cpu = {name: statistics.median(values) for name, values in taken.items()}
  whole = cpu["trace"] + cpu["lower"] + cpu["compile"]
  rounded = {f"{name}_cpu_s": round(value, 3) for name, value in cpu.items()}
  return {**rounded, "share": round((cpu["rewrite"] - cpu["model"]) / whole, 4), "target": 0.10}


def main() -> None:
  parser = argparse.ArgumentParser(description="The rewrite's share of the first compile.")
  parser.add_argument("--rounds", type=int, default=3)
  parser.add_argument("--out", default="benchmarks/results/compile_cost_cpu.json")
  options = parser.parse_args()
  jax.config.update("jax_enable_compilation_cache", False)
  before = load()
  results = measure(options.rounds)
  what = "CPU seconds of the first compile of a quantized ResNet-20 step at batch 128, and the rewrite's share of them"
  command = "python -m benchmarks.compile_cost"
  write(options.out, what, command, before, {"rounds": options.rounds, "figures": results})
  for name, value in results.items():
    print(f"{name:16} {value:>8}")


if __name__ == "__main__":
  main()
