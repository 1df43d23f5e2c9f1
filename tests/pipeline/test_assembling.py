"""A student that is deployed with its projector and its teacher's classifier, from the stage to the exported file."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from leanax import deploy, engine, graph
from leanax.core.errors import UserError
from leanax.core.trees import named_leaves
from leanax.pipeline import build, explain, stage, trained
from leanax.pipeline.compress import compress
from leanax.pipeline.evaluate import evaluate
from leanax.pipeline.report import measure
from leanax.pipeline.seeds import train_seeds
from leanax.pipeline.stages import train
from tests.integration import jobs
from tests.kd.oracles import pool64

pytestmark = pytest.mark.slow

RESNET = {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1), "widths": (6, 12)}}
CONVNET = {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (4, 8), "pool": 0, "dense": (16,)}}
OBJECTIVE = {"simkd": {"student": "Conv_1/kernel:out", "teacher": "Block_1/Conv_2/kernel:add:out"}}
FAST = {"epochs": 10, "batch_size": 64, "optimizer": {"learning_rate": 0.01}}
DIGITS = {
  "data": {"name": "digits"},
  "models": {"teacher": RESNET, "student": CONVNET},
  "stages": {
    "teacher": {**FAST, "model": "teacher"},
    "distilled": {
      **FAST,
      "epochs": 15,
      "optimizer": {"learning_rate": 0.02},
      "teacher": "teacher",
      "objective": OBJECTIVE,
    },
    "int8": {**FAST, "epochs": 1, "start": "distilled", "quant": {"rules": (("*", "w8a8"),)}},
  },
  "run": ("teacher", "distilled", "int8"),
  "evaluations": 2,
}
TINY = {"simkd": {"student": "Dense_0/kernel:out", "teacher": "Dense_1/kernel:out"}}  # of the tiny perceptrons


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """(folder, config, result, the distilled stage's last state) of the whole job on digits."""
  folder, states, fit = tmp_path_factory.mktemp("digits"), [], engine.fit

  def watched(*args, **kwargs):
    state, metrics = fit(*args, **kwargs)
    states.append(state)
    return state, metrics

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(engine, "fit", watched)
    config = jobs.experiment(**DIGITS)
    result = compress(config, folder)
  return folder, config, result, states[1]


def left(run, name):
  return trained.load(run[0] / "models" / f"{name}.safetensors")[0]


def convolved64(x, kernel):
  if kernel.ndim == 2:
    kernel = kernel[None, None]
  r = kernel.shape[0] // 2
  wide = np.pad(x, ((0, 0), (r, r), (r, r), (0, 0)))
  places = [(i, j) for i in range(kernel.shape[0]) for j in range(kernel.shape[1])]
  return sum(wide[:, i : i + x.shape[1], j : j + x.shape[2]] @ kernel[i, j] for i, j in places)


def logits64(state, teacher, features):
  """Equation 4 in float64, from the student's features and from what the loss trained and remembered."""
  x, (aux, kept) = pool64(np.float64(features), 4, 4), (state.aux["simkd"], state.aux_state["simkd"])
  for layer, seen in zip(*jax.tree.map(np.float64, (aux, kept)), strict=True):
    x = (convolved64(x, layer["kernel"]) - seen["mean"]) / np.sqrt(seen["variance"] + 1e-5)
    x = np.maximum(x * layer["scale"] + layer["offset"], 0)
  last = jax.tree.map(np.float64, teacher.variables["params"]["Dense_0"])
  return x.mean((1, 2)) @ last["kernel"] + last["bias"]


def test_a_stage_leaves_trunk_projector_and_the_teachers_classifier(run):
  *_, state = run
  test = build.dataset(run[1]).test
  plain = trained.functions(left(run, "distilled").recipe._replace(edits=()))
  x = jnp.asarray(test.images, jnp.float32) / 255
  own, taps = graph.taps(plain.fn, ["Conv_1/kernel:out"])(state.variables, x)
  want = logits64(state, left(run, "teacher"), taps["Conv_1/kernel:out"])
  got = trained.predict(left(run, "distilled"), test.images)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())
  assert engine.accuracy(want, test.labels) > 0.6
  assert engine.accuracy(own, test.labels) < 0.25  # nothing trained the student's own classifier


