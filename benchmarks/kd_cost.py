"""The cost of each distillation loss in the train step: its time over that of Hinton's loss, in the same step.

python -m benchmarks.kd_cost [--losses at crd ...] [--rounds 30] [--out=benchmarks/results/kd_cost_cpu.json]

Every row is the engine's compiled step of one student with `hard_labels` and the loss, with its default arguments. A
loss on logits is compared with `hinton` on the same cached logits; one on activations needs a running teacher, so it is
compared with `hinton` beside the same teacher; one without a teacher with `hard_labels` alone. All losses of `kd` are
measured, interleaved (`benchmarks.common.in_turns`), and a ratio is the median over rounds. "arithmetic" is the ratio
of the floating point operations that XLA counts in the two steps; where it is above `SLACK`, or the loss compares all
pairs of examples, there is no target.
"""

import argparse
import inspect
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import kd
from benchmarks.common import in_turns, load, write
from benchmarks.step_cost import ratio
from leanax import engine, graph
from leanax.core.methods import methods
from leanax.engine.train import forward, loop
from leanax.zoo.convnet import ConvNet

BATCH, CLASSES, EXAMPLES = 64, 10, 50_000
STUDENT: Any = ConvNet((16, 32), (64,))
TEACHER: Any = ConvNet((32, 64), (128,))
EARLY, LATE, VECTOR = "Conv_0/kernel:out", "Conv_1/kernel:out", "Dense_0/kernel:out"
NONE, CACHED, LIVE, DOT = "no teacher", "hinton, cached logits", "hinton, live teacher", "hinton, cached logits, DOT"
# Taps of the student and of the teacher; by default the last map of both.
TAPS: dict[str, tuple[Any, Any]] = {
  **{name: ((LATE, LATE), (EARLY, EARLY)) for name in ("fsp", "kdsvd")},  # of equal channels
  "review": ((EARLY, LATE, VECTOR), (EARLY, LATE, VECTOR)),
  "byot": ((EARLY, LATE, VECTOR), None),
  **{name: (VECTOR, VECTOR) for name in ("cc", "crd", "pkt", "rkd", "srrl")},
}
MORE: dict[str, dict[str, Any]] = {"crd": {"examples": EXAMPLES}, "srrl": {"classifier": "Dense_1"}, "topk": {"k": 5}}
PAIRS = ("cc", "crd", "dist", "mlkd", "pkt", "rkd", "sp")  # they compare all pairs of a batch, or of a memory
LEFT_OUT = ("hard_labels", "hinton", "sigmoid_cross_entropy")  # baselines; and one with other labels
SLACK, TARGETS = 1.05, {CACHED: 1.05}
TARGET = 1.10


class Variant(NamedTuple):
  """A row: a loss beside `hard_labels`, and the row to compare with."""

  loss: kd.Loss | None
  over: str
  live: bool = False
  optimizer: str = "sgd"


def variants(losses: Sequence[str] = ()) -> dict[str, Variant]:
  """Returns all rows, or those of some losses and the rows to compare with."""
  out = {
    NONE: Variant(None, NONE),
    f"{NONE}, again": Variant(None, NONE),
    CACHED: Variant(kd.hinton(), NONE),
    LIVE: Variant(kd.hinton(), NONE, live=True),
    DOT: Variant(kd.hinton(), CACHED, optimizer="dot"),
  }
  for name, make in methods(kd, "losses").items():
    if name in LEFT_OUT or (losses and name not in losses):
      continue
    takes, more = inspect.signature(make).parameters, MORE.get(name, {})
    student, teacher = TAPS.get(name, (LATE, LATE))
    taps = {key: tap for key, tap in (("student", student), ("teacher", teacher)) if key in takes}
    loss = make(**taps, **more)
    live = "teacher" in taps
    out[name] = Variant(loss, LIVE if live else CACHED if loss.needs_teacher else NONE, live)
  return out


class Common(NamedTuple):
  """The inputs of all rows: a batch, and the parameters of both networks."""

  batch: dict[str, jax.Array]
  student: Any
  teacher: Any


def common() -> Common:
  rng = np.random.default_rng(0)
  batch = {
    "image": jnp.asarray(rng.normal(size=(BATCH, 28, 28, 1)), jnp.float32),
    "label": jnp.asarray(rng.integers(0, CLASSES, BATCH), jnp.int32),
    "id": jnp.arange(BATCH, dtype=jnp.int32),
    "teacher_logits": jnp.asarray(rng.normal(size=(BATCH, CLASSES)), jnp.float32),
  }
  return Common(batch, *(jax.jit(net.init)(jax.random.key(0), batch["image"]) for net in (STUDENT, TEACHER)))


