"""Functions of one number by name: the one table that lifting compares with and that the reference computes by."""

import math
from collections.abc import Callable

import numpy as np

_SELU = (1.0507009873554804934193349852946, 1.6732632423543772848170429916717)  # arXiv:1706.02515
_erf = np.vectorize(math.erf, otypes=[np.float64])
_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def _sigmoid(x: np.ndarray) -> np.ndarray:
  return np.exp(-np.logaddexp(0, -x))


def _elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
  return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _celu(x: np.ndarray, alpha: float) -> np.ndarray:
  return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / alpha))


def _gelu_tanh(x: np.ndarray) -> np.ndarray:
  return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


_TABLE: dict[str, Callable[..., np.ndarray]] = {
  "relu": lambda x: np.maximum(x, 0),
  "relu6": lambda x: np.clip(x, 0, 6),
  "abs": np.abs,
  "sign": np.sign,
  "floor": np.floor,
  "ceil": np.ceil,
  "round": np.rint,  # half to even
  "neg": np.negative,
  "square": np.square,
  "sqrt": np.sqrt,
  "rsqrt": lambda x: 1 / np.sqrt(x),
  "reciprocal": lambda x: 1 / x,
  "exp": np.exp,
  "expm1": np.expm1,
  "log": np.log,
  "log1p": np.log1p,
  "sin": np.sin,
  "cos": np.cos,
  "tanh": np.tanh,
  "sigmoid": _sigmoid,
  "log_sigmoid": lambda x: -np.logaddexp(0, -x),
  "silu": lambda x: x * _sigmoid(x),
  "gelu": lambda x: 0.5 * x * _erfc(-x / math.sqrt(2)),
  "gelu_tanh": _gelu_tanh,
  "erf": _erf,
  "softplus": lambda x: np.logaddexp(0, x),
  "mish": lambda x: x * np.tanh(np.logaddexp(0, x)),
  "soft_sign": lambda x: x / (1 + np.abs(x)),
  "hard_sigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
  "hard_swish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
  "selu": lambda x: _SELU[0] * _elu(x, _SELU[1]),
  "clip": np.clip,
  "leaky_relu": lambda x, slope: np.where(x >= 0, x, slope * x),
  "elu": _elu,
  "celu": _celu,
  "power": np.power,
}

# Name to function of an array of floats and the parameters: two limits of clip, the slope of leaky_relu, alpha of elu
# and celu, the exponent of power. It computes in the array's type and gives NaN and infinity without a warning.
FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
  name: np.errstate(all="ignore")(function) for name, function in _TABLE.items()
}

# Those that have numbers for positive x alone (and for 0, some of them).
POSITIVE = frozenset(("log", "sqrt", "rsqrt", "power", "log1p", "reciprocal"))
