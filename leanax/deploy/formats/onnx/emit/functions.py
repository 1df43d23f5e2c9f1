"""Functions of each number, softmax, as ONNX nodes; what opset 13 lacks is composed of what it has."""

import math
from collections.abc import Callable

import numpy as np

from leanax.core.errors import unknown
from leanax.deploy import ir
from leanax.deploy.formats.onnx.emit.nodes import Plan, axis_in

Numbers = tuple[float, ...]
FIELDS = {"HardSigmoid": {"alpha": 1 / 6, "beta": 0.5}}  # attributes of nodes that have others by default


def _node(plan: Plan, op: str, *inputs: str) -> str:
  return plan.node(op, *inputs, **FIELDS.get(op, {}))


def _plain(op: str) -> Callable[..., tuple]:
  return lambda plan, x, numbers: (op, x)


def _number(plan: Plan, value: float) -> str:
  return plan.constant(value, np.float32)


def _clip(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  limits = [_number(plan, value) if np.isfinite(value) else "" for value in numbers]
  return ("Clip", x, *limits)


def _limits(*numbers: float) -> Callable[..., tuple]:
  return lambda plan, x, _: _clip(plan, x, numbers)


def _by_gate(gate: Callable[..., tuple]) -> Callable[..., tuple]:
  """Returns x times a function of x."""
  return lambda plan, x, numbers: ("Mul", x, _node(plan, *gate(plan, x, numbers)))


def _gelu(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  del numbers  # in the form that onnxruntime replaces by one node
  erf = plan.node("Erf", plan.node("Div", x, _number(plan, math.sqrt(2))))
  return "Mul", plan.node("Mul", x, plan.node("Add", erf, _number(plan, 1.0))), _number(plan, 0.5)


def _gelu_tanh(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  del numbers
  cube = plan.node("Mul", plan.node("Mul", x, x), x)
  bent = plan.node("Add", x, plan.node("Mul", cube, _number(plan, 0.044715)))
  tanh = plan.node("Tanh", plan.node("Mul", bent, _number(plan, math.sqrt(2 / math.pi))))
  return "Mul", plan.node("Mul", x, _number(plan, 0.5)), plan.node("Add", tanh, _number(plan, 1.0))


def _rsqrt(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  del numbers
  return "Reciprocal", plan.node("Sqrt", x)


def _log1p(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  del numbers
  return "Log", plan.node("Add", x, _number(plan, 1.0))


def _expm1(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  del numbers
  return "Sub", plan.node("Exp", x), _number(plan, 1.0)


def _log_sigmoid(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  del numbers
  return "Neg", plan.node("Softplus", plan.node("Neg", x))


def _tanh_softplus(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  del numbers
  return "Tanh", plan.node("Softplus", x)


def _power(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  return "Pow", x, _number(plan, numbers[0])


def _square(plan: Plan, x: str, numbers: Numbers) -> tuple[str, ...]:
  del plan, numbers
  return "Mul", x, x


FUNCTIONS: dict[str, Callable[..., tuple]] = {  # to the last node: its operator and inputs
  "relu": _plain("Relu"),
  "relu6": _limits(0.0, 6.0),
  "relu_n1": _limits(-1.0, 1.0),
  "clip": _clip,
  "hard_sigmoid": _plain("HardSigmoid"),
  "hard_swish": _by_gate(_plain("HardSigmoid")),
  "sigmoid": _plain("Sigmoid"),
  "silu": _by_gate(_plain("Sigmoid")),
  "gelu": _gelu,
  "gelu_tanh": _gelu_tanh,
  "rsqrt": _rsqrt,
  "log1p": _log1p,
  "expm1": _expm1,
  "log_sigmoid": _log_sigmoid,
  "mish": _by_gate(_tanh_softplus),
  "soft_sign": _plain("Softsign"),
  "power": _power,
  "square": _square,
  **{
    name: _plain(name.capitalize())
    for name in ("abs", "ceil", "cos", "erf", "exp", "floor", "log", "neg", "reciprocal", "round", "sign", "sin")
  },
  **{name: _plain(name.capitalize()) for name in ("selu", "softplus", "sqrt", "tanh")},
}
SLOPED = {"leaky_relu": "LeakyRelu", "elu": "Elu", "celu": "Celu"}  # their parameter is ONNX's alpha


def _activation(plan: Plan, layer: ir.Activation) -> None:
  first = plan.first(*layer.inputs)
  x = plan.real(layer.inputs[0], first)
  if layer.function in SLOPED:
    alpha = {"alpha": float(layer.parameters[0])} if layer.parameters else {}
    plan.result(layer, SLOPED[layer.function], x, first=first, **alpha)
    return
  if layer.function not in FUNCTIONS:
    raise unknown(f"function of layer {layer.name!r}:", layer.function, [*FUNCTIONS, *SLOPED])
  op, *inputs = FUNCTIONS[layer.function](plan, x, layer.parameters)
  plan.result(layer, op, *inputs, first=first, **FIELDS.get(op, {}))


def _softmax(plan: Plan, layer: ir.Softmax) -> None:
  first = plan.first(*layer.inputs)
  x, rank = plan.real(layer.inputs[0], first), len(plan.tensors[layer.inputs[0]].shape)
  plan.result(layer, "LogSoftmax" if layer.log else "Softmax", x, first=first, axis=axis_in(layer.axis, rank, first))


TABLE = {ir.Activation: _activation, ir.Softmax: _softmax}
