"""Teachers of every kind, losses on activations, and stages that see a part of the examples or of the labels."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kd
from leanax.core.errors import UserError
from leanax.engine import data as datasets
from leanax.pipeline import build, job, stage, start, teacher_checks, teacher_outputs, trained
from leanax.pipeline.compress import compress
from leanax.pipeline.seeds import train_seeds
from tests.integration import jobs

HIDDEN = {"student": "Dense_0/kernel:out", "teacher": "Dense_1/kernel:out"}


HINTON = build.objective("s", {"hinton": {}})


def with_examples(given, **changes):
  return dataclasses.replace(given, examples=dataclasses.replace(given.examples, **changes))


def test_a_loss_on_activations_trains_its_aux_and_saves_none_of_it(tmp_path):
  objective = {"hard_labels": {}, "sp": {"weight": 10.0, **HIDDEN}, "fitnet": {"weight": 0.01, **HIDDEN}}
  context = jobs.opened(tmp_path, stages__distilled__objective=objective)
  done = jobs.train(jobs.with_teacher(context))
  series = stage.curves("distilled", context)
  assert {"sp", "fitnet", "hard_labels"} <= set(series)
  assert series["sp"][-1][1] < series["sp"][0][1]
  assert set(done["distilled"].variables["params"]) == {"Dense_0", "Dense_1"}


@pytest.mark.slow
def test_a_quantized_student_is_tapped_too(tmp_path):
  changes = {"stages__int8__objective": {"hard_labels": {}, "sp": HIDDEN}, "run": jobs.STAGES}
  rows = compress(jobs.experiment(**changes), tmp_path)["rows"]
  assert rows[-1]["codes_differ"] is not None and rows[-1]["accuracy"] > 0.5


def two_teachers(folder):
  stages = dict(jobs.EXPERIMENT["stages"])
  stages["second"] = {**stages["teacher"], "objective": {"hard_labels": {"weight": 0.5}}}
  stages["distilled"] = {**stages["distilled"], "teacher": "teacher, second"}
  return stages


@pytest.mark.sampled(2)
@pytest.mark.parametrize("ensemble", ["probabilities", "logits"])
def test_an_ensemble_is_the_mean_of_its_members(tmp_path, ensemble):
  context = jobs.opened(
    tmp_path,
    stages=two_teachers(tmp_path),
    run=("teacher", "second", "distilled"),
    stages__distilled__ensemble=ensemble,
  )
  done = jobs.train(jobs.with_teacher(context))
  given = context.config.stages["distilled"]
  sources = teacher_outputs.sources(given, done)
  spec = build.inputs(context.config, given)
  arrays = datasets.device_arrays(context.data.train)
  outputs = teacher_outputs.make(given, sources, arrays, spec, HINTON, tmp_path / "logits")
  stored = outputs.decode(outputs.stored)
  images = datasets.normalise(context.data.train.images, datasets.Preprocess())
  each = [trained.functions(one.recipe).fn(one.variables, images) for one in sources]
  if ensemble == "logits":
    np.testing.assert_allclose(stored, (each[0] + each[1]) / 2, atol=1e-5)
  else:
    mean = (jax.nn.softmax(each[0]) + jax.nn.softmax(each[1])) / 2
    np.testing.assert_allclose(np.exp(stored.logits), mean, atol=1e-6)  # losses that read logits get logarithms
    warm = (jax.nn.softmax(each[0] / 3) + jax.nn.softmax(each[1] / 3)) / 2
    np.testing.assert_allclose(jax.nn.softmax(kd.teacher_at(stored, 3.0) / 3), warm, atol=1e-6)
    alone = teacher_outputs.make(given, sources[:1], arrays, spec, HINTON, tmp_path / "logits")
    np.testing.assert_array_equal(alone.stored["teacher_logits"], stored.members[:, 0])
    assert len(list((tmp_path / "logits").iterdir())) == 2  # each teacher's are stored once


def test_the_average_of_the_students_weights_is_a_teacher(tmp_path):
  changes = {"stages__distilled__teacher": "itself", "run": ("distilled",)}
  with pytest.raises(UserError, match="'stages.distilled.teacher' is 'itself', which needs 'stages.distilled.optim"):
    jobs.opened(tmp_path / "without", **changes)
  context = jobs.opened(tmp_path / "with", **changes, stages__distilled__optimizer={"ema": 0.9, "learning_rate": 0.05})
  jobs.train(context)
  values = [value for _, value in stage.curves("distilled", context)["hinton"]]
  assert all(value > 0 for value in values[1:])


def test_a_chain_of_teachers(tmp_path):
  """An assistant between teacher and student, and a born-again student: each learns from the one before it."""
  model = {"name": "zoo.mlp:MLP", "kwargs": {"widths": (16,), "classes": 4}}
  distilled = {**jobs.STAGE, "objective": jobs.DISTIL}
  context = jobs.opened(
    tmp_path,
    models__assistant=model,
    stages__assistant={**distilled, "model": "assistant", "teacher": "teacher"},
    stages__distilled__teacher="assistant",
    stages__again={**distilled, "teacher": "distilled"},
    run=("teacher", "assistant", "distilled", "again"),
  )
  done: dict[str, trained.Trained] = {}
  stage.run_with_needs("again", jobs.with_teacher(context), done)
  assert list(done) == ["teacher", "assistant", "distilled", "again"]
  arrays = datasets.device_arrays(context.data.train)
  for name, before in (("distilled", "assistant"), ("again", "distilled")):
    given = context.config.stages[name]
    own = teacher_outputs.make(
      given, teacher_outputs.sources(given, done), arrays, build.inputs(context.config, given), HINTON, tmp_path
    )
    np.testing.assert_allclose(
      own.stored["teacher_logits"], trained.predict(done[before], context.data.train.images), atol=1e-5
    )


def test_a_teacher_from_a_file(tmp_path):
  jobs.with_teacher(jobs.opened(tmp_path / "teacher", run=("teacher",)))
  file = str(tmp_path / "teacher" / "models" / "teacher.safetensors")
  one = jobs.train(jobs.opened(tmp_path / "file", run=("distilled",), stages__distilled__teacher=file))
  two = jobs.train(jobs.opened(tmp_path / "stage"))
  for actual, desired in zip(*(jax.tree.leaves(done["distilled"].variables) for done in (one, two)), strict=True):
    np.testing.assert_array_equal(actual, desired)


def test_statistics_of_the_batch_and_none_kept(tmp_path):
  """Mode "train": the teacher's batch norms use the batch, and its averages stay as they are; dropout is refused."""
  norms = {
    "models__teacher": {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1,), "widths": (4,), "classes": 4}},
    "stages__distilled__teacher_mode": "train",
  }
  context = jobs.opened(tmp_path / "norms", **norms)
  before = jobs.train(context)["teacher"]
  given, spec = context.config.stages["distilled"], build.inputs(context.config, context.config.stages["distilled"])
  arrays = datasets.device_arrays(context.data.train)
  outputs = teacher_outputs.make(given, [before], arrays, spec, HINTON, tmp_path / "logits")
  batch = datasets.train_batch_at(arrays, 0, spec)
  logits = outputs.teacher(outputs.variables, batch["image"])
  whole, after = trained.functions(before.recipe).model.apply(before.variables, batch["image"], train=True)
  np.testing.assert_array_equal(logits, whole)
  assert np.abs(logits - trained.functions(before.recipe).fn(before.variables, batch["image"])).max() > 1e-3
  kept = trained.load(job.model_file(context.folder, "teacher"))[0].variables["batch_stats"]
  jax.tree.map(np.testing.assert_array_equal, kept, outputs.variables[0]["batch_stats"])
  assert not (tmp_path / "logits").exists() and after
  dropout = {
    **norms,
    "models__teacher": {"name": "zoo.mlp:MLP", "kwargs": {"widths": (8,), "dropout": 0.5, "classes": 4}},
  }
  with pytest.raises(
    UserError, match="teacher 'teacher' cannot be run so: .*; a teacher with dropout can be run in mo"
  ):
    jobs.opened(tmp_path / "dropout", **dropout)


