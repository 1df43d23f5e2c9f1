"""Names in a config become functions: what they compute, and what is refused."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sparsity
from leanax.core.errors import UserError
from leanax.engine import data as datasets
from leanax.engine.data import Augment
from leanax.pipeline import build, optimizers, teacher_checks
from tests.integration import jobs


def method(a, *, b=2.0):
  if a < 0:
    raise ValueError("a is\nnegative")
  return a * b


def test_call_checks_keywords_before_it_calls():
  assert build.call("g", method, {"a": 3.0, "b": 5.0}) == 15.0
  assert build.call("g", method, {}, 3.0) == 6.0
  for given, sentence in [
    ({"a": 1.0, "bb": 1}, "unknown config key 'g.bb'; did you mean 'g.b'"),
    ({"b": 1.0}, "config key 'g.a' is missing"),
    ({"a": -1.0}, "config group 'g': a is negative"),
    ({"a": "x", "b": "y"}, "config group 'g': '<' not supported"),
  ]:
    with pytest.raises(UserError) as caught:
      build.call("g", method, given)
    assert str(caught.value).startswith(sentence)


def test_an_objective_is_the_weighted_sum_of_its_losses():
  rng = np.random.default_rng(0)
  student, teacher = (jnp.asarray(rng.normal(size=(5, 3)), jnp.float32) for _ in range(2))
  batch = {"label": jnp.array([0, 1, 2, 0, 1], jnp.int32)}
  options = {"aux": {}, "aux_state": {}, "key": jax.random.key(0), "axis_name": None, "step": jnp.int32(0)}

  def value(group, logits):
    return build.objective("s", group)(student, logits, batch, **options)[0]

  both = value({"hard_labels": {"weight": 0.25}, "logit_l2": {"weight": 2.0}}, teacher)
  hard, l2 = value({"hard_labels": {}}, None), value({"logit_l2": {}}, teacher)
  np.testing.assert_allclose(both, 0.25 * hard + 2.0 * l2, rtol=1e-6)
  np.testing.assert_allclose(
    hard, optax.softmax_cross_entropy_with_integer_labels(student, batch["label"]).mean(), rtol=1e-6
  )
  assert not any(term.loss.needs_teacher for term in build.objective("s", {"hard_labels": {}}).terms)
  assert any(term.loss.needs_teacher for term in build.objective("s", {"hard_labels": {}, "hinton": {}}).terms)


LINEAR = {"name": "linear", "low": 0.0, "high": 1.0, "start": 0.0, "end": 0.5}
FALLING = {"name": "cosine", "low": 4.0, "high": 0.0, "start": 0.0, "end": 0.5}
SOFT = "a number from 0.001 to 10000"
KEY, GROUP = "config key 'stages.s.objective.hinton", "config group 'stages.s.objective.hinton"


@pytest.mark.parametrize(
  ("term", "sentence"),
  [
    *(
      ({"weight": weight}, f"{KEY}.weight' is {weight!r}; expected a number from 0 to 1e6")
      for weight in ("a", "0.5", None, (1.0,), True, -0.5, np.nan, np.inf)
    ),
    (
      {"weight": {**LINEAR, "low": -1.0}},
      f"{KEY}.weight' is a schedule from -1.0 to 1.0; expected a number from 0 to 1e6 at both ends",
    ),
    ({"weight": {**LINEAR, "high": "a"}}, f"{GROUP}.weight': schedule 'linear': high is 'a'; expected a finite number"),
    ({"weight": {**LINEAR, "nmae": 1}}, "unknown config key 'stages.s.objective.hinton.weight.nmae'"),
    *(
      (
        {"weight": {**LINEAR, "start": start}},
        f"{KEY}.weight.start', a share of the stage, is {start!r}; expected a number from 0 to 1",
      )
      for start in (np.nan, "x", None, -0.1, 1.5, True)
    ),
    (
      {"weight": {"name": "switch", "low": 0.0, "high": 1.0, "at": 100}},
      f"{KEY}.weight.at', a share of the stage, is 100; expected a number from 0 to 1",
    ),
    (
      {"weight": {**LINEAR, "start": 0.75}},
      f"{KEY}.weight.start' is 0.75 and 'stages.s.objective.hinton.weight.end' 0.5; expected it to end later",
    ),
    ({"weight": {**LINEAR, "name": 3}}, "unknown method of kd.schedules 3; expected one of cosine, linear, switch"),
    ({"temperature": "4"}, f"{GROUP}': hinton: temperature is '4'; expected a number from 0.001 to 10000"),
    (
      {"temperature": FALLING},
      f"{GROUP}': hinton: temperature is a schedule from 4.0 to 0.0; expected {SOFT} at both ends",
    ),
    (
      {"loss": "mlkd", "temperatures": (2.0, FALLING)},
      f"{GROUP}': mlkd: temperatures[1] is a schedule from 4.0 to 0.0; expected {SOFT} at both ends",
    ),
    (
      {"loss": "dist", "beta": LINEAR},
      f"{GROUP}': dist: beta is a schedule from 0.0 to 1.0; expected a number, 0 or more",
    ),
    (
      {"loss": "fitnet", "student": 3, "teacher": "a"},
      f"{GROUP}': fitnet: student is 3; expected a name such as 'Conv_1/kernel:out', or several",
    ),
    ({"loss": 3}, "unknown method of kd 3; the nearest of "),
    ({"loss": ["hinton"]}, "unknown method of kd ['hinton']; did you mean 'hinton'"),
    ({"loss": "zzz"}, "unknown method of kd 'zzz'; the nearest of "),
    ({"mask": 3}, "unknown mask of term 'hinton' 3; expected one of all, labelled, unlabelled"),
  ],
)
def test_a_term_that_is_refused(term, sentence):
  with pytest.raises(UserError) as caught:
    build.objective("s", {"hard_labels": {}, "hinton": term}, 100)
  assert str(caught.value).startswith(sentence) and len(str(caught.value)) < 200


def test_a_schedule_is_known_before_the_stages_length_and_lasts_an_update_at_least():
  """A part of a stage that is shorter than an update is one; checks are made of a stage of one update."""
  for share, updates, after in ((0.3, 1, 1), (0.3, 10, 3), (0.01, 10, 1)):
    (term,) = build.objective("s", {"hard_labels": {"weight": {**LINEAR, "end": share}}}, updates).terms
    assert [float(term.weight(jnp.int32(step))) for step in (0, after)] == [0.0, 1.0]


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"cache_top_k": 4}, "top_k is 4; expected 1 to 3, below the number of classes"),
    ({"cache_top_k": 2, "cache_form": "int8"}, "top_k stores values as float32 or float16; got form 'int8'"),
  ],
)
def test_a_form_that_the_classes_do_not_fit(changes, sentence):
  stage = jobs.experiment(**{f"stages__distilled__{key}": value for key, value in changes.items()}).stages["distilled"]
  with pytest.raises(UserError) as caught:
    teacher_checks.check_store("distilled", stage, 4)
  keys = "config keys 'stages.distilled.cache_form' and 'stages.distilled.cache_top_k'"
  assert str(caught.value) == f"{keys}: {sentence}"
  teacher_checks.check_store("distilled", jobs.experiment(stages__distilled__cache_top_k=3).stages["distilled"], 4)


def test_schedules_are_shares_of_the_stages_updates():
  """With two batches an update, a schedule from 0.25 to 0.5 of 40 batches goes over the updates 5 to 10."""
  group = {"name": "magnitude", "density": 0.5, "schedule": {"name": "cubic", "start": 0.25, "end": 0.5, "every": 5}}
  stage = jobs.experiment(
    stages__alone__sparsity=group, stages__alone__optimizer={"accumulate": 2, "name": "sgd", "learning_rate": 1e-10}
  ).stages["alone"]
  tx = optimizers.transformation("alone", stage, 40)
  params = {"a": {"kernel": jnp.arange(1.0, 11.0, dtype=jnp.float32)}}
  state, kept = tx.init(params), []
  for step in range(12):
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params, step=jnp.int32(step))
    params = optax.apply_updates(params, updates)
    kept.append(int(jnp.count_nonzero(params["a"]["kernel"])))
  made = sparsity.cubic(5, 10, every=5)
  assert kept[:5] == [10] * 5
  assert kept[10:] == [5, 5]
  assert [kept[step] for step in made.steps] == [max(1, round(10 * d)) for d in made.densities(0.5)]


def kept_at_the_end(updates, accumulate=1, **group):
  """The number of the 1,210 weights that a stage's optimizer keeps after its last update."""
  stage = jobs.experiment(
    stages__pruned__sparsity={"name": "magnitude", **group},
    stages__pruned__optimizer={"accumulate": accumulate, "name": "sgd", "learning_rate": 1e-10},
  ).stages["pruned"]
  tx = optimizers.transformation("pruned", stage, updates * accumulate)
  params = {"kernel": jnp.arange(1.0, 1211.0).reshape(121, 10)}
  state, update = tx.init(params), jax.jit(tx.update)
  for step in range(updates):
    delta, state = update(jax.tree.map(jnp.zeros_like, params), state, params, step=jnp.int32(step))
    params = optax.apply_updates(params, delta)
  return int(jnp.count_nonzero(params["kernel"]))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("updates", [1, 2, 6])
