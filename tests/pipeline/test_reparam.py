"""A stage whose weights are functions of what is trained, and the seeds of random masks: trained, resumed, refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.pipeline import fitting, optimizers, stage
from leanax.pipeline.seeds import train_seeds
from leanax.pipeline.stages import train
from tests.integration import jobs

THRESHOLD = {"name": "soft_threshold", "initial": -3.0, "decay": 0.05}
GIVEN = {
  "run": ("alone",),
  "stages__alone__reparam": THRESHOLD,
  "stages__alone__optimizer": {"learning_rate": 0.05, "reparam_rate": 2.0},
}


def test_a_stage_leaves_the_evaluation_form_of_what_it_trains(tmp_path):
  context = jobs.opened(tmp_path, **GIVEN)
  made, leaves, steps = train.plan("alone", context.config, context.data, {})
  ready = train.ready("alone", context, {}, made, steps)
  (state,) = fitting.fit("alone", [context], [ready], "")
  left = made.kept(state, None).variables["params"]
  assert jax.tree.structure(left) == jax.tree.structure(leaves.variables["params"])
  for layer, trained in state.params.items():
    raw, s = np.float64(trained["kernel"]), np.float64(state.aux["reparam"][f"{layer}/kernel"])
    expected = np.sign(raw) * np.maximum(np.abs(raw) - 1 / (1 + np.exp(-s)), 0)
    np.testing.assert_allclose(left[layer]["kernel"], expected, atol=1e-6)
    assert s != -3.0 and 0 < np.mean(expected == 0) < 1
    np.testing.assert_array_equal(left[layer]["bias"], trained["bias"])
  curves = stage.curves("alone", context)
  assert curves["reparam/penalty"][-1][1] > 0 and curves["validation_accuracy"][-1][1] > 0.5


def test_a_stopped_stage_resumes_as_if_uninterrupted(tmp_path):
  stage.run_stage("alone", jobs.opened(tmp_path / "whole", **GIVEN), {})
  with jobs.interrupted(9):
    stage.run_stage("alone", jobs.opened(tmp_path / "broken", **GIVEN), {})
  stage.run_stage("alone", jobs.opened(tmp_path / "broken", **GIVEN), {})
  for name in ("metrics.jsonl", "models/alone.safetensors"):
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_rate_of_a_reparameterization_is_its_own():
  rates = {"name": "sgd", "learning_rate": 0.05, "reparam_rate": 2.0}
  config = jobs.experiment(**{**GIVEN, "stages__alone__optimizer": rates})
  tx = optimizers.transformation("alone", config.stages["alone"], 4)
  tree = {"params": {"w": jnp.ones(3)}, "qparams": {}, "aux": {"reparam": {"w": jnp.ones(())}, "other": jnp.ones(2)}}
  ones = jax.tree.map(jnp.ones_like, tree)
  updates = tx.update(ones, tx.init(tree), tree, step=jnp.int32(0))[0]
  rate = float(updates["params"]["w"][0])
  assert rate < 0 and float(updates["aux"]["other"][0]) == rate
  np.testing.assert_allclose(updates["aux"]["reparam"]["w"], 2 * rate, rtol=1e-6)


@pytest.mark.parametrize(
  ("changes", "match"),
  [
    ({"stages__alone__reparam": {"name": "soft_treshold"}}, "sparsity.reparam 'soft_treshold'; did you mean 'soft_thr"),
    (
      {"stages__alone__reparam": {**THRESHOLD, "decai": 1.0}},
      "'stages.alone.reparam.decai'; did you mean 'stages.alone.reparam.decay'",
    ),
    ({"stages__alone__reparam": {**THRESHOLD, "decay": -1.0}}, "'stages.alone.reparam': soft_threshold: decay is -1.0"),
    ({"stages__alone__reparam": {"decay": 0.1}}, "config key 'stages.alone.reparam.name' is missing"),
    (
      {"stages__alone__reparam": {**THRESHOLD, "rules": (("Conv_9/*", True),)}},
      r"stage 'alone': .*rule 'Conv_9/\*' matches nothing",
    ),
    (
      {"run": ("distilled",), "stages__distilled__teacher_mode": "together", "stages__teacher__reparam": THRESHOLD},
      "'stages.teacher.reparam.name' is 'soft_threshold'; expected ''",
    ),
  ],
)
def test_what_is_refused_before_anything_trains(tmp_path, changes, match):
  with pytest.raises(UserError, match=match):
    stage.opened(jobs.experiment(**{"run": ("alone",), **changes}), tmp_path)


SPARSE = {
  "run": ("alone",),
  "seeds": 2,
  "stages__alone__epochs": 1,
  "stages__alone__sparsity": {"name": "set", "density": 0.5, "schedule": {"name": "periodic", "every": 1, "end": 1.0}},
}


def zeros(done):
  return np.asarray(done["alone"].variables["params"]["Dense_0"]["kernel"]) == 0


@pytest.mark.slow
def test_random_masks_are_of_the_runs_seed_in_turn_and_together(tmp_path):
  each = {
    over: [zeros(done) for _, done in train_seeds(jobs.experiment(**SPARSE, seeds_over=over), tmp_path / over)]
    for over in ("loop", "vmap")
  }
  for one, other in zip(each["loop"], each["vmap"], strict=True):
    np.testing.assert_array_equal(one, other)
  assert np.any(each["loop"][0] != each["loop"][1])


def test_a_seed_of_masks_that_is_given_stays(tmp_path):
  found = {}
  for seed, own in ((0, {}), (3, {}), (3, {"seed": 0})):
    changes = {
      **SPARSE,
      "seed": seed,
      "seeds": 1,
      "stages__alone__sparsity": {**SPARSE["stages__alone__sparsity"], **own},
    }
    context = jobs.opened(tmp_path / f"{seed}{own}", **changes)
    made, _, steps = train.plan("alone", context.config, context.data, {})
    state = train.ready("alone", context, {}, made, steps).state
    found[seed, bool(own)] = jax.device_get(jax.tree.leaves(state.opt_state.masks))
  first, other, same = found.values()
  assert any(np.any(a != b) for a, b in zip(first, other, strict=True))
  jax.tree.map(np.testing.assert_array_equal, first, same)


def test_peers_have_random_masks_of_their_own(tmp_path):
  mutual = {"hard_labels": {}, "hinton": {"temperature": 1.0}}
  context = jobs.opened(
    tmp_path, **{**SPARSE, "seeds": 1, "stages__alone__peers": 2, "stages__alone__objective": mutual}
  )
  made, _, steps = train.plan("alone", context.config, context.data, {})
  state = train.ready("alone", context, {}, made, steps).state
  assert any(np.any(mask[0] != mask[1]) for mask in map(np.asarray, jax.tree.leaves(state.opt_state.masks)))
