"""Several seeds in one report: means, intervals of Student's t, and which file of which seed is shipped."""

import html

import numpy as np
import pytest
from scipy import stats

from leanax.pipeline.report import classes, joint, joint_pages, shipping
from tests.pipeline.report.test_parts import DENSE
from tests.pipeline.report.test_shipping import entry

LABELS = [0, 0, 1, 1]


def run(seed, lost, validation, speed=(4.0, 4.2)):
  rows = [{"name": "teacher", "accuracy": 0.99}, {"name": "int8", "accuracy": 0.99 - lost / 100, "codes_differ": seed}]
  files = [
    entry("teacher.tflite", 472_000, 0.0, rounds=(8.0, 8.2), input="float32"),
    entry("int8.tflite", 15_000 + seed, lost, rounds=speed, input="int8"),
  ]
  return {
    "title": "digits",
    "command": "python -m scripts.compress",
    "examples": 4,
    "environment": {"processor": "a & b"},
    "config": {"seed": seed, "preprocess": {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)}},
    "rows": rows,
    "curves": {"int8": {"validation_accuracy": [[10, 0.5], [20, validation]], "loss": [[10, 2.0 + seed]]}},
    "shipping": {"against": "teacher.tflite", "most_lost": 1.0, "recommended": "int8.tflite", "files": files},
    "classes": classes.classes({"teacher.tflite": LABELS, "int8.tflite": [0, seed % 2, 1, 1]}, LABELS, ["cat", "dog"]),
    "layers": {"int8.tflite": [{**DENSE, "name": f"of_seed_{seed}/kernel"}]},
  }


RESULTS = [run(0, 0.3, 0.9), run(1, 0.5, 0.97), run(2, 1.1, 0.95)]
FOUND = joint.joint(RESULTS)


def test_the_figures_are_those_of_the_seeds():
  assert FOUND["seeds"] == [0, 1, 2] and "seed" not in FOUND["config"]
  assert FOUND["rows"][1]["codes_differ"] == [0, 1, 2] and FOUND["files"][1]["bytes"] == [15_000, 15_001, 15_002]
  assert FOUND["curves"]["int8"]["loss"] == [[10, 3.0]]
  assert FOUND["curves"]["int8"]["validation_accuracy"][-1] == [20, pytest.approx(0.94)]
  assert FOUND["classes"]["examples"] == [6, 6] and FOUND["classes"]["of"]["int8.tflite"]["taken_for"] == [[0, 1, 1]]
  assert FOUND["classes"]["of"]["int8.tflite"]["right"] == [5, 6]


def test_the_file_of_the_seed_that_is_best_on_validation_is_shipped():
  assert FOUND["recommended"] == "int8.tflite" and FOUND["ship"]["seed"] == 1
  assert FOUND["ship"]["file"] == "seed1/files/int8.tflite" and "seed1/files/int8.tflite" in FOUND["ship"]["snippet"]
  assert FOUND["layers"]["int8.tflite"][0]["name"] == "of_seed_1/kernel"


def test_the_interval_is_students():
  lost = np.array([0.3, 0.5, 1.1])
  low, high = stats.t.interval(0.95, 2, loc=lost.mean(), scale=stats.sem(lost))
  words = joint_pages.sentence(FOUND)
  assert words == (
    "Ship int8.tflite of seed 1 (seed1/files/int8.tflite): 15.0 kB, 31.5 times smaller than teacher.tflite. Over 3 "
    f"seeds it loses {lost.mean():.2f} ± {(high - low) / 2:.2f} points to teacher.tflite; that it loses at most 1 "
    "point is not shown by so few. It takes 4.1 µs for one "
    "example on one thread (2.0x faster than teacher.tflite)."
  )
  heads, first, other = joint_pages.file_table(FOUND)
  assert heads[:5] == ["file", "size", "accuracy", "points lost to teacher.tflite", "most lost"]
  assert first[3:5] == ["–", "–"] and other[3:5] == [f"{lost.mean():.2f} ± {(high - low) / 2:.2f} (not shown)", "1.10"]


def test_a_stage_without_a_file_has_its_reason():
  """Once for all seeds that have the same one."""
  why = [{**one, "rows": [*one["rows"], {"name": "s", "export": "tflite: 1 < 2"}]} for one in RESULTS]
  why[1] = {**RESULTS[1], "rows": [*RESULTS[1]["rows"], {"name": "s", "export": "tflite: NaN"}]}
  found = joint.joint(why)
  assert "failures" not in FOUND
  assert [one["export"] for one in found["failures"]] == ["tflite: 1 < 2 (seed 0, 2)", "tflite: NaN (seed 1)"]
  assert "was trained, but not exported: tflite: 1 &lt; 2 (seed 0, 2)" in joint_pages.render(found)
  assert "**s** was trained, but not exported: tflite: NaN (seed 1)" in joint_pages.markdown(found)


def test_a_wide_interval_does_not_excuse_a_loss():
  """Of two seeds the interval is wide; what counts is the mean."""
  found = joint.joint([run(0, 0.5, 0.9), run(1, 9.5, 0.9)])
  assert found["recommended"] == "teacher.tflite"
  assert joint.recommended([dict(one, lost=[5.0], accuracy=[0.9]) for one in found["files"]], 1.0) == "int8.tflite"


def test_speeds_that_differ_between_seeds_are_within_noise():
  found = joint.joint([run(0, 0.3, 0.9), run(1, 0.3, 0.9, speed=(16.0, 16.3))])
  assert joint_pages.speed(found["files"][1]) == "within noise"
  assert joint_pages.sentence(found).endswith("one thread (within noise as fast as teacher.tflite).")


def test_a_busy_machine_is_said_of_the_seeds():
  found = joint.joint([run(seed, 0.3, 0.9, speed=(90.0, 92.0)) for seed in (0, 1)])
  assert joint_pages.sentence(found).endswith(
    "teacher.tflite). The machine was busy: the CPU time of one example is 7.5 µs."
  )


def test_both_pages_say_it():
  page, text = joint_pages.render(FOUND), joint_pages.markdown(FOUND)
  for words in (
    joint_pages.sentence(FOUND),
    joint.RULE,
    shipping.rule(FOUND),
    "Means over the seeds 0, 1, 2",
    "dog (1)",
  ):
    assert html.escape(words) in page and words in text, words
  assert "of_seed_1/<wbr>kernel" in page and "of_seed_1/kernel" in text
  assert "None" not in page and "nan" not in page and "nan" not in text
  assert "| int8 | 98.37 % ± 1.03 | 1 |" in text


def test_a_column_names_the_stage_that_rows_are_compared_with():
  rows = [{"name": name, "accuracy": 0.9, "agreement": 1.0} for name in ("large", "small")]
  found = joint.joint([{**run(seed, 0.3, 0.9), "rows": rows} for seed in (0, 1)])
  for text in (joint_pages.render(found), joint_pages.markdown(found)):
    assert "same answer as large" in text


def test_without_files_there_is_none_to_ship():
  found = joint.joint([{**run(seed, 0.3, 0.9), "shipping": {}} for seed in (0, 1)])
  assert found["files"] == [] and joint_pages.sentence(found) == ""
  assert "Ship" not in joint_pages.render(found) + joint_pages.markdown(found)
  few = [run(0, 0.3, 0.9), run(1, 0.3, 0.9)]
  few[1]["shipping"]["files"] = few[1]["shipping"]["files"][:1]
  assert [one["name"] for one in joint.joint(few)["files"]] == ["teacher.tflite"]