@pytest.mark.parametrize(
  "schedule",
  [
    {"name": "cubic", "start": 0.0, "end": 1.0, "every": 1000},
    {"name": "cubic", "start": 0.0, "end": 1.0, "every": 4},
    {"name": "cubic", "start": 0.9, "end": 1.0},
    {"name": "cubic", "start": 1.0, "end": 1.0},
    {"name": "cubic", "start": 0.2, "end": 0.7, "every": 17},
    {"name": "one_shot", "at": 1.0},
    None,
  ],
)
def test_the_last_update_reaches_the_final_density(updates, schedule):
  assert kept_at_the_end(updates, density=0.3, schedule=schedule) == 363
  if updates == 2:
    assert kept_at_the_end(updates, 3, threshold=848.0, schedule=schedule) == 363


@pytest.mark.parametrize(
  "group",
  [
    {"schedule": {"name": "linear", "start": 0.1, "end": 1.0, "every": 3}},
    {"schedule": {"name": "cyclic", "start": 0.0, "end": 1.0, "cycles": 2}},
    {"schedule": {"name": "alternating", "start": 0.1, "end": 1.0, "every": 2}},
    {"pattern": {"name": "row"}, "density": 36 / 121},
    {"pattern": {"name": "channel"}, "density": 0.3},
    {"allocation": "lamp"},
    {"allocation": "global_normalised"},
    {"allocation": "er"},
    {"name": "prune", "score": {"name": "fisher", "decay": 0.5}},
  ],
)
def test_methods_by_their_names_in_a_config(group):
  expected = 360 if group.get("pattern") == {"name": "row"} else 363  # 36 rows of ten
  assert kept_at_the_end(8, **{"density": 0.3, **group}) == expected


