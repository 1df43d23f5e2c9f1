"""Writes a stage's model as a file for a runtime.

python -m scripts.export --workdir=runs/digits --stage=int8 --out=digits.tflite
python -m scripts.export --workdir=runs/digits --stage=int8 --input=uint8 --output=float32 --out=digits.tflite
python -m scripts.export --workdir=runs/digits --stage=teacher --weights=float16 --out=teacher.tflite
python -m scripts.export --workdir=runs/digits --stage=int8 --licence=MIT --out=digits.tflite    with its classes
python -m scripts.export --workdir=runs/digits --stage=int8 --out=digits.packed    codes and masks, entropy-coded
python -m scripts.export --workdir=runs/digits --stage=int8 --out=digits.stablehlo    its own function, run by XLA
"""

from pathlib import Path

from absl import flags

from leanax.pipeline.config import flags as program

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
  from leanax.pipeline import exporting, trained, workdir
  from leanax.pipeline.evaluate import find_model, load

  options = {"weights": _WEIGHTS.value} if _WEIGHTS.value else {}
  name, path = find_model(_WORKDIR.value, _STAGE.value)
  if Path(_OUT.value).suffix == trained.PACKED and _FORMAT.value in ("", "packed") and not options:
    kept = {"stage": name, **({"licence": _LICENCE.value} if _LICENCE.value else {})}  # it has the classes anyway
    suffix, content = trained.PACKED, trained.pack(load(_WORKDIR.value, path, _CODE.value), **kept)
  else:
    chosen = deploy.format_of(_OUT.value, _FORMAT.value, **options)
    trained_model = load(_WORKDIR.value, path, _CODE.value)
    made = exporting.given(trained_model, chosen.takes)
    if _ABOUT.value or _LICENCE.value:
      known = {"stage": name, "experiment": workdir.saved(_WORKDIR.value).name}
      made = made._replace(description=exporting.description(trained_model.recipe, _LICENCE.value, **known))
    if isinstance(made, deploy.Network):
      made = deploy.with_ends(made, _INPUT.value, _OUTPUT.value)
    elif _INPUT.value == "uint8":
      raise UserError(f"--input=uint8: a {chosen.suffix} file takes floats; expected float32, or no --input")
    suffix, content = chosen.suffix, chosen.write(made)
  write(_OUT.value, content)
  print(f"{_OUT.value}: stage {name}, {suffix.removeprefix('.')}, {len(content):,} bytes")


if __name__ == "__main__":
  program.run(main, config=False)
