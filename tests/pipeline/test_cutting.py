"""Stages that start from a student cut out of an earlier stage's model."""

import jax
import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.pipeline import cutting, stage, trained
from tests.integration import jobs

NET = {"name": "zoo.resnet:ResNet", "kwargs": {"widths": (4,), "classes": 4}}


def deep(blocks):
  return {**NET, "kwargs": {**NET["kwargs"], "blocks": (blocks,)}}


def run_of(folder, cut, **changes):
  given = {"run": ("teacher", "cut"), "stages__cut": {**jobs.STAGE, "epochs": 0, "cut": {"from": "teacher", **cut}}}
  return jobs.opened(folder, **{**given, **changes})


def test_a_narrower_student_starts_from_its_teachers_leading_channels(tmp_path):
  done = jobs.train(run_of(tmp_path, {}, models__student__kwargs__widths=(8, 16)))
  whole, small = (done[name].variables["params"] for name in ("teacher", "cut"))
  np.testing.assert_array_equal(small["Dense_1"]["kernel"], whole["Dense_1"]["kernel"][:8])
  np.testing.assert_array_equal(small["Dense_0"]["kernel"], whole["Dense_0"]["kernel"][:, :8])


def test_a_cut_student_trains_and_leaves_its_teacher_unchanged(tmp_path):
  distilled = {**jobs.STAGE, "teacher": "teacher", "objective": jobs.DISTIL, "cut": {"from": "teacher"}}
  changes = {"models__student__kwargs__widths": (8, 16), "stages__cut": distilled}
  done = jobs.train(run_of(tmp_path, {}, **changes))
  images = np.zeros((2, 6, 6, 1), np.uint8)
  assert np.isfinite(trained.predict(done["teacher"], images)).all()
  kernels = [done[name].variables["params"]["Dense_1"]["kernel"] for name in ("teacher", "cut")]
  assert np.abs(kernels[0][:8] - kernels[1]).max() > 0


def test_all_seeds_at_once(tmp_path):
  from leanax.pipeline.seeds import train_seeds

  given = {"run": ("teacher", "cut"), "stages__cut": {**jobs.STAGE, "cut": {"from": "teacher"}}}
  given |= {"models__student__kwargs__widths": (8, 16), "seeds": 2, "seeds_over": "vmap"}
  (_, one), (_, other) = train_seeds(jobs.experiment(**given), tmp_path)
  kernels = [done["cut"].variables["params"]["Dense_1"]["kernel"] for done in (one, other)]
  assert np.abs(kernels[0] - kernels[1]).max() > 0


def blocks_of(folder, cut):
  changes = {"models__teacher": deep(3), "models__student": deep(1), "stages__teacher__epochs": 1}
  return run_of(folder, {"way": "layers", **cut}, **changes)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
  "cut, block", [({"keep": "first"}, 0), ({"keep": "alternate"}, 0), ({"map": (("Block_0/*", "Block_2/*"),)}, 2)]
)
def test_blocks_are_dropped(tmp_path, cut, block):
  done = jobs.train(blocks_of(tmp_path, cut))
  for kind in ("params", "batch_stats"):
    student_block, teacher_block = (
      done["cut"].variables[kind]["Block_0"],
      done["teacher"].variables[kind][f"Block_{block}"],
    )
    jax.tree.map(np.testing.assert_array_equal, student_block, teacher_block)


def test_blocks_are_chosen_by_their_effect(tmp_path):
  context = blocks_of(tmp_path, {"keep": "effect"})
  done = {"teacher": stage.run_stage("teacher", context, {})}
  effect = cutting.effect_of(done["teacher"], context.data.validation)
  effects = [effect(f"Block_{number}") for number in range(3)]
  cut = stage.run_stage("cut", context, done)
  best = done["teacher"].variables["params"][f"Block_{int(np.argmax(effects))}"]
  jax.tree.map(np.testing.assert_array_equal, cut.variables["params"]["Block_0"], best)


def test_the_effect_is_the_loss_without_the_block(tmp_path):
  context = blocks_of(tmp_path, {"keep": "effect"})
  teacher, split = stage.run_stage("teacher", context, {}), context.data.validation
  params = dict(teacher.variables["params"])
  params["Block_1"] = jax.tree.map(np.zeros_like, params["Block_1"])
  silent = teacher._replace(variables={**teacher.variables, "params": params})
  p = jax.nn.softmax(trained.predict(silent, split.images))
  expected = -np.log(np.asarray(p)[np.arange(len(split.labels)), split.labels]).mean()
  np.testing.assert_allclose(cutting.effect_of(teacher, split)("Block_1"), expected, rtol=1e-5)


def test_a_stack_without_shortcuts_has_no_effects_to_compare(tmp_path):
  mlp = {"name": "zoo.mlp:MLP", "kwargs": {"classes": 4}}
  changes = {
    "models__teacher": {**mlp, "kwargs": {**mlp["kwargs"], "widths": (8, 8, 8)}},
    "models__student": {**mlp, "kwargs": {**mlp["kwargs"], "widths": (8, 8)}},
  }
  context = run_of(tmp_path, {"way": "layers", "keep": "effect"}, **changes)
  with pytest.raises(UserError, match="without 'Dense_1' the teacher gives every image the same logits; expected"):
    jobs.train(context)


MISTAKES = [
  ({"from": "techer"}, {}, "'stages.cut.cut.from' names stage 'techer'; expected one that runs before it: teacher"),
  ({"way": "depth"}, {}, "unknown choice in 'stages.cut.cut.way' 'depth'; did you mean 'width'"),
  ({"keep": "fist"}, {}, "unknown choice in 'stages.cut.cut.keep' 'fist'; did you mean 'first'"),
  ({}, {"stages__cut__start": "teacher"}, "'cut.from' and 'start' or weights of its model; expected one of them"),
  ({}, {}, "stage 'cut': no leaf of the student is cut out of its teacher's 'Dense_2/bias'; expected a student with"),
  ({}, {"models__student__kwargs__widths": (8, 17)}, r"stage 'cut': .* 'Dense_1/bias' of shape \(17,\) is larger"),
  (
    {"way": "layers"},
    {"models__student__kwargs__widths": (8, 16)},
    "cannot be copied .*; expected the same shape",
  ),
  ({"map": (("Dense_1/*", "Dnse_2/*"),)}, {}, "no counterpart, 'Dnse_2/bias', among its teacher's .*: Dense_2/bias"),
]


@pytest.mark.parametrize("cut, changes, text", MISTAKES)
def test_mistakes_are_found_before_anything_trains(tmp_path, cut, changes, text):
  with pytest.raises(UserError, match=text):
    run_of(tmp_path, cut, **changes)
  assert not (tmp_path / "models").exists()


def test_a_folded_teacher_is_refused(tmp_path):
  int8 = {**jobs.STAGE, "model": "teacher", "start": "teacher", "quant": {"rules": (("*", "w8a8"),)}}
  changes = {"models__teacher": deep(1), "models__student": deep(1), "stages__int8": int8}
  with pytest.raises(UserError, match="stage 'cut': 'cut.from' is 'int8', whose batch norms are folded"):
    run_of(tmp_path, {"from": "int8"}, **changes, run=("teacher", "int8", "cut"))
