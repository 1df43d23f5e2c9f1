"""Layers and classes as text cells, worked by hand."""

import pytest

from leanax.pipeline.report import classes, parts, plain, report

NONE = {"sparsity": None, "rank": None, "full_rank": None, "sqnr": None, "codes": None, "codes_differ": None}
DENSE = {"name": "a/kernel", "operator": "Dense", "bytes": 300, "macs": 750, "weight_bits": 8, "input_bits": 8}
DENSE |= {"sparsity": 0.625, "rank": 3, "full_rank": 8, "sqnr": 41.26, "codes": 2048, "codes_differ": 1}
ADD = {**NONE, "name": "add", "operator": "Add", "bytes": 0, "macs": 0, "weight_bits": 8, "input_bits": 8}


def test_layers_by_hand():
  other = {**DENSE, "name": "b/kernel", "macs": 250, "weight_bits": 4}
  heads, *rows = parts.layer_table([DENSE, ADD, other], 1200)
  assert heads[2:] == ["bits", "sparsity", "rank", "SQNR", "differing codes", "share of bytes", "share of MACs"]
  assert rows[0] == ["a/kernel", "Dense", "8 × 8", "62.5 %", "3 of 8", "41.3 dB", "1 of 2,048", "25.0 %", "75.0 %"]
  assert rows[1] == ["add", "Add", "8", "–", "–", "–", "–", "0.0 %", "0.0 %"]
  assert rows[2][2] == "4 × 8" and rows[2][-1] == "25.0 %"


CALL = "what a call costs by itself included."


def test_times_of_layers_are_shares_of_their_sum_and_the_whole_is_said():
  rows = [{**DENSE, "latency_us": 6.0}, {**ADD, "latency_us": 1.5}]
  heads, *lines = parts.layer_table([*rows, {**ADD, "latency_us": None}], 1200, 12.0)  # others only move numbers
  assert heads[-2:] == ["time", "share of time"] and [line[-2:] for line in lines] == [
    ["6.0 µs", "50.0 %"],
    ["1.5 µs", "12.5 %"],
    ["–", "–"],
  ]
  shipped = {"files": [{"name": "a.tflite", "bytes": 1200}], "recommended": "a.tflite"}
  result = {"shipping": shipped, "layers": {"a.tflite": rows}}
  ((_, untimed, words),) = parts.layer_tables(result)
  assert untimed[0][-1] == "share of MACs" and words == []
  result["layers_latency"] = {"a.tflite": {"whole": 13.0, "sum": 12.0}}
  ((name, timed, (words,)),) = parts.layer_tables(result)
  assert name == "a.tflite" and timed[1][-1] == "50.0 %"
  assert words == f"{parts.TIMED}, 12.0 µs; the file as a whole took 13.0 µs in the same turns, {CALL}"
  assert words in plain.common(result) and words in report._layers(result)


def test_columns_without_figures_are_left_out():
  plain = {**NONE, **{key: DENSE[key] for key in ("name", "operator", "bytes", "macs")}}
  plain |= {"weight_bits": 32, "input_bits": 32}
  heads, row = parts.layer_table([plain], 0)
  assert heads == ["layer", "operator", "bits", "share of MACs"] and row == ["a/kernel", "Dense", "32 × 32", "100.0 %"]


LABELS = [0, 0, 0, 0, 1, 1, 2, -1]
DECISIONS = {"a": [0, 0, 1, 2, 1, 1, 2, 0], "b": [0, 1, 1, 1, 0, 1, 0, 0]}
FOUND = classes.classes(DECISIONS, LABELS, ["cat", "dog", "fox", "elk"])


def test_classes_by_hand():
  assert FOUND["examples"] == [4, 2, 1, 0] and FOUND["of"]["a"]["right"] == [2, 2, 1, 0]
  assert FOUND["of"]["b"]["taken_for"] == [[0, 1, 3], [1, 0, 1], [2, 0, 1]]
  assert classes.table(FOUND, ["a", "b"]) == [
    ["class", "examples", "a", "b", "b takes it for"],
    ["cat", "4", "50.00 %", "25.00 %", "dog (3)"],
    ["dog", "2", "100.00 %", "50.00 %", "cat (1)"],
    ["fox", "1", "100.00 %", "0.00 %", "cat (1)"],
  ]
  heads, rows = classes.confusion(FOUND, "a")
  assert heads == ["cat", "dog", "fox"] and rows == [("cat", [2, 1, 1]), ("dog", [0, 2, 0]), ("fox", [0, 0, 1])]


def test_labels_of_positions_and_answers_beyond_the_classes():
  found = classes.classes({"a": [[0, 1], [7, 1]]}, [[0, 1], [1, -1]], ["cat", "dog"])
  assert found["examples"] == [1, 2] and found["of"]["a"] == {"right": [1, 1], "taken_for": [[1, 7, 1]]}
  assert classes.table(found, ["a"])[2] == ["dog", "2", "50.00 %", "7 (1)"]
  heads, rows = classes.confusion(found, "a")
  assert heads == ["cat", "dog", "others"] and rows[1] == ("dog", [0, 1, 1])
  assert classes.classes({}, [], ["cat"]) == {"names": ["cat"], "examples": [0], "of": {}}


def test_of_many_classes_the_worst_are_shown():
  labels = [label for label in range(50) for _ in range(4)]
  decisions = [30 if place % 4 < place // 4 - 40 else label for place, label in enumerate(labels)]
  found = classes.classes({"a": decisions}, labels, range(50))
  _, *rows = classes.table(found, ["a"])
  assert len(rows) == classes.MOST and [row[0] for row in rows[:2]] == ["44", "45"] and rows[0][2] == "0.00 %"
  heads, cells = classes.confusion(found, "a")
  assert heads[-1] == "others" and all(sum(row) == 4 for _, row in cells)
  assert "20 worst of 50 classes" in parts.class_note({"classes": found})


def test_the_first_is_compared_with_the_recommended_one():
  shipped = {"classes": FOUND | {"of": {key: {} for key in "abc"}}, "shipping": {"recommended": "b"}}
  assert parts.compared(shipped) == ["a", "b"]
  assert parts.compared({**shipped, "shipping": {"recommended": "a"}}) == ["a", "c"]
  assert parts.compared({"classes": {"of": {"a": {}}}}) == ["a"]


@pytest.mark.parametrize("result", [{}, {"classes": {}}, {"shipping": {}, "layers": {}, "run": {}}])
def test_what_is_missing_is_left_out(result):
  assert parts.class_table(result) == [] and parts.layer_tables(result) == [] and parts.made(result) == ""


def test_durations_and_dates():
  times = {0.4: "0 s", 59.4: "59 s", 84: "1 min 24 s", 3600 * 3 + 305: "3 h 5 min"}
  assert {seconds: parts.duration(seconds) for seconds in times} == times
  one, other = ({"finished": f"2026-11-{day}T16:20:05+00:00", "seconds": spent} for day, spent in ((28, 60), (27, 24)))
  assert parts.made({"run": {"a": one, "b": other}}) == "Finished 2026-11-28 16:20 UTC after 1 min 24 s."
