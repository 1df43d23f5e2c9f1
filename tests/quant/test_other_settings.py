"""A state of other widths or levels is refused: its scales would round in silence to something else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.engine.store.checkpoint import Checkpoints

V = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)


def fn(v, x):
  return x @ v["w"]


def model(setting):
  return quant.quantize(fn, quant.policy(setting, ends=None))


def unlabelled(state):
  return {name: {key: value for key, value in entry.items() if key != "grid"} for name, entry in state.items()}


PAIRS = [
  ("w8a8", "w4a8", "'w' as 'w8', and this model needs 'w4'"),
  ("w8a8 learned", "w4a8 learned", "'w' as 'w8', and this model needs 'w4'"),
  ("w4a4", "w4a8", "'input' as 'a4', and this model needs 'a8'"),
  ("w4", "w4 power_of_two", "'w' as 'w4', and this model needs 'w4 power_of_two'"),
  ("w4 full", "w4", "'w' as 'w4 full', and this model needs 'w4'"),
]


@pytest.mark.parametrize("made, used, says", PAIRS)
def test_a_state_of_other_settings_is_refused_inside_jit_too(made, used, says):
  own, other = model(made), model(used)
  qparams, state = own.init(V, X)
  qparams, state = own.freeze(qparams, own.observe(state, V, X)[1])
  for use in (other.apply, other.grids, lambda q, s, *inputs: other.observe(s, *inputs)):
    for call in (use, jax.jit(use)):
      with pytest.raises(UserError, match=f"the quantizer state has the grid {says}; run init on it"):
        call(qparams, state, V, X)
  own.apply(qparams, state, V, X)


def test_estimators_and_observers_may_change():
  """Codes mean the same: a calibrated state is trained, or calibrated further, by other methods."""
  qparams, state = model("w8a8").init(V, X)
  model("w8a8 ema(rate=0.5)").apply(qparams, state, V, X)


def test_the_label_is_not_a_leaf_and_stays_with_the_state():
  _, state = model("w4a8").init(V, X)
  assert quant.labels(state) == {"w/grid": "w4", "input/grid": "a8", "w:out/grid": "a8"}
  assert not any(name.endswith("grid") for name in named_leaves(state))
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, state)
  assert quant.labels(jax.device_get(stacked)) == quant.labels(state)


def test_a_state_of_arrays_alone_is_taken_as_it_is():
  """As older model files hold it, whose settings lie beside it."""
  qparams, state = model("w8a8").init(V, X)
  plain = unlabelled(state)
  np.testing.assert_array_equal(
    model("w8a8").apply(qparams, plain, V, X)[0], model("w8a8").apply(qparams, state, V, X)[0]
  )


def test_a_checkpoint_of_other_settings_is_refused_and_an_older_one_read(tmp_path):
  states = {setting: model(setting).init(V, X)[1] for setting in ("w8a8", "w4a8")}
  with Checkpoints(tmp_path / "new") as checkpoints:
    checkpoints.save(1, states["w8a8"])
    assert quant.labels(checkpoints.restore(states["w8a8"]).state) == quant.labels(states["w8a8"])
    with pytest.raises(UserError, match="'w/grid' is 'w8' there and 'w4' in this run"):
      checkpoints.restore(states["w4a8"])
  plain = unlabelled(states["w8a8"])
  with Checkpoints(tmp_path / "old") as checkpoints:
    checkpoints.save(1, plain)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(states["w8a8"]).state, states["w8a8"])
