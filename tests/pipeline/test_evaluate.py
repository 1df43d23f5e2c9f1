"""Models of a run are found again from its directory."""

import itertools
import types

import jax
import numpy as np
import pytest
from PIL import Image

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import ir
from leanax.pipeline import build, evaluate, workdir
from tests.integration import jobs


def test_the_config_of_a_run_is_read_as_it_was(tmp_path):
  config = jobs.experiment()
  workdir.claim(tmp_path, config)
  again = workdir.saved(tmp_path)
  assert again == config
  assert workdir.fingerprint(again) == workdir.fingerprint(config)


def test_the_last_finished_stage_is_found(tmp_path):
  workdir.claim(tmp_path, jobs.experiment())
  with pytest.raises(UserError, match="holds no finished stage"):
    evaluate.find_model(tmp_path)
  with pytest.raises(UserError, match="holds no finished stage"):
    evaluate.evaluate(tmp_path)
  (tmp_path / "models").mkdir()
  for name in ("distilled", "teacher", "other"):
    (tmp_path / "models" / f"{name}.safetensors").touch()
  assert evaluate.find_model(tmp_path) == ("distilled", tmp_path / "models" / "distilled.safetensors")
  assert evaluate.find_model(tmp_path, "teacher")[0] == "teacher"
  with pytest.raises(UserError, match="unknown finished stage 'int8'; expected one of distilled, teacher"):
    evaluate.find_model(tmp_path, "int8")


def test_a_directory_without_a_run_is_refused(tmp_path):
  with pytest.raises(UserError, match=r"holds no run: there is no config.json in it"):
    workdir.saved(tmp_path)
  (tmp_path / "config.json").write_text("[")
  with pytest.raises(UserError, match="holds no JSON object; was it changed by hand"):
    workdir.saved(tmp_path)


SPEC = {"preprocess": {"scale": 1 / 255, "mean": (0.6,), "std": (0.25,)}}


@pytest.fixture(scope="module")
def own(tmp_path_factory):
  """A run's directory, its test split, a kernel by whose logits pixels have to be prepared, and the accuracy then."""
  folder = tmp_path_factory.mktemp("own")
  config = jobs.experiment(**SPEC)
  workdir.claim(folder, config)
  test = build.dataset(config).test
  kernel = np.random.default_rng(3).normal(size=(36, 4)).astype(np.float32)
  inputs = (test.images.reshape(len(test.images), 36) / 255 - 0.6) / 0.25
  right, raw = ((x @ kernel).argmax(-1) for x in (inputs, test.images.reshape(inputs.shape)))
  assert np.mean(right != raw) > 0.2  # what raw pixels give is something else
  return folder, test, kernel, float(np.mean(right == test.labels))


def file_of(path, kernel, preprocessing, outputs=4):
  example = jax.ShapeDtypeStruct((1, 6, 6, 1), "float32")
  fn = lambda kernel, x: x.reshape(x.shape[0], -1) @ kernel
  network = deploy.lift(fn, kernel[:, :outputs], example, preprocessing=preprocessing)
  path.write_bytes(deploy.litert().write(network))
  return str(path)


@pytest.mark.parametrize("known", ["by the file", "by the config"])
def test_pixels_are_prepared_as_the_file_says_or_else_the_config(own, tmp_path, known):
  folder, _, kernel, accuracy = own
  spec = deploy.Preprocessing((0.6,), (0.25,)) if known == "by the file" else None
  path = file_of(tmp_path / "net.tflite", kernel, spec)
  assert evaluate.evaluate(folder, path) == [(path, accuracy, 64)]
  other = jobs.experiment(preprocess__mean=(0.1,))  # what the file says comes first
  workdir.claim(tmp_path / "run", other)
  assert (evaluate.evaluate(tmp_path / "run", path)[0][1] == accuracy) == (spec is not None)


def test_files_of_no_run(own, tmp_path):
  folder, test, kernel, _ = own
  path = file_of(tmp_path / "net.tflite", kernel, None)
  with pytest.raises(UserError, match="--data, or the --workdir of a run is missing"):
    evaluate.evaluate(model=path)
  with pytest.raises(UserError, match="--workdir, or --model and --data is missing"):
    evaluate.evaluate()
  with pytest.raises(UserError, match="does not say how pixels become its input; expected a --workdir whose config"):
    evaluate.of_file(deploy.open_file(path), test, None)
  with pytest.raises(UserError, match=r"takes inputs of \(N, 6, 6, 1\), not \(\d+, 8, 8, 1\)"):
    evaluate.evaluate(folder, path, data="digits")
  few = file_of(tmp_path / "few.tflite", kernel, None, outputs=3)
  with pytest.raises(
    UserError, match=r"gives outputs of shape \(3,\) for one image; expected \(4,\), one for each class"
  ):
    evaluate.evaluate(folder, few)