def test_its_row_its_metrics_and_evaluate_are_of_the_whole_model(run):
  folder, config, result, _ = run
  data = build.dataset(config)
  row = {row["name"]: row for row in result["rows"]}["distilled"]
  accuracy = {
    split.name: engine.accuracy(trained.predict(left(run, "distilled"), split.images), split.labels) for split in data
  }
  assert row["accuracy"] == row["file_accuracy"] == accuracy[data.test.name] > 0.6
  curves = result["curves"]["distilled"]
  assert curves["validation_accuracy"][-1][1] == pytest.approx(accuracy[data.validation.name])
  assert "train_accuracy" not in curves and "train_accuracy" in result["curves"]["int8"]
  assert dict((name, hits) for name, hits, _ in evaluate(folder))["distilled"] == row["accuracy"]


def test_only_layers_that_are_read_are_saved_and_counted(run):
  params = left(run, "distilled").variables["params"]
  assert {name: set(layer) for name, layer in params.items() if name != "simkd"} == {
    "Conv_0": {"kernel", "bias"},
    "Conv_1": {"kernel", "bias"},
  }
  shapes = {name: leaf.shape for name, leaf in named_leaves(params["simkd"]).items() if name.endswith("kernel")}
  assert shapes == {
    "narrow/kernel": (1, 1, 8, 6),
    "window/kernel": (3, 3, 6, 6),
    "widen/kernel": (1, 1, 6, 12),
    "classifier/kernel": (12, 10),
  }
  row = {row["name"]: row for row in run[2]["rows"]}["distilled"]
  assert row["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(params)) == 40 + 296 + 54 + 330 + 84 + 130
  assert row["macs"] == 64 * 9 * (4 + 32) + 16 * (48 + 324 + 72) + 120


def test_a_stage_that_follows_trains_the_head_and_quantizes_it(run):
  folder, config, result, _ = run
  before, after = (left(run, name).variables["params"]["simkd"] for name in ("distilled", "int8"))
  assert all(jnp.any(a != b) for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True))
  row = {row["name"]: row for row in result["rows"]}["int8"]
  assert row["accuracy"] > 0.6 and row["parity"]["reference/runtime"]["max_steps"] <= 1
  file = deploy.litert().open(folder / "files" / "int8.tflite")
  test = build.dataset(config).test
  logits = trained.predict(left(run, "int8"), test.images)
  assert np.mean(file.run(test.images).argmax(-1) == logits.argmax(-1)) > 0.98
  table = explain.explain(config).partition("stage int8:")[2].partition("\n\n")[0]
  sites = [line.split()[0] for line in table.splitlines()[2:]]
  assert sites[:2] == ["Conv_0/kernel", "Conv_1/kernel"] and not any("Dense" in site for site in sites)
  assert [site for site in sites if site.endswith("kernel")][2:] == [
    f"simkd/{name}/kernel" for name in ("narrow", "window", "widen", "classifier")
  ]


def test_a_float_file_agrees(run):
  test = build.dataset(run[1]).test
  file = deploy.litert().open(run[0] / "files" / "distilled.tflite")
  want = trained.predict(left(run, "distilled"), test.images)
  np.testing.assert_allclose(file.run(test.images), want, atol=1e-4 * np.abs(want).max())


def test_averages_are_of_the_head_too(tmp_path):
  """The saved model of a state with averages does not depend on the values themselves, nor does its head."""
  changes = {"stages__distilled__objective": TINY, "stages__distilled__epochs": 1}
  context, done = prepared(tmp_path, {**changes, "stages__distilled__optimizer__ema": 0.9})
  made, _, steps = train.plan("distilled", context.config, context.data, done)
  ready = train.ready("distilled", context, done, made, steps)
  state = ready.state
  moved = state.replace(
    **{name: jax.tree.map(lambda a: a + 1, getattr(state, name)) for name in ("params", "aux", "aux_state")}
  )
  actual, desired = (ready.learning.kept(one, ready.teacher).variables for one in (state, moved))
  jax.tree.map(np.testing.assert_array_equal, actual, desired)


