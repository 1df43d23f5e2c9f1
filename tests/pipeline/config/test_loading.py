"""Configs: the meaning of overrides, and one sentence for each mistake."""

import inspect
import math
from collections.abc import Sequence

import ml_collections
import pytest

from leanax.core.errors import UserError
from leanax.pipeline.config import loading, tree
from tests.integration import jobs


def example() -> ml_collections.ConfigDict:
  return ml_collections.ConfigDict(
    {
      "seed": 0,
      "name": "lenet",
      "flag": True,
      "optimizer": {"learning_rate": 0.1, "betas": (0.9, 0.99), "temperature": 4.0},
      "hidden": (300, 100),
      "rules": (("*/kernel", "w4a8"), ("*", "w8a8")),
      "mixed": ("cosine", 10),
      "words": ("a", "b"),
      "empty": (),
      "limit": ml_collections.config_dict.placeholder(int),
      "anything": None,
      "stages": ({"name": "train", "steps": 3}, {"name": "qat", "steps": 5}),
    }
  )


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("seed", "7", 7),
    ("seed", "1_000", 1000),
    ("name", "7", "7"),
    ("flag", "false", False),
    ("flag", "1", True),
    ("optimizer.learning_rate", "1e-3", 1e-3),
    ("optimizer.learning_rate", "1", 1.0),
    ("optimizer.betas", "(0.5, 1)", (0.5, 1.0)),
    ("optimizer.betas", "0.5,0.6", (0.5, 0.6)),
    ("hidden", "(64,)", (64,)),
    ("hidden", "64", (64,)),
    ("rules", "(('*', 'w8a8'),)", (("*", "w8a8"),)),
    ("mixed", "('step', 20)", ("step", 20)),
    ("words", "x,y,z", ("x", "y", "z")),
    ("words", "(x, y)", ("x", "y")),
    ("words", "x(a=1, b=(c, d)),y(e)", ("x(a=1, b=(c, d))", "y(e)")),
    ("words", "(x(a=1), y)", ("x(a=1)", "y")),
    ("words", "x(a=1)", ("x(a=1)",)),
    ("empty", "(1, 'x')", (1, "x")),
    ("limit", "5", 5),
    ("limit", "none", None),
    ("anything", "0.5", 0.5),
    ("anything", "text", "text"),
  ],
)
def test_an_override_keeps_the_type(key, text, value):
  config = loading.override(example(), [(key, text)])
  found = dict(tree.leaves(config))[key]
  assert found == value
  assert type(found) is type(value)
  if isinstance(value, tuple):
    assert [type(f) for f in found] == [type(v) for v in value]


def test_groups_in_a_sequence_are_named_by_index():
  config = loading.override(example(), [("stages.0.steps", "30"), ("stages[1].steps", "50")])
  assert [stage["steps"] for stage in config.stages] == [30, 50]


def test_the_result_is_locked():
  with pytest.raises((AttributeError, KeyError)):
    loading.override(example(), []).sed = 1


@pytest.mark.parametrize(
  ("key", "text", "sentence"),
  [
    ("sed", "1", "unknown config key 'sed'; did you mean 'seed'"),
    ("optimizer.temperatur", "1", "unknown config key 'optimizer.temperatur'; did you mean 'optimizer.temperature'"),
    ("stages.2.steps", "1", "unknown config key 'stages.2.steps'; did you mean"),
    ("nope.x", "1", "unknown config key 'nope.x'; expected one of anything, empty,"),
    ("seed.x", "1", "unknown config key 'seed.x'"),
    ("seed", "abc", "config key 'seed' expects an int, got 'abc'"),
    ("seed", "1.5", "config key 'seed' expects an int, got '1.5'"),
    ("flag", "maybe", "config key 'flag' expects true or false, got 'maybe'"),
    ("optimizer", "3", "config key 'optimizer' is a group; set one of its keys: optimizer.betas,"),
    ("optimizer.learning_rate", "nan", "config key 'optimizer.learning_rate' expects a finite number, got 'nan'"),
    ("optimizer.learning_rate", "-inf", "expects a finite number"),
    ("optimizer.betas", "abc", "config key 'optimizer.betas' expects a float in its place, got 'abc'"),
    ("optimizer.betas", "(1e999,)", "config key 'optimizer.betas' expects a float in its place, got inf"),
    ("optimizer.betas[0]", "0.5", "is one element of 'optimizer.betas'; give the whole value"),
    ("hidden", "(1.5, 2)", "config key 'hidden' expects an int in its place, got 1.5"),
    ("hidden", "(True,)", "config key 'hidden' expects an int in its place, got True"),
    ("rules", "(('*',),)", "config key 'rules' expects 2 values like ('*/kernel', 'w4a8'), got ('*',)"),
    ("mixed", "('step',)", "config key 'mixed' expects 2 values like ('cosine', 10), got 1"),
    ("limit", "abc", "config key 'limit' expects an int, got 'abc'"),
  ],
)
def test_a_mistake_is_one_sentence(key, text, sentence):
  with pytest.raises(UserError) as caught:
    loading.override(example(), [(key, text)])
  assert sentence in str(caught.value)
  assert "\n" not in str(caught.value)


