"""Observers: the range of a tensor's grid, from statistics of calibration data; one per file.

>>> import jax.numpy as jnp
>>> from quant import observers
>>> observer = observers.min_max()
>>> states = observer.init()
>>> for batch in (jnp.asarray([0.5, 1.0]), jnp.asarray([-2.0, 0.0])):
...   states = observer.update(states, batch)
>>> low, high = observer.range(states, 8)
>>> float(low), float(high)
(-2.0, 1.0)
"""

from quant.observers.base import Batches, Observer
from quant.observers.ema import ema
from quant.observers.min_max import min_max
from quant.observers.mse import mse
from quant.observers.percentile import percentile

__all__ = ["Batches", "Observer", "ema", "min_max", "mse", "percentile"]