def test_teachers_that_do_not_fit_are_refused(tmp_path):
  jobs.with_teacher(jobs.opened(tmp_path / "teacher", run=("teacher",)))
  file = str(tmp_path / "teacher" / "models" / "teacher.safetensors")
  fewer = {
    "run": ("distilled",),
    "stages__distilled__teacher": file,
    "data__kwargs__classes": 3,
    "models__student__kwargs__classes": 3,
  }
  with pytest.raises(UserError, match="has 4 classes and its student 3; expected 'teacher_classes'"):
    jobs.opened(tmp_path / "a", **fewer)
  with pytest.raises(UserError, match=r"'teacher_classes' is \(0, 4, 1\); expected 3 numbers from 0 to 3"):
    jobs.opened(tmp_path / "b", **fewer, stages__distilled__teacher_classes=(0, 4, 1))
  jobs.train(jobs.opened(tmp_path / "c", **fewer, stages__distilled__teacher_classes=(3, 0, 1)))
  across = {**fewer, "stages__distilled__objective": {"hard_labels": {}, "sp": HIDDEN}}
  done = jobs.train(jobs.opened(tmp_path / "d", **across))  # another task: activations only
  assert len(done["distilled"].recipe.classes) == 3
  with pytest.raises(UserError, match="another preprocessing"):
    jobs.opened(tmp_path / "e", run=("distilled",), stages__distilled__teacher=file, preprocess__mean=(0.5,))
  with pytest.raises(UserError, match="no training mode; expected 'eval'"):
    qat = {"start": "distilled", "quant": {"rules": (("*", "w8a8"),)}, "epochs": 1, "batch_size": 32}
    late = {**qat, "start": "", "quant": {"rules": ()}, "teacher": "int8", "teacher_mode": "train"}
    late["objective"] = {"hinton": {"weight": 1.0}}
    jobs.opened(tmp_path / "g", stages__int8=qat, stages__late=late, run=("teacher", "distilled", "int8", "late"))
  with pytest.raises(UserError, match="'stages.distilled.teacher_mode' is 'train': the teacher's statistics would be"):
    jobs.opened(tmp_path / "h", stages__distilled__teacher_mode="train", parallel="pmap")
  with pytest.raises(UserError, match="is 'teacher', but no loss of its objective compares with a teacher"):
    jobs.opened(tmp_path / "i", stages__distilled__objective={"hard_labels": {}})
  with pytest.raises(UserError, match="there is no file no/such.safetensors"):
    jobs.opened(tmp_path / "f", run=("distilled",), stages__distilled__teacher="no/such.safetensors")


