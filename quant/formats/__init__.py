"""Number formats: the levels of a grid and their codes, one per file.

>>> import jax.numpy as jnp
>>> import quant
>>> quant.symmetric(jnp.float32(1.0), bits=3, format="power_of_two").levels
(-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0)
"""

from quant.formats.base import Format
from quant.formats.fp8_e4m3 import fp8_e4m3
from quant.formats.integer import integer
from quant.formats.power_of_two import power_of_two

__all__ = ["Format", "fp8_e4m3", "integer", "power_of_two"]
