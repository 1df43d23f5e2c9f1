"""Quantizes a trained model without training it: model, weights and pictures to a file and a report, without a config.

    python -m scripts.post_training --model=my.nets:Net --weights=net.safetensors --data=folder:photos --out=net.tflite
    python -m scripts.post_training --model='my.nets:Net(width=32)' --weights=net.msgpack --data=folder:photos \
        --size=64,64 --mean=0.5 --std=0.25 --quant=w4a8 --input=uint8 --out=net.tflite --out=net.onnx

The report compares the float model's file with the quantized one: bytes, accuracy on the test split, time, and the
codes in which file and simulation differ. The same command resumes a stopped run.
"""

import os

from absl import flags

from leanax.pipeline import lock
from leanax.pipeline.config import flags as program

_MODEL = flags.DEFINE_string(
  "model", None, "The import path of the model, such as my.nets:Net or my.nets:Net(width=32).", required=True
)
_WEIGHTS = flags.DEFINE_string(
  "weights", None, "The trained weights: a .safetensors, .msgpack or .pth file, or an Orbax directory.", required=True
)
_DATA = flags.DEFINE_string("data", None, "The data set, such as folder:photos or tfds:mnist.", required=True)
_OUT = flags.DEFINE_multi_string("out", None, "A file to write, such as net.tflite; may be given again.", required=True)
_QUANT = flags.DEFINE_string("quant", "w8a8", "The widths of weights and activations, such as w8a8, w4a8 or w8.")
_WORKDIR = flags.DEFINE_string("workdir", "", "The directory of the report; by default OUT without suffix + '_report'.")
_SIZE = flags.DEFINE_list("size", [], "Height and width to resize pictures to, such as 64,64.")
_RESIZE = flags.DEFINE_enum("resize", "", ["", "stretch", "crop", "pad"], "The way to that size; by default stretch.")
_CHANNELS = flags.DEFINE_integer("channels", None, "Of pictures in folders: 1 for grey, 3 for colour.")
_CLASSES = flags.DEFINE_list(
  "classes", [], "Of pictures in folders: the classes in the order of the model's outputs; by default the alphabet's."
)
_SCALE = flags.DEFINE_float("scale", 1 / 255, "Inputs are (pixel * scale - mean) / std.")
_MEAN = flags.DEFINE_list("mean", ["0"], "See --scale; one number, or one per channel.")
_STD = flags.DEFINE_list("std", ["1"], "See --scale; one number, or one per channel.")
_BATCHES = flags.DEFINE_integer("calibration_batches", 8, "Batches of training pictures that give ranges.")
_BATCH = flags.DEFINE_integer("batch_size", 64, "Pictures in a calibration batch.")
_LIMIT = flags.DEFINE_integer("limit", 0, "At most this many pictures per split; 0 for all.")
_INPUT = flags.DEFINE_enum(
  "input", "", ["", "float32", "uint8"], "What the file takes: pixels, or floats; by default the network's own numbers."
)
_OUTPUT = flags.DEFINE_enum("output", "", ["", "float32"], "What the file gives; by default the network's own numbers.")


def main() -> None:
  from leanax.pipeline import post_training
  from leanax.pipeline.report.shipping import sentence
  from leanax.pipeline.tables.tables import format_table

  ends = {"input": _INPUT.value, "output": _OUTPUT.value}
  options = {
    "size": post_training.numbers(_SIZE, int) or None,
    "resize": _RESIZE.value or None,
    "channels": _CHANNELS.value,
    "classes": tuple(_CLASSES.value) or None,
  }
  config = post_training.config(
    *post_training.model(_MODEL.value),
    _WEIGHTS.value,
    _DATA.value,
    _QUANT.value,
    export=post_training.formats(_OUT.value, ends),
    data_kwargs=options,
    limit=_LIMIT.value,
    preprocess={"scale": _SCALE.value, "mean": post_training.numbers(_MEAN), "std": post_training.numbers(_STD)},
    calibration_batches=_BATCHES.value,
    batch_size=_BATCH.value,
  )
  with lock.held(_WORKDIR.value or f"{_OUT.value[0].rpartition('.')[0]}_report") as folder:
    result = post_training.run(config, folder, _OUT.value, ends)
  print(format_table(result["rows"]))
  if words := sentence(result["shipping"], result["examples"]):
    print(f"\n{words}")
  print(*(f"\n{out}: {_QUANT.value}, {os.path.getsize(out):,} bytes" for out in _OUT.value), sep="\n")
  print(f"report: {folder}/report.html")


if __name__ == "__main__":
  program.run(main, config=False)
