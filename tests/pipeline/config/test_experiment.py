"""The keys of an experiment: filled in, typed, and no group shared between stages."""

import dataclasses
import math

import pytest
from ml_collections import ConfigDict

from leanax.core.errors import UserError
from leanax.engine.train import parallel, seeds
from leanax.pipeline.config import loading, references, tree
from leanax.pipeline.config.experiment import Experiment

SHARED = {"hinton": {"weight": 1.0, "temperature": 4.0}}


def given(**changes):
  return ConfigDict({
    "name": "x",
    "data": {"name": "digits"},
    "models": {"a": {"name": "zoo.mlp:MLP"}, "b": {"name": "zoo.mlp:MLP"}},
    "stages": {
      "first": {"model": "a"},
      "second": {"model": "b", "teacher": "first", "objective": SHARED},
      "third": {"model": "b", "teacher": "first", "start": "second", "objective": SHARED},
    },
    "run": ("first", "second", "third"),
    **changes,
  })  # fmt: skip


def test_missing_keys_have_their_defaults():
  config = loading.resolve(given())
  assert config.stages["first"].optimizer.name == "adam"
  assert config.stages["first"].objective == {"hard_labels": {"weight": 1.0}}
  assert config.stages["third"].sparsity == {"name": ""}
  assert config.keep == Experiment.keep


def test_choices_are_those_of_the_engine():
  """The config's modules load no jax, so that they say again which ways the engine has."""
  choices = {field.name: field.metadata.get("choices") for field in dataclasses.fields(Experiment)}
  assert choices["parallel"] == parallel.MODES
  assert choices["seeds_over"] == ("loop", *seeds.WAYS)


def test_dataclasses_are_made_from_a_config_and_give_it_back():
  config = loading.complete(given(stages={"first": {"model": "a", "cut": {"map": (("a", "b"),)}}}, run=("first",)))
  experiment = loading.typed(config)
  assert dict(tree.leaves(experiment)) == dict(tree.leaves(config))
  assert experiment.stages["first"].cut.map == (("a", "b"),)
  assert loading.typed(ConfigDict(loading.complete(config))) == experiment