@pytest.mark.parametrize("epochs", [0, 3])
def test_a_stage_without_an_update_is_refused(epochs):
  stage = jobs.experiment(stages__pruned__optimizer={"accumulate": 5}, stages__pruned__epochs=epochs).stages["pruned"]
  sentence = (
    "config key 'stages.pruned.optimizer.accumulate' is 5, but the stage has 3 batches, .*; expected at most 3"
    if epochs
    else "config key 'stages.pruned.epochs' is 0, but 'magnitude' prunes while the stage trains; expected 1 or more"
  )
  with pytest.raises(UserError, match=sentence):
    optimizers.transformation("pruned", stage, epochs)
  with pytest.raises(UserError) if epochs else contextlib.nullcontext():  # it keeps the zeros that are there
    optimizers.transformation("int8", jobs.experiment(stages__int8__optimizer={"accumulate": 5}).stages["int8"], epochs)


def test_layers_in_one_leaf_are_pruned_each_by_itself():
  params = {"a[0]": {"kernel": jnp.stack([jnp.ones((4, 2)), 9 * jnp.ones((4, 2))], axis=1)}}

  def kept(find=lambda: {"a[0]/kernel": (1,)}, **group):
    stage = jobs.experiment(
      stages__pruned__sparsity={"name": "magnitude", "density": 0.5, **group},
      stages__pruned__optimizer={"name": "sgd", "learning_rate": 1e-10},
    ).stages["pruned"]
    tx = optimizers.transformation("pruned", stage, 6, find)
    _, state = tx.update(params, tx.init(params), params, step=0)
    return np.sum(sparsity.masks(state)["a[0]"]["kernel"], (0, 2)).tolist()

  assert kept() == [4, 4]
  assert kept(stacked=()) == [0, 8]  # what the config says goes first

  def refuses():
    raise UserError("no such equation")

  assert kept(refuses, stacked=()) == [0, 8]
  with pytest.raises(UserError, match="so 'stages.pruned.sparsity.stacked' has to name its layers: no such equation"):
    kept(refuses)


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
  ("group", "number"),
  [
    ({"name": "prune", "score": {"name": "taylor", "decay": 0.5}, "density": 0.25}, 8),
    ({"name": "prune", "score": {"name": "magnitude"}, "pattern": {"name": "n_m", "n": 1, "m": 4}}, 8),
    ({"name": "set", "density": 0.5, "schedule": {"name": "periodic", "every": 2, "end": 1.0}}, 16),
    (
      {"name": "dynamic", "drop": {"name": "magnitude"}, "grow": {"name": "taylor"}, "fraction": 0.5, "density": 0.5}
      | {"schedule": {"name": "periodic", "every": 2, "end": 0.5}},
      16,
    ),
  ],
)
def test_parts_of_a_sparse_method_are_groups(group, number):
  stage = jobs.experiment(
    stages__pruned__sparsity=group, stages__pruned__optimizer={"name": "sgd", "learning_rate": 1e-10}
  ).stages["pruned"]
  tx = optimizers.transformation("pruned", stage, 6)
  params = {"kernel": jnp.arange(1.0, 33.0).reshape(8, 4)}
  state = tx.init(params)
  _, state = jax.jit(tx.update)(params, state, params, step=jnp.int32(5))
  assert int(sparsity.masks(state)["kernel"].sum()) == number


