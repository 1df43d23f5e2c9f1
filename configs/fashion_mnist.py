"""Fashion-MNIST: LeNet-300-100, LeNet-5 or a small batch-norm ResNet taken to a pruned int8 student.

    python -m scripts.compress --config=configs/fashion_mnist.py --workdir=runs/fashion_lenet300
    python -m scripts.compress --config=configs/fashion_mnist.py:lenet5 --workdir=runs/fashion_lenet5
    python -m scripts.compress --config=configs/fashion_mnist.py:resnet --workdir=runs/fashion_resnet
    python -m scripts.compress --config=configs/fashion_mnist.py:smoke --workdir=runs/fashion_smoke

It is the experiment of configs/mnist.py for more epochs. The original files are downloaded, or read from
--config.data.dir=DIRECTORY. `smoke` is the ResNet on 1,024 examples, to see every part run; its figures mean nothing.
"""

from ml_collections import ConfigDict

from configs import mnist

# argument: the epochs of the teacher and of each of the student's stages
EPOCHS = {"lenet300": (15, 15, 15, 5), "lenet5": (12, 12, 12, 4), "resnet": (15, 15, 15, 5), "smoke": (1, 1, 1, 1)}


def get_config(argument: str = "lenet300") -> ConfigDict:
  return mnist.experiment("fashion-mnist", "tfds:fashion_mnist", EPOCHS, argument)
