"""Writes a stage's model as a file for a runtime.

python -m scripts.export --workdir=runs/digits --stage=int8 --out=digits.tflite
python -m scripts.export --workdir=runs/digits --stage=int8 --input=uint8 --output=float32 --out=digits.tflite
python -m scripts.export --workdir=runs/digits --stage=teacher --weights=float16 --out=teacher.tflite
python -m scripts.export --workdir=runs/digits --stage=int8 --licence=MIT --out=digits.tflite    with its classes
python -m scripts.export --workdir=runs/digits --stage=int8 --out=digits.packed    codes and masks, entropy-coded
python -m scripts.export --workdir=runs/digits --stage=int8 --out=digits.stablehlo    its own function, run by XLA
"""

from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from leanax.pipeline.config import flags as program

if TYPE_CHECKING:
  from leanax import deploy
  from leanax.pipeline.trained import Trained

_WORKDIR = flags.DEFINE_string("workdir", None, "The directory of a run.", required=True)
_STAGE = flags.DEFINE_string("stage", "", "The stage to export; by default the last finished one.")
_FORMAT = flags.DEFINE_string(
  "format",
  "",
  "The file's format: tflite, onnx, stablehlo, packed, or litert(sparse=0.9); by default that of --out's suffix.",
)
_INPUT = flags.DEFINE_enum(
  "input", "", ["", "float32", "uint8"], "What the file takes: pixels, or floats; by default the network's own numbers."
)
_OUTPUT = flags.DEFINE_enum("output", "", ["", "float32"], "What the file gives; by default the network's own numbers.")
_WEIGHTS = flags.DEFINE_enum(
  "weights", "", ["", "float16", "int8", "dynamic_int8"], "How a .tflite file of a float model holds its weights."
)
_OUT = flags.DEFINE_string("out", None, "The file to write.", required=True)
_ABOUT = flags.DEFINE_bool(
  "about", False, "Whether the file says what it is: its classes, and how it was made (stage, model, quantization)."
)
_LICENCE = flags.DEFINE_string("licence", "", "The licence that the file says it is under; it then says the rest too.")
_CODE = flags.DEFINE_multi_string(
  "model_code", [], "The import path of your own model in a file, such as my.nets:Net, to permit its code."
)


def main() -> None:
  from leanax import deploy
  from leanax.core.errors import UserError
  from leanax.core.files import write
  from leanax.pipeline import trained
  from leanax.pipeline.evaluate import find_model, load

  name, path = find_model(_WORKDIR.value, _STAGE.value)
  suffix, known = Path(_OUT.value).suffix, sorted([*deploy.file_formats(), trained.PACKED])
  if not _FORMAT.value and suffix not in known:
    raise UserError(f"{_OUT.value!r} has the suffix of no file format; expected one of {', '.join(known)}")
  packed = (_FORMAT.value or suffix).removeprefix(".") == trained.PACKED.removeprefix(".")
  if packed:
    _check_packed(suffix, trained.PACKED)
  options = {"weights": _WEIGHTS.value} if _WEIGHTS.value else {}
  chosen = None if packed else deploy.format_of(_OUT.value, _FORMAT.value, **options)
  model = load(_WORKDIR.value, path, _CODE.value)
  if chosen:
    content = _written(chosen, model, name)
  else:
    kept = {"stage": name, **({"licence": _LICENCE.value} if _LICENCE.value else {})}  # it has the classes anyway
    content = trained.pack(model, **kept)
  write(_OUT.value, content)
  print(f"{_OUT.value}: stage {name}, {suffix.removeprefix('.')}, {len(content):,} bytes")


def _check_packed(suffix: str, expected: str) -> None:
  """Refuses what a packed file has not."""
  from leanax.core.errors import UserError

  if suffix != expected:
    raise UserError(f"{_OUT.value!r} has not the suffix of the format 'packed'; expected a name that ends in .packed")
  for flag in (_INPUT, _OUTPUT, _WEIGHTS):
    if flag.value:
      words = "a packed file holds the model as it is"
      raise UserError(f"--{flag.name}={flag.value}: {words}; expected no --{flag.name}")


def _written(chosen: "deploy.Format", model: "Trained", stage: str) -> bytes:
  """Returns the content of a runtime's file."""
  from leanax import deploy
  from leanax.core.errors import UserError
  from leanax.pipeline import exporting, workdir

  made = exporting.given(model, chosen.takes)
  if _ABOUT.value or _LICENCE.value:
    known = {"stage": stage, "experiment": workdir.saved(_WORKDIR.value).name}
    made = made._replace(description=exporting.description(model.recipe, _LICENCE.value, **known))
  if isinstance(made, deploy.Network):
    made = deploy.with_ends(made, _INPUT.value, _OUTPUT.value)
  elif _INPUT.value == "uint8":
    raise UserError(f"--input=uint8: a {chosen.suffix} file takes floats; expected float32, or no --input")
  return chosen.write(made)


if __name__ == "__main__":
  program.run(main, config=False)