def prepared(folder, changes):
  context = jobs.opened(folder, **changes)
  return context, {"teacher": stage.run_stage("teacher", context, {})}


BATCH_NORMS = {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1,), "widths": (4,), "classes": 4}}
MAPS = {"simkd": {"student": "Block_0/Conv_1/kernel:add:out", "teacher": "Block_0/Conv_1/kernel:add:out"}}


def with_batch_norms(folder, **changes):
  teacher = {**BATCH_NORMS, "kwargs": {**BATCH_NORMS["kwargs"], "widths": (6,)}}
  models = {"models": {"teacher": teacher, "student": BATCH_NORMS}}
  return jobs.opened(folder, **{**models, "stages__distilled__objective": MAPS, **changes})


def test_an_interrupted_stage_resumes_as_if_uninterrupted(tmp_path):
  changes = {"stages__distilled__optimizer": {"learning_rate": 0.05, "ema": 0.8}}
  whole = jobs.train(with_batch_norms(tmp_path / "whole", **changes))["distilled"]
  context = with_batch_norms(tmp_path / "broken", **changes)
  done = {"teacher": stage.run_stage("teacher", context, {})}
  with jobs.interrupted(9):
    stage.run_stage("distilled", context, done)
  again = stage.run_stage("distilled", context, done)
  jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)
  for name in ("metrics.jsonl", "models/distilled.safetensors"):
    assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_batch_norms_of_the_trunk_train_on_and_are_folded_later(tmp_path):
  stages = {name: dict(jobs.EXPERIMENT["stages"][name]) for name in ("teacher", "distilled")}
  stages["distilled"]["objective"] = MAPS
  stages["tuned"] = {**jobs.STAGE, "start": "distilled"}
  stages["int8"] = {**jobs.STAGE, "start": "tuned", "quant": {"rules": (("*", "w8a8"),), "calibration_batches": 2}}
  context = with_batch_norms(tmp_path, stages=stages, run=tuple(stages))
  done = jobs.train(context)
  means = [done[name].variables["batch_stats"]["BatchNorm_0"]["mean"] for name in ("distilled", "tuned")]
  assert not np.array_equal(*means)
  kinds = [edit["edit"] for edit in done["int8"].recipe.edits]
  assert "batch_stats" not in done["int8"].variables
  assert kinds == ["replace_head", *["fold_batch_norm"] * 3, "quantize"]
  loaded = trained.load(tmp_path / "models" / "tuned.safetensors")[0]
  assert loaded.recipe == done["tuned"].recipe
  outputs = measure.measure_model(done["int8"], context.data.test)[1]
  row = measure.measure_file(done["int8"], context.data.test, tmp_path / "int8.tflite", outputs)[0]
  assert row["parity"]["reference/runtime"]["max_steps"] <= 1


@pytest.mark.parametrize("over", [pytest.param("map", marks=pytest.mark.slow), "vmap"])
def test_seeds_trained_together_are_those_trained_alone(tmp_path, over):
  sgd = {"name": "sgd", "learning_rate": 0.05}
  changes = {f"stages__{name}__optimizer": sgd for name in ("teacher", "distilled")}
  changes |= {"run": ("teacher", "distilled"), "stages__distilled__objective": TINY, "seeds": 2}
  together = train_seeds(jobs.experiment(**changes, seeds_over=over), tmp_path / over)
  alone = train_seeds(jobs.experiment(**changes), tmp_path / "alone")
  for (_, seed_together), (context, seed_alone) in zip(together, alone, strict=True):
    assert seed_together["distilled"].recipe == seed_alone["distilled"].recipe
    images = context.data.test.images
    want = trained.predict(seed_alone["distilled"], images)
    np.testing.assert_allclose(trained.predict(seed_together["distilled"], images), want, atol=1e-3)


