"""StableHLO files against the models' own functions, bit for bit, in this process and in one without the models."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import quant
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.deploy.formats.stablehlo.writer import METADATA, PROGRAM
from leanax.graph.shapes import structs
from tests.deploy import nets

ROOT = Path(__file__).resolve().parents[2]
STORED = Path(__file__).parent / "stablehlo"


def normal(seed, *shape):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def recurrent(v, x):
  """A scan of 70 turns, which no layer network holds, and a choice that depends on the data."""

  def turn(state, one):
    state = jnp.tanh(one @ v["params"]["in"]["kernel"] + state @ v["params"]["state"]["kernel"])
    return state, state

  last, _ = jax.lax.scan(turn, jnp.zeros((x.shape[0], 5)), jnp.swapaxes(x, 0, 1))
  return jnp.sort(last, axis=-1) @ v["params"]["out"]["kernel"] + v["params"]["out"]["bias"]


def recurrent_net():
  kernels = {"in": (3, 5), "state": (5, 5), "out": (5, 4)}
  params = {name: {"kernel": jnp.asarray(normal(i, *shape))} for i, (name, shape) in enumerate(kernels.items())}
  params["out"]["bias"] = jnp.asarray(normal(7, 4))
  params["spare"] = {"kernel": jnp.ones((100, 100))}  # nothing reads it
  return graph.net(recurrent, {"params": params}, jnp.zeros((1, 70, 3)))


def conv(v, x):
  for name in ("a", "b"):
    x = jax.lax.conv_general_dilated(x, v[name], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    x = jax.nn.relu(x)
  return jax.nn.log_softmax(x.mean((1, 2)) @ v["dense"].astype(x.dtype))


def conv_net():
  shapes = {"a": (3, 3, 2, 4), "b": (3, 3, 4, 4), "dense": (4, 3)}
  variables = {name: jnp.asarray(normal(i, *shape)) for i, (name, shape) in enumerate(shapes.items())}
  variables["dense"] = variables["dense"].astype(jnp.bfloat16)
  return graph.net(conv, variables, jnp.zeros((1, 8, 8, 2)))


def batch(net, seed, size):
  return normal(seed, size, *net.example[0].shape[1:])


@pytest.fixture(scope="module")
def nets_of():
  found = {"recurrent": recurrent_net(), "conv": conv_net()}
  for name, policy in (("recurrent", "w8a8 learned"), ("conv", "w4")):
    found[f"{name} {policy}"] = quant.post_training(found[name], [jnp.asarray(batch(found[name], 3, 4))], policy)
  return found


def same(net, runner, x):
  np.testing.assert_array_equal(runner.run(x), np.asarray(jax.jit(net.infer)(net.variables, jnp.asarray(x))))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["recurrent", "recurrent w8a8 learned", "conv", "conv w4"])
def test_a_file_computes_the_bits_of_the_model(nets_of, name):
  net, made = nets_of[name], deploy.stablehlo()
  content = made.write(deploy.Model(net))
  runner = made.open(content)
  assert [tensor.shape for tensor in (runner.input, runner.output)] == [
    (None, *net.example[0].shape[1:]),
    (None, 4 if "recurrent" in name else 3),
  ]
  for size in (1, 3):
    same(net, runner, batch(net, size, size))
  assert runner.run(batch(net, 0, 0)).shape == (0, *runner.output.shape[1:])
  # Kernels on grids are codes in the file, what nothing reads is not in it, and neither are names of source files.
  held, grids, _ = deploy.unpack(content)
  assert not any("spare" in leaf for leaf in held["params"]) and ".py" not in repr(held[PROGRAM].tobytes())
  kernels = {"recurrent": {"in/kernel", "state/kernel", "out/kernel"}, "conv": {"a", "b", "dense"}}[name.split()[0]]
  assert grids.keys() == (kernels if " " in name else set())


def test_a_file_is_the_same_each_time_and_needs_no_numbers_to_be_checked(nets_of):
  net, made = nets_of["conv"], deploy.stablehlo()
  made.check(deploy.Model(dataclasses.replace(net, variables=structs(net.variables))))
  assert made.write(deploy.Model(net)) == made.write(deploy.Model(net))


def test_formats_say_what_they_take():
  assert deploy.file_format("stablehlo").takes is deploy.Model and deploy.litert().takes is deploy.Network
  with pytest.raises(UserError, match="is written of a deploy.Model"):
    deploy.stablehlo().write(nets.mlp(0).network())


def test_inputs_and_outputs_have_names():
  def fn(v, x, *, scale=2.0):
    return {
      "sum": x["a"] @ v + x["b"].astype(jnp.float32),
      "mean": jnp.mean(scale * x["a"], axis=-1),
      "which": jnp.argmax(x["b"], -1),
    }

  example = {"a": jnp.zeros((1, 3)), "b": jnp.zeros((1, 2), jnp.int32)}
  net = graph.net(fn, jnp.eye(3, 2), example)
  runner = deploy.stablehlo().open(deploy.stablehlo().write(deploy.Model(net)))
  assert list(runner.inputs) == ["a", "b"] and list(runner.outputs) == ["mean", "sum", "which"]
  given = {"a": normal(0, 4, 3), "b": np.arange(8, dtype=np.int32).reshape(4, 2)}
  found, expected = runner.run(given), net.infer(net.variables, given)
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array)


def test_pixels_go_through_the_preprocessing_and_words_are_kept(nets_of):
  how, words = deploy.Preprocessing((0.5, 0.4), (0.2, 0.1)), deploy.Description(("a", "b", "c"), "MIT", {"stage": "x"})
  runner = deploy.stablehlo().open(deploy.stablehlo().write(deploy.Model(nets_of["conv"], how, words)))
  pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 2)).astype(np.uint8)
  assert (runner.preprocessing, runner.description) == (how, words)
  same(nets_of["conv"], runner, how.apply(pixels))
  np.testing.assert_array_equal(runner.run(pixels), runner.run(how.apply(pixels)))
  assert runner.latency(runs=2, warm_up=1).wall_min > 0 and runner.threads >= 1


# Files of `conv_net` in int8, each with its outputs for batch(net, 5, 3) beside it, of two versions of jax:
#   python -m tests.deploy.test_stablehlo
@pytest.mark.parametrize("path", sorted(STORED.glob("*.stablehlo")), ids=lambda path: path.stem)
def test_files_of_other_versions_of_jax_are_read(path):
  found = deploy.open_file(path).run(batch(conv_net(), 5, 3))
  np.testing.assert_allclose(found, np.load(path.with_suffix(".npy")), atol=1e-5)


def test_there_is_a_file_of_an_older_and_of_a_newer_jax():
  assert {path.stem for path in STORED.glob("*.stablehlo")} == {"jax-0.10.2", "jax-0.12.0.1"}


def test_a_process_without_the_model_runs_it():
  path = STORED / "jax-0.10.2.stablehlo"
  code = f"""
