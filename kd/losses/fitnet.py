"""FitNets' hints: Romero et al., "FitNets: Hints for Thin Deep Nets" (arXiv:1412.6550), equation 3.

    loss_i = mean over places and channels of (r(f_s) - f_t)^2

r is a learned regressor of the student's channels. Variant: r is a 1x1 convolution (a linear map for vectors and
tokens), and the larger of two maps is averaged down first; the paper's regressor is a convolution whose window makes
the sizes equal. With `normalise` a batch normalisation and a ReLU follow, as in the common re-implementation, which
suits hints taken after a ReLU. The paper has half of a sum, and trains the hint as a stage before the distillation: use
a schedule of the weight. Reduction: a mean, one number per example, summed over pairs of
taps.
"""

from jaxtyping import Array

from kd.kinds import Context, Loss
from kd.layers import Layer, layer, layer_init, mean_square, relu
from kd.maps import align, compared
from kd.reads import CHANNELS
from kd.taps import Names, on_pairs
from leanax.core import ranges


def fitnet(student: Names, teacher: Names, normalise: bool = False) -> Loss:
  """FitNets' hints.

  Args:
    student: taps of maps, token sequences or vectors.
    teacher: as many of the teacher.
    normalise: add batch normalisation (over the batch of all devices) and ReLU to the regressor.
  """
  ranges.check_switch("fitnet: normalise", normalise)

  def distance(s: Array, t: Array, aux: Layer, context: Context) -> Array:
    s, t = align("fitnet", s, t)
    s = layer(aux, s, context)
    compared("fitnet", s, t)
    return mean_square((relu(s) if normalise else s) - t)

  def init(key: Array, s: Array, t: Array) -> Layer:
    return layer_init(key, s.shape[-1], t.shape[-1], normalise=normalise)

  return on_pairs("fitnet", distance, student, teacher, init, relational=normalise, shapes=CHANNELS)
