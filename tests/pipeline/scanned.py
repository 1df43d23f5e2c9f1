"""A model whose layers are one leaf, for the tests of stages that prune."""

import jax
import jax.numpy as jnp


def net(width=8, layers=3):
  def init(key, x):
    kernels = jax.random.normal(key, (layers, width, width)) * jnp.asarray([1.0, 0.5, 0.1])[:layers, None, None]
    first, last = jax.random.normal(key, (x[0].size, width)), jax.random.normal(key, (width, 4))
    return {"params": {"first": {"kernel": 0.1 * first}, "blocks": {"kernel": kernels}, "last": {"kernel": last}}}

  def apply(variables, x):
    p = variables["params"]
    x = x.reshape(x.shape[0], -1) @ p["first"]["kernel"]
    x, _ = jax.lax.scan(lambda x, w: (x + jax.nn.relu(x @ w), None), x, p["blocks"]["kernel"])
    return x @ p["last"]["kernel"]

  return init, apply