import sys
import numpy as np
from leanax import deploy
runner = deploy.open_file({str(path)!r})
x = np.random.default_rng(5).normal(size=(3, 8, 8, 2)).astype(np.float32)
np.testing.assert_allclose(runner.run(x), np.load({str(path.with_suffix(".npy"))!r}), atol=1e-5)
assert not {{"flax", "tests", "leanax.pipeline", "leanax.zoo"}} & set(sys.modules)
"""
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-2000:]


def refused(fn, *shapes, variables=None, **kwargs):
  example = [jax.ShapeDtypeStruct(shape, kwargs.get("dtype", jnp.float32)) for shape in shapes]
  net = graph.net(fn, {"w": jnp.ones(3)} if variables is None else variables, *example)
  with pytest.raises(UserError) as caught:
    deploy.stablehlo().check(deploy.Model(net))
  return str(caught.value)


def test_functions_that_are_no_program_are_refused_on_shapes():
  def host(v, x):
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(x.shape, x.dtype), x) * v["w"]

  def odd(v, x):
    return x * v["w"] if x.shape[0] > 2 else x + v["w"]

  assert "no program for a batch of any size" in (text := refused(odd, (1, 3))) and "Inconclusive" in text
  assert "callback" in refused(host, (1, 3))
  assert "which is no operator of StableHLO" in refused(lambda v, x: jnp.linalg.qr(x * v["w"])[1], (1, 3, 3))
  assert "the output 'output' has the shape (3); expected a batch N" in refused(lambda v, x: v["w"] * x.sum(), (1, 3))
  assert "has the shape (2*N, 3)" in refused(lambda v, x: jnp.concatenate([x, x + v["w"]]), (1, 3))
  assert "input has no axes" in refused(lambda v, x: v["w"] * x, ())
  assert "of type float16; expected one of float32" in refused(lambda v, x: x + 1, (1, 3), dtype=jnp.float16)
  with pytest.raises(UserError, match="unknown platform 'gpu'"):
    deploy.stablehlo(platforms=("gpu",))


def test_the_extra_is_asked_for(monkeypatch, nets_of):
  monkeypatch.setitem(sys.modules, "flatbuffers", None)
  for call in (lambda: deploy.stablehlo().check(deploy.Model(nets_of["conv"])), lambda: deploy.stablehlo().open(b"")):
    with pytest.raises(UserError, match=r"pip install leanax\[stablehlo\]"):
      call()


def test_damaged_and_foreign_files_are_refused(tmp_path):
  path, made = tmp_path / "x.stablehlo", deploy.stablehlo()
  content = (STORED / "jax-0.10.2.stablehlo").read_bytes()
  held, _, meta = deploy.unpack(content)
  program, bare = held[PROGRAM], {"params": held["params"]}
  flipped = bytearray(content)
  flipped[len(content) // 2] ^= 1
  other = jax.export.export(jax.jit(lambda w, x: (x,)), platforms=["cpu"])({}, jnp.ones((1, 2))).serialize()
  tpu = jax.export.export(jax.jit(lambda w, x: (x,)), platforms=["tpu"])({}, jax.ShapeDtypeStruct((1, 2), jnp.float32))
  ends = {METADATA: {"jax": "1", "inputs": ["input"], "outputs": ["output"]}}

  def array(raw):
    return np.frombuffer(raw, np.uint8)

  cases = {
    "no .stablehlo file of this package": [b"", b"TFL3" + bytes(100), bytes(program)],
    "is damaged: it is cut short": [content[:15]],
    "do not match their checksum": [content[:-1], bytes(flipped)],
    "holds no program": [deploy.pack(bare), deploy.pack(bare, {}, meta), deploy.pack(held), deploy.pack([], {}, meta)],
    "what it says of its program cannot be read": [deploy.pack(held, {}, {METADATA: {**ends[METADATA], "inputs": 3}})],
    "cannot be read by jax": [deploy.pack({**held, PROGRAM: array(bytes(100))}, {}, meta)],
    "other weights, inputs or outputs": [
      deploy.pack({**held, PROGRAM: array(other)}, {}, meta),
      deploy.pack({**held, "params": {**held["params"], "a": np.zeros((1, 1), np.float32)}}, {}, meta),
      deploy.pack({**held, "params": {"a": held["params"]["a"]}}, {}, meta),
    ],
    "its program is for tpu": [deploy.pack({"params": {}, PROGRAM: array(tpu.serialize())}, {}, ends)],
    "expected a batch N in front": [deploy.pack({"params": {}, PROGRAM: array(other)}, {}, ends)],
  }
  for sentence, files in cases.items():
    for wrong in files:
      path.write_bytes(wrong)
      with pytest.raises(UserError, match=sentence) as caught:
        made.open(path)
      assert str(path) in str(caught.value) and len(str(caught.value)) < 600
  with pytest.raises(UserError, match="threads"):
    made.open(content, 0)


def test_a_call_into_the_process_is_refused():
  """It would be given pointers by the file."""
  call = jax.ffi.ffi_call("xla_python_cpu_callback", jax.ShapeDtypeStruct((2,), jnp.float32))
  allowed = [jax.export.DisabledSafetyCheck.custom_call("xla_python_cpu_callback")]
  hostile = jax.export.export(jax.jit(lambda w, x: (call(x),)), platforms=["cpu"], disabled_checks=allowed)
  program = hostile({}, jax.ShapeDtypeStruct((2,), jnp.float32)).serialize()
  ends = {METADATA: {"jax": "1", "inputs": ["input"], "outputs": ["output"]}}
  content = deploy.pack({"params": {}, PROGRAM: np.frombuffer(program, np.uint8)}, {}, ends)
  with pytest.raises(UserError, match="calls 'xla_python_cpu_callback', which is no operator of StableHLO"):
    deploy.stablehlo().open(content)


def main():
  net = conv_net()
  made = quant.post_training(net, [jnp.asarray(batch(net, 3, 4))], "w8a8")
  path = STORED / f"jax-{jax.__version__}.stablehlo"
  path.write_bytes(deploy.stablehlo().write(deploy.Model(made)))
  np.save(path.with_suffix(".npy"), deploy.open_file(path).run(batch(net, 5, 3)))


if __name__ == "__main__":
  main()
