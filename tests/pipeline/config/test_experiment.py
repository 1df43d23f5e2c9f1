"""The keys of an experiment: filled in, typed, and no group shared between stages."""

import dataclasses
import math
import re

import pytest
from ml_collections import ConfigDict

from leanax.core import ranges
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


def numbers_of(group, where=""):
  """Yields (key, field) of every number of a dataclass of settings and of the groups in it, by their types."""
  for field in dataclasses.fields(group):
    key = f"{where}.{field.metadata.get('key') or field.name}".lstrip(".")
    if inner := field.metadata.get("entries"):
      yield from numbers_of(inner, f"{key}.NAME")
    elif dataclasses.is_dataclass(field.default):
      yield from numbers_of(type(field.default), key)
    elif field.type in (int, float) or tree.element_type(field) in (int, float):
      yield key, field


NUMBERS = dict(numbers_of(Experiment))


def test_every_number_has_a_range_and_its_default_is_in_it():
  assert len(NUMBERS) > 50 and {"seed", "models", "stages.NAME.epochs", "preprocess.std"} - {*NUMBERS} == {"models"}
  assert [key for key, field in NUMBERS.items() if field.metadata.get("range") is None] == []
  for field in NUMBERS.values():
    for number in field.default if isinstance(field.default, tuple) else (field.default,):
      ranges.check("default", number, field.metadata["range"])


@pytest.mark.parametrize("key", NUMBERS)
def test_no_number_is_beyond_computing(key):
  """Far ends of any key: a number that is not one, that int32 or float32 does not hold, and one below 0."""
  field = NUMBERS[key]
  whole = int in (field.type, tree.element_type(field))
  place = key.replace("stages.NAME", "stages.first").replace("models.NAME", "models.a")
  hostile = (-2, 2**31, 2**63, 10**400) if whole else (1e-30, 1e19, 1e308, 10**400)
  for value in hostile:
    several = tuple(value for _ in range(max(field.metadata["lengths"], default=1)))
    made = given(**nested(place, several if field.type not in (int, float) else value))
    with pytest.raises(UserError) as caught:
      references.check(loading.typed(loading.complete(made)))
    assert place in str(caught.value) and "; expected " in str(caught.value) and len(str(caught.value)) < 250


def nested(key, value):
  """The changes of an experiment that set one key; its stage is the first one alone."""
  groups = key.split(".")
  change = value
  for name in reversed(groups[1:]):
    change = {name: change}
  if groups[0] == "stages":
    change = {"first": {"model": "a", **change["first"]}}
  if groups[0] == "data":
    change = {"name": "digits", **change}
  return {groups[0]: change, "run": ("first",)}


@pytest.mark.parametrize(
  ("key", "text", "expected"),
  [
    ("seeds", "0", "a whole number from 1 to 10000"),
    ("seed", "2147483648", "a whole number from 0 to 2000000000"),
    ("steps_per_call", "1000000000", "a whole number from 0 to 10000"),
    ("checkpoint_every", "0", "a whole number, 1 or more"),
    ("keep", "0", "a whole number, 1 or more"),
    ("evaluations", "0", "a whole number, 1 or more"),
    ("latency_runs", "0", "a whole number from 1 to 100000"),
    ("layer_seconds", "-1", "a number from 0 to 3600"),
    ("data.validation", "-0.1", "a number from 0 to below 1"),
    ("data.limit", "-1", "a whole number, 0 or more"),
    ("preprocess.scale", "0", "a number from 1e-6 to 1e6"),
    ("preprocess.std", "-1,", "a number from 1e-6 to 1e6"),
    ("preprocess.mean", "1e30,", "a number from -1e6 to 1e6"),
    ("stages.first.peers", "0", "a whole number from 1 to 100"),
    ("stages.first.epochs", "200000000", "a whole number from 0 to 1000000"),
    ("stages.first.batch_size", "0", "a whole number, 1 or more"),
    ("stages.first.cache_top_k", "-1", "a whole number, 0 or more"),
    ("stages.first.teacher_classes", "(-1,)", "a whole number, 0 or more"),
    ("stages.first.examples.labelled", "-1", "a whole number, 0 or more"),
    ("stages.first.examples.only", "(-1,)", "a whole number, 0 or more"),
    ("stages.first.examples.without", "(-1,)", "a whole number, 0 or more"),
    ("stages.first.augment.shift", "(0, -1)", "a whole number from 0 to 16384"),
    ("stages.first.augment.shift", "(1,)", "2 elements, got 1"),
    ("stages.first.augment.resized_crop", "0.5", "0 or 2 elements, got 1"),
    ("stages.first.augment.brightness", "-1", "a number from 0 to 10"),
    ("stages.first.augment.mixup", "1e-9", "0 or a number from 0.001 to 1000"),
    ("stages.first.quant.calibration_batches", "0", "a whole number from 1 to 100000"),
    ("stages.first.optimizer.learning_rate", "0", "a number from 1e-10 to 1000"),
    ("stages.first.optimizer.learning_rate", "-0.1", "a number from 1e-10 to 1000"),
    ("stages.first.optimizer.clip_norm", "-1", "0 or a number from 1e-6 to 1e6"),
    ("stages.first.optimizer.weight_decay", "-1", "a number from 0 to 10"),
    ("stages.first.optimizer.scale_rate", "-1", "0 or a number from 1e-6 to 1e6"),
    ("stages.first.optimizer.reparam_rate", "-1", "0 or a number from 1e-6 to 1e6"),
    ("stages.first.optimizer.momentum", "-0.1", "a number from 0 to below 1"),
    ("stages.first.optimizer.decay", "0", "a number from 1e-6 to 1"),
    ("stages.first.optimizer.warmup_steps", "-1", "a whole number, 0 or more"),
    ("stages.first.optimizer.milestones", "(1.5,)", "a number from 0 to 1"),
    ("stages.first.optimizer.milestones", "1.5,", "a number from 0 to 1"),
    ("stages.first.optimizer.accumulate", "0", "a whole number, 1 or more"),
    ("stages.first.optimizer.ema", "1.0", "a number from 0 to below 1"),
  ],
)
def test_a_number_out_of_range_is_one_sentence(key, text, expected):
  with pytest.raises(UserError) as caught:
    loading.resolve(given(), [(key, text)])
  assert key in str(caught.value) and expected in str(caught.value)


