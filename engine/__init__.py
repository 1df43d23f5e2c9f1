"""Training: the state, the one step, optimizers, parallel modes and the loop.

tx = engine.optimizer("adamw", engine.schedule("cosine", 1e-3, steps))
step = engine.make_train_step(forward, objective, tx, teacher=teacher)
state, history = engine.fit(step, engine.create(variables, tx), get_batch, data, steps=steps)
"""

from engine.counting import batch_mean, masks_of, of_update
from engine.evaluate import accuracy, agreement, calibration_error, divergence, logits
from engine.labels import labels
from engine.loop import Hook, fit
from engine.objective import Term, Weighted, weighted
from engine.optim import optimizer, schedule
from engine.outputs import is_one
from engine.parallel import parallelize
from engine.state import TrainState, create
from engine.statistics import find_local_statistics
from engine.step import make_train_step
from engine.term_norms import term_norm, term_norms

__all__ = [
  "Hook",
  "Term",
  "TrainState",
  "Weighted",
  "accuracy",
  "agreement",
  "batch_mean",
  "calibration_error",
  "create",
  "divergence",
  "find_local_statistics",
  "fit",
  "is_one",
  "labels",
  "logits",
  "make_train_step",
  "masks_of",
  "of_update",
  "optimizer",
  "parallelize",
  "schedule",
  "term_norm",
  "term_norms",
  "weighted",
]
