"""The cause of a loss that is not finite: the first number that is not, in the order in which a step computes them.

It is looked for once, when training has stopped for it. The steps from the last checkpoint on are made again, which
gives the same bits, and the step that failed is computed in parts with names.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from leanax import engine, graph
from leanax.core import keys
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.store.checkpoint import Checkpoints
from leanax.engine.train.gradient import Problem, gradient, reparametrized
from leanax.engine.train.loop import NotFinite
from leanax.engine.train.state import TrainState
from leanax.pipeline.learning import Learning

RATE = "a lower learning rate or clip_norm may help"
MINUS_INFINITY, WORSE = 1, 2  # the former excludes a class or masks attention, so that all else comes before it


class Training(NamedTuple):
  """A training, as it was started.

  Attributes:
    learning: the stage's functions.
    state: where it started: the first one, or that of a checkpoint.
    get_batch: as of `engine.fit`.
    data: the arrays that it reads.
    teacher: the teacher's variables.
    seeds: of the runs that train together.
    mode: see `engine.parallel`.
  """

  learning: Learning
  state: TrainState
  get_batch: Callable[..., Any]
  data: Mapping[str, Any]
  teacher: Any
  seeds: Sequence[int]
  mode: str = "jit"


class Cause(NamedTuple):
  """The first number that is not finite.

  Attributes:
    words: where it is.
    advice: what may help; "" where nothing is known to.
  """

  words: str
  advice: str = ""


@contextlib.contextmanager
def naming(training: Training, checkpoints: Checkpoints) -> Iterator[None]:
  """Adds the cause to the error of a training that stops within, because its loss or gradient is not finite.

  Of several runs that train together the run is named alone.
  """
  try:
    yield
  except NotFinite as error:
    raise UserError(_sentence(error, training, checkpoints)) from error


def _sentence(error: NotFinite, training: Training, checkpoints: Checkpoints) -> str:
  start = f"training stopped: {error.name} is {error.value} at step {error.step}"
  end = "checkpoints of earlier steps are kept"
  if len(training.seeds) > 1:
    seed = training.seeds[error.run]
    return f"{start} of the run with seed {seed}; {end}; that seed alone ('seed' {seed}, 'seeds' 1) shows the cause"
  try:
    found = cause(training, error.step, checkpoints)
  except Exception as failure:  # whatever a user's model does when it is read: the first error is the one that counts
    found = Cause(f"not known, as the step could not be computed in parts ({type(failure).__name__})")
  return "; ".join([start, f"the first number that is not finite is {found.words}", end, *filter(None, [found.advice])])


def cause(training: Training, step: int, checkpoints: Checkpoints | None = None) -> Cause:
  """Returns the first number that is not finite at a step, the first of which is 1, in this order.

  What the step before has left, the inputs after preprocessing, the activations of the forward pass, its outputs, the
  terms of the objective, the gradient of each leaf.
  """
  state = _before(training, step, checkpoints)
  steep = RATE if step > 1 else ""
  if name := _worst(_named(state)):
    return Cause(f"in {name!r} {f'after step {step - 1}' if step > 1 else 'before the first step'}", steep)
  learning, seed = training.learning, training.seeds[0]
  count, problem = (1, None) if learning.problem is None else (learning.problem.accumulate, learning.problem)
  make = jax.jit(lambda data, index: training.get_batch(data, index, seed=seed, part=(0, 1)))
  for index in range((step - 1) * count, step * count):
    batch = make(training.data, jnp.int32(index))
    if _bad(batch["image"]):
      return Cause(_inputs(batch), "is 'preprocess' right for these inputs?")
    key = keys.step_key(seed, index, "step")
    if problem is not None and (name := _activation(problem, state, batch["image"], key)):
      return Cause(f"in {name} of the forward pass", steep or _ids(batch["image"]))
  if problem is None:
    return Cause("in a loss or a gradient of several networks that train together", steep)
  grads, metrics = _gradients(training, problem, state)
  terms = {term.name: metrics[term.name] for term in getattr(problem.objective, "terms", ()) if term.name in metrics}
  if name := _worst(terms):
    return Cause(f"the term {name!r} of the objective", steep)
  if name := _worst(named_leaves(grads)):
    return Cause(f"in the gradient of {name.partition('/')[2]!r}", steep)
  return Cause("not found when the step is made again", steep)


def _before(training: Training, step: int, checkpoints: Checkpoints | None) -> TrainState:
  """Returns the state before a step: the steps since the last checkpoint, or since the start, are made again."""
  state, last = training.state, None if checkpoints is None else checkpoints.latest()
  if checkpoints is not None and last is not None and int(state.step) < last < step:
    state = checkpoints.restore(state, last).state
  given: Any = {"steps": step - 1, "seed": training.seeds[0], "mode": training.mode}
  given |= {"teacher_variables": training.teacher}
  return engine.fit(training.learning.step, state, training.get_batch, training.data, **given)[0]


def _named(state: TrainState) -> dict[str, Any]:
  """Returns the leaves of what is trained, and the model's other collections, by their names."""
  trees = {**state.trained, **state.model_state}  # what quantizers have seen may be infinite before they see any
  return {name.removeprefix("params/"): leaf for name, leaf in named_leaves(trees).items()}


