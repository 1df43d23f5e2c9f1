"""Quantization: number grids, gradient estimators, observers, and training and calibration on top of the traced model."""

from quant import observers
from quant.grid import Grid, affine, codes, dequantize, fake_quant, limits, symmetric
from quant.lsq import lsq

__all__ = ["Grid", "affine", "codes", "dequantize", "fake_quant", "limits", "lsq", "observers", "symmetric"]
