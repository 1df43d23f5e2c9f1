"""Two charts as SVG text, lines and a scatter: no library, script or outside resource; values show on hovering.

Colours have a contrast of at least 3:1 on white, and in dark mode on the dark card; each entry also has its own
marker, so that colour is not all that distinguishes them.
Text is laid out for its larger size on narrow screens (the page's style sheet sets both sizes).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

COLOURS = ("#33415c", "#b45309", "#0072b2", "#00795a", "#c0267e", "#6d28d9", "#8a6d00", "#c81e1e")
DARK = ("#9fb0d6", "#f0a35c", "#58b4e8", "#3fc59b", "#f07ab8", "#ab90ff", "#d3b94a", "#ff7b72")  # of dark mode
# Corners of each marker around its middle; none is a circle.
SHAPES = (
  (),
  ((-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)),
  ((0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)),
  ((0.0, -1.3), (1.2, 0.9), (-1.2, 0.9)),
  ((-1.2, -0.9), (1.2, -0.9), (0.0, 1.3)),
  ((-1.2, 0.0), (-0.6, -1.05), (0.6, -1.05), (1.2, 0.0), (0.6, 1.05), (-0.6, 1.05)),
)

WIDTH, HEIGHT = 560, 360  # of the drawing's own units
LEFT, RIGHT, TOP, BOTTOM = 76, 18, 16, 62
LETTER, LINE = 9.2, 18  # of a label at its larger size
MOST_POINTS = 400  # of a line; more cannot be seen
MOST_HOVERS = 60


class Axis(NamedTuple):
  """An axis of a chart: its label, its scale, and the format of its values."""

  label: str
  write: Callable[[float], str]
  log: bool = False


class Line(NamedTuple):
  """A named line through (x, y) points; y is None where there is no value."""

  name: str
  points: Sequence[tuple[float, float | None]]
  style: int = 0


class Point(NamedTuple):
  """A named point, and the text shown on hovering."""

  name: str
  x: float
  y: float
  hover: str
  style: int = 0


def colour(style: int) -> str:
  """Returns the colour of the n-th entry that a page compares, the same throughout the page."""
  return COLOURS[style % len(COLOURS)]


def dark_rules() -> str:
  """Returns the rules of a style sheet that turn the colours of drawings into those of `DARK`."""
  rules = [
    f'[fill="{light}"] {{ fill: {dark}; }} [stroke="{light}"] {{ stroke: {dark}; }} '
    f'svg text[style="fill:{light}"] {{ fill: {dark} !important; }}'
    for light, dark in zip(COLOURS, DARK, strict=True)
  ]
  return " ".join([*rules, 'svg [stroke="#fff"] { stroke: var(--card); }'])


def mark(x: float, y: float, style: int, size: float = 7.0) -> str:
  """Returns the marker of the n-th entry at (x, y)."""
  fill = f'fill="{colour(style)}" stroke="#fff" stroke-width="1.5"'
  corners = SHAPES[style % len(SHAPES)]
  if not corners:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" {fill}/>'
  path = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in corners)
  return f'<polygon points="{path}" {fill}/>'


def lines(series: Iterable[Line], x: Axis, y: Axis, title: str, floor: float | None = None) -> str:
  """Returns a chart of lines; points that are not finite (or not positive, on a log axis) are left out.

  Args:
    series: the lines.
    x: the axis across.
    y: the axis upwards.
    title: what the chart shows, for those who cannot see it.
    floor: the lowest start of the upward axis; lines are cut there.
  """
  drawn = [(line, _thin(_drawable(line.points, x, y), MOST_POINTS)) for line in series]
  shown = [(line, points) for line, points in drawn if points]
  if not shown:
    return ""
  points = [(px, py if floor is None else max(py, floor)) for _, values in shown for px, py in values]
  frame = _Frame.around(points, x, y, pad=0.0)
  wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
  inner = f'<svg x="{LEFT}" y="{TOP}" width="{wide}" height="{high}" viewBox="{LEFT} {TOP} {wide} {high}">'
  body, ends = [frame.axes(), inner], []  # the inner drawing clips the lines
  for line, values in shown:
    places = [frame.place(*value) for value in values]
    path = "M" + " L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    body.append(
      f'<path d="{path}" fill="none" stroke="{colour(line.style)}" stroke-width="1.8" stroke-linejoin="round"/>'
    )
    ends.append(mark(places[-1][0], min(places[-1][1], HEIGHT - BOTTOM), line.style, 5.0))
    for value in _thin(values, MOST_HOVERS):
      px, py = frame.place(*value)
      hover = escape(f"{line.name}: {y.write(value[1])} at {x.write(value[0])} {x.label}")
      body.append(f'<circle class="hover" cx="{px:.1f}" cy="{py:.1f}" r="6"><title>{hover}</title></circle>')
  return _svg([*body, "</svg>", *ends], title)


def scatter(points: Iterable[Point], x: Axis, y: Axis, title: str, links: Iterable[tuple[str, str]] = ()) -> str:
  """Returns a chart of labelled points; what cannot be placed is left out. `links` joins points by their names."""
  shown = [point for point in points if _drawable([(point.x, point.y)], x, y)]
  if not shown:
    return ""
  frame = _Frame.around([(point.x, point.y) for point in shown], x, y, pad=0.12)
  body = [frame.axes()]
  places = [frame.place(point.x, point.y) for point in shown]
  where = {point.name: place for point, place in zip(shown, places, strict=True)}
  for one, other in links:
    if one in where and other in where:
      (x1, y1), (x2, y2) = where[one], where[other]
      body.append(f'<line class="link" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
  taken = [(px - 9, py - 9, px + 9, py + 9) for px, py in places]
  for point, (px, py) in zip(shown, places, strict=True):
    box, anchor = _label_place(point.name, px, py, taken)
    taken.append(box)
    at = {"start": box[0], "end": box[2], "middle": (box[0] + box[2]) / 2}[anchor]
    body.append(
      f"<g>{mark(px, py, point.style)}<title>{escape(point.hover)}</title>"
      f'<text class="point" x="{at:.1f}" y="{box[3] - 4:.1f}" text-anchor="{anchor}" '
      f'style="fill:{colour(point.style)}">'
      f"{escape(point.name)}</text></g>"
    )
  return _svg(body, title)


Box = tuple[float, float, float, float]


def _label_place(name: str, x: float, y: float, taken: Sequence[Box]) -> tuple[Box, str]:
  """Returns the first free place for a label beside a point, or the one with the least overlap."""
  width, gap = LETTER * len(name), 12
  tries: list[tuple[Box, str]] = []
  for rise in (0, -LINE * 0.8, LINE * 0.8):
    low, high = y + rise - LINE / 2, y + rise + LINE / 2
    tries.append(((x + gap, low, x + gap + width, high), "start"))
    tries.append(((x - gap - width, low, x - gap, high), "end"))
  for low in (y - gap - LINE, y + gap, y - gap - 2 * LINE, y + gap + LINE):
    tries.append(((x - width / 2, low, x + width / 2, low + LINE), "middle"))

  def cost(choice: tuple[Box, str]) -> float:
    left, top, right, bottom = choice[0]
    outside = (
      max(0.0, LEFT - left) + max(0.0, right - WIDTH) + max(0.0, TOP - top) + max(0.0, bottom - (HEIGHT - BOTTOM))
    )
    overlap = sum(
      max(0.0, min(right, b[2]) - max(left, b[0])) * max(0.0, min(bottom, b[3]) - max(top, b[1])) for b in taken
    )
    return 100 * outside + overlap

  return min(tries, key=cost)


def _drawable(points: Iterable[tuple[float, float | None]], x: Axis, y: Axis) -> list[tuple[float, float]]:
  def good(value: float, axis: Axis) -> bool:
    return math.isfinite(value) and (value > 0 or not axis.log)

  return [(px, py) for px, py in points if py is not None and good(px, x) and good(py, y)]


def _thin(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
  """Returns at most `most` of the points, evenly chosen, the first and the last among them."""
  if len(points) <= most:
    return list(points)
  return [points[round(i * (len(points) - 1) / (most - 1))] for i in range(most)]


class _Frame(NamedTuple):
  """The mapping from values to the drawing's units."""

  x: Axis
  y: Axis
  x_range: tuple[float, float]
  y_range: tuple[float, float]

  @classmethod
  def around(cls, points: Sequence[tuple[float, float]], x: Axis, y: Axis, pad: float) -> "_Frame":
    return cls(x, y, _range([p[0] for p in points], x.log, pad), _range([p[1] for p in points], y.log, max(pad, 0.04)))

  def place(self, x: float, y: float) -> tuple[float, float]:
    across = _share(x, self.x_range, self.x.log)
    up = _share(y, self.y_range, self.y.log)
    return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

  def axes(self) -> str:
    parts = []
    for value in ticks(*self.y_range, self.y.log):
      _, py = self.place(self.x_range[0], value)
      parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{py:.1f}" y2="{py:.1f}"/>')
      parts.append(f'<text x="{LEFT - 8}" y="{py + 5:.1f}" text-anchor="end">{escape(self.y.write(value))}</text>')
    base = HEIGHT - BOTTOM
    for value in ticks(*self.x_range, self.x.log):
      px, _ = self.place(value, self.y_range[0])
      parts.append(f'<line class="tick" x1="{px:.1f}" x2="{px:.1f}" y1="{base}" y2="{base + 5}"/>')
      parts.append(f'<text x="{px:.1f}" y="{base + 22}" text-anchor="middle">{escape(self.x.write(value))}</text>')
    parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(
      f'<text class="axis" x="{middle}" y="{HEIGHT - 10}" text-anchor="middle">{escape(self.x.label)}</text>'
    )
    return "".join(parts)