@pytest.mark.parametrize(
  ("group", "sentence"),
  [
    ({"name": "mask"}, "unknown method of sparsity 'mask'; expected one of"),
    ({"name": "sett"}, "unknown method of sparsity 'sett'; did you mean 'set'"),
    ({"name": "prune", "density": 0.5}, "config key 'stages.pruned.sparsity.score' is missing"),
    (
      {"name": "prune", "score": {"name": "tailor"}},
      "unknown method of sparsity.criteria 'tailor'; did you mean 'taylor'",
    ),
    ({"name": "prune", "score": {"name": "taylor", "decai": 1}}, "did you mean 'stages.pruned.sparsity.score.decay'"),
    ({"name": "magnitude", "pattern": {"n": 2}}, "config key 'stages.pruned.sparsity.pattern.name' is missing"),
    ({"name": "magnitude", "pattern": "2:4"}, "pattern is '2:4'; expected such as"),
  ],
)
def test_parts_of_a_sparse_method_are_checked(group, sentence):
  with pytest.raises(UserError, match=sentence):
    optimizers.transformation("pruned", jobs.experiment(stages__pruned__sparsity=group).stages["pruned"], 6)


def test_a_learning_rate_follows_its_schedule():
  given = {"name": "sgd", "momentum": 0.0, "learning_rate": 0.5, "schedule": "step", "milestones": (0.5,), "decay": 0.1}
  stage = jobs.experiment(stages__alone__optimizer=given).stages["alone"]
  tx = optimizers.transformation("alone", stage, 8)
  params = {"w": jnp.ones(1)}
  state, sizes = tx.init(params), []
  for _ in range(8):
    updates, state = tx.update({"w": jnp.ones(1)}, state, params)
    sizes.append(-float(updates["w"][0]))
  np.testing.assert_allclose(sizes, [0.5] * 4 + [0.05] * 4, rtol=1e-6)


def test_a_limit_cuts_each_split_and_keeps_ids():
  whole, cut = (build.dataset(jobs.experiment(data__limit=limit)) for limit in (0, 40))
  assert [len(split.labels) for split in whole] == [128, 32, 64]
  assert [len(split.labels) for split in cut] == [40, 32, 40]
  np.testing.assert_array_equal(cut.test.ids, whole.test.ids[:40])
  np.testing.assert_array_equal(cut.train.images, whole.train.images[:40])


def test_a_stage_has_every_key_of_augmentation():
  config = jobs.experiment(stages__alone__augment={"cutmix": 0.5, "resized_crop": (0.2, 1.0), "erase": 0.3})
  names = {field.name for field in dataclasses.fields(config.stages["alone"].augment)}
  assert names | {"keywords"} == {field.name for field in dataclasses.fields(Augment)}
  found = build.inputs(config, config.stages["alone"]).augment
  assert (found.cutmix, found.resized_crop, found.erase, found.erase_area) == (0.5, (0.2, 1.0), 0.3, (0.02, 0.33))


def test_a_stage_has_its_own_function_of_augmentation():
  own = {"name": "tests.engine.data.own:dimmed", "by": 2, "axes": (1,)}
  config = jobs.experiment(stages__alone__augment={"function": own})
  found = build.inputs(config, config.stages["alone"]).augment
  assert (found.function, found.keywords) == ("tests.engine.data.own:dimmed", (("axes", (1,)), ("by", 2)))
  assert build.inputs(config, config.stages["teacher"]).augment.is_still


