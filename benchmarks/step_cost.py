"""The cost of each method in the train step: its time over that of the plain float step of the same model.

python -m benchmarks.step_cost [--models mlp cnn] [--rounds 30] [--out=benchmarks/results/step_cost_cpu.json]

All variants are the engine's compiled step (`engine.train.loop.compiled` of `engine.training`), with different
arguments. In each round every variant runs once, in a random order, on the same batch; a ratio is the median over
rounds of the variant's time over the plain step's in the same round. The plain step runs twice, and the second ratio
shows the noise. On a machine with other load the ratio of CPU times is more stable: it excludes waiting.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd
import quant
import sparsity
from benchmarks.common import in_turns, load, write
from leanax import engine, graph
from leanax.engine.train import forward, loop
from leanax.zoo.convnet import ConvNet
from leanax.zoo.mlp import MLP


class Case(NamedTuple):
  """A model of the table, the shape of its batch and the target of each row."""

  module: Any
  batch: tuple[int, ...]
  targets: dict[str, float]


class Variant(NamedTuple):
  """The options of a row."""

  distil: bool = False
  masks: bool = False
  policy: str = ""
  carrier: str = "float32"
  half: bool = False


PLAIN, AGAIN = "plain", "plain, again"
VARIANTS = {
  PLAIN: Variant(),
  AGAIN: Variant(),
  "distillation, cached logits": Variant(distil=True),
  "masks, bit-packed": Variant(masks=True),
  "fake-quant, static scales": Variant(policy="w8a8"),
  "fake-quant, learned steps": Variant(policy="w8a8 learned"),
  "distillation + learned steps + masks": Variant(True, True, "w8a8 learned"),
}
ROWS = list(VARIANTS)[2:]
CASES = {
  "mlp": Case(MLP((1024, 1024)), (512, 28, 28, 1), dict(zip(ROWS, (1.05, 1.05, 1.05, 1.20, 1.22), strict=True))),
  "cnn": Case(ConvNet((32, 64, 64), ()), (64, 28, 28, 1), dict(zip(ROWS, (1.05, 1.05, 1.05, 1.10, 1.12), strict=True))),
}


def make(case: Case, variant: Variant) -> Callable[[], Any]:
  """Returns a function that runs one step and waits for it."""
  rng = np.random.default_rng(0)
  batch = {
    "image": jnp.asarray(rng.normal(size=case.batch), jnp.float32),
    "label": jnp.asarray(rng.integers(0, 10, case.batch[0]), jnp.int32),
  }
  terms = [kd.Term("hard_labels", kd.hard_labels())]
  if variant.distil:
    batch["teacher_logits"] = jnp.asarray(rng.normal(size=(case.batch[0], 10)), jnp.float32)
    terms.append(kd.Term("hinton", kd.hinton(temperature=4.0)))
  variables = jax.jit(case.module.init)(jax.random.key(0), batch["image"])
  apply = forward.plain(lambda v, x, **_: (case.module.apply(v, x), {}))
  if variant.policy:
    net = graph.net(case.module.apply, variables, batch["image"])
    net = quant.post_training(net, [batch["image"]], variant.policy, variant.carrier, variant.half)
    apply, variables = forward.plain(net.apply), net.variables
  tx = engine.optimizer("sgd", 0.01, momentum=0.9)
  if variant.masks:  # updated in the first step and every hundred steps, as in gradual pruning
    tx = sparsity.magnitude(tx, density=0.2, schedule=sparsity.cubic(0, 10_000, 100))
  init, step = engine.training(apply, kd.weighted(terms), tx)
  run = loop.compiled(step, lambda data, step, seed, part: data)
  held = [init(variables)]
  arguments = jnp.ones((), jnp.int32), batch, None, jnp.zeros((), jnp.int32)

  def once() -> Any:
    held[0], metrics = run(held[0], *arguments)
    jax.block_until_ready((held[0], metrics))

  return once


def measure(case: Case, rounds: int, warm_up: int = 3) -> dict[str, dict[str, float]]:
  calls = {name: make(case, variant) for name, variant in VARIANTS.items()}
  wall, cpu = in_turns(calls, rounds, warm_up)
  return {
    name: {
      "wall_ms": round(1e3 * statistics.median(wall[name]), 2),
      "cpu_ms": round(1e3 * statistics.median(cpu[name]), 2),
      "wall_ratio": ratio(wall[name], wall[PLAIN]),
      "cpu_ratio": ratio(cpu[name], cpu[PLAIN]),
      **({"target": case.targets[name]} if name in case.targets else {}),
    }
    for name in calls
  }


def ratio(one: list[float], plain: list[float]) -> float:
  return round(statistics.median(a / b for a, b in zip(one, plain, strict=True)), 3)


def main() -> None:
  parser = argparse.ArgumentParser(description="Step time over the plain float step's.")
  parser.add_argument("--models", nargs="+", default=list(CASES), choices=list(CASES))
  parser.add_argument("--rounds", type=int, default=30)
  parser.add_argument("--out", default="benchmarks/results/step_cost_cpu.json")
  options = parser.parse_args()
  before = load()
  models = {name: measure(CASES[name], options.rounds) for name in options.models}
  what = "a step's time over the plain float step's in the same round, median over rounds"
  write(options.out, what, "python -m benchmarks.step_cost", before, {"rounds": options.rounds, "models": models})
  print(f"{'':42} {'wall ms':>9} {'cpu ms':>9} {'wall':>7} {'cpu':>7} {'target':>7}")
  for model, rows in models.items():
    for name, row in rows.items():
      numbers = "{:>9.2f} {:>9.2f} {:>7.3f} {:>7.3f}".format(*list(row.values())[:4])
      print(f"{model:4} {name:37} {numbers} {row.get('target', ''):>7}")


if __name__ == "__main__":
  main()
