"""Files that torch writes, read without it, and its networks in Flax: the same outputs. Run by check_peers.sh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn

from leanax.engine.store import weight_files
from leanax.engine.store.pretrained import load

pytestmark = pytest.mark.peers

WAYS = [
  pytest.param({"pickle_protocol": protocol, "_use_new_zipfile_serialization": new}, id=f"{protocol}{new}")
  for protocol in (2, 3, 4, 5)
  for new in (True, False)
]
DTYPES = [
  *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32),
  *(torch.uint64, torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
  *(torch.float8_e4m3fn, torch.float8_e5m2),
]


def as_numpy(tensor):
  tensor = tensor.detach()
  small = tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
  return (tensor.float() if small else tensor).numpy()


def same(found, wanted, name=""):
  wanted = as_numpy(wanted)
  assert found.shape == wanted.shape
  np.testing.assert_array_equal(found.astype(wanted.dtype), wanted, err_msg=name)


@pytest.mark.parametrize("way", WAYS)
def test_dtypes_and_views(tmp_path, way):
  base = torch.arange(24.0).reshape(2, 3, 4)
  given = {str(dtype): (torch.arange(7) % 3).to(dtype) for dtype in DTYPES}
  given |= {"base": base, "moved": base.permute(2, 0, 1), "part": base[:, 1:, ::2], "empty": torch.zeros(0, 3)}
  given |= {"spread": torch.ones(1).expand(3, 2), "number": torch.tensor(3.5), "a parameter": torch.nn.Parameter(base)}
  torch.save(given, tmp_path / "w.pth", **way)
  found = weight_files.read(tmp_path / "w.pth")
  assert set(found) == set(given)
  for name, tensor in given.items():
    same(found[name], tensor, name)


class Theirs(torch.nn.Module):
  def __init__(self):
    super().__init__()
    self.stem = torch.nn.Sequential(
      torch.nn.Conv2d(4, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, groups=2)
    )
    self.up = torch.nn.ConvTranspose2d(4, 4, 4, stride=2)
    self.layers = torch.nn.ModuleList([torch.nn.Linear(4 * 8 * 6, 5), torch.nn.Linear(5, 5)])
    self.norm = torch.nn.LayerNorm(5)
    self.register_buffer("passing", torch.ones(2), persistent=False)

  def forward(self, x):
    x = torch.relu(self.up(self.stem(x)))
    return self.layers[1](self.norm(self.layers[0](x.flatten(1))))


class Ours(nn.Module):
  """The same, with torch's names."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(4, (3, 3), (2, 2), padding="VALID", name="stem_0")(x)
    x = nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-5, name="stem_1")(x))
    x = nn.Conv(4, (3, 3), padding="VALID", feature_group_count=2, name="stem_3")(x)
    x = nn.relu(nn.ConvTranspose(4, (4, 4), (2, 2), padding="VALID", name="up")(x))
    x = nn.Dense(5, name="layers_0")(x.reshape(len(x), -1))
    return nn.Dense(5, name="layers_1")(nn.LayerNorm(epsilon=1e-5, name="norm")(x))


SAVED = {
  "state dict": lambda net, optimizer: net.state_dict(),
  "checkpoint": lambda net, optimizer: {
    "epoch": 3,
    "model_state_dict": net.state_dict(),
    "optimizer_state_dict": optimizer.state_dict(),
    "loss": torch.tensor(0.5),
    "history": np.arange(5.0),
    "best": np.float64(0.25),
  },
  "module": lambda net, optimizer: net,
  "parallel": lambda net, optimizer: torch.nn.DataParallel(net).state_dict(),
}


@pytest.mark.parametrize("kind", SAVED)
@pytest.mark.parametrize("way", [WAYS[0], WAYS[1]])
def test_a_network_of_torch_in_flax(tmp_path, kind, way):
  torch.manual_seed(0)
  net = Theirs()
  optimizer = torch.optim.Adam(net.parameters(), 0.01)
  for _ in range(3):  # running statistics and moments that are not their first
    net(torch.randn(4, 4, 11, 9)).square().sum().backward()
    optimizer.step()
  torch.save(SAVED[kind](net, optimizer), tmp_path / "w.pth", **way)
  x = np.random.default_rng(0).normal(size=(2, 11, 9, 4)).astype(np.float32)
  target = jax.eval_shape(Ours().init, jax.random.key(0), x)
  variables = load(tmp_path / "w.pth", target, call=(Ours().apply, jax.ShapeDtypeStruct(x.shape, jnp.float32)))
  with torch.no_grad():
    wanted = net.eval()(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
  np.testing.assert_allclose(Ours().apply(variables, x), wanted, rtol=1e-4, atol=1e-5)
