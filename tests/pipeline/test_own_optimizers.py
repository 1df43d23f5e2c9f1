"""Optimizers and learning-rate schedules of a user's own, by import path."""

import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.pipeline import optimizers, trained
from leanax.pipeline.config import loading
from leanax.pipeline.config.experiment import Optimizer, Stage
from tests.integration import jobs

OWN = "tests.pipeline.own_optim"
SIGNS = {"name": f"{OWN}:signs", "kwargs": {"strength": 0.5, "weight_decay": 0.1}}
FALLING = {"schedule": f"{OWN}:falling", "schedule_kwargs": {"power": 3.0}, "warmup_steps": 1}


def transformation(steps=4, **optimizer):
  return optimizers.transformation("s", Stage(optimizer=Optimizer(**optimizer)), steps)


def test_updates_are_those_worked_by_hand():
  tx = transformation(**SIGNS, **FALLING, learning_rate=0.2, scale_rate=0.5, clip_norm=1.0)
  params = {"params": {"w": np.array([1.0, -2.0, 0.5], np.float32)}, "qparams": {"s": np.float32([0.25])}, "aux": {}}
  grads = {"params": {"w": np.array([3.0, 0.0, -1.0], np.float32)}, "qparams": {"s": np.float32([2.0])}, "aux": {}}
  state = tx.init(params)
  for step in range(3):
    updates, state = tx.update(grads, state, params, step=step)
    rate = 0.2 * (step + 1) / 1 if step < 1 else 0.2 * (1 - step / 4) ** 3  # the warm-up of one step comes first
    w = -rate * (0.5 * np.sign(grads["params"]["w"]) + 0.1 * params["params"]["w"])
    s = -0.5 * rate * (0.5 * np.sign(grads["qparams"]["s"]) + 0.1 * params["qparams"]["s"])
    np.testing.assert_allclose(updates["params"]["w"], w, rtol=1e-6)
    np.testing.assert_allclose(updates["qparams"]["s"], s, rtol=1e-6)


def test_the_norm_is_clipped_before_it():
  tx = transformation(name="optax:sgd", learning_rate=0.1, schedule="constant", clip_norm=1.0)
  params = {"params": {"w": jnp.zeros(2)}, "qparams": {}, "aux": {}}
  grads = {"params": {"w": jnp.asarray([3.0, 4.0])}, "qparams": {}, "aux": {}}
  updates, _ = tx.update(grads, tx.init(params), params, step=0)
  np.testing.assert_allclose(updates["params"]["w"], [-0.06, -0.08], rtol=1e-6)


def test_a_stage_trains_with_it_and_prunes_around_it(tmp_path):
  given = {
    **jobs.STAGE,
    "optimizer": {**SIGNS, **FALLING, "learning_rate": 0.02, "ema": 0.5, "accumulate": 2},
    "sparsity": {"name": "magnitude", "density": 0.5},
  }
  context = jobs.opened(tmp_path, run=("alone",), stages__alone=given)
  left = jobs.train(context)["alone"]
  kernel = np.asarray(trained.trees(left.variables)[0]["params"]["Dense_0"]["kernel"])
  assert np.count_nonzero(kernel) == kernel.size // 2 and np.isfinite(kernel).all()


def test_its_keywords_are_typed_on_the_command_line():
  import ml_collections

  key = "stages.alone.optimizer"
  given = [
    (f"{key}.kwargs.strength", "2"), (f"{key}.schedule_kwargs.power", "1"),
    (f"{key}.name", f"{OWN}:signs"), (f"{key}.schedule", f"{OWN}:falling"),
  ]  # fmt: skip
  found = loading.resolve(ml_collections.ConfigDict(jobs.values()), given).stages["alone"].optimizer
  assert (found.kwargs, found.schedule_kwargs) == ({"strength": 2.0}, {"power": 1.0})
  assert isinstance(found.kwargs["strength"], float) and isinstance(found.schedule_kwargs["power"], float)
  given[0] = (f"{key}.kwargs.strenth", "2")
  with pytest.raises(UserError, match="unknown key in 'stages.alone.optimizer.kwargs' 'strenth'; did you mean 'streng"):
    loading.resolve(ml_collections.ConfigDict(jobs.values()), given)


@pytest.mark.parametrize(
  ("optimizer", "sentence"),
  [
    ({"name": f"{OWN}:sings"}, f"unknown name in module '{OWN}' 'sings'; did you mean 'signs'"),
    ({"name": "tests.pipeline.nowhere:lion"}, "there is no module 'tests.pipeline.nowhere' on the Python path"),
    ({"name": f"{OWN}:NO_FUNCTION"}, "NO_FUNCTION' is int; expected a function of the learning rate"),
    ({"name": f"{OWN}:nothing"}, "nothing.* takes 0 positional arguments but 1 was given"),
    ({"name": f"{OWN}:text"}, "the optimizer is 'sgd'; expected a transformation of optax"),
    ({"name": f"{OWN}:breaks"}, r"breaks' fails: KeyError: 'missing' \(.*own_optim.py:38\)"),
    ({"name": f"{OWN}:other_shapes"}, "other_shapes' gives updates or a state of other shapes than it got"),
    ({**SIGNS, "kwargs": {"strenth": 1.0}}, "unknown config key 'optimizer .*:signs.strenth'; did you mean"),
    ({**SIGNS, "weight_decay": 0.1}, "weight_decay' is 0.1; .*; one by import path reads its keywords in"),
    ({**SIGNS, "momentum": 0.5}, "momentum' is 0.5; .*; one by import path reads its keywords in 'optimizer.kwargs'"),
    ({"kwargs": {"b1": 0.5}}, r"kwargs' is {'b1': 0.5}; it has an effect only with an optimizer by import path"),
    (
      {"schedule_kwargs": {"power": 0.5}},
      r"schedule_kwargs' is {'power': 0.5}; .* with a schedule by import path",
    ),
    ({"schedule": f"{OWN}:vector"}, "vector' gives .* for a step; expected one number, the learning rate"),
    ({"schedule": f"{OWN}:number"}, "number' returns float; expected a function of the step"),
    ({"schedule": f"{OWN}:text"}, "text.* takes 1 positional argument but 2 were given"),
  ],
)
def test_mistakes_are_refused_before_anything_trains(tmp_path, optimizer, sentence):
  with pytest.raises(UserError, match=f"^config (group|key) 'stages.alone.optimizer.*{sentence}"):
    jobs.opened(tmp_path / "run", run=("alone",), stages__alone__optimizer=optimizer)
  assert not (tmp_path / "run").exists()


def test_an_import_that_fails_names_its_line(tmp_path, monkeypatch):
  (tmp_path / "broken_optim.py").write_text("import jax\n\nlion = jax.numpy.no_such_thing(3)\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(UserError, match=r"importing 'broken_optim' failed: AttributeError: .*broken_optim.py:3\)"):
    jobs.opened(tmp_path / "run", run=("alone",), stages__alone__optimizer={"name": "broken_optim:lion"})
