"""Writes a stage's model as a file for a runtime.

python -m scripts.export --workdir=runs/digits --stage=int8 --out=digits.tflite
python -m scripts.export --workdir=runs/digits --stage=int8 --input=uint8 --output=float32 --out=digits.tflite
python -m scripts.export --workdir=runs/digits --stage=teacher --weights=float16 --out=teacher.tflite
python -m scripts.export --workdir=runs/digits --stage=int8 --licence=MIT --out=digits.tflite
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
_ABOUT = flags.DEFINE_string("about", "", "What the file says that the network is; by default what the config says.")
_LICENCE = flags.DEFINE_string("licence", "", "The licence that the file says it is under; by default the config's.")
_CODE = flags.DEFINE_multi_string(
  "model_code", [], "The import path of your own model in a file, such as my.nets:Net, to permit its code."
)


def main() -> None:
  from leanax.pipeline import one_file

  stage, size = one_file.write(
    _WORKDIR.value,
    _OUT.value,
    _STAGE.value,
    file_format=_FORMAT.value,
    weights=_WEIGHTS.value,
    ends={"input": _INPUT.value, "output": _OUTPUT.value},
    about=_ABOUT.value,
    licence=_LICENCE.value,
    code=_CODE.value,
  )
  print(f"{_OUT.value}: stage {stage}, {Path(_OUT.value).suffix.removeprefix('.')}, {size:,} bytes")


if __name__ == "__main__":
  program.run(main, config=False)
