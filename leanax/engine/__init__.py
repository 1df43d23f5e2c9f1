"""Training: the state, the one step, optimizers, parallel modes and the loop.

>>> import jax
>>> import jax.numpy as jnp
>>> import kd
>>> from leanax import engine
>>> from leanax.engine.train import forward
>>> from leanax.zoo import mlp
>>> model, x = mlp.MLP((8,), classes=3), jax.random.normal(jax.random.key(0), (32, 4))
>>> data = {"image": x, "label": jnp.argmax(x[:, :3], 1).astype(jnp.int32)}
>>> student = forward.plain(lambda variables, x, *, train, key: (model.apply(variables, x), {}))
>>> objective = kd.weighted([kd.Term("hard", kd.hard_labels())])
>>> tx = engine.optimizer("adamw", engine.schedule("cosine", 0.1, 30))
>>> init, step = engine.training(student, objective, tx)
>>> state = init(model.init(jax.random.key(1), x))
>>> def get_batch(data, step, *, seed, part):  # the batch of a step; here always all of the data
...   return data
>>> state, history = engine.fit(step, state, get_batch, data, steps=30)
>>> bool(history["loss"][-1] < history["loss"][0] / 2)
True
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
