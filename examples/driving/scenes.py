"""Drawn scenes of a road with the exact class of every pixel, as numpy arrays; every scene is a function of its seed.

A row of pixels below the horizon has a nearness, 0 at the horizon and 1 at the lower edge, to which the road's width is
proportional. `across` is the distance from the road's middle in halves of its width: -1 and 1 are its edges.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

CLASSES = ("sky", "roadside", "road", "marking", "vehicle")
SKY, ROADSIDE, ROAD, MARKING, VEHICLE = range(len(CLASSES))
SPLITS = ("train", "validation", "test")

# parameter: (its range in training and validation, its range in the test split). No two overlap: a test scene is unlike
# all training scenes in each of them.
RANGES: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {
  "horizon": ((0.32, 0.42), (0.43, 0.48)),  # share of the height above it
  "bend": ((0.0, 0.30), (0.32, 0.45)),  # by how much of the width the road is aside at the horizon, to either side
  "light": ((0.75, 1.1), (0.6, 0.73)),  # factor on all colours
  "grey": ((70.0, 105.0), (107.0, 125.0)),  # of the road
  "green": ((0.55, 0.95), (0.4, 0.53)),  # how green the roadside is
  "blue": ((0.5, 1.0), (0.25, 0.48)),  # how blue the sky is
  "noise": ((0.0, 8.0), (8.5, 12.0)),  # standard deviation in steps of 1/255
  "size": ((0.85, 1.1), (1.12, 1.3)),  # of vehicles, times 0.6 of a lane's width
  "vehicles": ((0, 3), (4, 5)),  # number of them
}

HALF_ROAD = 0.45  # half of the road's width at the lower edge, in widths of the image
LINE, LINE_AT = 0.035, 0.92  # half of a line's width, and the place of the outer lines, in halves of the road's width
DASHES = 1.5  # dashes of the middle line per unit of 1 / t


class Vehicle(NamedTuple):
  """A vehicle: the place of its middle across the road, its nearness, its width in lanes over 0.6, its colour."""

  across: float
  near: float
  size: float
  colour: tuple[int, ...]


class Scene(NamedTuple):
  """The parameters of a scene; see `RANGES`. `start` is a shift along the road, which moves its dashes."""

  horizon: float = 0.4
  bend: float = 0.0
  light: float = 1.0
  grey: float = 90.0
  green: float = 0.7
  blue: float = 0.8
  noise: float = 0.0
  start: float = 0.0
  vehicles: tuple[Vehicle, ...] = ()
  houses: tuple[tuple[float, ...], ...] = ()  # (middle, width, height) of each in widths of the image


def sample(split: str, rng: np.random.Generator) -> Scene:
  """Returns the parameters of a random scene of a split, "train", "validation" or "test"."""
  test = split == "test"
  drawn = {name: float(rng.uniform(*both[test])) for name, both in RANGES.items() if name != "vehicles"}
  low, high = RANGES["vehicles"][test]
  vehicles = [
    Vehicle(
      float(rng.choice((-0.5, 0.5)) + rng.uniform(-0.08, 0.08)),
      float(rng.uniform(0.15, 0.9)),
      drawn["size"],
      tuple(int(c) for c in rng.integers(20, 256, 3)),
    )
    for _ in range(rng.integers(int(low), int(high), endpoint=True))
  ]
  houses = [tuple(float(rng.uniform(*r)) for r in ((0, 1), (0.04, 0.12), (0.03, 0.1))) for _ in range(rng.integers(4))]
  del drawn["size"]
  return Scene(
    **{**drawn, "bend": drawn["bend"] * float(rng.choice((-1, 1)))},
    start=float(rng.uniform()),
    vehicles=tuple(vehicles),
    houses=tuple(houses),
  )


def middle(scene: Scene, near: Any) -> Any:
  """Returns the place of the road's middle at some nearness, in widths of the image."""
  return 0.5 + scene.bend * (1 - near) ** 2


