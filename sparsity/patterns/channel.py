"""Output channels, kept or pruned whole (Li, Kadav, Durdanovic, Samet, Graf, "Pruning Filters for Efficient ConvNets",
arXiv:1608.08710, section 3.1).

A channel's score is the sum of its entries' scores: by magnitude, the L1 norm of its filter, as in the paper. The mask
makes zeros and leaves shapes as they are.
"""

from sparsity.patterns.base import Pattern, slices


def channel(axis: int = -1) -> Pattern:
  """Ranks the output channels of a layer as one; a density is that of channels.

  Args:
    axis: the output axis of a layer, the last one in flax's Dense and Conv.

  Raises:
    UserError: an axis that is no whole number; at `init`, a leaf without it.
  """
  return slices("channel", "channels", axis)
