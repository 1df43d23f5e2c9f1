"""A small training run that may be killed at any moment and started again: `python kill_program.py WORKDIR`."""

import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import kd
from leanax import engine
from leanax.engine.models import model
from leanax.engine.store.checkpoint import Checkpoints
from leanax.engine.store.metrics import Writer
from leanax.engine.store.model_file import save_tree
from leanax.engine.train import forward

STEPS, LOG_EVERY, SAVE_EVERY, BATCH = 96, 2, 4, 16
CONFIG = {"steps": STEPS, "seed": 5}


class Net(nn.Module):
  @nn.compact
  def __call__(self, x, train: bool):
    x = nn.Dense(512)(x)
    x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
    return nn.Dense(4)(nn.Dropout(0.3, deterministic=not train)(x))


def get_batch(data, step, *, seed, part):
  rows = jax.random.randint(jax.random.fold_in(jax.random.key(seed), step), (BATCH,), 0, len(data["label"]))
  index, count = part
  rows = jax.lax.dynamic_slice(rows, (index * (BATCH // count),), (BATCH // count,))
  return {name: array[rows] for name, array in data.items()}


def main(workdir, pause=0.0):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(256, 128)).astype(np.float32)
  data = {"image": jnp.asarray(x), "label": jnp.asarray(x[:, :4].argmax(-1), jnp.int32)}
  net = model.load(f"{Net.__module__}:Net")
  tx = engine.optimizer("adamw", engine.schedule("cosine", 1e-2, STEPS, warmup=4))
  objective = kd.weighted([kd.Term("hard", kd.hard_labels(), 1.0)])
  init, step = engine.training(forward.plain(net.apply), objective, tx, ema=0.9)
  state = init(jax.jit(net.init)(jax.random.key(0), x[:2]))

  with Checkpoints(workdir / "checkpoints", keep=2, best="loss", mode="min", config=CONFIG) as checkpoints:
    after = None
    if checkpoints.latest() is not None:
      after, state, _ = checkpoints.restore(state)
    with Writer(workdir, after=after, tensorboard=False) as writer:

      def log(done, state, history):
        writer.write(done, {name: values[-1] for name, values in history.items()})

      def save(done, state, history):
        checkpoints.save(done, state, metrics={"loss": float(history["loss"].mean())})

      # what is written of a step must be there before the step is saved
      hooks = [engine.Hook(LOG_EVERY, log), engine.Hook(SAVE_EVERY, save)]
      state, _ = engine.fit(
        step, state, get_batch, data, steps=STEPS, seed=CONFIG["seed"], hooks=hooks, tick=lambda _: time.sleep(pause)
      )
  save_tree(workdir / "final.safetensors", state)


if __name__ == "__main__":
  sys.modules["kill_program"] = sys.modules["__main__"]
  main(Path(sys.argv[1]), pause=0.004)