@pytest.mark.parametrize(
  ("key", "value", "expected"),
  [
    ("stages.first.freeze", (1,), "'stages.first.freeze[0]' is 1; expected a text"),
    ("stages.first.export", (None,), "'stages.first.export[0]' is None; expected a text"),
    (
      "stages.first.cut.map",
      (("a", "b", "c"),),
      "'stages.first.cut.map[0]' is ('a', 'b', 'c'); expected a pair of texts",
    ),
    ("models.a.key_map", ("ab",), "'models.a.key_map[0]' is 'ab'; expected such as (pattern, replacement)"),
    ("shared", (1,), "'shared[0]' is 1; expected a text"),
    (
      "stages.first.optimizer.milestones",
      ("0.5",),
      "optimizer.milestones[0]' is '0.5'; expected a number",
    ),
  ],
)
def test_elements_of_another_type_are_refused(key, value, expected):
  with pytest.raises(UserError, match=re.escape(expected)):
    loading.resolve(given(**nested(key, value)))


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("stages.first.optimizer.milestones", "0.5,", (0.5,)),
    ("stages.first.optimizer.milestones", "1", (1.0,)),
    ("stages.first.examples.only", "1, 2", (1, 2)),
    ("stages.first.freeze", "Conv_*,", ("Conv_*",)),
    ("data.size", "8,8", (8, 8)),
    ("models.a.key_map", "(('a', 'b'),)", (("a", "b"),)),
  ],
)
def test_an_empty_sequence_takes_elements_of_its_type(key, text, value):
  found = dict(tree.leaves(loading.override(loading.complete(given()), [(key, text)])))[key]
  assert found == value and [type(one) for one in found] == [type(one) for one in value]


@pytest.mark.parametrize(
  ("key", "text", "expected"),
  [
    ("stages.first.optimizer.milestones", "abc", "expects a float in its place, got 'abc' in 'abc'"),
    ("stages.first.examples.only", "0.5", "expects an int in its place, got 0.5"),
  ],
)
def test_an_empty_sequence_takes_no_others(key, text, expected):
  with pytest.raises(UserError, match=re.escape(expected)):
    loading.override(loading.complete(given()), [(key, text)])