def test_a_key_given_twice_is_refused():
  with pytest.raises(UserError, match=r"'stages.0.steps' is given twice"):
    loading.override(example(), [("stages.0.steps", "1"), ("stages[0].steps", "2")])


def write(folder, text, name="experiment.py"):
  path = folder / name
  path.write_text(text)
  return str(path)


def test_load_passes_the_argument(tmp_path):
  path = write(
    tmp_path,
    "import ml_collections\ndef get_config(size='full'):\n  return ml_collections.ConfigDict({'size': size})\n",
  )
  assert loading.load(path).size == "full"
  assert loading.load(path + ":smoke").size == "smoke"
  assert [p.name for p in tmp_path.iterdir()] == ["experiment.py"]  # no __pycache__ beside a user's config


@pytest.mark.parametrize(
  ("text", "sentence"),
  [
    ("x = 1\nimport nonesuch_module\n", "experiment.py:2: ModuleNotFoundError: No module named 'nonesuch_module'"),
    ("def get_config(:\n", "experiment.py:1: "),
    (
      "def get_config():\n  return undefined_name\n",
      "experiment.py:2: NameError: name 'undefined_name' is not defined",
    ),
    ("def get_config():\n  return {'a': 1}\n", "get_config() must return a ConfigDict, got dict"),
    ("a = 1\n", "has no function get_config()"),
  ],
)
def test_a_bug_in_the_file_is_named_by_line(tmp_path, text, sentence):
  with pytest.raises(UserError) as caught:
    loading.load(write(tmp_path, text))
  assert sentence in str(caught.value)
  assert "\n" not in str(caught.value)


def test_load_names_the_nearest_file(tmp_path):
  path = write(tmp_path, "def get_config():\n  pass\n", "digits.py")
  with pytest.raises(UserError, match="did you mean .*digits.py"):
    loading.load(str(tmp_path / "digit.py"))
  with pytest.raises(UserError, match="does not exist"):
    loading.load(str(tmp_path / "nowhere" / "digits.py"))
  with pytest.raises(UserError, match="takes no argument, got 'smoke'"):
    loading.load(path + ":smoke")


def test_literals_never_run_code():
  config = loading.override(example(), [("anything", "__import__('os').getcwd()")])
  assert config.anything == "__import__('os').getcwd()"
  assert math.isclose(loading.override(example(), [("anything", "1e-3")]).anything, 1e-3)


def changed(*changes, **given):
  """The values of keys of the tiny job after changes on a command line."""
  found = dict(tree.leaves(loading.resolve(ml_collections.ConfigDict(jobs.values(**given)), changes)))
  return {key: found[key] for key, _ in changes}


@pytest.mark.parametrize(
  ("key", "text", "value"),
  [
    ("models.student.kwargs.dropout", "1", 1.0),  # a float, by its annotation
    ("data.kwargs.size", "8,8", (8, 8)),
    ("data.kwargs.channels", "3", 3),
    ("stages.alone.objective.hinton.temperature", "2", 2),  # a number or a schedule
    ("stages.alone.objective.hinton.mask", "labelled", "labelled"),
    ("stages.alone.objective.soft.loss", "hinton", "hinton"),
    ("stages.alone.objective.hinton.weight.name", "linear", "linear"),
    ("stages.pruned.sparsity.threshold", "none", None),
    ("stages.pruned.sparsity.pack_axis", "0", 0),
    ("stages.pruned.sparsity.schedule.initial", "0.5", 0.5),
    ("stages.pruned.sparsity.pattern.name", "n_m", "n_m"),
    ("stages.alone.reparam.name", "soft_threshold", "soft_threshold"),
    ("stages.cut.sparsity.density", "0.5", 0.5),
  ],
)
def test_a_keyword_that_the_file_does_not_set_is_read_as_its_function_says(key, text, value):
  data = {"data__name": "folder:x", "data__kwargs": {}} if key.startswith("data") else {}
  found = changed((key, text), models__student__kwargs={}, stages__cut={"kind": "mask", "start": "alone"}, **data)
  assert found == {key: value} and type(found[key]) is type(value)


