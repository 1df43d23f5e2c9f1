"""Command lines: `--config=FILE --config.path.to.key=value ...` and absl's flags; a user's mistake is one sentence.

    _WORKDIR = flags.DEFINE_string("workdir", None, "Where results go.", required=True)  # of absl

    def main(config):        # heavy imports go in here: a mistake on the command line must not wait for jax
      ...

    if __name__ == "__main__":
      run(main)

The config flags of ml_collections answer most mistakes with a traceback and take some silently (any element in a tuple,
nan), so the overrides are taken out of the command line here, and `loading` reads them.
"""

import contextlib
import errno
import os
import re
import sys
import warnings
from collections.abc import Callable, Generator, Sequence
from typing import Any, NamedTuple, NoReturn

from absl import app, flags, logging

from leanax.core.errors import UserError, unknown
from leanax.pipeline import stops
from leanax.pipeline.config import described, loading, tree

FAULT = 2  # the exit status of a user's mistake
# Errors of the machine, and no bugs: a disk that is full, over its quota, broken or read only, too many open files.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE)
HELP = ("--help", "-help", "-h", "--helpfull", "--helpshort")


class Line(NamedTuple):
  """A command line, split into changes to the config and the rest for absl."""

  changes: list[tuple[str, str]]
  rest: list[str]


def run(main: Callable[..., Any], *, config: bool = True) -> None:
  """Parses the command line and calls `main(config)`, or `main()` with `config=False`; does not return.

  `UserError` from anywhere becomes its sentence on stderr and exit status 2, and so does a full disk; `--help` exits
  with 0. SIGTERM, SIGHUP and Ctrl-C end the program with a sentence and 128 + their number (`pipeline.stops`).
  """
  if config:
    flags.DEFINE_string("config", None, "Path of the experiment's config, as in configs/digits.py.", required=True)
  holder: dict[str, Any] = {}

  def parse(argv: Sequence[str]) -> list[str]:
    with _sentences():
      line = split(argv) if config else Line([], list(argv))
      if any(word in HELP for word in line.rest):
        _show(usage(line))
        sys.exit(0)
      _parse_flags(line.rest)
      if config:
        holder["config"] = loading.experiment(str(flags.FLAGS["config"].value), line.changes)
      return line.rest[:1]

  def called(_: Sequence[str]) -> Any:
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)  # libraries warn of much that a user cannot change
    warnings.formatwarning = _warning  # the module's own place for it
    with _sentences():
      return main(*holder.values())

  stops.install()
  with _sentences():
    app.run(called, flags_parser=parse)


def _show(text: str) -> None:
  """Prints a text; a reader that stops before its end, such as `head`, is no error."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left goes nowhere


def _warning(message: Warning | str, *_: Any, **__: Any) -> str:
  """Returns a warning as a user reads it: without the line of code that it came from."""
  return f"warning: {message}\n"


@contextlib.contextmanager
def _sentences() -> Generator[None]:
  """Ends the program with a sentence and no traceback where a UserError passes, a full disk or a signal."""
  try:
    yield
  except UserError as error:
    _end(f"error: {error}", FAULT)
  except stops.Stopped as stopped:
    _end(stopped.sentence, 128 + stopped.number)
  except OSError as error:
    if error.errno not in MACHINE:
      raise
    where = f"{str(error.filename)!r} cannot be written or read" if error.filename else "a file cannot be written"
    _end(f"error: {where}: {error.strerror}; {stops.GOES_ON} once that is mended", FAULT)


def _end(sentence: str, status: int) -> NoReturn:
  """Ends the program: nothing interrupts it any more."""
  stops.finish()
  with contextlib.suppress(OSError):  # stdout may be a file on the disk that is full
    sys.stdout.flush()
  with contextlib.suppress(OSError):
    print(sentence, file=sys.stderr)
  sys.exit(status)


def split(argv: Sequence[str]) -> Line:
  """Takes `--config.key=value` and `--config.key value` out of a command line, wherever they stand.

  A key without a value means true, as with absl's booleans, when another flag or nothing follows it.
  """
  changes, rest = [], []
  words = list(argv)
  while words:
    word = words.pop(0)
    found = re.fullmatch(r"--?config\.([^=]+)(?:=(.*))?", word, re.DOTALL)
    if not found:
      rest.append(word)
      continue
    key, value = found.groups()
    if value is None:
      value = words.pop(0) if words and not re.match(r"--?[A-Za-z]", words[0]) else "true"
    changes.append((key, value))
  return Line(changes, rest)


def _parse_flags(argv: Sequence[str]) -> None:
  given = [word.split("=")[0] for word in argv if re.match(r"--?config(=|$)", word)]
  if len(given) > 1:
    raise UserError("--config is given twice")
  try:
    left = flags.FLAGS(list(argv))
  except flags.UnrecognizedFlagError as error:
    raise unknown("flag", f"--{error.flagname}", [f"--{name}" for name in _own_flags()]) from None
  except flags.Error as error:
    missing = re.search(r"Flag --(\w+) must have a value other than None", str(error))
    if missing:
      name = missing.group(1)
      text = str(flags.FLAGS[name].help).splitlines()[0].removesuffix(";")  # absl adds a line to flags given often
      raise UserError(f"--{name} is missing: {text}") from None
    raise UserError(" ".join(str(error).split())) from None
  if len(left) > 1:
    raise UserError(f"unexpected word {left[1]!r}; options are written --name=value")


def _own_flags() -> dict[str, Any]:
  """Returns the flags of the running program, without those that libraries define."""
  found = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
  if "config" in flags.FLAGS:
    found["config"] = flags.FLAGS["config"]
  return found


def usage(line: Line) -> str:
  """Returns the text of `--help`: the program, its flags, the keys of a config or, with `--config`, their values."""
  program = sys.modules["__main__"]
  helps = {name: " ".join(str(flag.help).split()) for name, flag in sorted(_own_flags().items())}
  rows = [described.fill(f"  --{name}: {text}", "    ") for name, text in helps.items()]
  text = [*_paragraphs(program.__doc__ or ""), "", "Flags:", *rows]
  spec = [word.partition("=")[2] for word in line.rest if word.startswith("--config=")]
  if spec:
    config = loading.experiment(spec[0], line.changes)
    text += [
      "",
      f"Values of {spec[0]}, each changed by --config.KEY=VALUE.",
      "Without --config, --help says what they are.",
    ]
    text += [described.fill(f"  {key} = {value!r}", "    ") for key, value in tree.leaves(config)]
  elif "config" in flags.FLAGS:
    text += ["", "Keys of a config, each changed by --config.KEY=VALUE; --help with --config=FILE shows their values."]
    text += ["KEY: type = default; NAME is that of a model or stage; keys of a 'group' are those of what it names."]
    text += [described.text()]
  return "\n".join(text)


def _paragraphs(text: str) -> list[str]:
  """Returns the lines of a docstring, its prose filled to the width of the help; commands are kept as they are."""
  blocks = [block.splitlines() for block in text.strip().split("\n\n")]
  kept = [any(line.startswith((" ", "python ")) for line in block) for block in blocks]
  filled = [block if keep else [described.fill(" ".join(block))] for block, keep in zip(blocks, kept, strict=True)]
  return [line for block in filled for line in (*block, "")][:-1]
