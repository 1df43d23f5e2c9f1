"""Observers: what gathers a tensor's range while data flow through the float model, one a file."""

from quant.observers.base import Observer, Range
from quant.observers.ema import ema
from quant.observers.min_max import min_max
from quant.observers.percentile import percentile

__all__ = ["Observer", "Range", "ema", "min_max", "percentile"]
