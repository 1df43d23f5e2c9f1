"""Tables over seeds: the interval, the pairing, and the page."""

import json

import numpy as np
import pytest

from leanax.core.errors import UserError
from leanax.pipeline.tables import reproduce, tables
from tests.integration import jobs


def test_the_interval_by_hand():
  # Of 1, 2, 3, 4, 5: s = sqrt(2.5), and t at 97.5 % with 4 degrees of freedom is 2.776445 in every table.
  mean, half = tables.interval([1.0, 2.0, 3.0, 4.0, 5.0])
  assert mean == 3.0
  assert half == pytest.approx(2.776445 * np.sqrt(2.5) / np.sqrt(5), rel=1e-6)
  assert tables.interval([2.0, 2.0, 2.0]) == (2.0, 0.0)


def results(config, folder):
  """Made-up results: the last file is worse by 1, 2, 3, ... points."""
  base = {"accuracy": 0.9, "agreement": 1.0, "nonzero": 100, "file_bytes": 4000, "codes_differ": None}
  folder.mkdir(parents=True, exist_ok=True)
  return [
    {
      "rows": [
        {**base, "name": "teacher", "file_accuracy": 0.9 + points / 100},
        {**base, "name": "int8", "file_accuracy": 0.9, "file_bytes": 200, "codes_differ": 3},
      ],
      "config": {"seed": points - 1},
      "examples": 50,
    }
    for points in range(1, config.seeds + 1)
  ]


def test_drops_are_paired_by_seed(tmp_path, monkeypatch):
  monkeypatch.setattr(reproduce, "compress_seeds", results)
  config = jobs.write(tmp_path / "tiny.py")
  table = reproduce.compression(str(config), "A table", 3, tmp_path)
  np.testing.assert_allclose(table["drop"]["values"], [1, 2, 3])
  assert table["drop"]["mean"] == pytest.approx(2.0)
  assert table["bytes"]["ratio"] == 20.0
  assert table["stages"][1]["codes_differ"] == [3, 3, 3]
  page = reproduce.markdown(table)
  assert "| teacher | 90.00 % ± 0.00 | 92.00 % ± 2.48 |" in page
  assert "Paired drop from the first to the last file: 2.00 ± 2.48 points (worst seed 3.00)" in page
  assert "20.0 times smaller" in page


def test_a_table_is_written_and_unknown_ones_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(reproduce, "compress_seeds", results)
  config = str(jobs.write(tmp_path / "tiny.py"))
  monkeypatch.setitem(reproduce.TABLES, "tiny", {"cpu": (reproduce.Part(config, "Tiny", None),)})
  page = reproduce.reproduce("tiny", "cpu", 2, tmp_path / "out")
  assert (tmp_path / "out" / "table.md").read_text() == page
  table = json.loads((tmp_path / "out" / "table.json").read_text())
  assert table["seeds"] == [0, 1] and table["command"].startswith("python -m scripts.reproduce --table=tiny")
  with pytest.raises(UserError, match="unknown table 'tny'; did you mean 'tiny'"):
    reproduce.reproduce("tny", "cpu", 2, tmp_path)
  with pytest.raises(UserError, match="table 'tiny' has no preset 'paper'; it has cpu"):
    reproduce.reproduce("tiny", "paper", 2, tmp_path)
