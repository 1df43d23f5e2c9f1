"""A small vision transformer, after Dosovitskiy et al., "An Image is Worth 16x16 Words" (arXiv:2010.11929).

It reads the mean of the patches in place of a class token, as X. Zhai et al. do (arXiv:2106.04560, section 3.2).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


class Block(nn.Module):
  """Attention over patches, then an MLP at each patch; both behind a layer norm and added to their input."""

  heads: int
  hidden: int

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, patches, width) to the same shape."""
    y = nn.LayerNorm()(x)
    x = x + jnp.asarray(nn.MultiHeadDotProductAttention(self.heads)(y, y))  # whose type, by its signature, may be None
    y = nn.gelu(nn.Dense(self.hidden)(nn.LayerNorm()(x)))
    return x + nn.Dense(x.shape[-1])(y)


class ViT(nn.Module):
  """Patches, learned positions, blocks of attention, the mean over patches and a dense head.

  Attributes:
    width: numbers per patch.
    depth: blocks.
    heads: of attention; they divide the width.
    patch: height and width of a patch in pixels; it divides those of the images.
    classes: number of logits.
  """

  width: int = 64
  depth: int = 4
  heads: int = 4
  patch: int = 4
  classes: int = 10

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, height, width, channels) images to (batch, classes) logits."""
    size = (self.patch, self.patch)
    x = nn.Conv(self.width, size, size, name="patches")(x)
    x = x.reshape(x.shape[0], -1, self.width)
    x = x + self.param("positions", nn.initializers.normal(0.02), (1, *x.shape[1:]))
    for _ in range(self.depth):
      x = Block(self.heads, 4 * self.width)(x)
    return nn.Dense(self.classes, name="head")(nn.LayerNorm()(x).mean(1))