def test_the_name_of_a_method_comes_before_its_keywords():
  given = (("stages.alone.sparsity.density", "1"), ("stages.alone.sparsity.name", "magnitude"))
  found = changed(*given)
  assert found == {"stages.alone.sparsity.density": 1.0, "stages.alone.sparsity.name": "magnitude"}
  assert isinstance(found["stages.alone.sparsity.density"], float)  # as the method says, and not the literal
  given = (("stages.pruned.sparsity.pattern.m", "4"), ("stages.pruned.sparsity.pattern.name", "n_m"))
  assert changed(*given)["stages.pruned.sparsity.pattern.m"] == 4


@pytest.mark.parametrize(
  ("key", "text", "sentence"),
  [
    ("models.student.kwargs.width", "4", "unknown key in 'models.student.kwargs' 'width'; did you mean 'widths'?"),
    ("models.student.kwargs.dropout", "x", "config key 'models.student.kwargs.dropout' expects a float, got 'x'"),
    ("models.studnt.kwargs.width", "4", "unknown config key 'models.studnt.kwargs.width'; did you mean"),
    ("data.kwargs.sze", "4", "unknown key in 'data.kwargs' 'sze'; did you mean 'size'"),
    ("data.kwargs.size", "8,8,3", "config key 'data.kwargs.size' expects 2 values, got 3 in '8,8,3'"),
    ("data.kwargs.size", "a,b", "config key 'data.kwargs.size' expects an int in its place, got 'a' in 'a,b'"),
    ("stages.alone.objective.hintn.weight", "1", "unknown method of kd 'hintn'; did you mean 'hinton'"),
    ("stages.alone.objective.hinton.temprature", "1", "in 'stages.alone.objective.hinton' 'temprature'; did you mean"),
    ("stages.pruned.sparsity.denity", "1", "unknown key in 'stages.pruned.sparsity' 'denity'; did you mean 'density'"),
    ("stages.pruned.sparsity.inner", "1", "unknown key in 'stages.pruned.sparsity' 'inner'; expected one of"),
    ("stages.pruned.sparsity.patern.m", "4", "unknown key in 'stages.pruned.sparsity' 'patern'; did you mean 'pattern"),
    ("stages.pruned.sparsity.density.name", "x", "config key 'stages.pruned.sparsity.density' is 0.4 and no group"),
  ],
)
def test_a_wrong_keyword_is_one_sentence_with_the_nearest_parameters(key, text, sentence):
  data = {"data__name": "folder:x", "data__kwargs": {}} if key.startswith("data") else {}
  with pytest.raises(UserError) as caught:
    changed((key, text), models__student__kwargs={}, **data)
  assert sentence in str(caught.value)


def test_a_keyword_without_a_plain_type_is_a_literal():
  empty = inspect.Parameter.empty
  for text, annotation, value in [
    ("32,32", empty, (32, 32)),
    ("0.5", empty, 0.5),
    ("word", empty, "word"),
    ("1", int | str, 1),
    ("2", "int", 2),
    ("x,y", Sequence[str], ("x", "y")),
    ("1,2", tuple[float, ...], (1.0, 2.0)),
    ("yes", bool | None, True),
    ("('a', 1),", Sequence[tuple[str, int]], (("a", 1),)),
  ]:
    assert loading.parse_annotated("k", text, annotation) == value


@pytest.mark.parametrize(
  "changes",
  [{"seed": "x" * 5000}, {"seed": (10**5000,)}, {"stages__teacher": 10**5000}, {"evaluations": 10**5000}],
  ids=["text", "digits in a tuple", "group", "digits"],
)
def test_a_sentence_shows_the_beginning_of_a_long_value(changes):
  with pytest.raises(UserError, match="config key '(seed|stages.teacher|evaluations)'") as refused:
    jobs.experiment(**changes)
  assert len(str(refused.value)) < 400


def test_a_sentence_shows_the_beginning_of_a_long_word_of_a_command_line():
  config = loading.complete(loading.load("configs/digits.py"))
  for key in ("seed", "stages.teacher.optimizer.milestones"):
    with pytest.raises(UserError, match=f"config key '{key}'") as refused:
      loading.override(ml_collections.ConfigDict(config), [(key, "9" * 5000)])
    assert len(str(refused.value)) < 600  # it is quoted twice
