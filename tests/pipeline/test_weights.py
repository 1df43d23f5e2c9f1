"""Weights of files in the main job: PyTorch's, another run's stage, a new head; and what is refused before it runs."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from leanax.core.errors import UserError
from leanax.engine.store import model_file
from leanax.pipeline import trained
from scripts.drills.fuzz.pth import archive, tensor
from tests.integration import jobs

RNG = np.random.default_rng(0)
SHAPES = {"Dense_0.weight": (8, 36), "Dense_0.bias": (8,), "Dense_1.weight": (4, 8), "Dense_1.bias": (4,)}
STATE = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
STUDENT = jobs.EXPERIMENT["models"]["student"]
GIVEN = {**jobs.STAGE, "epochs": 0, "export": ()}


def torch_file(path, state=STATE, **beside):
  named = {name: tensor(array) for name, array in state.items()}
  path.write_bytes(archive({"state_dict": named, **beside} if beside else named))
  return str(path)


def variables(folder, name="given"):
  return trained.load(folder / "models" / f"{name}.safetensors")[0].variables["params"]


def opened(folder, stages=None, **model):
  stages = stages or {"given": GIVEN}
  return jobs.opened(folder, run=tuple(stages), models__student={**STUDENT, **model}, stages=stages)


def refused(folder, sentence, **more):
  with pytest.raises(UserError, match=sentence) as caught:
    opened(folder, **more)
  assert not folder.exists() and "\n" not in str(caught.value)


def test_a_torch_file_is_a_models_weights(tmp_path):
  path = torch_file(tmp_path / "w.pth", epoch=3)
  jobs.train(opened(tmp_path / "run", weights=path))
  found = variables(tmp_path / "run")
  for layer in ("Dense_0", "Dense_1"):
    np.testing.assert_array_equal(found[layer]["kernel"], STATE[f"{layer}.weight"].T)
    np.testing.assert_array_equal(found[layer]["bias"], STATE[f"{layer}.bias"])


class Small(nn.Module):
  """Two layers of which the second reads flattened images."""

  @nn.compact
  def __call__(self, x):
    x = nn.max_pool(nn.relu(nn.Conv(3, (3, 3), name="conv")(x)), (2, 2), (2, 2))
    return nn.Dense(4, name="fc")(x.reshape(len(x), -1))


def test_a_dense_layer_behind_flattened_images_has_torchs_order(tmp_path):
  """The pipeline knows how the model reads its kernels: torch flattens channels first, and Flax last."""
  shapes = {"conv.weight": (3, 1, 3, 3), "conv.bias": (3,), "fc.weight": (4, 27), "fc.bias": (4,)}
  arrays = {name: RNG.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
  model = {"name": f"{__name__}:Small", "kwargs": {}, "weights": torch_file(tmp_path / "w.pth", arrays)}
  left = jobs.train(opened(tmp_path / "run", **model))["given"].variables["params"]
  wanted = arrays["fc.weight"].reshape(4, 3, 3, 3)
  np.testing.assert_array_equal(left["fc"]["kernel"].reshape(3, 3, 3, 4), np.einsum("ochw->hwco", wanted))
  np.testing.assert_array_equal(left["conv"]["kernel"], np.einsum("oihw->hwio", arrays["conv.weight"]))


def test_one_entry_and_rules_from_the_command_line(tmp_path):
  ours = {name.replace("Dense_", "fc"): array for name, array in STATE.items()}
  average = {name: tensor(array + 1) for name, array in ours.items()}
  path = torch_file(tmp_path / "w.pth", ours, ema=average)
  rules = (("^fc", "Dense_"),)
  refused(tmp_path / "run", "w.pth has no array for 'Dense_0/bias'", weights=path)
  refused(tmp_path / "run", "rule '\\^fc' matches nothing in .*'ema/fc0.bias'", weights=path, key_map=rules)
  refused(tmp_path / "run", "has no entry 'emma'; it has 'ema'", weights=path, key_map=rules, entry="emma")
  jobs.train(opened(tmp_path / "run", weights=path, key_map=rules, entry="ema"))
  np.testing.assert_array_equal(variables(tmp_path / "run")["Dense_1"]["bias"], STATE["Dense_1.bias"] + 1)


def test_a_new_head(tmp_path):
  """A head of another size is named with the key that leaves it fresh; with it the trunk alone is loaded."""
  other = {**STATE, "Dense_1.weight": np.ones((7, 8), np.float32), "Dense_1.bias": np.ones(7, np.float32)}
  path = torch_file(tmp_path / "w.pth", other)
  says = r"'Dense_1/bias' .* has shape \(7,\); the model's has \(4,\), .*key 'new'"
  refused(tmp_path / "run", says, weights=path)
  refused(tmp_path / "run", r"keep rule 'head/\*' matches nothing", weights=path, new=("head/*",))
  jobs.train(opened(tmp_path / "run", weights=path, new=("Dense_1/*",)))
  jobs.train(opened(tmp_path / "fresh"))
  found, fresh = variables(tmp_path / "run"), variables(tmp_path / "fresh")
  np.testing.assert_array_equal(found["Dense_0"]["kernel"], STATE["Dense_0.weight"].T)
  np.testing.assert_array_equal(found["Dense_1"]["kernel"], fresh["Dense_1"]["kernel"])
  assert not np.array_equal(found["Dense_0"]["kernel"], fresh["Dense_0"]["kernel"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  folder = tmp_path_factory.mktemp("weights") / "run"
  quantized = {"kind": "post_training", "start": "float", "quant": {"rules": (("*", "w8a8"),)}, "export": ()}
  jobs.train(opened(folder, {"float": {**GIVEN, "epochs": 1}, "int8": {**quantized, "batch_size": 32}}))
  return folder


def test_another_runs_stage(run, tmp_path):
  """A float stage's file is its model's variables: as weights of a model, and as the start of a stage."""
  path = str(run / "models" / "float.safetensors")
  jobs.train(opened(tmp_path / "weights", weights=path))
  jobs.train(opened(tmp_path / "start", {"given": {**GIVEN, "start": path}}))
  for folder in ("weights", "start"):
    jax.tree.map(np.testing.assert_array_equal, variables(tmp_path / folder), variables(run, "float"))


def test_weights_of_another_program_start_a_stage(tmp_path):
  """The start of a stage is in place of its model's weights, and of their rules."""
  other = {name.replace("Dense_", "fc"): array + 1 for name, array in STATE.items()}
  model = {"weights": torch_file(tmp_path / "model.pth", other), "key_map": (("^fc", "Dense_"),)}
  path = torch_file(tmp_path / "w.pth")
  jobs.train(opened(tmp_path / "run", {"given": {**GIVEN, "start": path}}, **model))
  np.testing.assert_array_equal(variables(tmp_path / "run")["Dense_0"]["bias"], STATE["Dense_0.bias"])


