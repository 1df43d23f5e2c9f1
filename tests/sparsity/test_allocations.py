"""Allocations against published sizes and an independent solution."""

import fractions
import math

import numpy as np
import pytest

import sparsity
from leanax.core.errors import UserError
from sparsity import allocations


def resnet50():
  """Kernel shapes of ResNet-50 for 1000 classes, and its batch norm channels."""
  shapes, channels = {"stem": (7, 7, 3, 64)}, 64
  for stage, (blocks, width) in enumerate([(3, 64), (4, 128), (6, 256), (3, 512)]):
    for block in range(blocks):
      name = f"{stage}/{block}"
      shapes |= {f"{name}/a": (1, 1, channels, width), f"{name}/b": (3, 3, width, width)}
      shapes |= {f"{name}/c": (1, 1, width, 4 * width)}
      if block == 0:
        shapes[f"{name}/shortcut"] = (1, 1, channels, 4 * width)
      channels = 4 * width
  biases = sum(shape[-1] for shape in shapes.values()) + 1000
  return shapes | {"head": (2048, 1000)}, biases


def megabytes(shapes, biases, densities):
  """float32 survivors, one bit a weight of every layer that is not dense, batch norm folded into one bias."""
  bits = 32 * biases
  for name, shape in shapes.items():
    n = math.prod(shape)
    bits += 32 * densities[name] * n + (n if densities[name] < 1 else 0)
  return bits / 8e6


@pytest.mark.parametrize(("density", "published"), [(0.2, 23.683), (0.1, 13.499), (0.05, 8.399)])
def test_erk_reproduces_rigls_resnet50_sizes(density, published):
  # github.com/google-research/rigl, README, "ERK" rows: 80, 90 and 95 % sparsity.
  shapes, biases = resnet50()
  assert megabytes(shapes, biases, sparsity.uniform(shapes, 1.0)) == pytest.approx(102.122, abs=5e-4)
  assert megabytes(shapes, biases, sparsity.erk(shapes, density)) == pytest.approx(published, abs=1.1e-3)


def test_erk_worked_case():
  # raw 2/1, 11/10 and 20/100; at density 0.5 the budget is 1 + 5 + 50 = 56 and both small layers become dense,
  # which leaves 56 - 11 = 45 of 100 for the last one.
  densities = sparsity.erk({"a": (1, 1), "b": (1, 10), "c": (10, 10)}, 0.5)
  assert densities == {"a": 1.0, "b": 1.0, "c": pytest.approx(0.45)}


def test_er_worked_case():
  """The kernel's positions do not count: (2 + 2) / 4 and (4 + 4) / 16, so 2 to 1; the budget is 26."""
  densities = sparsity.allocations.er({"a": (3, 3, 2, 2), "b": (4, 4)}, 0.5)
  assert densities == {"a": pytest.approx(26 / 44), "b": pytest.approx(13 / 44)}
  assert sparsity.erk({"a": (3, 3, 2, 2), "b": (4, 4)}, 0.5) != densities
  shapes = {"a": (50, 70), "b": (20, 30)}
  assert sparsity.allocations.er(shapes, 0.3) == pytest.approx(sparsity.erk(shapes, 0.3))  # dense layers alone


def test_layers_tied_at_the_maximum_go_together():
  shapes = {"a": (2, 2), "b": (2, 2), "c": (20, 30)}
  densities = sparsity.erk(shapes, 0.1)
  assert densities["a"] == densities["b"] == 1.0
  kept = 600 * fractions.Fraction(densities["c"]) + 8
  assert float(kept) == pytest.approx(sum(n - math.floor(0.9 * n) for n in (4, 4, 600)))


def test_erk_meets_the_budget_and_never_exceeds_one():
  rng = np.random.default_rng(0)
  for _ in range(50):
    shapes = {str(i): tuple(rng.integers(1, 30, rng.integers(1, 5)).tolist()) for i in range(6)}
    for density in (0.02, 0.3, 0.9, 1.0):
      densities = sparsity.erk(shapes, density)
      budget = sum(math.prod(s) - math.floor((1 - density) * math.prod(s)) for s in shapes.values())
      kept = sum(math.prod(shape) * densities[name] for name, shape in shapes.items())
      assert all(0 < d <= 1 for d in densities.values())
      assert kept == pytest.approx(budget)


def test_limits():
  shapes = {"a": (3, 4), "b": (50, 60)}
  assert sparsity.erk(shapes, 1.0) == sparsity.uniform(shapes, 1.0) == {"a": 1.0, "b": 1.0}
  assert sparsity.erk(shapes, 0.5, power=0) == pytest.approx({"a": 0.5, "b": 0.5})


def test_counts_are_exact():
  assert [sparsity.count(n, 0.5) for n in (1, 3, 5, 7)] == [1, 2, 2, 4]  # halves go to the even neighbour
  assert sparsity.count(10, 0.001) == 1 and sparsity.count(10, 1.0) == 10
  assert sparsity.count(400_000_001, 0.25) == 100_000_000  # float32 would give a multiple of eight


def test_density_outside():
  with pytest.raises(UserError, match="density is 1.5; expected a density"):
    allocations.check_density("density", 1.5)
