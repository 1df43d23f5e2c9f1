"""Evaluates models on a test split: all stages of a run, or one file (.safetensors of a stage, or an exported one).

    python -m scripts.evaluate --workdir=runs/digits
    python -m scripts.evaluate --workdir=runs/digits --model=runs/digits/files/int8.tflite
    python -m scripts.evaluate --model=int8.tflite --data=digits

How pixels become the inputs of an exported file is read from the file, or else from the run's config.
"""

from absl import flags

from leanax.pipeline.config import flags as program

_WORKDIR = flags.DEFINE_string("workdir", "", "The directory of a run; its config names the data.")
_MODEL = flags.DEFINE_string("model", "", "A file to evaluate; by default every stage's model.")
_DATA = flags.DEFINE_string("data", "", "A data set, such as digits or folder:PATH; by default that of the run.")
_CODE = flags.DEFINE_multi_string(
  "model_code", [], "The import path of your own model in a file, such as my.nets:Net, to permit its code."
)


def main() -> None:
  from leanax.pipeline.evaluate import evaluate_all
  from leanax.pipeline.tables import measures

  found = evaluate_all(_WORKDIR.value, _MODEL.value, _CODE.value, _DATA.value)
  for name, values in found.values:
    print(f"{name}: {measures.listed(found.metrics, values)} of {found.examples}")


if __name__ == "__main__":
  program.run(main, config=False)