def test_a_misspelt_tap_is_answered_with_the_nearest(tmp_path):
  wrong = {"sp": {"student": "Dense_0/kernl:out", "teacher": "Dense_1/kernel:out"}}
  with pytest.raises(UserError, match="taps of the student: unknown .* 'Dense_0/kernl:out'; did you mean 'Dense_0/ker"):
    jobs.opened(tmp_path, stages__distilled__objective=wrong)
  with pytest.raises(UserError, match="its objective reads 'Dense_1/kernel:out' of a teacher, and 'teacher' names no"):
    jobs.opened(
      tmp_path,
      stages__distilled__objective={"sp": HIDDEN},
      stages__distilled__teacher="itself",
      stages__distilled__optimizer={"ema": 0.9},
    )


def test_a_worse_teacher_is_a_loud_warning(tmp_path, capsys):
  changes = {"run": ("teacher", "alone", "distilled"), "stages__teacher__epochs": 0}
  context = jobs.opened(tmp_path, **changes)
  stage.run_with_needs("alone", context, {})
  assert "WARNING" not in capsys.readouterr().err
  stage.run_with_needs("distilled", context, {})  # as a program of its own, that knows the other stage by its file
  assert "WARNING: stage 'distilled': its teacher 'teacher' has a validation accuracy of" in capsys.readouterr().err


