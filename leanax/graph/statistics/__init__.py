"""Statistics of tensors, gathered by `graph.observe`; one per file."""

from leanax.graph.statistics.absolute_maximum import absolute_maximum
from leanax.graph.statistics.extrema import Extrema, extrema
from leanax.graph.statistics.histogram import Histogram, histogram
from leanax.graph.statistics.mean import mean
from leanax.graph.statistics.second_moment import second_moment

__all__ = ["Extrema", "Histogram", "absolute_maximum", "extrema", "histogram", "mean", "second_moment"]
