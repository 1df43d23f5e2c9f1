"""A stage that trains nothing: an earlier stage's model pruned at once."""

import jax
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.pipeline import build, stage, trained
from leanax.pipeline.compress import compress
from leanax.pipeline.job import Context
from leanax.pipeline.stages import mask
from tests.integration import jobs

MASK = {"kind": "mask", "start": "alone", "sparsity": {"density": 0.25}}
HOLD = {**jobs.STAGE, "epochs": 1, "start": "cut", "sparsity": {"name": "hold"}}
RUN = {"run": ("alone", "cut", "tuned"), "stages__cut": MASK, "stages__tuned": HOLD, "stages__alone__epochs": 1}


def kernels(folder, name):
  params = trained.load(folder / "models" / f"{name}.safetensors")[0].variables["params"]
  return {layer: np.asarray(leaves["kernel"]) for layer, leaves in params.items()}


def test_it_leaves_a_model_a_row_and_zeros_that_a_later_stage_holds(tmp_path):
  result = compress(jobs.experiment(**RUN), tmp_path)
  dense, cut, tuned = (kernels(tmp_path, name) for name in RUN["run"])
  for layer, kernel in dense.items():
    flat = np.abs(kernel).reshape(-1)
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[: round(flat.size * 0.25)]] = True
    np.testing.assert_array_equal(cut[layer], np.where(kept.reshape(kernel.shape), kernel, 0))
    np.testing.assert_array_equal(tuned[layer] != 0, cut[layer] != 0)
    assert np.any(tuned[layer] != cut[layer])
  rows = {row["name"]: row for row in result["rows"]}
  zeros = sum(kernel.size - round(kernel.size * 0.25) for kernel in dense.values())
  assert (
    rows["alone"]["nonzero"] - rows["cut"]["nonzero"] == zeros == rows["alone"]["nonzero"] - rows["tuned"]["nonzero"]
  )
  assert result["curves"]["cut"] == {} and (tmp_path / "files" / "cut.tflite").exists()


def test_its_parts_are_groups_and_layers_of_a_leaf_are_found(tmp_path):
  group = {
    "score": {"name": "random"},
    "pattern": {"name": "n_m", "n": 1, "m": 2},
    "rules": (("Dense_0/kernel", True),),
  }
  context = jobs.opened(
    tmp_path, run=("alone", "cut"), stages__cut={**MASK, "sparsity": group}, stages__alone__epochs=0
  )
  done = jobs.train(context)
  kernel = np.asarray(done["cut"].variables["params"]["Dense_0"]["kernel"])
  np.testing.assert_array_equal((kernel.reshape(18, 2, 8) != 0).sum(1), 1)
  for name in ("Dense_0/bias", "Dense_1/kernel"):
    layer, leaf = name.split("/")
    jax.tree.map(np.testing.assert_array_equal, *(done[s].variables["params"][layer][leaf] for s in ("alone", "cut")))
  assert context.jobs["cut"].steps == 0


def test_it_runs_for_several_seeds():
  config = jobs.experiment(run=("alone", "cut"), stages__cut=MASK)
  data = build.dataset(config)
  before = {"alone": stage.prepare(config, data)["alone"].leaves}
  rng = np.random.default_rng(0)
  numbers = [
    before["alone"]._replace(
      variables=jax.tree.map(lambda x: np.float32(rng.normal(size=x.shape)), before["alone"].variables)
    )
    for _ in range(2)
  ]
  job = mask.prepare("cut", config, data, before)
  contexts = [Context(config, None, data, None)] * 2
  for left, start in zip(job.run(contexts, [{"alone": one} for one in numbers], "vmap"), numbers, strict=True):
    kernel, dense = (np.asarray(x.variables["params"]["Dense_0"]["kernel"]) for x in (left, start))
    assert np.count_nonzero(kernel) == 72 and np.all((kernel == 0) | (kernel == dense))


MISTAKES = [
  ({"sparsity": {}}, "config group 'stages.cut.sparsity': a sparse method needs either density= or"),
  ({"sparsity": {"density": 2.0}}, "config group 'stages.cut.sparsity': density is 2.0; expected a density"),
  ({"sparsity": {"name": "prune", "density": 0.5}}, "config key 'stages.cut.sparsity.name' is 'prune', but a stage of"),
  ({"sparsity": {"densty": 0.5}}, "did you mean 'stages.cut.sparsity.density'"),
  (
    {"sparsity": {"density": 0.5, "score": {"name": "tailor"}}},
    "unknown method of sparsity.criteria 'tailor'; did you",
  ),
  ({"sparsity": {"density": 0.5, "score": {"name": "taylor"}}}, "sparsity.mask: the gradients are missing"),
  (
    {"sparsity": {"pattern": {"name": "n_m", "n": 2, "m": 5}}},
    "n_m: 'Dense_0/kernel' has 36 inputs, which groups of 5",
  ),
  ({"epochs": 3}, "config key 'stages.cut.epochs' is 3, but a stage of kind 'mask' trains nothing; expected no other"),
  ({"quant": {"rules": (("*", "w8"),)}}, "config key 'stages.cut.quant.rules' is .*, but a stage of kind 'mask'"),
  ({"start": ""}, "config key 'stages.cut.start' is empty, but a stage of kind 'mask' trains nothing"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES)
def test_mistakes_are_found_before_anything_runs(tmp_path, changes, sentence):
  with pytest.raises(UserError, match=sentence):
    jobs.opened(tmp_path / "run", run=("alone", "cut"), stages__cut={**MASK, **changes})
  assert not (tmp_path / "run").exists()