def test_several_teachers_are_judged_together_and_in_the_students_classes(tmp_path, monkeypatch):
  context = jobs.opened(tmp_path)
  labels = context.data.validation.labels
  good, bad = (20.0 * np.eye(4, dtype=np.float32)[(labels + off) % 4] for off in (0, 1))
  predicted = {"good": good, "bad": 2 * bad, "own": good * (np.arange(len(labels)) % 2)[:, None]}
  monkeypatch.setattr(teacher_outputs.models, "predict", lambda one, _: predicted[one])
  given = context.config.stages["distilled"]
  given = dataclasses.replace(given, ensemble="logits")

  def warned(*teachers):
    return teacher_checks.warn_of_a_worse_teacher("x", given, teachers, {"own": "own"}, context.data.validation)

  assert not warned("good") and warned("bad") and warned("good", "bad")
  given = dataclasses.replace(given, teacher_classes=(1, 2, 3, 0))
  assert not warned("bad") and warned("good")


def test_a_part_of_the_labels(tmp_path):
  context = jobs.opened(tmp_path)
  given = context.config.stages["distilled"]
  given = with_examples(given, labelled=12)
  split = build.examples(context.config, given, context.data.train)
  assert len(split.labels) == 128 and (split.labels >= 0).sum() == 12
  assert [(split.labels == number).sum() for number in range(4)] == [3, 3, 3, 3]
  given = with_examples(given, unlabelled=False)
  assert len(build.examples(context.config, given, context.data.train).labels) == 12
  given = with_examples(given, labelled=4000)
  with pytest.raises(UserError, match="1000 labels of class 0 are asked for"):
    build.examples(context.config, given, context.data.train)


def test_a_part_of_the_classes(tmp_path):
  context = jobs.opened(tmp_path)
  given = context.config.stages["distilled"]
  given = with_examples(given, without=(1,))
  assert set(build.examples(context.config, given, context.data.train).labels) == {0, 2, 3}
  given = with_examples(given, only=(1, 2))
  assert set(build.examples(context.config, given, context.data.train).labels) == {2}
  given = with_examples(given, only=(7,))
  with pytest.raises(UserError, match="'examples.only' names class 7; expected 0 to 3"):
    build.examples(context.config, given, context.data.train)


def test_unlabelled_examples_teach_through_the_teacher_only(tmp_path):
  objective = {"hard_labels": {"mask": "labelled"}, "hinton": {"weight": 1.0}}
  changes = {"stages__distilled__objective": objective, "stages__distilled__examples": {"labelled": 8}}
  context = jobs.opened(tmp_path, **changes)
  done = jobs.train(jobs.with_teacher(context))
  assert np.isfinite([value for _, value in stage.curves("distilled", context)["hard_labels"]]).all()
  assert done["distilled"].recipe.classes


@pytest.mark.parametrize(
  "objective, examples, message",
  [
    (
      {"hard_labels": {}, "hinton": {}},
      {"labelled": 12},
      "'hard_labels' reads labels, which 116 examples of the stage",
    ),
    ({"nkd": {"mask": "unlabelled"}}, {"labelled": 12}, "'nkd' reads labels, which 116 examples of the stage lack"),
    (
      {"hard_labels": {}, "hinton": {"mask": "unlabelled"}},
      {},
      "'hinton' counts unlabelled examples, and the stage ha",
    ),
  ],
)
def test_a_term_has_examples_and_the_labels_that_it_reads(tmp_path, objective, examples, message):
  with pytest.raises(UserError, match=f"stage 'distilled': the term {message}"):
    jobs.opened(tmp_path, stages__distilled__objective=objective, stages__distilled__examples=examples)


def test_losses_without_labels_may_count_unlabelled_examples(tmp_path):
  objective = {"hard_labels": {"mask": "labelled"}, "hinton": {"mask": "unlabelled"}, "kl": {"loss": "reverse_kl"}}
  jobs.opened(tmp_path, stages__distilled__objective=objective, stages__distilled__examples={"labelled": 12})


