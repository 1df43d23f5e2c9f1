"""Reports of other metrics than accuracy: values, directions and units in words, and how far answers agree."""

import numpy as np
import pytest

from leanax.engine import metrics
from leanax.pipeline.report import answers, classes, joint, joint_pages, plain, report, shipping
from leanax.pipeline.tables import measures, reproduce, tables

IOU = metrics.mean_iou().described()
MAE = metrics.mae("px").described()


def file(name, size, value, lost, half, measure=MAE):
  return {
    "name": name,
    "stage": name.split(".")[0],
    "bytes": size,
    "compressed_bytes": None,
    measure["name"]: value,
    "lost": {"points": lost, "half": half},
  }


FILES = [
  file("a.tflite", 9000, 2.0, 0.0, 0.0),
  file("b.tflite", 500, 2.015, 0.015, 0.01),
  file("c.tflite", 90, 2.5, 0.5, 0.1),
]
FOUND = {
  "against": "a.tflite",
  "most_lost": 0.02,
  "recommended": "b.tflite",
  "snippet": "",
  "metric": MAE,
  "files": FILES,
}


def test_values_differences_and_heads_have_the_metrics_words():
  assert measures.write(measures.ACCURACY, 0.98333) == "98.33 %" and measures.write(MAE, 2.01512) == "2.015 px"
  assert measures.write(metrics.r2().described(), -0.25) == "-0.25"
  assert measures.head(MAE) == "MAE, lower is better" and measures.head(IOU) == "mean IoU"
  assert measures.lost(IOU, 0.01, 0.002) == {"points": 1.0, "half": pytest.approx(0.392)}
  assert measures.lost(MAE, -0.25, 0.1) == {"points": -0.25, "half": pytest.approx(0.196)}
  loss = {"points": 0.8, "half": 0.5}
  assert measures.lost_words(measures.ACCURACY, loss, "a") == "loses 0.80 ± 0.50 points to a"
  assert measures.lost_words(IOU, loss, "a", " on 3") == "loses 0.80 ± 0.50 points of mean IoU to a on 3"
  assert measures.lost_words(measures.ACCURACY, {**loss, "points": -0.8}, "a") == "gains 0.80 ± 0.50 points over a"
  assert measures.lost_words(MAE, {"points": -0.8, "half": 0.5}, "a") == "is better by 0.8 ± 0.5 px in MAE than a"
  assert measures.listed([measures.ACCURACY], {"accuracy": 0.5}) == "50.00 %"
  assert measures.listed([IOU, MAE], {"mean_iou": 0.5, "mae": 2.0}) == "mean IoU 50.00 %, MAE 2 px"


def test_the_file_is_recommended_in_the_direction_of_the_metric():
  assert shipping.recommended(FILES, 0.02, MAE) == "b.tflite"
  assert shipping.recommended(FILES, 0.001, MAE) == "a.tflite"
  bad = [{**one, "lost": {"points": 9.0, "half": 0.0}} for one in FILES[1:]]
  assert shipping.recommended(bad, 0.02, MAE) == "b.tflite"  # the lower one
  assert shipping.recommended(bad, 0.02, {**MAE, "better": "higher"}) == "c.tflite"


def test_shipping_compares_numbers_per_example(tmp_path):
  """One percent of the first file's value is what may be lost, and the paired error is that of the examples."""
  metric, rng = metrics.mae("px"), np.random.default_rng(0)
  labels = rng.normal(size=(50, 1)).astype(np.float32)
  outputs = [labels + 0.1 * rng.normal(size=labels.shape) for _ in range(2)]
  each = [metrics.statistics_of(metric, x.astype(np.float32), labels) for x in outputs]
  rows = []
  for name, found in zip("ab", each, strict=True):
    kept = {"statistics": {k: x.tolist() for k, x in found.items()}}
    value = metrics.value_of(metric, found)
    exports = {".tflite": {**kept, "file_mae": value, "file_bytes": 10, "input": "float32"}}
    rows.append({"name": name, "mae": value, "file_mae": value, "exports": exports, **kept})
  found = shipping.shipping(rows, metric, tmp_path, None)
  gaps = np.abs(outputs[1] - labels) - np.abs(outputs[0] - labels)
  lost = found["files"][1]["lost"]
  assert lost["points"] == pytest.approx(gaps.mean(), rel=1e-5)
  assert lost["half"] == pytest.approx(1.96 * gaps.std() / np.sqrt(50), rel=1e-5)
  assert found["snippet"] == "" and found["metric"] == MAE and found["against"] == "a.tflite"
  assert found["most_lost"] == pytest.approx(0.01 * rows[0]["file_mae"])
  assert shipping.shipping(rows, metric, tmp_path, None, 2.5)["most_lost"] == pytest.approx(0.025 * rows[0]["file_mae"])


ROWS = [
  {"name": "a", "mae": 2.0, "file_mae": 2.0, "difference": 0.0, "file_bytes": 9000},
  {"name": "b", "mae": 2.0, "file_mae": 2.015, "difference": 0.07, "file_bytes": 500},
]
RESULT = {
  "title": "t",
  "examples": 360,
  "metrics": [MAE],
  "standard_error": 0.0312,
  "rows": ROWS,
  "shipping": FOUND,
  "curves": {"b": {"validation_mae": [[1, 3.0], [2, 2.0]], "train_accuracy": [[1, 0.5]]}},
}


