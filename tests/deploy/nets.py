"""Random networks in the layer IR, made without any of the code they test."""

import numpy as np

from leanax.deploy import ir


class Maker:
  """Appends layers with random constants; an int8 one gives each tensor a grid that its values roughly fill."""

  def __init__(self, seed: int, shape: tuple, quantized: bool) -> None:
    self.rng = np.random.default_rng(seed)
    self.quantized = quantized
    self.layers, self.tensors = [], {}
    self.last = self.input = self.activation("input", shape)

  def activation(self, name, shape, like=None, spread=1.0, relu=False):
    grid = {}
    if self.quantized:
      scale = np.float32(spread * self.rng.uniform(0.7, 1.3) / 40)
      zero = int(self.rng.choice([-128, -90])) if relu else int(self.rng.integers(-30, 31))
      grid = {"dtype": "int8", "grid": ir.grid(scale, zero)}
      if like is not None:
        grid = {k: getattr(self.tensors[like], k) for k in ("dtype", "grid")}
    self.tensors[name] = ir.Tensor(name, (None, *shape), **grid)
    return name

  def shape(self, name=None):
    return self.tensors[name or self.last].shape[1:]

  def constants(self, name, shape, fan, bias, source):
    w = self.rng.normal(size=shape) / np.sqrt(fan)
    b = self.rng.normal(size=shape[-1]) * 0.3
    kernel, offset = f"{name}/kernel", f"{name}/bias"
    if self.quantized:
      s = (np.abs(w).reshape(-1, shape[-1]).max(0) / 127).astype(np.float32)
      codes = np.clip(np.rint(w / s), -127, 127).astype(np.int8)
      self.tensors[kernel] = ir.Tensor(kernel, shape, "int8", ir.grid(s, axis=len(shape) - 1), codes)
      both = self.tensors[source].scale * s
      data = np.rint(b / both).astype(np.int32)
      self.tensors[offset] = ir.Tensor(offset, data.shape, "int32", ir.grid(both, bits=32, axis=0), data)
    else:
      self.tensors[kernel] = ir.Tensor(kernel, shape, data=w.astype(np.float32))
      self.tensors[offset] = ir.Tensor(offset, b.shape, data=b.astype(np.float32))
    if not bias:
      del self.tensors[offset]
    return kernel, offset if bias else None

  def push(self, layer):
    self.layers.append(layer)
    self.last = layer.output
    return layer.output

  def dense(self, width, relu=False, bias=True):
    name, source = f"dense{len(self.layers)}", self.last
    held = self.constants(name, (self.shape()[0], width), self.shape()[0], bias, source)
    out = self.activation(f"{name}:out", (width,), relu=relu)
    return self.push(ir.Dense(name, (source,), out, *held, relu=relu))

  def conv(
    self, width, window=(3, 3), strides=(1, 1), padding="SAME", dilation=(1, 1), groups=1, relu=False, bias=True
  ):
    name, source = f"conv{len(self.layers)}", self.last
    height, wide, depth = self.shape()
    if padding == "SAME":
      padding = tuple(ir.same_padding(*a) for a in zip((height, wide), window, strides, dilation))
    shape = (*window, depth // groups, width)
    held = self.constants(name, shape, np.prod(shape[:3]), bias, source)
    size = tuple(ir.window_out(*a) for a in zip((height, wide), window, strides, padding, dilation))
    out = self.activation(f"{name}:out", (*size, width), relu=relu)
    return self.push(ir.Conv2D(name, (source,), out, *held, strides, padding, dilation, groups, relu))

  def pool(self, kind, window=(2, 2), strides=(2, 2), padding=((0, 0), (0, 0))):
    name, source = f"pool{len(self.layers)}", self.last
    height, wide, depth = self.shape()
    size = tuple(ir.window_out(*a) for a in zip((height, wide), window, strides, padding))
    like = source if kind is ir.MaxPool else None
    out = self.activation(f"{name}:out", (*size, depth), like=like, spread=0.5)
    return self.push(kind(name, (source,), out, window, strides, padding))

  def mean(self, keep_dims=False):
    name, source = f"mean{len(self.layers)}", self.last
    depth = self.shape()[-1]
    out = self.activation(f"{name}:out", (1, 1, depth) if keep_dims else (depth,), spread=0.4)
    return self.push(ir.Mean(name, (source,), out, keep_dims))

  def flatten(self):
    name, source = f"flat{len(self.layers)}", self.last
    out = self.activation(f"{name}:out", (int(np.prod(self.shape())),), like=source)
    return self.push(ir.Reshape(name, (source,), out))

  def relu(self):
    name, source = f"relu{len(self.layers)}", self.last
    out = self.activation(f"{name}:out", self.shape(), relu=True)
    return self.push(ir.Relu(name, (source,), out))

  def add(self, other, relu=False):
    name, source = f"add{len(self.layers)}", self.last
    out = self.activation(f"{name}:out", self.shape(), spread=1.5, relu=relu)
    return self.push(ir.Add(name, (source, other), out, relu))

  def network(self, preprocessing=None):
    ends = {"input": self.input}, {"output": self.last}
    return ir.check(ir.Network(tuple(self.layers), self.tensors, *ends, preprocessing))

  def images(self, count):
    shape = (count, *self.shape(self.input))
    if self.quantized:
      return self.rng.integers(-128, 128, shape).astype(np.int8)
    return self.rng.normal(size=shape).astype(np.float32)


def mlp(seed, widths=(20, 16, 12, 5), quantized=True):
  """A dense stack with ReLUs, biases now and then left out."""
  maker = Maker(seed, (widths[0],), quantized)
  for position, width in enumerate(widths[1:]):
    maker.dense(width, relu=position < len(widths) - 2, bias=maker.rng.random() < 0.8)
  return maker


def lenet(seed, quantized=True, size=12):
  """Convolution, pool, convolution, pool, dense, dense."""
  maker = Maker(seed, (size, size, 1), quantized)
  maker.conv(6, (3, 3), relu=True)
  maker.pool(ir.MaxPool)
  maker.conv(8, (3, 3), padding=((0, 0), (0, 0)), relu=True)
  maker.pool(ir.MaxPool)
  maker.flatten()
  maker.dense(16, relu=True)
  maker.dense(10)
  return maker


def resnet(seed, quantized=True, size=12):
  """A small residual network: strided, padded and depthwise convolutions, pools, adds, a mean."""
  maker = Maker(seed, (size, size, 3), quantized)
  maker.conv(8, (5, 5), (2, 2), ((2, 2), (2, 2)), relu=True)
  skip = maker.last
  maker.conv(8, relu=True)
  maker.conv(8)
  maker.add(skip, relu=True)
  maker.pool(ir.MaxPool, (3, 3), (2, 2), ((1, 1), (1, 1)))
  maker.conv(8, groups=8, relu=True)
  maker.conv(16, (1, 1), padding=((0, 0), (0, 0)))
  maker.pool(ir.AvgPool)
  maker.mean()
  maker.dense(10)
  return maker
