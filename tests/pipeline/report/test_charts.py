"""Charts: where a value lands, which values are ticked, and that labels keep apart."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from leanax.pipeline.report import charts

PLAIN = charts.Axis("x", str)
LOG = charts.Axis("x", str, log=True)
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize(
  ("low", "high", "log", "expected"),
  [
    (0.0, 1.0, False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
    (-3.0, 12.0, False, [0.0, 5.0, 10.0]),
    (0.9712, 0.9861, False, [0.975, 0.98, 0.985]),
    (1.0, 1000.0, True, [1.0, 10.0, 100.0, 1000.0]),
    (2.0, 60.0, True, [3.0, 10.0, 30.0]),
  ],
)
def test_ticks_are_round_and_inside(low, high, log, expected):
  assert charts.ticks(low, high, log) == pytest.approx(expected)


@pytest.mark.parametrize("low", [1e-6, 0.013, 1.0, 7e5])
@pytest.mark.parametrize("span", [1.01, 3.0, 50.0, 1e4])
@pytest.mark.parametrize("log", [False, True])
def test_there_are_always_some_ticks_and_never_many(low, span, log):
  found = charts.ticks(low, low * span, log)
  assert 2 <= len(found) <= 11
  assert all(low * (1 - 1e-9) <= value <= low * span * (1 + 1e-9) for value in found)


def path(svg: str) -> list[tuple[float, float]]:
  text = ET.fromstring(svg).find(f".//{SVG}path").get("d")
  numbers = [float(n) for n in re.findall(r"-?[\d.]+", text)]
  return list(zip(numbers[::2], numbers[1::2]))


def test_lines_span_the_frame_and_skip_values_that_are_not_finite():
  points = [(0, 0.0), (1, math.nan), (2, None), (4, 1.0)]
  (x1, y1), (x2, y2) = path(charts.lines([charts.Line("a", points)], PLAIN, PLAIN, "t"))
  assert (x1, x2) == (charts.LEFT, charts.WIDTH - charts.RIGHT)
  inner = charts.HEIGHT - charts.TOP - charts.BOTTOM
  assert y1 - y2 == pytest.approx(inner / 1.08, abs=0.2)  # 4 % of room on both sides


def test_a_log_axis_puts_equal_factors_at_equal_distances():
  (x1, _), (x2, _), (x3, _) = path(charts.lines([charts.Line("a", [(1, 1), (10, 2), (100, 3)])], LOG, PLAIN, "t"))
  assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
  assert charts.lines([charts.Line("a", [(0, 1), (-1, 2)])], LOG, PLAIN, "t") == ""


def test_a_floor_cuts_the_axis_and_not_the_line():
  svg = charts.lines([charts.Line("a", [(0, 0.1), (1, 0.9), (2, 1.0)])], PLAIN, PLAIN, "t", floor=0.9)
  places = path(svg)
  assert len(places) == 3
  assert places[0][1] > charts.HEIGHT  # far below, cut by the inner drawing
  assert charts.TOP < places[2][1] < places[1][1] < charts.HEIGHT - charts.BOTTOM


def test_long_lines_are_thinned_and_keep_their_ends():
  points = [(float(k), 0.5) for k in range(5000)]
  places = path(charts.lines([charts.Line("a", points)], PLAIN, PLAIN, "t"))
  assert len(places) == charts.MOST_POINTS
  assert (places[0][0], places[-1][0]) == (charts.LEFT, charts.WIDTH - charts.RIGHT)


def test_labels_of_near_points_do_not_overlap():
  points = [charts.Point(f"stage {k}", 100 + k, 0.98 + 1e-4 * k, "") for k in range(4)]
  points.append(charts.Point("far", 1e4, 0.9, ""))
  texts = [
    t for t in ET.fromstring(charts.scatter(points, LOG, PLAIN, "t")).iter(f"{SVG}text") if t.get("class") == "point"
  ]
  boxes = []
  for text in texts:
    width = charts.LETTER * len(text.text)
    x, y = float(text.get("x")), float(text.get("y"))
    left = x - {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor")]
    boxes.append((left, y, left + width))
  assert len(boxes) == 5
  for k, (left, y, right) in enumerate(boxes):
    assert left >= charts.LEFT and right <= charts.WIDTH
    for other_left, other_y, other_right in boxes[:k]:
      assert abs(y - other_y) >= charts.LINE * 0.7 or right <= other_left or other_right <= left


def test_names_are_escaped():
  svg = charts.scatter([charts.Point("<b>&", 1, 1, '"<i>"')], PLAIN, PLAIN, "<t>")
  assert "<b>" not in svg and "<i>" not in svg
  ET.fromstring(svg)


@pytest.mark.parametrize(("colours", "card"), [(charts.COLOURS, "#ffffff"), (charts.DARK, "#1b212a")])
def test_colours_stand_out_on_their_card(colours, card):
  """The contrast of WCAG 2.1: relative luminances plus 0.05, the larger over the smaller."""

  def luminance(colour):
    channels = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05

  for colour in colours:
    one, other = sorted((luminance(colour), luminance(card)))
    assert other / one >= 3, colour
    assert card == "#ffffff" or f"fill: {colour}" in charts.dark_rules()
