"""The command that a report and a file say they were made by."""

import sys

import pytest

from leanax.pipeline import environment


def test_the_command_is_that_of_a_program_of_ours(monkeypatch):
  monkeypatch.setattr(sys, "argv", ["/home/me/scripts/compress.py", "--config=a.py", '--config.run=("a", "b")'])
  assert environment.command() == """python -m scripts.compress --config=a.py '--config.run=("a", "b")'"""
  monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest", "-q"])
  assert environment.command() == ""


@pytest.mark.parametrize(
  ("given", "expected"),
  [
    ("compress --config=/home/me/nets/digits.py:big --workdir=/tmp/x", "compress --config=digits.py:big"),
    ("compress --config ~/nets/d.py --workdir runs/x --config.seeds=5", "compress --config d.py --config.seeds=5"),
    ("compress -workdir=/tmp/x --config=configs/digits.py", "compress --config=configs/digits.py"),
    ("compress '--config.data.name=folder:/home/a b/photos'", "compress --config.data.name=folder:photos"),
    ('compress \'--config.run=("/a/b", "c/d")\'', 'compress \'--config.run=("b", "c/d")\''),
    ("compress --config='open", ""),
    ("", ""),
  ],
)
def test_what_a_file_holds_of_it_names_no_folder_of_this_machine(given, expected):
  assert environment.portable(given) == expected
