"""One stage's model of a finished run as a file: for a runtime, or packed."""

import dataclasses
from collections.abc import Collection, Mapping
from pathlib import Path

from leanax import deploy
from leanax.core import files
from leanax.core.errors import UserError
from leanax.pipeline import evaluate, exporting, trained, workdir


def write(
  folder: str,
  out: str,
  stage: str = "",
  *,
  file_format: str = "",
  weights: str = "",
  ends: Mapping[str, str],
  about: str = "",
  licence: str = "",
  code: Collection[str] = (),
) -> tuple[str, int]:
  """Writes a stage's model as a file.

  Args:
    folder: the run's directory.
    out: the file.
    stage: by default the last finished one.
    file_format: "packed", or as `deploy.file_format` has it; by default that of the file's suffix.
    weights: how a .tflite file of a float model holds them; "" for the format's default.
    ends: {"input", "output"} as `deploy.with_ends` has them; "" for the network's own numbers.
    about: what the file says that the network is; by default what the run's config says, as of `licence`.
    licence: that the file says it is under.
    code: import paths of models that the stage's file may hold, see `evaluate.load`.

  Returns:
    (stage, bytes).

  Raises:
    UserError: there is no such stage, or the file cannot be what is asked for.
  """
  name, path = evaluate.find_model(folder, stage)
  config = workdir.saved(folder)
  config = dataclasses.replace(config, about=about or config.about, licence=licence or config.licence)
  suffix, known = Path(out).suffix, sorted([*deploy.file_formats(), trained.PACKED])
  if not file_format and suffix not in known:
    raise UserError(f"{out!r} has the suffix of no file format; expected one of {', '.join(known)}")
  if (file_format or suffix).removeprefix(".") == trained.PACKED.removeprefix("."):
    _check_packed(out, {**ends, "weights": weights})
    words = {key: text for key in workdir.WORDS if (text := getattr(config, key))}
    content = trained.pack(evaluate.load(folder, path, code), stage=name, **words)  # it has the classes anyway
  else:
    chosen = deploy.format_of(out, file_format, **({"weights": weights} if weights else {}))
    model = evaluate.load(folder, path, code)
    made = exporting.given(model, chosen.takes)
    command = str(files.kept(Path(folder) / "files" / f"{name}.json").get("command", ""))  # that of the run's own file
    made = made._replace(description=exporting.description(model.recipe, config, name, command))
    if isinstance(made, deploy.Network):
      made = deploy.with_ends(made, ends["input"], ends["output"])
    elif ends["input"] == "uint8":
      raise UserError(f"--input=uint8: a {chosen.suffix} file takes floats; expected float32, or no --input")
    content = chosen.write(made)
  files.write(out, content)
  return name, len(content)


def _check_packed(out: str, options: Mapping[str, str]) -> None:
  """Refuses what a packed file has no place for."""
  if Path(out).suffix != trained.PACKED:
    raise UserError(f"{out!r} has not the suffix of the format 'packed'; expected a name that ends in {trained.PACKED}")
  for name, value in options.items():
    if value:
      raise UserError(f"--{name}={value}: a packed file holds the model as it is; expected no --{name}")
