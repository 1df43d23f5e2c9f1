"""Files from elsewhere are run in another process first: what they do to it is one sentence, and this one goes on."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from leanax import deploy
from leanax.core.errors import UserError
from leanax.deploy import trial
from tests.deploy import nets

STUB = """
import json, os, resource, signal, sys, time
while line := sys.stdin.buffer.readline():
  request = json.loads(line)
  content = sys.stdin.buffer.read(request["length"])
  exec(content)
"""
ANSWER = b"print('null', flush=True)"


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
  monkeypatch.setattr(trial, "_children", {})
  monkeypatch.setattr(trial, "_passed", set())
  yield
  trial._last()


@pytest.fixture
def stub(tmp_path, monkeypatch):
  """A child whose runtime runs what the file says."""
  path = tmp_path / "child.py"
  path.write_text(STUB)
  monkeypatch.setattr(trial, "CHILD", path)


def refused(content, name="x.tflite"):
  with pytest.raises(UserError) as caught:
    trial.check("litert", content, name)
  return str(caught.value)


def test_what_ends_the_process_is_a_sentence(stub):
  assert refused(b"os.kill(os.getpid(), signal.SIGSEGV)") == (
    "x.tflite is damaged: the process of the LiteRT runtime ended at it (signal 11, SIGSEGV)"
  )
  assert refused(b"os.abort()").endswith("(signal 6, SIGABRT)")
  assert refused(b"sys.exit(3)").endswith("(status 3)")
  trial.check("litert", ANSWER, "x.tflite")  # another child serves the next file
  assert refused(b"os.abort()").endswith("(signal 6, SIGABRT)")  # and no verdict is remembered of the first


def test_a_child_that_ended_in_between_is_replaced(stub):
  trial.check("litert", ANSWER, "x.tflite")
  child = trial._children[os.getpid()]
  child.kill()
  child.wait()
  trial.check("litert", ANSWER + b" ", "x.tflite")
  assert trial._children[os.getpid()] is not child


def test_what_hangs_is_a_sentence(stub, monkeypatch):
  monkeypatch.setattr(trial, "SECONDS", 0.5)
  start = time.monotonic()
  assert refused(b"time.sleep(100)") == (
    "x.tflite is damaged: the LiteRT runtime takes more than 1 s to open it and to run it"
  )
  assert "takes more than" in refused(b"while True: pass")
  assert time.monotonic() - start < 20


def test_a_reason_is_the_runtimes(stub):
  assert refused(b"print(json.dumps('no\\nsuch operator \\x07'), flush=True)") == (
    "the LiteRT runtime refuses x.tflite: no such operator ?"
  )


def test_a_file_is_tried_once(stub, tmp_path):
  mark = tmp_path / "mark"
  content = f"open({str(mark)!r}, 'a').write('x'); ".encode() + ANSWER
  for _ in range(3):
    trial.check("litert", content, "x.tflite", kernels="a")
  assert mark.read_text() == "x"
  trial.check("litert", content, "x.tflite", kernels="b")  # other kernels may do other things
  assert mark.read_text() == "xx"
  noted = content + b" "
  trial.check("litert", trial.note(noted), "x.tflite", kernels="a")
  assert mark.read_text() == "xx"


def test_a_large_file_goes_through_the_pipe(stub):
  trial.check("litert", ANSWER + b"#" * 2**22, "x.tflite")
  assert "SIGKILL" in refused(b"os.kill(os.getpid(), 9)" + b"#" * 2**22)


def test_own_files_start_no_process_and_files_of_others_one(monkeypatch, tmp_path):
  """The child loads the runtime alone."""
  network = nets.lenet(0).network()
  files = {made: made.write(network) for made in (deploy.litert(), deploy.onnx())}
  for made, content in files.items():
    made.open(content)
  assert not trial._children
  monkeypatch.setattr(trial, "_passed", set())
  for made, content in files.items():
    assert made.open(content).codes(np.zeros((2, 12, 12, 1), np.int8)).shape == (2, 10)
  assert len(trial._children) == 1
  loaded = subprocess.run(
    [sys.executable, "-X", "importtime", "-P", str(trial.CHILD)], input=b"", capture_output=True, check=True
  )
  names = re.findall(rb"\|\s+(\w+)", loaded.stderr)
  assert b"numpy" in names and b"jax" not in names and b"leanax" not in names


def test_every_format_tries_a_file_before_its_runtime_sees_it(monkeypatch):
  def tried(runtime, content, name, **options):
    raise UserError(f"{runtime} tries {name}")

  network = nets.lenet(0).network()
  files = {made: made.write(network) for made in (deploy.litert(), deploy.onnx())}
  files[deploy.stablehlo()] = (Path(__file__).parent / "stablehlo" / "jax-0.10.2.stablehlo").read_bytes()
  monkeypatch.setattr(trial, "check", tried)
  for runtime in ("ai_edge_litert.interpreter.Interpreter", "onnxruntime.InferenceSession", "jax.export.deserialize"):
    monkeypatch.setattr(runtime, None)
  found = []
  for made, content in files.items():
    with pytest.raises(UserError) as caught:
      made.open(content)
    found.append(str(caught.value))
  assert found == ["litert tries the LiteRT file", "onnx tries the ONNX file", "stablehlo tries the StableHLO file"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits of addresses are Linux's")
def test_a_file_cannot_take_all_memory():
  command = [
    sys.executable,
    "-P",
    "-c",
    f"""
import runpy
child = runpy.run_path({str(trial.CHILD)!r})
child["bound"](2**31, 5.0)
import numpy as np
try:
  np.ones(2**32, np.uint8)
except MemoryError:
  print("bounded")
""",
  ]
  environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
  assert subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout == "bounded\n"
