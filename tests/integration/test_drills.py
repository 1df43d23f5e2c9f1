"""The drills of docs/reliability.md: a short one, and the whole ones with few cases."""

import pytest

from tests.integration import jobs


def test_in_short():
  done = jobs.program("drills.short")
  assert done.returncode == 0, done.stdout + done.stderr
  assert "the bits are those of the unbroken run" in done.stdout


@pytest.mark.slow  # minutes
@pytest.mark.parametrize(
  ("name", "arguments"), [("kills", ["--kills=10"]), ("stops", ["--signals=6", "--disks=6"])], ids=["kills", "stops"]
)
def test_a_drill(name, arguments):
  done = jobs.program(f"drills.{name}", *arguments, "--seconds=150")
  assert done.returncode == 0, done.stdout + done.stderr