def test_every_page_says_the_same():
  page, text = report.render(RESULT), plain.render(RESULT)
  words = (
    "It is worse by 0.015 ± 0.01 px in MAE than a.tflite on 360 test examples; that it loses at most 0.02 px of MAE is "
  )
  words += "not shown by so few."
  rule = "at most 0.02 px of MAE to the first one, as measured (most_lost in the config, in % of the value of the first"
  for each in (words, rule, "MAE, lower is better", "MAE lost to a.tflite", "2.015 px", "Of MAE lower is better."):
    assert each in page and each in text
  assert "Down and to the left is better." in page and "MAE on the validation split" in page
  assert "The standard error of one MAE is 0.031 px." in page
  assert "+0.015<small>px</small>" in page and "MAE of the file, lower is better" in page
  assert "ccuracy" not in text and "Accuracy on" not in page
  assert "mean difference from a" in text and "7.00 %" in text
  assert "2.015 px" in tables.format_table(ROWS, [MAE]) and "7.00 %" in tables.format_markdown(ROWS, [MAE])


def test_classes_have_the_metrics_values():
  found = classes.values({"a.tflite": [0.5, None, 1.0], "b.tflite": [0.25, None, 0.9]}, ("ground", "sky"), IOU)
  lines = classes.values_table(found, ["a.tflite", "b.tflite"])
  assert lines == [["class", "a.tflite", "b.tflite"], ["ground", "50.00 %", "25.00 %"], ["2", "100.00 %", "90.00 %"]]
  shown = {**RESULT, "metrics": [IOU], "classes": found, "rows": [], "shipping": {}}
  for text in (plain.render(shown), report.render(shown)):
    assert "ground" in text and "mean IoU of each class, of the files in their runtimes" in text
  many = classes.values({"a": [k / 100 for k in range(30, 0, -1)]}, (), IOU)
  assert [line[0] for line in classes.values_table(many, ["a"])[1:3]] == ["29", "28"]
  assert len(classes.values_table(many, ["a"])) == classes.MOST + 1
  assert classes.values_note(many).endswith("Shown are the 20 worst of 30 classes.")


def seed(number, value, validation):
  files = [file("a.tflite", 900, 2.0, 0.0, 0.0), file("b.tflite", 500, value, value - 2.0, 0.01)]
  return {
    **RESULT,
    "config": {"seed": number, "preprocess": {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)}},
    "environment": {},
    "command": "c",
    "shipping": {**FOUND, "files": [{**one, "input": "float32"} for one in files]},
    "curves": {"b": {"validation_mae": [[2, validation]]}},
    "classes": {},
    "layers": {},
  }


def test_several_seeds_have_the_metrics_words():
  results = [
    {**seed(number, value, validation), "classes": classes.values({"b.tflite": [value / 4]}, ("x",), IOU)}
    for number, value, validation in ((0, 2.01, 3.0), (1, 2.02, 1.0), (2, 2.03, 2.0))
  ]
  found = joint.joint(results)
  assert found["recommended"] == "b.tflite" and found["ship"]["seed"] == 1  # the lowest on the validation split
  assert found["ship"]["snippet"] == "" and found["classes"]["values"]["b.tflite"] == [pytest.approx(2.02 / 4)]
  text = joint_pages.markdown(found)
  assert "it is worse by 0.02 ± 0.0248 px in MAE than a.tflite" in text and "2.02 px ± 0.0248" in text
  assert "MAE, lower is better" in joint_pages.render(found) and "lose at most 0.02 px of MAE" in text
  empty = {"classes": classes.values({}, (), IOU)}
  assert joint.joint([seed(0, 2.0, 1.0), seed(1, 2.0, 1.0)])["classes"] == {}
  worse = joint.joint([seed(number, value, 1.0) | empty for number, value in ((0, 2.5), (1, 2.6))])
  assert worse["recommended"] == "a.tflite"
  table = reproduce.summary([{**one, "rows": [{**row, "nonzero": 4} for row in ROWS]} for one in results])
  assert table["drop"]["mean"] == pytest.approx(0.015) and table["metric"] == MAE
  machine = {"processor": "p", "cores": 1, "versions": {"jax": "j"}}
  assert "0.015 ± 0 px of MAE" in reproduce.markdown({**table, "environment": machine})


def test_how_far_answers_agree_by_hand():
  labels = np.array([[0, 1], [1, 1]])
  one, two = (np.eye(2)[x] for x in ([[0, 1], [1, 0]], [[0, 0], [1, 0]]))
  assert answers.agreement(answers.answers(one, labels), answers.answers(two, labels)) == {"answers_agree": 0.75}
  plain_labels = np.array([0, 1])
  pair = (answers.answers(x[0], plain_labels) for x in (one, two))
  assert answers.agreement(*pair) == {"agreement": 0.5} and answers.is_plain(plain_labels)
  yes = answers.answers(np.array([[1.0, -1.0]]), np.array([[0, 1]]))
  assert yes[""].tolist() == [[True, False]] and not answers.is_plain(labels)
  targets = np.zeros((2, 2), np.float32)
  first, other = np.array([[0.0, 5.0], [2.0, 5.0]]), np.array([[0.5, 5.5], [2.0, 5.0]])
  found = answers.agreement(answers.answers(other, targets), answers.answers(first, targets))
  assert found == {"difference": pytest.approx((0.25 / 1.0 + 0.25 / 1.0) / 2)}  # the second is constant: over 1
  both = answers.agreement({"a": np.array([0, 1]), "b": other}, {"a": np.array([0, 0]), "b": first})
  assert both == {"agreement": 0.5, "difference": pytest.approx(0.25)}