def tapped(net: Any, names: Sequence[str]) -> Callable[..., kd.Outputs]:
  return lambda variables, x: kd.Outputs(*graph.taps(net.apply, names)(variables, x))


def make(variant: Variant, given: Common) -> tuple[Callable[[], Any], float]:
  """Returns a function that runs one step and waits for it, and the step's floating point operations."""
  cached = not variant.live and variant.loss is not None and variant.loss.needs_teacher
  batch = {name: array for name, array in given.batch.items() if cached or name != "teacher_logits"}
  terms = [kd.Term("hard_labels", kd.hard_labels())]
  terms += [] if variant.loss is None else [kd.Term("loss", variant.loss)]
  objective = kd.weighted(terms)
  teacher = tapped(TEACHER, objective.teacher)
  shapes = [
    jax.eval_shape(run, variables, batch["image"])
    for run, variables in ((tapped(STUDENT, objective.student), given.student), (teacher, given.teacher))
  ]
  aux, aux_state = objective.init(jax.random.key(2), shapes[0], shapes[1], given.teacher)
  tx = engine.optimizer(variant.optimizer, 0.001, momentum=0.9)
  apply = forward.tapped(forward.plain(lambda v, x, **_: (STUDENT.apply(v, x), {})), objective.student)
  init, step = engine.training(apply, objective, tx, teacher=teacher if variant.live else None)
  run = loop.compiled(step, lambda data, step, seed, part: data)
  held = [init(given.student, aux=aux, aux_state=aux_state)]
  arguments = jnp.ones((), jnp.int32), batch, given.teacher if variant.live else None, jnp.zeros((), jnp.int32)
  operations = run.lower(held[0], *arguments).cost_analysis()["flops"]  # pyrefly: ignore

  def once() -> Any:
    held[0], metrics = run(held[0], *arguments)
    jax.block_until_ready((held[0], metrics))

  return once, operations


def measure(rows: dict[str, Variant], rounds: int, warm_up: int = 3) -> dict[str, dict[str, Any]]:
  """Returns each row's times, and its ratios over the row that it is compared with."""
  given = common()
  made = {name: make(variant, given) for name, variant in rows.items()}
  wall, cpu = in_turns({name: once for name, (once, _) in made.items()}, rounds, warm_up)
  out = {}
  for name, variant in rows.items():
    over = variant.over
    arithmetic = made[name][1] / made[over][1]
    target = TARGETS.get(name) or (TARGET if over in (CACHED, LIVE) else None)
    known = target is not None and arithmetic <= SLACK and name not in PAIRS
    out[name] = {
      "over": over,
      "wall_ms": round(1e3 * statistics.median(wall[name]), 2),
      "cpu_ms": round(1e3 * statistics.median(cpu[name]), 2),
      "wall_ratio": ratio(wall[name], wall[over]),
      "cpu_ratio": ratio(cpu[name], cpu[over]),
      "arithmetic": round(arithmetic, 3),
      "pairs": name in PAIRS,
      **({"target": target} if known else {}),
    }
  return out


def main() -> None:
  parser = argparse.ArgumentParser(description="A distillation loss's step over that of Hinton's loss.")
  parser.add_argument("--losses", nargs="+", default=(), help="names in kd; all by default")
  parser.add_argument("--rounds", type=int, default=30)
  parser.add_argument("--out", default="benchmarks/results/kd_cost_cpu.json")
  options = parser.parse_args()
  before = load()
  rows = measure(variants(options.losses), options.rounds)
  what = "a step's time over that of the step named in 'over' in the same round, median over rounds"
  write(options.out, what, "python -m benchmarks.kd_cost", before, {"rounds": options.rounds, "rows": rows})
  print(f"{'':28} {'over':24} {'wall ms':>8} {'cpu ms':>8} {'wall':>7} {'cpu':>7} {'ops':>7} {'target':>7}")
  for name, row in rows.items():
    numbers = f"{row['wall_ms']:>8.2f} {row['cpu_ms']:>8.2f} {row['wall_ratio']:>7.3f} {row['cpu_ratio']:>7.3f}"
    print(f"{name:28} {row['over']:24} {numbers} {row['arithmetic']:>7.3f} {row.get('target', ''):>7}")


if __name__ == "__main__":
  main()
