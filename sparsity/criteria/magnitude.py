"""The magnitude of a weight (Han et al., "Learning both Weights and Connections", arXiv:1506.02626)."""

from sparsity.criteria.base import Score


def magnitude() -> Score:
  """Keeps the entries of largest |w|."""
  return Score(lambda w, g, memory, *, step, key: w, absolute=True, reads_gradient=False)