def test_masks_by_hand():
  terms = build.objective("s", {"hard_labels": {"mask": "labelled"}, "hot": {"loss": "hinton", "mask": "unlabelled"}})
  student, teacher = (jnp.asarray(np.random.default_rng(k).normal(size=(4, 3)), jnp.float32) for k in (0, 1))
  batch = {"label": jnp.array([2, -1, 0, -1], jnp.int32)}
  keywords = {"aux": {}, "aux_state": {}, "key": jax.random.key(0), "axis_name": None, "step": jnp.int32(0)}
  loss, _, logs = terms(kd.Outputs(student), kd.Outputs(teacher), batch, **keywords)
  rows = jnp.array([0, 2])
  hard = kd.hard_labels()(student[rows], None, {"label": batch["label"][rows]})[0].mean()
  hot = kd.hinton()(student[1::2], teacher[1::2])[0].mean()
  np.testing.assert_allclose([logs["hard_labels"], logs["hot"], loss], [hard, hot, hard + hot], rtol=1e-6)
  mixed = {**batch, "mix": jnp.full(4, 0.5), "mix_label": jnp.array([-1, 0, 1, -1], jnp.int32)}
  logs = terms(kd.Outputs(student), kd.Outputs(teacher), mixed, **keywords)[2]
  both = {name: mixed[name][2:3] for name in ("label", "mix", "mix_label")}  # the only one with labels for its whole
  np.testing.assert_allclose(logs["hard_labels"], kd.hard_labels()(student[2:3], None, both)[0].mean(), rtol=1e-6)
  with pytest.raises(UserError, match="unknown mask of term 'hinton' 'labeled'; did you mean 'labelled'"):
    build.objective("s", {"hinton": {"mask": "labeled"}})


def test_weights_and_temperatures_follow_schedules():
  group = {
    "hinton": {"weight": {"name": "linear", "low": 0.0, "high": 2.0, "start": 0.0, "end": 0.5}, "temperature": 2.0}
  }
  terms = build.objective("s", group, updates=100)
  student, teacher = jnp.zeros((1, 2)), jnp.ones((1, 2)).at[0, 0].set(3.0)
  keywords = {"aux": {}, "aux_state": {}, "key": jax.random.key(0), "axis_name": None}
  values = [
    terms(kd.Outputs(student), kd.Outputs(teacher), {}, **keywords, step=jnp.int32(k))[0] for k in (0, 25, 50, 99)
  ]
  np.testing.assert_allclose(np.array(values) / values[2], [0, 0.5, 1, 1], atol=1e-6)
  with pytest.raises(UserError, match="stages.s.objective.hinton.weight.*unknown|unknown.*linar"):
    build.objective("s", {"hinton": {"weight": {"name": "linar"}}})


@pytest.fixture(scope="module")
def run_on_whole_logits(tmp_path_factory):
  context = jobs.with_teacher(jobs.opened(tmp_path_factory.mktemp("whole")))
  jobs.train(context)
  return context


@pytest.mark.sampled(2)
@pytest.mark.parametrize("form, top_k", [("float16", 0), ("int8", 0), ("float32", 2)])
def test_compact_logits_teach_nearly_as_well(tmp_path, run_on_whole_logits, form, top_k):
  compact = {"stages__distilled__cache_form": form, "stages__distilled__cache_top_k": top_k}
  context = jobs.with_teacher(jobs.opened(tmp_path, **compact))
  jobs.train(context)
  runs = context, run_on_whole_logits
  actual, desired = (dict(stage.curves("distilled", run)["hard_labels"]) for run in runs)
  np.testing.assert_allclose(list(actual.values()), list(desired.values()), rtol=0.25 if top_k else 0.02)


@pytest.mark.slow
def test_seeds_share_a_teachers_logits(tmp_path, capsys):
  """One store where the teacher is shared and the random changes have their own seed, and one per seed otherwise."""
  views = {"shift": (1, 1), "views": 2}
  for fixed, stores in ((5, 1), (-1, 2)):
    config = jobs.experiment(
      run=("teacher", "distilled"),
      seeds=2,
      seeds_over="vmap",
      shared=("teacher",),
      stages__distilled__augment={**views, "seed": fixed},
    )
    train_seeds(config, tmp_path / str(fixed))
    assert len(list((tmp_path / str(fixed) / "teacher_logits").iterdir())) == stores
    assert capsys.readouterr().err.count("teacher cache: 128 examples x 2 views x 4 classes as float32") == stores