def _range(values: Sequence[float], log: bool, pad: float) -> tuple[float, float]:
  low, high = min(values), max(values)
  if log:
    low, high = math.log10(low), math.log10(high)
  margin = (high - low) * pad if high > low else (0.5 if log else max(abs(high) * 0.05, 1e-3))
  low, high = low - margin, high + margin
  return (10**low, 10**high) if log else (low, high)


def _share(value: float, limits: tuple[float, float], log: bool) -> float:
  low, high = limits
  if log:
    value, low, high = math.log10(value), math.log10(low), math.log10(high)
  return (value - low) / (high - low)


def ticks(low: float, high: float, log: bool = False, count: int = 5) -> list[float]:
  """Returns about five round values in [low, high], 1, 2 or 5 times a power of ten apart (or at those, on a log axis).

  A log axis over less than a decade gets even steps.
  """
  if log:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
      found = [f * 10.0**d for d in decades for f in factors if low <= f * 10.0**d <= high]
      if len(found) >= 3:
        return found if len(found) <= 8 else found[:: math.ceil(len(found) / 8)]
    return ticks(low, high)
  rough = (high - low) / count
  power = 10.0 ** math.floor(math.log10(rough))
  step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * 0.99)
  first = math.ceil(low / step - 1e-9)
  return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _svg(body: Sequence[str], title: str) -> str:
  return (
    f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
    + "".join(body)
    + "</svg>"
  )