WITHOUT = {  # a key, and a value that nothing reads in a stage of defaults
  "cut.way": "layers",
  "cut.keep": "first",
  "cut.map": (("a", "b"),),
  "ensemble": "logits",
  "teacher_mode": "train",
  "teacher_classes": (1,),
  "cache_teacher": False,
  "cache_form": "int8",
  "cache_top_k": 2,
  "examples.unlabelled": False,
  "augment.fill": "edge",
  "augment.resized_crop_ratio": (1.0, 1.0),
  "augment.erase_area": (0.1, 0.2),
  "augment.erase_ratio": (1.0, 1.0),
  "augment.erase_fill": "mean",
  "augment.views": 2,
  "augment.seed": 3,
  "optimizer.kwargs": {"b1": 0.5},
  "optimizer.schedule_kwargs": {"power": 2},
  "optimizer.momentum": 0.5,
  "optimizer.nesterov": True,
  "optimizer.delta": 0.1,
  "optimizer.weight_decay": 0.1,
  "optimizer.milestones": (0.5,),
  "optimizer.decay": 0.5,
  "optimizer.scale_rate": 2.0,
  "optimizer.reparam_rate": 2.0,
  "quant.ends": "abc",
  "quant.calibration_batches": 3,
}
WITH = {  # what switches keys on
  ("cut.way", "cut.map", "cut.keep"): {"cut": {"from": "zero", "way": "layers"}},
  ("ensemble",): {"teacher": "zero, zero_2"},
  ("teacher_mode", "teacher_classes", "cache_teacher", "cache_form", "cache_top_k"): {"teacher": "zero"},
  ("examples.unlabelled",): {"examples": {"labelled": 4}},
  ("augment.fill", "augment.views", "augment.seed"): {"augment": {"crop": 1}},
  ("augment.resized_crop_ratio",): {"augment": {"resized_crop": (0.5, 1.0)}},
  ("augment.erase_area", "augment.erase_ratio", "augment.erase_fill"): {"augment": {"erase": 0.5}},
  ("optimizer.kwargs",): {"optimizer": {"name": "my.optim:lion"}},
  ("optimizer.schedule_kwargs",): {"optimizer": {"schedule": "my.optim:poly"}},
  ("optimizer.momentum", "optimizer.nesterov", "optimizer.weight_decay"): {"optimizer": {"name": "sgd"}},
  ("optimizer.delta",): {"optimizer": {"name": "dot"}},
  ("optimizer.milestones", "optimizer.decay"): {"optimizer": {"schedule": "step", "milestones": (0.2,)}},
  ("optimizer.scale_rate", "quant.ends", "quant.calibration_batches"): {"quant": {"rules": (("*", "w8a8 learned"),)}},
  ("optimizer.reparam_rate",): {"reparam": {"name": "soft_threshold"}},
}


def of_stage(key, value, **others):
  """The changes of an experiment whose third stage has a key set beside others."""
  groups = key.split(".")
  inner = {**others.get(groups[0], {}), groups[1]: value} if len(groups) > 1 else value
  stages = {"zero": {"model": "a"}, "zero_2": {"model": "a"}, "first": {"model": "a", **others, groups[0]: inner}}
  return {"stages": stages, "run": tuple(stages)}


def test_a_key_of_each_effect_is_tried():
  keys = {key for effect in references.STAGE for key in effect.keys}
  assert keys == {*WITHOUT, "export_failure"} == {key for keys in WITH for key in keys} | {"export_failure"}


@pytest.mark.parametrize("key", WITHOUT)
def test_what_cannot_have_an_effect_is_refused_and_what_switches_it_on_allows_it(key):
  with pytest.raises(UserError) as caught:
    loading.resolve(given(**of_stage(key, WITHOUT[key])))
  assert str(caught.value).startswith(f"config key 'stages.first.{key}' is ") and "has an effect only " in str(
    caught.value
  )
  plain = dict(tree.leaves(loading.complete(given())))[f"stages.first.{key}"] if "kwargs" not in key else {}
  loading.resolve(given(**of_stage(key, plain)))  # the default is not set
  value = "w4a4" if key == "quant.ends" else WITHOUT[key]
  loading.resolve(given(**of_stage(key, value, **next(on for keys, on in WITH.items() if key in keys))))


@pytest.mark.parametrize(
  ("changes", "expected"),
  [
    ({"data": {"name": "digits", "dir": "x"}}, "'data.dir' is 'x'; it has an effect only of a set 'tfds:NAME'"),
    (
      {"data": {"name": "folder:x", "resize": "pad"}},
      "'data.resize' is 'pad'; it has an effect only beside 'data.size'",
    ),
    (
      {"models": {"a": {"name": "b:C", "entry": "x"}}},
      "'models.a.entry' is 'x'; it has an effect only where there are",
    ),
    (
      {"data": {"name": "digits", "dir": 5000 * "x"}},
      f"'data.dir' is '{199 * 'x'}...; it has an effect only of a set 'tfds:NAME'",
    ),
    ({"seeds_over": "abc"}, "unknown way in 'seeds_over' 'abc'; expected one of loop, map, vmap"),
  ],
)
def test_the_same_of_data_and_models(changes, expected):
  with pytest.raises(UserError, match=re.escape(expected)):
    loading.resolve(given(stages={"first": {"model": "a"}}, run=("first",), **changes))


def test_stored_logits_need_images_that_come_again():
  for augment, fine in (({"flip": True}, False), ({"flip": True, "views": 2}, True), ({}, True)):
    changes = of_stage("cache_form", "int8", teacher="zero", augment=augment)
    if fine:
      loading.resolve(given(**changes))
      continue
    with pytest.raises(UserError, match="'stages.first.cache_form' is 'int8'; it has an effect only where a teacher's"):
      loading.resolve(given(**changes))
