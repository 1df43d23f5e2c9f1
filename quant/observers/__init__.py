"""Observers: the range of a tensor's grid, from statistics of calibration data; one a file."""

from quant.observers.base import Batches, Observer
from quant.observers.ema import ema
from quant.observers.min_max import min_max
from quant.observers.percentile import percentile

__all__ = ["Batches", "Observer", "ema", "min_max", "percentile"]
