"""Quantization: number grids, gradient estimators, observers, and quantized models on top of the traced one.

An array between a minimum and a maximum at b bits:

>>> import jax.numpy as jnp
>>> import quant
>>> x = jnp.asarray([-1.0, -0.26, 0.0, 0.4, 2.0])
>>> grid = quant.affine(jnp.float32(-1.0), jnp.float32(2.0), bits=2)
>>> quant.codes(x, grid).tolist(), quant.fake_quant(x, grid).tolist()
([-2, -1, -1, -1, 1], [-1.0, 0.0, 0.0, 0.0, 2.0])

A model of any framework, as a function of its variables or as a `graph.Net`:

>>> from leanax import graph
>>> fn = lambda variables, x: jnp.tanh(x @ variables["a"]) @ variables["b"]
>>> variables = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
>>> images = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
>>> model = quant.quantize(fn, "w8a8 learned")
>>> qparams, state = model.init(variables, images)
>>> logits, state = model.apply(qparams, state, variables, images)
>>> net = quant.post_training(graph.net(fn, variables, images), [images], "w8a8")
>>> logits, _ = net.apply(net.variables, images)
>>> logits.shape
(4, 2)
"""

from quant import edit, estimators, formats, latent, observers
from quant.edit import before, float_net, grids, is_quantized, post_training, shared_grids
from quant.estimators import *  # noqa: F403  # each estimator under its own name
from quant.grid import Grid, affine, codes, dequantize, fake_quant, limits, symmetric
from quant.latent import latent_weights
from quant.pixels import pixel_grid
from quant.plan import kernel_axes
from quant.policy import Policy, policy
from quant.quantize import Quantized, quantize
from quant.quantizer import labels
from quant.spec import Setting, Spec, int8, parse, weights

__all__ = estimators.__all__ + [
  "Grid",
  "Policy",
  "Quantized",
  "Setting",
  "Spec",
  "affine",
  "before",
  "codes",
  "dequantize",
  "edit",
  "estimators",
  "fake_quant",
  "float_net",
  "formats",
  "grids",
  "is_quantized",
  "int8",
  "kernel_axes",
  "labels",
  "latent",
  "latent_weights",
  "limits",
  "observers",
  "parse",
  "pixel_grid",
  "policy",
  "post_training",
  "quantize",
  "shared_grids",
  "symmetric",
  "weights",
]