def test_a_loss_that_cannot_compare_the_two_is_refused_before_training(tmp_path):
  with pytest.raises(UserError, match="stage 'distilled': kdsvd: 1 tap of each network; expected 2 or more|kdsvd: "):
    jobs.opened(tmp_path, stages__distilled__objective={"kdsvd": {**HIDDEN, "vectors": 1}})
  wrong = {"srrl": {**HIDDEN, "classifier": "Dense_9"}}
  with pytest.raises(UserError, match="stage 'distilled': unknown classifier of the loss 'srrl' 'Dense_9'"):
    jobs.opened(tmp_path, stages__distilled__objective=wrong)
  with pytest.raises(UserError, match="'stages.distilled.cache_top_k': top_k is 4; expected 1 to 3"):
    jobs.opened(tmp_path, stages__distilled__cache_top_k=4)
  assert not (tmp_path / "models").exists()


@pytest.mark.parametrize(
  "mode", [pytest.param("mesh", marks=pytest.mark.slow), pytest.param("pmap", marks=pytest.mark.slow), "shard_map"]
)
@pytest.mark.slow
def test_relations_are_those_of_the_whole_batch_on_four_devices(tmp_path, mode):
  objective = {
    "hard_labels": {},
    "sp": {"weight": 10.0, **HIDDEN},
    "rkd": HIDDEN,
    "crd": {"weight": 0.1, **HIDDEN, "examples": 256, "negatives": 8, "width": 4},
  }
  contexts = [
    jobs.opened(tmp_path / each, stages__distilled__objective=objective, parallel=each) for each in ("jit", mode)
  ]
  one, four = (jobs.train(context)["distilled"] for context in contexts)
  for actual, desired in zip(*map(jax.tree.leaves, (one.variables, four.variables)), strict=True):
    np.testing.assert_allclose(actual, desired, atol=1e-4)
  alone, split = (dict(stage.curves("distilled", context)["sp"]) for context in contexts)
  np.testing.assert_allclose(list(split.values()), list(alone.values()), rtol=1e-3)


def test_a_teacher_of_other_classes_is_refused_though_there_are_as_many(tmp_path):
  context = jobs.opened(tmp_path)
  recipe = start.recipe_of("teacher", context.config, context.data.train)
  other = recipe._replace(classes=(*recipe.classes[:3], "zebra"))
  objective = build.objective("distilled", {"hinton": {}})
  given = context.config.stages["distilled"]
  with pytest.raises(UserError, match="has the class 'zebra' where its student has 'class_3'"):
    teacher_checks.check(given, [other], recipe, objective)
  given = dataclasses.replace(given, teacher_classes=(0, 1, 2, 3))
  teacher_checks.check(given, [other], recipe, objective)


def test_the_teachers_logits_of_the_students_classes(tmp_path):
  given = dataclasses.replace(jobs.opened(tmp_path).config.stages["distilled"], teacher_classes=(3, 0, 1))
  logits = jnp.arange(8.0).reshape(2, 4)
  teacher = teacher_outputs.together([lambda tree, x: x], given)
  np.testing.assert_array_equal(teacher([None], logits), [[3, 0, 1], [7, 4, 5]])


def test_teachers_of_other_ways_to_resize_are_refused_unless_their_file_does_not_say_it():
  plain = {"scale": 1.0, "mean": (0.0,), "std": (1.0,)}
  crop, pad = {**plain, "resize": "crop"}, {**plain, "resize": "pad"}
  pairs = [(crop, pad), (crop, plain), (crop, crop), ({**crop, "scale": 0.5}, plain)]
  assert [teacher_checks._differ(*pair) for pair in pairs] == [True, False, False, True]
