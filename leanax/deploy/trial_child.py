"""The child process of `trial`: opens and runs files until one of them ends it.

It is run as a file, `python -P trial_child.py`, and loads numpy and the runtime alone, which takes a third of a second;
only a .stablehlo file needs jax. It reads requests: a line of JSON and the bytes of a file. It answers with a line of
JSON, the runtime's reason not to open the file or null. What a runtime raises at a call is no answer: it may be of the
numbers that are tried, or of a batch that the file does not take.
"""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

BATCHES = (1, 3)
TIMES = 2  # what depends on where things lie in memory may show at the second time alone


def litert(content: bytes, kernels: str) -> Callable[[], None]:
  """Opens a .tflite file, and returns what runs it."""
  from ai_edge_litert.interpreter import Interpreter, OpResolverType

  resolver = OpResolverType.AUTO if kernels == "xnnpack" else OpResolverType.BUILTIN_REF
  interpreter = Interpreter(model_content=content, num_threads=1, experimental_op_resolver_type=resolver)
  interpreter.allocate_tensors()
  interpreter.get_input_details(), interpreter.get_output_details()

  def run() -> None:
    for batch in BATCHES:
      if batch != 1:
        for detail in interpreter.get_input_details():
          interpreter.resize_tensor_input(detail["index"], (batch, *detail["shape"][1:]))
        interpreter.allocate_tensors()
      for made in _numbers():
        for detail in interpreter.get_input_details():
          interpreter.set_tensor(detail["index"], made(detail["shape"], detail["dtype"]))
        interpreter.invoke()
        for detail in interpreter.get_output_details():
          interpreter.get_tensor(detail["index"])

  return run


def onnx(content: bytes) -> Callable[[], None]:
  """Opens an .onnx file, and returns what runs it."""
  import onnxruntime

  options = onnxruntime.SessionOptions()
  options.intra_op_num_threads = options.inter_op_num_threads = 1
  options.log_severity_level = 4
  session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"], enable_fallback=0)

  def run() -> None:
    for batch in BATCHES:
      for made in _numbers():
        feed = {}
        for end in session.get_inputs():
          kind = end.type.removeprefix("tensor(").removesuffix(")").replace("float", "float32")
          sizes = [size if isinstance(size, int) else 1 for size in end.shape[1:]]
          feed[end.name] = made((batch, *sizes), np.dtype(kind))
        session.run(None, feed)

  return run


def stablehlo(content: bytes) -> Callable[[], None]:
  """Returns what opens a .stablehlo file and runs it."""
  from leanax.deploy import trial
  from leanax.deploy.formats.stablehlo import runtime

  def run() -> None:
    runner = runtime.load(trial.note(content))
    for made in _numbers():
      runner.codes(tuple(made((1, *one.shape[1:]), one.dtype) for one in runner.inputs.values()))

  return run


def _numbers() -> Iterator[Any]:
  """Yields functions (shape, dtype) -> array: zeros, and numbers at random, the same ones each time."""
  yield np.zeros
  at_random = np.random.default_rng(0)
  yield lambda shape, dtype: np.asarray(5 * at_random.normal(size=shape)).astype(dtype)


RUNTIMES = {"litert": litert, "onnx": onnx, "stablehlo": stablehlo}


def tried(runtime: str, content: bytes, options: dict[str, Any]) -> str | None:
  """Opens and runs a file; returns why the runtime does not open it, or None."""
  for _ in range(TIMES if runtime != "stablehlo" else 1):  # XLA would compile it twice
    try:
      run = RUNTIMES[runtime](content, **options)
    except Exception as error:
      return str(error) or type(error).__name__
    with contextlib.suppress(Exception), np.errstate(all="ignore"):
      run()
  return None


def bound(addresses: int, seconds: float) -> None:
  """Limits the addresses and the processors' time of a case, where the system can, and leaves no core behind."""
  with contextlib.suppress(ImportError, ValueError, OSError):
    import resource

    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limits = {resource.RLIMIT_AS: addresses, resource.RLIMIT_CORE: 0}
    limits[resource.RLIMIT_CPU] = int(used + 2 * seconds * (os.cpu_count() or 1))  # it may outlive the other process
    for kind, most in limits.items():
      hard = resource.getrlimit(kind)[1]
      resource.setrlimit(kind, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def main() -> None:
  """Answers requests until there are no more."""
  asked, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
  silence = os.open(os.devnull, os.O_WRONLY)
  os.dup2(silence, 1)  # runtimes print
  os.dup2(silence, 2)
  while line := asked.readline():
    request = json.loads(line)
    content = asked.read(request["length"])
    sys.path[:] = request["path"]
    bound(request["addresses"], request["seconds"])
    answers.write(json.dumps(tried(request["runtime"], content, request["options"])).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
  main()
