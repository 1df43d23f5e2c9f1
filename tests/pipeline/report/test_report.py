"""The report and its table: right numbers, nothing invented, nothing loaded, nothing unescaped."""

import html.parser
import re

import pytest

from leanax.pipeline.report import report
from leanax.pipeline.tables import tables
from tests.pipeline.report.test_shipping import FILES, FOUND, entry

TEACHER = {
  "name": "teacher",
  "accuracy": 0.99,
  "file_accuracy": 0.98,
  "parameters": 140_938,
  "macs": 1_000_000,
  "file_bytes": 560_000,
  "latency_us": 90.0,
}
STUDENT = {**TEACHER, "name": "int8", "file_accuracy": 0.975, "macs": 100_000, "file_bytes": 20_000, "latency_us": 10.0}
STUDENT |= {"codes_differ": 3}
CURVES = {
  "distilled": {"loss": [[1, 2.0], [100, 0.1]], "validation_accuracy": [[50, 0.9], [100, 0.95]]},
  "int8": {"loss": [[1, 0.2], [40, 0.1]], "validation_accuracy": [[40, 0.96]]},
}
RESULT = {
  "title": "Digits <small>",
  "command": "python -m scripts.compress",
  "examples": 400,
  "config": {"seed": 0, "stages": {"int8": {"start": "distilled"}}, "note": "</pre><script>"},
  "environment": {"processor": "a & b", "cores": 2, "versions": {"jax": "0.10.2"}},
  "rows": [TEACHER, STUDENT],
  "curves": CURVES,
}


class Page(html.parser.HTMLParser):
  """Checks that tags close in order, and gathers them."""

  def __init__(self, text):
    super().__init__()
    self.open, self.seen, self.links, self.text = [], [], [], ""
    self.feed(text)
    assert self.open == []

  def handle_starttag(self, tag, attrs):
    self.seen.append(tag)
    self.links += [value for name, value in attrs if name in ("href", "src", "action", "data")]
    if tag not in ("meta", "link", "br", "img"):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data


def test_the_page_is_whole_and_loads_nothing():
  text = report.render(RESULT)
  page = Page(text)
  assert "script" not in page.seen and "link" not in page.seen and page.links == []
  assert not re.search(r"url\(|@import", text)
  assert "Digits <small>" in page.text
  assert page.seen.count("tr") == 3


def test_the_figures_are_the_rows():
  text = Page(report.render(RESULT)).text
  for figure in ("−0.50points", "28×", "10×", "9.0×", "98.00 %", "97.50 %", "140,938", "560 kB", "20.0 kB"):
    assert figure in text, figure
  assert "One example is 0.25 points; the standard error of one accuracy is 0.78 points." in text


def test_the_steps_of_a_stage_continue_from_the_one_before():
  lines = report._series(RESULT, "loss", report._starts(RESULT), {"int8": 1})
  assert [line.points for line in lines] == [[(1, 2.0), (100, 0.1)], [(101, 0.2), (140, 0.1)]]


def test_a_slower_file_is_not_called_faster():
  text = Page(report.render({"rows": [TEACHER, {**STUDENT, "latency_us": 180.0}]})).text
  assert "2.0×slower in the runtime" in text and "0.5×" not in text and "faster" not in text


def test_a_file_within_noise_is_not_called_faster():
  files = [FILES[0], entry("alone.tflite", 9, 0.3, as_fast=["teacher.tflite"])]
  found = {**FOUND, "recommended": "alone.tflite", "files": files}
  row = {**STUDENT, "name": "alone", "latency_us": 80.0}
  text = Page(report.render({"rows": [TEACHER, row], "shipping": found})).text
  assert "≈1×as fast in the runtime, within noise" in text and "faster in the runtime" not in text


@pytest.mark.parametrize(
  "result", [{}, {"rows": [{"name": "only"}]}, {"rows": [TEACHER]}, {"rows": [], "curves": CURVES}]
)
def test_missing_figures_are_left_out(result):
  text = Page(report.render(result)).text
  assert "nan" not in text and "None" not in text and "×" not in text


def test_write_replaces_the_page_whole(tmp_path):
  path = tmp_path / "report.html"
  path.write_text("old")
  report.write_report(path, RESULT)
  assert path.read_text(encoding="utf-8") == report.render(RESULT)
  assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_terminal_table_by_hand():
  rows = [
    {"name": "teacher", "accuracy": 0.98612, "file_bytes": 566_432},
    {"name": "int8", "accuracy": None, "file_bytes": 980},
  ]
  assert tables.format_table(rows).splitlines() == [
    "stage    accuracy  file size",
    "────────────────────────────",
    "teacher   98.61 %     566 kB",
    "int8            –      980 B",
  ]


def test_long_heads_have_several_lines():
  rows = [{"name": "teacher", "agreement": 1.0, "codes_differ": 12}]
  assert tables.format_table(rows).splitlines() == [
    "         same answer as  differing",
    "stage           teacher      codes",
    "──────────────────────────────────",
    "teacher        100.00 %         12",
  ]


def test_markdown_table_by_hand():
  assert tables.format_markdown([{"name": "a|b", "latency_us": 9.87}]).splitlines() == [
    "| stage | latency |",
    "| --- | ---: |",
    "| a\\|b | 9.9 µs |",
  ]


@pytest.mark.parametrize(
  ("value", "text"),
  [
    (0, "0 B"),
    (999, "999 B"),
    (1000, "1.00 kB"),
    (9_994, "9.99 kB"),
    (9_996, "10.0 kB"),
    (99_960, "100 kB"),
    (999_499, "999 kB"),
    (999_600, "1.00 MB"),
  ],
)
def test_sizes_keep_three_digits(value, text):
  assert tables.size(value) == text