def test_a_quantized_stage_is_no_start(run, tmp_path):
  path = str(run / "models" / "int8.safetensors")
  says = "int8.safetensors holds a model that is quantized; expected the file of an earlier stage"
  refused(tmp_path / "run", says, weights=path)
  refused(tmp_path / "run", f"stage 'given': .*{says}", stages={"given": {**GIVEN, "start": path}})


def test_keys_of_weights_need_weights(tmp_path):
  says = r"config key 'models.student.new' is \('Dense_1/\*',\); it has an effect only where there are 'weights'"
  refused(tmp_path / "run", says, new=("Dense_1/*",))


@pytest.mark.parametrize(
  ("start", "says"),
  [
    ("nowhere/w.pth", "stage 'given': there are no weights at nowhere/w.pth"),
    ("w.h5", "stage 'given': there are no weights at w.h5"),
    ("float", "config key 'stages.given.start' names stage 'float'; expected none, as it is the first"),
  ],
)
def test_a_start_that_is_not_there(tmp_path, monkeypatch, start, says):
  """It is said before data are read."""
  monkeypatch.setattr("leanax.pipeline.build.dataset", None)
  refused(tmp_path / "run", says, stages={"given": {**GIVEN, "start": start}})


def test_a_damaged_stage_file(run, tmp_path):
  """Its own checksums are read, which other safetensors files lack."""
  content = bytearray((run / "models" / "float.safetensors").read_bytes())
  content[-3] ^= 1
  (tmp_path / "w.safetensors").write_bytes(content)
  refused(tmp_path / "run", "w.safetensors is damaged: leaf .* does not match", weights=str(tmp_path / "w.safetensors"))
  model_file.save_tree(tmp_path / "w.safetensors", {"Dense_0": {"kernel": np.ones(3)}}, {"recipe": {"edits": [3]}})
  refused(tmp_path / "run", "w.safetensors holds a model that is changed by", weights=str(tmp_path / "w.safetensors"))