@pytest.mark.parametrize("way", ["crop", "pad", ""])
def test_a_folder_is_prepared_as_the_file_says(tmp_path, monkeypatch, way):
  """Pictures of many sizes, of one run and of a file alone; the class is read off the mean of the prepared pixels."""
  monkeypatch.setenv("LEANAX_CACHE_DIR", str(tmp_path / "cache"))
  rng = np.random.default_rng(0)
  for split, name in itertools.product(("train", "test"), ("a", "b")):
    (tmp_path / "set" / split / name).mkdir(parents=True)
    for number in range(6):
      pixels = rng.integers(0, 256, (7 + number, 20 - number, 3), np.uint8)
      Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{number}.png")
  data, kernel = f"folder:{tmp_path / 'set'}", rng.normal(size=(8 * 6 * 3, 2)).astype(np.float32)
  spec = deploy.Preprocessing((0.5,), (0.25,), resize=way)
  network = deploy.lift(
    lambda v, x: x.reshape(x.shape[0], -1) @ v, kernel, jax.ShapeDtypeStruct((1, 8, 6, 3), "float32"), None, spec
  )
  path = tmp_path / "net.tflite"
  path.write_bytes(deploy.litert().write(network))
  if not way:
    with pytest.raises(UserError, match=r"images differ in size .*give data\.size=\(height, width\)"):
      evaluate.evaluate(model=str(path), data=data)
    return
  seen = []
  run = type(deploy.open_file(path)).run
  monkeypatch.setattr(type(deploy.open_file(path)), "run", lambda self, x, *a: seen.append(x) or run(self, x, *a))
  assert evaluate.evaluate(model=str(path), data=data)[0][2] == 12
  config = jobs.experiment(data={"name": data, "size": (8, 6), "resize": way})
  np.testing.assert_array_equal(seen[0], build.dataset(config).test.images)
  assert build.preprocess(config)["resize"] == way and "resize" not in build.preprocess(jobs.experiment())
  with pytest.raises(UserError, match=r"'data\.size' and 'data\.kwargs\.size' are both set"):
    build.dataset(jobs.experiment(data={"name": data, "size": (8, 6), "kwargs": {"size": (8, 6)}}))
  kwargs = jobs.experiment(data={"name": data, "kwargs": {"size": (8, 6), "resize": way}})
  np.testing.assert_array_equal(seen[0], build.dataset(kwargs).test.images)
  assert build.preprocess(kwargs) == build.preprocess(config)


def test_a_file_of_pixels_gets_pixels(own):
  """A uint8 input without a grid is pixels; one with a grid is a number like any other."""
  _, test, kernel, accuracy = own
  given = []

  def file(grid):
    def run(x):
      given.append(x)
      return (x.reshape(len(x), 36) / 255 - 0.6) / 0.25 @ kernel

    source = ir.Tensor("", (None, 6, 6, 1), "uint8", grid)
    return types.SimpleNamespace(name="pixels", input=source, preprocessing=None, run=run)

  logits = evaluate.of_file(file(None), test, None)
  assert np.mean(logits.argmax(-1) == test.labels) == accuracy and given[0].dtype == np.uint8
  with pytest.raises(UserError, match="does not say how pixels become its input"):
    evaluate.of_file(file(ir.grid(np.float32(1 / 255))), test, None)


def test_a_file_of_other_classes_or_of_no_model_is_refused(own, tmp_path):
  folder, test, kernel, accuracy = own
  fn = lambda kernel, x: x.reshape(x.shape[0], -1) @ kernel
  network = deploy.lift(fn, kernel, jax.ShapeDtypeStruct((1, 6, 6, 1), "float32"))
  path = tmp_path / "net.tflite"
  for classes in (test.classes, ("cat", *test.classes[1:])):
    path.write_bytes(deploy.litert().write(network._replace(description=deploy.Description(tuple(classes)))))
    if classes is test.classes:
      assert evaluate.evaluate(folder, str(path))[0][1] == accuracy
  with pytest.raises(
    UserError, match=f"is of other classes than .*class 0 is 'cat' there and {test.classes[0]!r} here"
  ):
    evaluate.evaluate(folder, str(path))
  (tmp_path / "notes.md").write_text("words")
  with pytest.raises(UserError, match=r"has the suffix of no model's file; expected one of \.onnx, \.packed, \.safet"):
    evaluate.evaluate(folder, str(tmp_path / "notes.md"))


def test_threads_that_no_runtime_can_start_are_refused(own, tmp_path):
  path = file_of(tmp_path / "net.tflite", own[2], None)
  for threads in (0, 100_000, 2.0):
    with pytest.raises(UserError, match=f"{threads!r} threads; expected 1 to "):
      deploy.open_file(path, threads=threads)
