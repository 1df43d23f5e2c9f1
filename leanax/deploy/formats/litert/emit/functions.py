"""Functions of single numbers and of rows as LiteRT operators, several of them where there is no operator."""

from collections.abc import Callable
from typing import Any

import numpy as np

from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.deploy.formats.litert.emit.operators import Plan, Written, keep
from leanax.deploy.formats.litert.limits import int8_kernel


class Steps:
  """The operators of one layer, each a step that reads steps before it; the last one makes the layer's output.

  Attributes:
    source: name of the layer's first input.
  """

  def __init__(self, plan: Plan, layer: ir.Layer, tensors: dict[str, ir.Tensor]) -> None:
    self._plan, self._layer, self._given = plan, layer, tensors[layer.inputs[0]]
    self._count = 0
    self.source = layer.inputs[0]

  def step(
    self, code: str, *inputs: str, options: str | None = None, like: ir.Tensor | None = None, **fields: Any
  ) -> str:
    """Adds an operator; returns the name of what it makes, of the shape and grid of the input or of `like`."""
    self._count += 1
    made = (like or self._given)._replace(name=f"{self._layer.name}:step{self._count}")
    self._plan.operators.append(Written(code, inputs, keep(self._plan, made), options, fields))
    return made.name

  def constant(self, value: Any, dtype: str = "float32") -> str:
    """Adds a constant, one number or a vector; returns its name."""
    self._count += 1
    data = np.atleast_1d(np.asarray(value, dtype))
    return keep(self._plan, ir.Tensor(f"{self._layer.name}:constant{self._count}", data.shape, dtype, data=data))

  def value(self, value: float) -> str:
    """Adds a constant beside the input, on its grid if it has one; returns its name."""
    name = self.constant(value)
    if self._given.grid is not None:
      data = ir.quantize(ir.values(self._plan.tensors[name]), self._given)
      self._plan.tensors[name] = self._given._replace(name=name, shape=data.shape, data=data)
    return name

  def end(self) -> None:
    """Makes the last operator's result the layer's output."""
    last = self._plan.operators.pop()
    del self._plan.tensors[last.output]
    self._plan.operators.append(last._replace(output=self._layer.output))

  def add(self, a: str, b: str) -> str:
    return self.step("ADD", a, b, options="AddOptions")

  def mul(self, a: str, b: str) -> str:
    return self.step("MUL", a, b, options="MulOptions")

  def div(self, a: str, b: str) -> str:
    return self.step("DIV", a, b, options="DivOptions")

  def max(self, a: str, b: str) -> str:
    return self.step("MAXIMUM", a, b, options="MaximumMinimumOptions")

  def min(self, a: str, b: str) -> str:
    return self.step("MINIMUM", a, b, options="MaximumMinimumOptions")


def _plain(code: str, options: str | None = None, **fields: Any) -> Callable[..., str]:
  return lambda s, x: s.step(code, x, options=options, **fields)


def _clip(s: Steps, x: str, low: float, high: float) -> str:
  named = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, 1.0): "RELU_0_TO_1"}.get((low, high))
  return s.step(named, x) if named else s.min(s.max(x, s.value(low)), s.value(high))


def _softplus(s: Steps, x: str) -> str:
  """Adds max(x, 0) + log(1 + exp(-|x|)), which never overflows."""
  small = s.step("EXP", s.step("NEG", s.step("ABS", x)))
  return s.add(s.step("RELU", x), s.step("LOG", s.add(small, s.constant(1))))


def _branches(s: Steps, x: str, above: float, below: float, inside: float) -> str:
  """Adds above * max(x, 0) + below * (exp(min(x, 0) * inside) - 1)."""
  negative = s.min(x, s.constant(0))
  negative = s.step("ELU", negative if inside == 1 else s.mul(negative, s.constant(inside)))
  positive = s.step("RELU", x)
  positive = positive if above == 1 else s.mul(positive, s.constant(above))
  return s.add(positive, s.mul(negative, s.constant(below)))


def _power(s: Steps, x: str, exponent: float) -> str:
  if exponent == 3:
    return s.mul(s.step("SQUARE", x), x)
  return s.step("POW", x, s.constant(exponent), options="PowOptions")


_SELU = (1.0507009873554805, 1.0507009873554805 * 1.6732632423543772)  # arXiv:1706.02515

