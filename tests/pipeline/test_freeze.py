"""Stages with frozen leaves: a quantized one, statistics of norms, and what is refused before anything trains."""

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.pipeline import trained
from tests.integration import jobs

LEARNED = {"rules": (("*", "w8a8 learned"),), "calibration_batches": 1}
SHORT = {"run": ("alone", "tuned"), "stages__alone__epochs": 1}
TUNED = {**jobs.STAGE, "epochs": 1, "start": "alone"}


def test_the_codes_of_a_frozen_kernel_stay(tmp_path):
  given = {**TUNED, "quant": LEARNED, "freeze": ("Dense_0/*",)}
  context = jobs.opened(tmp_path, **SHORT, stages__tuned=given)
  done = jobs.train(context)
  before, after = (named_leaves(done[name].variables["params"]) for name in ("alone", "tuned"))
  same = {name for name in after if np.array_equal(before[name], after[name])}
  assert same == {"Dense_0/kernel", "Dense_0/bias"}
  # The scale that calibration gave the frozen kernel is still its own; that of the other one has moved.
  grids = trained.grids(done["tuned"])
  for name, moved in (("Dense_0/kernel", False), ("Dense_1/kernel", True)):
    calibrated = np.abs(np.asarray(before[name])).max(0) / 127
    assert moved == (np.abs(np.ravel(grids[name].scale) / calibrated - 1) > 1e-2).any()


def test_a_frozen_norm_keeps_its_statistics(tmp_path):
  norms = {"name": "tests.pipeline.nets:Normed", "kwargs": {}}
  data = {"data__kwargs": {**jobs.EXPERIMENT["data"]["kwargs"], "classes": 3}}
  given = {**TUNED, "freeze": ("BatchNorm_0/*", "BatchNorm_1/scale"), "optimizer": {"ema": 0.5}}
  done = jobs.train(jobs.opened(tmp_path, **SHORT, **data, models__student=norms, stages__tuned=given))
  before, after = (named_leaves(done[name].variables) for name in ("alone", "tuned"))
  same = {name for name in after if np.array_equal(before[name], after[name])}
  assert same == {
    *(f"params/BatchNorm_0/{leaf}" for leaf in ("scale", "bias")),
    *(f"batch_stats/BatchNorm_0/{leaf}" for leaf in ("mean", "var")),
    "params/BatchNorm_1/scale",
  }


@pytest.mark.parametrize(
  ("change", "sentence"),
  [
    (
      {"freeze": ("Dense_9*",)},
      r"'stages.tuned.freeze': freeze rule 'Dense_9\*' matches nothing; names near it: D",
    ),
    ({"freeze": ("*",)}, r"'stages.tuned.freeze': freeze rules \('\*',\) hold every parameter"),
    (
      {"freeze": ("Dense_0/*",), "sparsity": {"name": "magnitude", "density": 0.5}},
      "'stages.tuned.freeze' holds 'Dense_0/kernel', which 'stages.tuned.sparsity' prunes",
    ),
    ({"freeze": ("Dense_0/*",), "reparam": {"name": "soft_threshold"}}, "stage 'tuned': 'freeze' holds leaves whose"),
    ({"kind": "mask", "freeze": ("Dense_0/*",), "optimizer": {}}, "'stages.tuned.freeze' is .* trains nothing"),
  ],
)
def test_mistakes_are_refused_before_anything_trains(tmp_path, change, sentence):
  given = {**TUNED, **change} if "kind" not in change else {"start": "alone", "sparsity": {"density": 0.5}, **change}
  with pytest.raises(UserError, match=sentence):
    jobs.opened(tmp_path / "run", **SHORT, stages__tuned=given)
  assert not (tmp_path / "run").exists()


def test_zeros_of_a_frozen_leaf_are_held(tmp_path):
  given = {**TUNED, "freeze": ("Dense_0/*",), "sparsity": {"name": "hold"}}
  assert jobs.opened(tmp_path, **SHORT, stages__tuned=given).jobs["tuned"].steps == 4
