"""Rows, all weights that read one input feature or channel, kept or pruned whole (group sparsity of Wen et al.,
"Learning Structured Sparsity in Deep Neural Networks", arXiv:1608.03665, section 3.1).

A row's score is the sum of its entries' scores. A convolution's row holds all positions of the kernel.
"""

from sparsity.patterns.base import Pattern, slices


def row(axis: int = -2) -> Pattern:
  """Ranks the rows of a layer as one; a density is that of rows.

  Args:
    axis: the input axis of a layer, the second to last one in flax's Dense and Conv.

  Raises:
    UserError: an axis that is no whole number; at `init`, a leaf without it.
  """
  return slices("row", "rows", axis)