# Function to the steps that compute it: (steps, x, *parameters) to the name of the last one.
_FUNCTIONS: dict[str, Callable[..., str]] = {
  **{name: _plain(name.upper()) for name in ("relu", "relu6", "floor", "ceil", "round", "log", "sin", "tanh")},
  **{name: _plain(name.upper()) for name in ("abs", "sign", "neg", "square", "sqrt", "rsqrt", "exp", "cos")},
  "sigmoid": _plain("LOGISTIC"),
  "hard_swish": _plain("HARD_SWISH"),
  "gelu": _plain("GELU", "GeluOptions"),
  "gelu_tanh": _plain("GELU", "GeluOptions", Approximate=True),
  "leaky_relu": lambda s, x, slope: s.step("LEAKY_RELU", x, options="LeakyReluOptions", Alpha=slope),
  "elu": lambda s, x, alpha: s.step("ELU", x) if alpha == 1 else _branches(s, x, 1, alpha, 1),
  "celu": lambda s, x, alpha: _branches(s, x, 1, alpha, 1 / alpha),
  "selu": lambda s, x: _branches(s, x, *_SELU, 1),
  "clip": _clip,
  "silu": lambda s, x: s.mul(x, s.step("LOGISTIC", x)),
  "hard_sigmoid": lambda s, x: s.mul(s.step("RELU6", s.add(x, s.constant(3))), s.constant(1 / 6)),
  "soft_sign": lambda s, x: s.div(x, s.add(s.step("ABS", x), s.constant(1))),
  "softplus": _softplus,
  "log_sigmoid": lambda s, x: s.step("NEG", _softplus(s, s.step("NEG", x))),
  "mish": lambda s, x: s.mul(x, s.step("TANH", _softplus(s, x))),
  "reciprocal": lambda s, x: s.div(s.constant(1), x),
  "expm1": lambda s, x: s.add(s.step("EXP", x), s.constant(-1)),
  "log1p": lambda s, x: s.step("LOG", s.add(x, s.constant(1))),
  "power": _power,
}


def _activation(plan: Plan, layer: ir.Activation, tensors: dict[str, ir.Tensor]) -> None:
  if layer.function not in _FUNCTIONS:
    raise UserError(f"layer {layer.name!r} is the function {layer.function!r}, which LiteRT lacks")
  _check_integers(layer, layer.function, tensors)
  steps = Steps(plan, layer, tensors)
  _FUNCTIONS[layer.function](steps, steps.source, *layer.parameters)
  steps.end()


def _check_integers(layer: ir.Layer, function: str, tensors: dict[str, ir.Tensor]) -> None:
  if tensors[layer.output].dtype == "int8" and int8_kernel(layer, tensors) is None:
    raise UserError(f"layer {layer.name!r} is the function {function!r}, which LiteRT has not in int8 on these grids")


def _prelu(plan: Plan, layer: ir.Prelu, tensors: dict[str, ir.Tensor]) -> None:
  _check_integers(layer, "prelu", tensors)
  # The runtime wants slopes of one axis less than its input.
  slope = tensors[layer.slope]
  data = ir.values(slope)
  data = data.reshape(*(1 for _ in tensors[layer.output].shape[2:]), data.size)
  held = keep(plan, slope._replace(shape=data.shape, data=data))
  plan.operators.append(Written("PRELU", (layer.inputs[0], held), layer.output))


def _softmax(plan: Plan, layer: ir.Softmax, tensors: dict[str, ir.Tensor]) -> None:
  _check_integers(layer, "log_softmax" if layer.log else "softmax", tensors)
  steps, given, made = Steps(plan, layer, tensors), tensors[layer.inputs[0]], tensors[layer.output]
  if layer.axis in (-1, len(made.shape) - 1):
    _last(steps, steps.source, layer.log, made)
    return steps.end()
  # The runtime's is along the last axis: that axis and the layer's change places, and back again.
  order = list(range(len(made.shape)))
  order[layer.axis], order[-1] = order[-1], order[layer.axis]
  there, turned = steps.constant(order, "int32"), tuple(made.shape[axis] for axis in order)
  x = steps.step("TRANSPOSE", steps.source, there, options="TransposeOptions", like=given._replace(shape=turned))
  x = _last(steps, x, layer.log, made._replace(shape=turned))
  steps.step("TRANSPOSE", x, there, options="TransposeOptions", like=made)
  return steps.end()


def _last(steps: Steps, x: str, log: bool, made: ir.Tensor) -> str:
  if log:
    return steps.step("LOG_SOFTMAX", x, options="LogSoftmaxOptions", like=made)
  return steps.step("SOFTMAX", x, options="SoftmaxOptions", like=made, Beta=1.0)


TABLE = {ir.Activation: _activation, ir.Prelu: _prelu, ir.Softmax: _softmax}
