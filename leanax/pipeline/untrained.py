"""The checks that kinds of stages share which train nothing."""

from collections.abc import Sequence

from leanax.core.errors import UserError
from leanax.pipeline.config import tree
from leanax.pipeline.config.experiment import Experiment, Stage
from leanax.pipeline.workdir import EXPORT


def check(name: str, config: Experiment, read: Sequence[str]) -> None:
  """Refuses keys that the stage does not read, and a model that nothing has trained.

  Args:
    name: the stage's.
    config: the experiment.
    read: the keys of a stage that its kind reads.
  """
  stage = config.stages[name]
  defaults = tree.values(Stage())
  for key, value in tree.values(stage).items():
    if key not in (*read, *EXPORT) and value != defaults[key]:
      plain = dict(tree.leaves(defaults[key], key))
      changed = [(leaf, x) for leaf, x in tree.leaves(value, key) if x != plain.get(leaf)] or [(key, value)]
      raise UserError(
        f"config key 'stages.{name}.{changed[0][0]}' is {changed[0][1]!r}, but a stage of kind {stage.kind!r} trains "
        f"nothing; expected no other keys than {', '.join(read)}"
      )
  if not stage.start and not config.models[stage.model].weights:
    raise UserError(
      f"config key 'stages.{name}.start' is empty, but a stage of kind {stage.kind!r} trains nothing; expected an "
      "earlier stage, or 'weights' of its model"
    )