@pytest.mark.parametrize(
  ("key", "text"),
  [
    ("stages.second.objective.hinton.temperature", "2"),  # shared by the file
    ("stages.second.quant.calibration_batches", "3"),  # shared by the defaults
    ("stages.first.augment.crop", "1"),
    ("models.a.weights", "x"),
  ],
)
def test_a_change_is_for_one_stage_alone(key, text):
  before = dict(tree.leaves(loading.complete(given())))
  after = dict(tree.leaves(loading.override(loading.complete(given()), [(key, text)])))
  assert [name for name in after if after[name] != before[name]] == [key]
  assert dict(tree.leaves(loading.complete(given()))) == before  # the next experiment starts from the defaults


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"modles": {}}, "unknown config key 'modles'; did you mean 'models'?"),
    ({"data": {"nmae": "digits"}}, "unknown config key 'data.nmae'; did you mean 'data.name'"),
    ({"models": {}}, "config key 'models' is missing; expected a group with an entry for each of the models"),
    ({"stages": {"first": {"modle": "a"}}}, "unknown config key 'stages.first.modle'; did you mean"),
    ({"stages": {"first": 3}}, "config key 'stages.first' must be a group, got 3"),
    ({"stages": {"first": {"epochs": 2.5}}}, "config key 'stages.first.epochs' expects int, got 2.5"),
    ({"stages": {"first": {"optimizer": {"learning_rate": "fast"}}}}, "expects float, got 'fast'"),
    ({"seed": True}, "config key 'seed' expects int, got True"),
    ({"stages": {"first": {"objective": "hinton"}}}, "'stages.first.objective' must be a group, got 'hinton'"),
    ({"stages": {"first": {"objective": ""}}}, "'stages.first.objective' must be a group, got ''"),
    ({"stages": {"first": {"sparsity": 0.5}}}, "'stages.first.sparsity' must be a group, got 0.5"),
    (
      {"stages": {"first": {"optimizer": {"learning_rate": math.nan}}}},
      "config key 'stages.first.optimizer.learning_rate' is nan; expected a finite number",
    ),
  ],
)
def test_a_mistake_in_the_file_is_one_sentence(changes, sentence):
  with pytest.raises(UserError) as caught:
    loading.complete(given(**changes))
  assert sentence in str(caught.value)
  assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"run": ()}, "config key 'run' is empty; expected the names of the stages in their order"),
    ({"run": ("frist",)}, "unknown stage in 'run' 'frist'; did you mean 'first'?"),
    ({"run": ("first", "first")}, "stage 'first' stands twice in 'run'"),
    ({"stages": {"first": {"model": "c"}}, "run": ("first",)}, "unknown model in 'stages.first.model' 'c'"),
    ({"run": ("second", "first")}, "'stages.second.teacher' names stage 'first'; expected none, as it is the first"),
    ({"run": ("first", "third")}, "'stages.third.start' names stage 'second'; expected one that runs before it: first"),
    (
      {"stages": {"first": {"model": "a"}, "second": {"model": "b", "start": "first"}}, "run": ("first", "second")},
      "stage 'second' trains 'b' but starts from 'first', which holds another model",
    ),
    (
      {"stages": {"first": {"model": "a", "epochs": -1}}, "run": ("first",)},
      "'stages.first.epochs' is -1; expected a whole",
    ),
    ({"evaluations": 0}, "config key 'evaluations' is 0; expected a whole number, 1 or more"),
    ({"keep": 0}, "config key 'keep' is 0; expected a whole number, 1 or more"),
    ({"stages": {"a/b": {"model": "a"}}, "run": ("a/b",)}, "stage 'a/b'"),
    *(
      (
        {"stages": {"first": {"model": "a", "optimizer": {"ema": ema}}}, "run": ("first",)},
        f"config key 'stages.first.optimizer.ema' is {ema}; expected a number from 0 to below 1",
      )
      for ema in (2.0, 1.0, -0.5)
    ),
    (
      {"stages": {"first": {"model": "a", "teacher_classes": (0, "b")}}, "run": ("first",)},
      "config key 'stages.first.teacher_classes[1]' is 'b'; expected a whole number, 0 or more",
    ),
    (
      {"stages": {"first": {"model": "a", "examples": {"only": (1.5,)}}}, "run": ("first",)},
      "config key 'stages.first.examples.only[0]' is 1.5; expected a whole number, 0 or more",
    ),
    (
      {"stages": {"first": {"model": "a"}, "second": {"model": "b", "teacher": "itself, first"}}},
      "'stages.second.teacher' is 'itself, first'; expected 'itself' alone, or other teachers only",
    ),
  ],
)
def test_mistakes_of_several_keys_are_found(changes, sentence):
  with pytest.raises(UserError) as caught:
    references.check(loading.typed(loading.complete(given(**changes))))
  assert sentence in str(caught.value)


@pytest.mark.parametrize(
  ("key", "text", "expected"),
  [
    ("seeds", "0", "a whole number, 1 or more"),
    ("steps_per_call", "-1", "a whole number, 0 or more"),
    ("checkpoint_every", "0", "a whole number, 1 or more"),
    ("keep", "0", "a whole number, 1 or more"),
    ("evaluations", "0", "a whole number, 1 or more"),
    ("latency_runs", "0", "a whole number, 1 or more"),
    ("data.validation", "-0.1", "a number, 0 or more"),
    ("data.limit", "-1", "a whole number, 0 or more"),
    ("stages.first.peers", "0", "a whole number, 1 or more"),
    ("stages.first.epochs", "-1", "a whole number, 0 or more"),
    ("stages.first.batch_size", "0", "a whole number, 1 or more"),
    ("stages.first.cache_top_k", "-1", "a whole number, 0 or more"),
    ("stages.first.teacher_classes", "(-1,)", "a whole number, 0 or more"),
    ("stages.first.examples.labelled", "-1", "a whole number, 0 or more"),
    ("stages.first.examples.only", "(-1,)", "a whole number, 0 or more"),
    ("stages.first.examples.without", "(-1,)", "a whole number, 0 or more"),
    ("stages.first.augment.shift", "(0, -1)", "a whole number, 0 or more"),
    ("stages.first.quant.calibration_batches", "0", "a whole number, 1 or more"),
    ("stages.first.optimizer.warmup_steps", "-1", "a whole number, 0 or more"),
    ("stages.first.optimizer.milestones", "(1.5,)", "a number from 0 to 1"),
    ("stages.first.optimizer.accumulate", "0", "a whole number, 1 or more"),
    ("stages.first.optimizer.ema", "1.0", "a number from 0 to below 1"),
  ],
)
def test_a_number_out_of_range_is_one_sentence(key, text, expected):
  with pytest.raises(UserError) as caught:
    references.check(loading.resolve(given(), [(key, text)]))
  assert key in str(caught.value) and expected in str(caught.value)
