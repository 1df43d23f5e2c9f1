"""Settings of every test: four virtual CPU devices, a compilation cache, strict dtypes.

They are set as environment variables, before jax is imported, so that the programs which tests start get them too.
"""

import collections
import gc
import importlib.metadata
import itertools
import os
import pathlib
import zlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA_DIR = "LEANAX_DATA_DIR"
NO_DATA = f"no real data: {DATA_DIR} does not name a directory that holds"

# A collective that waits for a device which never comes ends the process after a minute, and not after many.
XLA_FLAGS = {
  "--xla_force_host_platform_device_count": "4",
  "--xla_cpu_collective_call_warn_stuck_timeout_seconds": "20",
  "--xla_cpu_collective_call_terminate_timeout_seconds": "60",
}

# Most of the tests' time is XLA's compilation. With LEANAX_QUICK_COMPILE=1 it compiles faster, to slower code:
# scripts/check.sh sets it, and --all does not, so that every test also passes on the code that users run.
QUICK = "LEANAX_QUICK_COMPILE"
# One module of LLVM for a program, and not up to 32 at once, saves a third of a small program's compilation.
QUICK_FLAGS = {"--xla_backend_optimization_level": "0", "--xla_cpu_parallel_codegen_split_count": "1"}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones end the process at this name
  QUICK_FLAGS["--xla_cpu_use_fusion_emitters"] = "false"


def _set_environment() -> None:
  given = os.environ.get("XLA_FLAGS", "")
  flags = XLA_FLAGS | (QUICK_FLAGS if os.environ.get(QUICK) == "1" else {})
  extra = [f"{flag}={value}" for flag, value in flags.items() if flag not in given]
  os.environ["XLA_FLAGS"] = " ".join([given, *extra]).strip()
  settings = {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".jax_cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    # An error's frames are compared with jax's folders one by one, which takes longer than raising it.
    "JAX_TRACEBACK_FILTERING": "off",
    # Where each operation of a program was written, many frames deep, is a twentieth of the tests' time.
    "JAX_INCLUDE_FULL_TRACEBACKS_IN_LOCATIONS": "0",
  }
  for name, value in settings.items():
    os.environ.setdefault(name, value)


_set_environment()

PACKAGES = ("kd", "leanax", "quant", "sparsity", "lowrank")


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption("--check-types", action="store_true", help="check annotations, array shapes too, at each call")


def pytest_configure(config: pytest.Config) -> None:
  if config.getoption("--check-types"):
    import jaxtyping

    import tests.typecheck  # noqa: F401  (imported now, for the hook names it by text)

    jaxtyping.install_import_hook(PACKAGES, "tests.typecheck.check")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Marks as slow all but one in k cases of a function that says `sampled(k)`; another one for each function.

  Where a property holds for many methods, dtypes and shapes, a run in short tries it on some of each.
  """
  cases = collections.defaultdict(list)
  for item in items:
    if item.get_closest_marker("sampled") and not item.get_closest_marker("slow"):
      cases[item.nodeid.partition("[")[0]].append(item)
  for name, several in cases.items():
    step = several[0].get_closest_marker("sampled").args[0]
    first = zlib.crc32(name.encode()) % min(step, len(several))
    for index, item in enumerate(several):
      if index % step != first:
        item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
  _freeze()
  gc.set_threshold(20_000, 10, 10)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item, nextitem) -> None:
  if nextitem is None or nextitem.path != item.path:
    _freeze()


def _freeze(count=itertools.count(1)) -> None:  # noqa: B008
  """Collects garbage, and leaves what lives out of later collections: modules, tests and jax's caches stay anyway.

  Every fiftieth time all is looked through, so that what has died meanwhile is given back.
  """
  if next(count) % 50 == 0:
    gc.unfreeze()
  gc.collect()
  gc.freeze()


@pytest.fixture
def real_data():
  """The directory of one real data set by name; the test is skipped, loudly, where it is not at hand."""

  def find(name: str) -> pathlib.Path:
    folder = os.environ.get(DATA_DIR, "")
    path = pathlib.Path(folder) / name
    if not folder or not path.is_dir():
      pytest.skip(f"{NO_DATA} {name!r}")
    return path

  return find


def pytest_terminal_summary(terminalreporter) -> None:
  """Says which tests had no data, with the cure: a skipped test must not pass for a green one."""
  skipped = [r for r in terminalreporter.getreports("skipped") if NO_DATA in str(r.longrepr)]
  if skipped:
    terminalreporter.section("NOT TESTED: real data is missing", red=True, bold=True)
    for report in skipped:
      terminalreporter.write_line(f"  {report.nodeid}: {report.longrepr[2].removeprefix('Skipped: ')}")
    terminalreporter.write_line(f"Set {DATA_DIR} to a directory with mnist/ and fashion_mnist/ (the original files).")