def _inputs(batch: Mapping[str, Any]) -> str:
  images = np.asarray(batch["image"])
  bad = ~np.isfinite(images).reshape(len(images), -1).all(1)
  return f"in the inputs of {bad.sum()} of {len(images)} examples of the batch, after preprocessing"


def _ids(inputs: Any) -> str:
  """Returns what is known of inputs that are whole numbers, such as tokens: one beyond a table is read as NaN."""
  if not jnp.issubdtype(inputs.dtype, jnp.integer):
    return ""
  return (
    f"the inputs are whole numbers from {int(inputs.min())} to {int(inputs.max())}; is one beyond the rows of a table?"
  )


def _activation(problem: Problem, state: TrainState, x: Any, key: jax.Array) -> str:
  """Returns the first activation of the forward pass in training that is not finite; "" where all are."""
  params = reparametrized(problem.reparam, state.trained, state.step, key)[0]

  def fn(variables: Any, x: Any) -> Any:
    options: Any = {"train": True, "key": key, "axis_name": None}
    return problem.forward(variables, state.qparams, state.quant_state, x, **options)[0]

  variables = {"params": params, **state.model_state}
  names = _readable(fn, variables, x)
  out, found = jax.jit(graph.taps(fn, names))(variables, x)
  first = _worst({name: found[name] for name in names})
  return repr(first) if first else "the outputs" if any(map(_bad, jax.tree.leaves(out))) else ""


def _readable(fn: Callable[..., Any], variables: Any, x: Any) -> list[str]:
  """Returns the names of the activations of a function that can be read, in the order in which they are made."""
  traced = graph.trace(fn, variables, x)
  analysis = traced.analysis
  places = {name: analysis.resolve(maker.value) for name, maker in graph.exposed(traced).items()}
  places |= {name: number for number, name in analysis.tensors.items()}
  names = [name for name, _ in sorted(places.items(), key=lambda item: item[1] if isinstance(item[1], int) else -1)]

  def reads(chosen: list[str]) -> bool:
    try:
      jax.eval_shape(graph.taps(fn, chosen), variables, x)
    except UserError:  # inside a while loop or a custom rule
      return False
    return True

  return names if reads(names) else [name for name in names if reads([name])]


def _gradients(training: Training, problem: Problem, state: TrainState) -> tuple[Any, Mapping[str, Any]]:
  """Returns the gradient of the step after a state, and its metrics."""
  seed = training.seeds[0]

  @jax.jit
  def run(state: TrainState, data: Any, teacher: Any) -> Any:
    def batch(index: Any) -> Any:
      return training.get_batch(data, index, seed=seed, part=(0, 1))

    (grads,), _, metrics = gradient(problem, state, batch, teacher, axis_name=None, seed=seed)
    return grads, metrics

  return run(state, training.data, training.teacher)


def _rank(x: Any) -> int:
  if not jnp.issubdtype(x.dtype, jnp.floating):
    return 0
  finite = jnp.isfinite(x)
  return int(jnp.where(finite | (x == -jnp.inf), jnp.where(finite, 0, MINUS_INFINITY), WORSE).max(initial=0))


def _bad(x: Any) -> bool:
  return _rank(x) == WORSE


def _worst(arrays: Mapping[str, Any]) -> str:
  """Returns the name of the first array with NaN or infinity, or else with minus infinity; "" where all are finite."""
  ranks = {name: _rank(jnp.asarray(x)) for name, x in arrays.items()}
  most = max(ranks.values(), default=0)
  return next((name for name, rank in ranks.items() if rank == most), "") if most else ""
