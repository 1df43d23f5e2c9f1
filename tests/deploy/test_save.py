"""A net to a file in one call: float, quantized, of every format; what the runtime gives is what the net gives."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import quant
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.engine import models


class Net(nn.Module):
  """A convolution with a batch norm, and a dense layer."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(not train)(nn.Conv(4, (3, 3))(x)))
    return nn.Dense(3)(x.mean((1, 2)))


PIXELS = np.random.default_rng(0).integers(0, 256, (16, 6, 6, 2), np.uint8)
IMAGES = PIXELS.astype(np.float32) / 255
HOW = deploy.Preprocessing(scale=1 / 255, mean=(0.0,), std=(1.0,))


@pytest.fixture(scope="module")
def nets():
  module = Net()
  variables = jax.jit(module.init)(jax.random.key(0), IMAGES[:1])
  net = models.net(module, variables, IMAGES[:1])
  rounded = quant.post_training(graph.fold_batch_norms(net), [IMAGES], "w8a8")
  return {"float": net, "rounded": rounded}, {
    "float": np.asarray(module.apply(variables, IMAGES)),
    "rounded": np.asarray(jax.jit(rounded.infer)(rounded.variables, IMAGES)),
  }


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", ["float", "rounded"])
@pytest.mark.parametrize("suffix", [".tflite", ".onnx", ".stablehlo"])
def test_the_file_gives_what_the_net_gives(nets, tmp_path, kind, suffix):
  given, wanted = nets[0][kind], nets[1][kind]
  path = tmp_path / f"net{suffix}"
  ends = {} if suffix == ".stablehlo" or kind == "float" else {"outputs": "float32", "inputs": "float32"}
  assert deploy.save(given, path, **ends) == path.stat().st_size
  np.testing.assert_allclose(deploy.open_file(path).run(IMAGES), wanted, atol=2e-6)


def test_a_file_of_pixels_knows_their_preparation_and_says_what_it_is(nets, tmp_path):
  path = tmp_path / "net.tflite"
  about = deploy.Description(("a", "b", "c"), "MIT", {"stage": "float"})
  deploy.save(nets[0]["float"], path, preprocessing=HOW, description=about, inputs="uint8")
  runner = deploy.open_file(path)
  assert runner.input.dtype == "uint8" and runner.description == about
  np.testing.assert_allclose(runner.run(PIXELS), nets[1]["float"], atol=2e-6)


def test_an_option_of_the_format_is_taken(nets, tmp_path):
  whole = deploy.save(nets[0]["float"], tmp_path / "a.tflite")
  assert deploy.save(nets[0]["float"], tmp_path / "b.tflite", weights="float16") < whole


@pytest.mark.parametrize(
  ("name", "keywords", "sentence"),
  [
    ("net.bin", {}, "'.*net.bin' has the suffix of no file format"),
    (
      "net.tflite",
      {"weight": "float16"},
      "unknown option of the file format '.tflite': 'weight'; did you",
    ),
    ("net.stablehlo", {"inputs": "uint8"}, "'.*net.stablehlo': a .stablehlo file has the net's own inputs and outputs"),
    ("net.tflite", {"inputs": "uint8"}, "the network has no preprocessing"),
  ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(nets, tmp_path, name, keywords, sentence):
  with pytest.raises(UserError, match=sentence):
    deploy.save(nets[0]["float"], tmp_path / name, **keywords)
  assert not list(tmp_path.iterdir())


def test_what_is_no_net_is_refused(tmp_path):
  with pytest.raises(UserError, match="a Net is no net; expected one of engine.models.net"):
    deploy.save(Net(), tmp_path / "net.tflite")  # pyrefly: ignore[bad-argument-type]


def test_random_numbers_of_a_key_in_the_model_are_constants(tmp_path):
  """They are the same in every call, so a file may hold them."""

  def noisy(v, x):
    return x @ v["w"] + jax.random.normal(jax.random.key(0), (2,))

  net = graph.net(noisy, {"w": np.eye(2, dtype=np.float32)}, np.ones((1, 2), np.float32))
  deploy.save(net, tmp_path / "net.tflite")
  x = np.ones((3, 2), np.float32)
  np.testing.assert_allclose(deploy.open_file(tmp_path / "net.tflite").run(x), net.infer(net.variables, x), atol=1e-6)


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ((PIXELS,), "does not say what it makes of pixels, and was given uint8; expected floats"),
    ((IMAGES, IMAGES), "takes its inputs as one dict by name, or one tuple; got another argument"),
    ((None,), r"was given a single object for a batch; expected an array \(N, ...\)"),
    ((IMAGES[:, :4],), r"takes inputs of \(N, 6, 6, 2\), not \(16, 4, 6, 2\)"),
  ],
)
def test_inputs_that_a_file_does_not_take_are_refused(nets, tmp_path, given, said):
  deploy.save(nets[0]["float"], tmp_path / "net.tflite")
  with pytest.raises(UserError, match=said):
    deploy.open_file(tmp_path / "net.tflite").run(*given)


@pytest.mark.parametrize("numbers", [{"std": (0.0,)}, {"std": (-1.0,)}, {"scale": 0.0}, {"mean": (np.nan,)}])
def test_a_preprocessing_that_makes_no_inputs_is_refused(nets, tmp_path, numbers):
  with pytest.raises(UserError, match="makes no inputs of pixels; expected finite numbers, std above 0"):
    deploy.save(nets[0]["float"], tmp_path / "net.tflite", preprocessing=deploy.Preprocessing(**numbers))
  assert not list(tmp_path.iterdir())
