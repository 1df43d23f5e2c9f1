"""An accelerator's float products, imitated on the CPU: their operands rounded, their results in float32.

A jaxpr is evaluated equation by equation, those inside calls and custom rules too; a dot or a convolution of floats
whose precision is not HIGHEST has its operands rounded to a number of significant bits (bfloat16: 8, tf32: 11).
"""

import jax
import jax.numpy as jnp
from jax.extend import core as jex

PRODUCTS = ("dot_general", "conv_general_dilated")
BITS = {"bfloat16": 8, "tf32": 11}


def rounded(fn, bits):
  """`fn` with the operands of its float products rounded to `bits` significant bits; to be jitted or called."""

  def run(*args):
    closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    leaves = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(args), bits)
    return jax.tree.unflatten(jax.tree.structure(out), leaves)

  return run


def _evaluate(jaxpr, consts, args, bits):
  env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
  for eqn in jaxpr.eqns:
    values = [v.val if isinstance(v, jex.Literal) else env[v] for v in eqn.invars]
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if inner is not None:
      assert eqn.primitive.name in ("jit", "remat2", "custom_jvp_call", "custom_vjp_call"), eqn.primitive.name
      out = _evaluate(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), values, bits)
    else:
      if eqn.primitive.name in PRODUCTS and not exact(eqn.params["precision"]):
        values = [reduced(v, bits) for v in values]
      with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
      out = out if eqn.primitive.multiple_results else [out]
    env.update(zip(eqn.outvars, out, strict=True))
  return [v.val if isinstance(v, jex.Literal) else env[v] for v in jaxpr.outvars]


def exact(precision):
  highest = jax.lax.Precision.HIGHEST
  return precision is not None and all(
    p == highest for p in (precision if isinstance(precision, tuple) else [precision])
  )


def reduced(x, bits):
  if x.dtype != jnp.float32:
    return x
  return jax.lax.reduce_precision(x, 8, bits - 1)
