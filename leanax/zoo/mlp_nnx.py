"""The multilayer perceptron in flax.nnx; a separate file because importing nnx takes a second."""

import itertools
from collections.abc import Sequence

import jax
from flax import nnx


class MLP(nnx.Module):
  """Dense layers with ReLU between them.

  Args:
    features: size of one flattened input, which nnx modules need when they are built.
    widths: units of the hidden layers.
    classes: number of logits.
    rngs: nnx random streams.
  """

  def __init__(self, features: int, widths: Sequence[int] = (300, 100), classes: int = 10, *, rngs: nnx.Rngs):
    sizes = [features, *widths, classes]
    self.layers = nnx.List([nnx.Linear(fan_in, fan_out, rngs=rngs) for fan_in, fan_out in itertools.pairwise(sizes)])

  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, ...) inputs, flattened, to (batch, classes) logits."""
    x = x.reshape(x.shape[0], -1)
    for layer in list(self.layers)[:-1]:
      x = nnx.relu(layer(x))
    return self.layers[-1](x)