def test_balanced_examples_are_sorted_by_class_and_their_batches_are_even():
  config = jobs.experiment(stages__alone__examples={"balanced": True, "without": (2,)})
  stage, data = config.stages["alone"], build.dataset(config)
  rare = data.train.take(np.flatnonzero((data.train.labels != 1) | (np.arange(128) < 40)), "rare")
  split = build.examples(config, stage, rare)
  counts = np.bincount(rare.labels, minlength=4)
  assert np.array_equal(split.labels, np.repeat([0, 1, 3], counts[[0, 1, 3]]))
  by_id = dict(zip(rare.ids.tolist(), rare.images))
  assert all(np.array_equal(by_id[id], image) for id, image in zip(split.ids.tolist(), split.images))
  spec = dataclasses.replace(build.inputs(config, stage, split), batch_size=len(split.ids))
  assert spec.classes == tuple(counts[[0, 1, 3]])
  batch = datasets.train_batch_at(datasets.device_arrays(split), 0, spec)
  drawn = np.bincount(batch["label"], minlength=4)
  assert drawn[2] == 0 and np.ptp(drawn[[0, 1, 3]]) <= 2
  assert build.inputs(config, config.stages["teacher"], split).classes == ()
  with pytest.raises(UserError, match=r"'examples\.balanced' is true and some examples have no labels"):
    few = jobs.experiment(stages__alone__examples={"balanced": True, "labelled": 8})
    build.examples(few, few.stages["alone"], data.train)


def test_class_weights_are_those_of_the_classes_that_there_are():
  terms = {"hard_labels": {"class_weights": "balanced"}}
  made = build.objective("s", terms, counts=(10, 0, 30))
  batch = {"label": jnp.asarray([0, 2, 2])}
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), jnp.float32)
  entropy = -np.asarray(jax.nn.log_softmax(logits))[np.arange(3), [0, 2, 2]]
  total = made(
    logits, None, batch, step=jnp.zeros((), jnp.int32), aux={}, aux_state={}, key=jax.random.key(0), axis_name=None
  )
  want = np.mean(entropy * np.array([40 / (2 * 10), 40 / (2 * 30), 40 / (2 * 30)]))
  np.testing.assert_allclose(total[0], want, rtol=1e-6)
  build.objective("s", terms, counts=())
  with pytest.raises(
    UserError, match=r"'stages\.s\.objective\.hard_labels\.class_weights' is 'balanced', of a teacher"
  ):
    build.objective("s", terms)
  with pytest.raises(UserError, match="class_weights is 'even'; expected a number for each class"):
    build.objective("s", {"hard_labels": {"class_weights": "even"}})


def test_balanced_stages_are_prepared(tmp_path):
  weights = {"hard_labels": {"class_weights": (1.0, 2.0, 3.0)}}
  with pytest.raises(UserError, match="hard_labels: class_weights has 3 numbers; expected 4, one for each class"):
    jobs.opened(tmp_path / "a", run=("alone",), stages__alone__objective=weights)
  even = {"hard_labels": {"class_weights": "balanced"}}
  context = jobs.opened(
    tmp_path / "b", run=("alone",), stages__alone__objective=even, stages__alone__examples={"balanced": True}
  )
  assert context.jobs["alone"].steps == 12


def test_batches_are_made_as_the_stage_says():
  config = jobs.experiment(
    seed=7,
    preprocess={"mean": (0.5,), "std": (0.25,)},
    stages__alone__augment={"shift": (1, 2), "views": 3},
  )
  spec = build.inputs(config, config.stages["alone"])
  assert (spec.batch_size, spec.seed, spec.augment.seed) == (32, 7, 7)
  assert (spec.augment.shift, spec.augment.views) == ((1, 2), 3)
  assert spec.preprocess.mean == (0.5,)
  assert build.inputs(config, config.stages["teacher"]).augment.views is None


def test_ends_may_follow_the_rules():
  quant = {"rules": (("*", "w4a8"),), "ends": ""}
  policy = build.policy(jobs.experiment(stages__int8__quant=quant).stages["int8"].quant)
  assert policy is not None and policy.ends is None
  assert build.policy(jobs.experiment().stages["alone"].quant) is None


def test_a_loss_between_examples_is_refused_where_it_would_see_micro_batches():
  objective = {"hard_labels": {}, "relations": {"loss": "dist"}}
  stage = {"stages__distilled__objective": objective, "stages__distilled__teacher": "teacher"}

  def check(config):
    teacher_checks.check_config("distilled", config, build.objective("distilled", objective))

  check(jobs.experiment(**stage))
  with pytest.raises(UserError, match="'stages.distilled.optimizer.accumulate': .* 'relations' .* is 4.*; expected"):
    check(jobs.experiment(**stage, stages__distilled__optimizer={"accumulate": 4}))