def draw(scene: Scene, size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """Draws a scene.

  Args:
    scene: its parameters.
    size: (height, width) in pixels.
    rng: of the noise and the texture of surfaces, which no mask depends on.

  Returns:
    uint8 pixels (height, width, 3), and uint8 classes (height, width), each that of its pixel's centre.
  """
  height, width = size
  y, x = np.mgrid[:height, :width] + 0.5
  top = scene.horizon * height
  near = np.clip((y - top) / (height - top), 1e-6, None)
  across = (x / width - middle(scene, near)) / (HALF_ROAD * near)
  below = y > top
  road = below & (np.abs(across) < 1)
  dashed = (np.abs(across) < LINE) & ((DASHES / near + scene.start) % 1 < 0.5)
  lines = road & ((np.abs(np.abs(across) - LINE_AT) < LINE) | dashed)
  mask = np.where(below, ROADSIDE, SKY).astype(np.uint8)
  mask[road], mask[lines] = ROAD, MARKING

  rough = rng.normal(0, 1, size)[..., None]
  sky = np.array([170, 190, 200]) + np.array([-90, -40, 55]) * scene.blue * (1 - y / max(top, 1))[..., None]
  ground = np.array([120, 110, 70]) + np.array([-60, 30, -30]) * scene.green + 8 * rough
  pixels = np.where(below[..., None], ground, sky)
  pixels = np.where(road[..., None], scene.grey + 4 * rough, pixels)
  pixels = np.where(lines[..., None], 215.0, pixels)

  for place, wide, high in scene.houses:  # they stand on the horizon and are roadside
    wall = (np.abs(x / width - place) < wide / 2) & (y <= top) & (y > top - high * width)
    mask[wall], pixels[wall] = ROADSIDE, (140 * place + 60, 100, 90)
  for vehicle in sorted(scene.vehicles, key=lambda one: one.near):  # far ones first
    _draw_vehicle(scene, vehicle, pixels, mask, x, y)
  pixels = pixels * scene.light + rng.normal(0, 1, pixels.shape) * scene.noise
  return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), mask


def _draw_vehicle(
  scene: Scene, vehicle: Vehicle, pixels: np.ndarray, mask: np.ndarray, x: np.ndarray, y: np.ndarray
) -> None:
  """Draws a vehicle seen from behind into both arrays: a body, a narrower cabin on it, a window, wheels and lights."""
  height, width = mask.shape
  half_road = HALF_ROAD * vehicle.near * width
  half = 0.3 * vehicle.size * half_road
  base = (scene.horizon + (1 - scene.horizon) * vehicle.near) * height
  beside = np.abs(x - middle(scene, vehicle.near) * width - vehicle.across * half_road) / half  # 1 at the body's sides
  up = (base - y) / half  # 0 at the wheels; the body ends at 0.9, the cabin at 1.5
  body, cabin = (beside < 1) & (up > 0) & (up < 0.9), (beside < 0.75) & (up >= 0.9) & (up < 1.5)
  mask[body | cabin] = VEHICLE
  pixels[body | cabin] = vehicle.colour
  pixels[cabin & (beside < 0.6) & (up < 1.35)] = (50, 60, 70)
  pixels[body & (beside > 0.6) & (up < 0.25)] = (20, 20, 20)
  pixels[body & (beside > 0.7) & (up > 0.5) & (up < 0.7)] = (200, 30, 30)


def scene(split: str, index: int, size: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """Returns the pixels and classes of one scene of a split, as `draw`; the number of other scenes does not matter."""
  rng = np.random.default_rng((seed, SPLITS.index(split), index))
  return draw(sample(split, rng), size, rng)


def load(
  size: tuple[int, int] = (160, 320), counts: tuple[int, int, int] = (240, 24, 64), seed: int = 0
) -> Mapping[str, Any]:
  """Returns the data for `data.name`: splits of `counts` scenes, uint8 (N, height, width, 3) and (N, height, width)."""
  found: dict[str, Any] = {"classes": CLASSES}
  for split, count in zip(SPLITS, counts, strict=True):
    drawn = [scene(split, index, tuple(size), seed) for index in range(count)]
    found[split] = tuple(np.stack(arrays) for arrays in zip(*drawn, strict=True))
  return found


def drive(index: int, size: tuple[int, int], fps: float = 30.0) -> np.ndarray:
  """Returns frame `index` of an endless drive: the road bends and vehicles come nearer; uint8 (height, width, 3)."""
  seconds = index / fps
  vehicles = tuple(
    Vehicle(place, 0.15 + 0.75 * ((seconds * speed + shift) % 1), 1.0, colour)
    for place, speed, shift, colour in ((-0.5, 0.2, 0.0, (180, 40, 40)), (0.5, 0.05, 0.4, (40, 60, 160)))
  )
  one = Scene(bend=0.25 * float(np.sin(seconds / 3)), noise=4.0, start=2 * seconds, vehicles=vehicles)
  return draw(one, size, np.random.default_rng(index))[0]
