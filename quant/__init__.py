"""Quantization: number grids, gradient estimators, observers, and quantized models on top of the traced one.

model = quant.quantize(apply_fn, "w8a8 learned")          # apply_fn(variables, *inputs) -> out, of any framework
qparams, state = model.init(variables, images)
logits, state = model.apply(qparams, state, variables, images)
"""

from quant import edit, estimators, formats, latent, observers
from quant.edit import before, float_net, post_training
from quant.estimators import lsq, ste, tqt
from quant.grid import Grid, affine, codes, dequantize, fake_quant, limits, symmetric
from quant.latent import latent_weights
from quant.pixels import pixel_grid
from quant.plan import kernel_axes
from quant.policy import Policy, Setting, int8, parse, policy, weights
from quant.quantize import Quantized, quantize
from quant.quantizer import labels

__all__ = [
  "Grid",
  "Policy",
  "Quantized",
  "Setting",
  "affine",
  "before",
  "codes",
  "dequantize",
  "edit",
  "estimators",
  "fake_quant",
  "float_net",
  "formats",
  "int8",
  "kernel_axes",
  "labels",
  "latent",
  "latent_weights",
  "limits",
  "lsq",
  "observers",
  "parse",
  "pixel_grid",
  "policy",
  "post_training",
  "quantize",
  "ste",
  "symmetric",
  "tqt",
  "weights",
]
