"""Generated images of learnable classes, for tests and benchmarks without files.

Each class is a coarse random pattern; an example is its class's pattern, moved by up to `shift` pixels (wrapping
around), plus uniform noise, clipped to 0..255. All arithmetic is in integers, with numpy's frozen `RandomState`, so the
same arguments give the same bytes with every version of numpy.
"""

import numpy as np

from leanax.core import ranges
from leanax.core.errors import UserError
from leanax.engine.data.splits import Dataset, Split, make_split

CELL = 4  # the side of a pattern's cells, in pixels
MOST = 1 << 30  # numbers, which take eight bytes each while they are made


def load(
  *,
  shape: tuple[int, int, int] = (28, 28, 1),
  classes: int = 10,
  train: int = 1024,
  validation: int = 256,
  test: int = 256,
  noise: int = 96,
  shift: int = 1,
  seed: int = 0,
) -> Dataset:
  """Generates a set.

  Args:
    shape: (height, width, channels) of the images.
    classes: the number of classes.
    train: examples in the training split; `validation` and `test` likewise.
    validation: see `train`.
    test: see `train`.
    noise: the largest change of a pixel, of 255.
    shift: the largest move of a pattern, in pixels.
    seed: of the patterns and the noise.

  Raises:
    UserError: a size that is not positive, a negative amount, or more pixels than `MOST`.
  """
  if not isinstance(shape, tuple | list) or len(shape) != 3:
    raise UserError(f"synthetic data: shape is {shape!r}; expected (height, width, channels)")
  for key, value, least in [
    *((f"shape[{axis}]", size, 1) for axis, size in enumerate(shape)),
    ("classes", classes, 2),
    ("train", train, 1),
    ("validation", validation, 0),
    ("test", test, 0),
    ("noise", noise, 0),
    ("shift", shift, 0),
    ("seed", seed, 0),
  ]:
    ranges.check(f"synthetic data: {key}", value, ranges.whole(least))
  height, width, channels = shape
  if (pixels := max(classes, train + validation + test) * height * width * channels) > MOST:
    raise UserError(f"synthetic data: {pixels} numbers in all its images; expected at most {MOST}")
  random = np.random.RandomState(seed)
  coarse = random.randint(0, 256, (classes, -(-height // CELL), -(-width // CELL), channels))
  patterns = coarse.repeat(CELL, axis=1).repeat(CELL, axis=2)[:, :height, :width]

  total = train + validation + test
  labels = random.permutation(np.arange(total) % classes)
  images = patterns[labels]
  if shift:
    moves = random.randint(-shift, shift + 1, (total, 2))
    rows = (np.arange(height) - moves[:, :1]) % height
    columns = (np.arange(width) - moves[:, 1:]) % width
    images = images[np.arange(total)[:, None, None], rows[:, :, None], columns[:, None, :]]
  images = np.clip(images + random.randint(-noise, noise + 1, images.shape), 0, 255).astype(np.uint8)
  names = tuple(f"class_{number}" for number in range(classes))

  def part(name: str, start: int, count: int) -> Split:
    rows = np.arange(start, start + count)
    return make_split(images[rows], labels[rows], rows, names, f"synthetic/{name}")

  return Dataset(
    train=part("train", 0, train),
    validation=part("validation", train, validation),
    test=part("test", train + validation, test),
  )
