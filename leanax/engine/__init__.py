"""Training: the state, the one step, optimizers, parallel modes and the loop.

tx = engine.optimizer("adamw", engine.schedule("cosine", 1e-3, steps))
init, step = engine.training(forward, objective, tx, teacher=teacher)
state, history = engine.fit(step, init(variables), get_batch, data, steps=steps)
"""

from leanax.engine.train.evaluate import accuracy, agreement, calibration_error, divergence, logits
from leanax.engine.train.labels import labels
from leanax.engine.train.loop import Hook, fit
from leanax.engine.train.optim import optimizer, schedule
from leanax.engine.train.parallel import parallelize
from leanax.engine.train.state import TrainState, deployed
from leanax.engine.train.statistics import find_local_statistics
from leanax.engine.train.step import Training, training
from leanax.engine.train.term_norms import term_norm, term_norms

__all__ = [
  "Hook",
  "TrainState",
  "Training",
  "accuracy",
  "agreement",
  "calibration_error",
  "deployed",
  "divergence",
  "find_local_statistics",
  "fit",
  "labels",
  "logits",
  "optimizer",
  "parallelize",
  "schedule",
  "term_norm",
  "term_norms",
  "training",
]
