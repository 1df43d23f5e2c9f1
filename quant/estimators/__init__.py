"""Estimators: rules by which rounding to a grid is trained, one per file.

>>> import jax, jax.numpy as jnp
>>> import quant
>>> x, grid = jnp.asarray([-0.7, 0.2, 0.9]), quant.symmetric(jnp.float32(0.75), bits=3)
>>> estimator = quant.lsq()
>>> estimator(x, grid).tolist()                        # on the grid
[-0.75, 0.25, 0.75]
>>> jax.grad(lambda x: estimator(x, grid).sum())(x).tolist()  # straight through, but for what is clipped
[1.0, 1.0, 0.0]
"""

from quant.estimators.base import Estimator, Placed, Statistics
from quant.estimators.ewgs import ewgs
from quant.estimators.lsq import lsq
from quant.estimators.ste import ste
from quant.estimators.stochastic import stochastic
from quant.estimators.tqt import tqt

__all__ = ["Estimator", "Placed", "Statistics", "ewgs", "lsq", "ste", "stochastic", "tqt"]
