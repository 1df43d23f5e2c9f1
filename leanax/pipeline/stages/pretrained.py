"""A stage that trains nothing: a model with the weights of a file, as it is, to be measured and exported in float."""

from collections.abc import Mapping, Sequence

import jax

from leanax.engine.data import Dataset
from leanax.pipeline import start, untrained
from leanax.pipeline.config.experiment import Experiment
from leanax.pipeline.job import Context, Job
from leanax.pipeline.trained import Trained

READ = ("kind", "model")  # the keys of a stage that it reads


def check(name: str, config: Experiment) -> None:
  """Refuses keys that only training reads, and a model without weights."""
  untrained.check(name, config, READ)


def prepare(name: str, config: Experiment, data: Dataset, before: Mapping[str, Trained]) -> Job:
  """Prepares a stage that leaves the model with the weights that its entry of `models` names.

  Args:
    name: the stage's.
    config: the experiment.
    data: its data, for the shape of images.
    before: what earlier stages leave; nothing of it is read.

  Raises:
    UserError: weights that are not those of the model.
  """
  stage = config.stages[name]
  leaves = start.model_of(stage, config, data, before, jax.eval_shape)

  def run(contexts: Sequence[Context], done: Sequence[Mapping[str, Trained]], over: str) -> list[Trained]:
    del over  # nothing is trained that could be trained together
    each = zip(contexts, done, strict=True)
    return [start.model_of(stage, one.config, one.data, earlier) for one, earlier in each]

  return Job(run, leaves, steps=0)
