"""Estimators: how rounding to a grid is trained, one a file.

estimator = quant.lsq()
y = estimator(x, grid)                    # x on the grid, with the gradients of LSQ for x and the grid's scale
"""

from quant.estimators.base import Estimator, Placed, Statistics
from quant.estimators.lsq import lsq
from quant.estimators.ste import ste
from quant.estimators.tqt import tqt

__all__ = ["Estimator", "Placed", "Statistics", "lsq", "ste", "tqt"]