def test_the_students_part_of_the_teachers_classes(tmp_path):
  """The teacher's classes are those of the data in another order: the columns follow, and so does the file of it."""
  context = jobs.opened(tmp_path, stages__distilled__objective=TINY, stages__distilled__teacher_classes=(3, 1, 0, 2))
  done = jobs.train(context)
  teacher_head = done["teacher"].variables["params"]["Dense_2"]
  student_head = done["distilled"].variables["params"]["simkd"]["classifier"]
  np.testing.assert_array_equal(student_head["kernel"], teacher_head["kernel"][:, [3, 1, 0, 2]])
  np.testing.assert_array_equal(student_head["bias"], teacher_head["bias"][jnp.asarray([3, 1, 0, 2])])
  from_file = {"stages__distilled__teacher": str(tmp_path / "models" / "teacher.safetensors")}
  again = jobs.opened(tmp_path / "file", run=("distilled",), stages__distilled__objective=TINY, **from_file)
  student_head = jobs.train(again)["distilled"].variables["params"]["simkd"]["classifier"]
  np.testing.assert_array_equal(student_head["kernel"], teacher_head["kernel"])


def factory(hidden):
  """A model whose parameters are a list."""

  def init(key, x):
    sizes = (int(np.prod(x.shape[1:])), hidden, 4)
    keys = jax.random.split(key, 2)
    return {
      "params": [{"w": jax.random.normal(k, s) * 0.2} for k, s in zip(keys, itertools.pairwise(sizes), strict=True)]
    }

  def apply(variables, x):
    first, last = variables["params"]
    return jax.nn.relu(x.reshape(x.shape[0], -1) @ first["w"]) @ last["w"]

  return init, apply


def test_parameters_that_are_not_a_dict(tmp_path):
  own = {"name": f"{__name__}:factory", "kwargs": {"hidden": 8}}
  objective = {"simkd": {**TINY["simkd"], "student": "0/w:out"}}
  stages = {
    **{name: jobs.EXPERIMENT["stages"][name] for name in ("teacher", "distilled")},
    "tuned": {**jobs.STAGE, "start": "distilled"},
  }
  changes = {"models__student": own, "stages": stages, "stages__distilled__objective": objective}
  context = jobs.opened(tmp_path, run=tuple(stages), **changes)
  done = jobs.train(context)
  loaded = trained.load(tmp_path / "models" / "tuned.safetensors", (own["name"],))[0]
  assert set(named_leaves(loaded.variables["params"]["student"])) == {"0/w"}
  assert jax.tree.structure(loaded.variables) == jax.tree.structure(done["tuned"].variables)
  images = context.data.test.images
  np.testing.assert_array_equal(trained.predict(loaded, images), trained.predict(done["tuned"], images))


def test_mistakes_are_named_before_anything_trains(tmp_path):
  def refused(text, **changes):
    with pytest.raises(UserError, match=f"stage 'distilled': .*{text}"):
      jobs.opened(tmp_path, **{"stages__distilled__objective": TINY, **changes})

  wrong = {"simkd": {**TINY["simkd"], "teacher": "Dense_0/kernel:out"}}
  refused(
    "reads 32 features, as the teacher's tap has them, and gives 4 classes; it has Dense_0 .36 to 32., ",
    stages__distilled__objective=wrong,
  )
  for name, text in (
    ("Dense_9", "unknown classifier"),
    ("Dense_1", "'Dense_1' maps 32 features to 16 classes; .* has 16"),
  ):
    refused(text, stages__distilled__objective={"simkd": {**TINY["simkd"], "classifier": name}})
  refused(
    "other and simkd train a classifier each",
    stages__distilled__objective={**TINY, "other": {"loss": "simkd", **TINY["simkd"]}},
  )
  refused("expected a float stage", stages__distilled__quant={"rules": (("*", "w8a8"),)})
  assert not (tmp_path / "models").exists()
