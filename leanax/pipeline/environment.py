"""The machine of a measurement: the processor's model and instruction sets, cores, accelerator, and versions."""

import importlib.metadata
import math
import os
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from leanax.core.errors import UserError

SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve")
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "ai-edge-litert", "onnxruntime")


def cores() -> int:
  """Returns the number of processor cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory() -> int:
  """Returns the bytes of the first device's memory; of a CPU those of the machine."""
  import jax

  found = jax.local_devices()[0].memory_stats() or {}
  return found.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_memory(where: str, what: str, trained: Any) -> None:
  """Refuses numbers that are trained, as shapes, where these and their gradients do not fit the memory of a device.

  Args:
    where: the sentence until the number of bytes, such as "model 'student' has".
    what: they are, such as "weights".
    trained: a tree of them.

  Raises:
    UserError: they do not.
  """
  import jax

  size, limit = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(trained)), memory()
  if 2 * size > limit:
    raise UserError(
      f"{where} {size / 1e9:.1f} GB of {what}, and as much again of gradients; expected them to fit the "
      f"{limit / 1e9:.1f} GB of this machine"
    )


def environment() -> dict[str, Any]:
  """Returns the machine as plain data, for a report or a benchmark's JSON; no host names, no paths."""
  import jax

  info = Path("/proc/cpuinfo")
  text = info.read_text(encoding="utf-8", errors="replace") if info.is_file() else ""
  model = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.MULTILINE)
  flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
  known = flags.group(1).split() if flags else []
  devices = jax.devices()
  return {
    "processor": model.group(1).strip() if model else platform.processor() or platform.machine(),
    "instruction sets": " ".join(name for name in SETS if name in known),
    "cores": cores(),
    "devices": f"{len(devices)} x {devices[0].device_kind} ({devices[0].platform})",
    "python": platform.python_version(),
    "versions": {name: _version(name) for name in PACKAGES if _version(name)},
  }


def command() -> str:
  """Returns the command of the program of `scripts` that this process is; "" of any other one."""
  program = Path(sys.argv[0])
  words = ["python", "-m", f"scripts.{program.stem}", *sys.argv[1:]]
  return shlex.join(words) if program.parent.name == "scripts" else ""


def portable(command: str) -> str:
  """Returns a command as files may hold it, the same for equal runs: without --workdir and this machine's folders.

  Of a path that begins at the root or at a home directory the last name is left. Text that is no command gives "".
  """
  try:
    words, kept = iter(shlex.split(command)), []
  except ValueError:
    return ""
  for word in words:
    if word.lstrip("-") == "workdir":
      next(words, None)  # its value is a word of its own
    elif not re.match("--?workdir=", word):
      kept.append(re.sub(r"(^|[=:,(\"'])[/~][^,:\"']*/", r"\1", word))
  return shlex.join(kept)


def use_compilation_cache() -> None:
  """Turns on JAX's cache of compiled programs on disk, small ones too; JAX_COMPILATION_CACHE_DIR says where."""
  import jax

  if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_dir", str(cache / "leanax" / "jax"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _version(package: str) -> str:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return ""
