"""Min-max observer: the lowest and the highest value of all batches (Jacob et al., arXiv:1712.05877, section 3)."""

from leanax.graph.statistics import extrema
from quant.observers.base import Observer


def min_max() -> Observer:
  """The range that holds everything."""
  return Observer((extrema(),), lambda stats, bits: stats["extrema"])
