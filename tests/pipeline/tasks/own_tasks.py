"""Data, models, losses and metrics of users: a mask, several labels, numbers, two outputs, a series, tokens."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import kd
from leanax.engine import metrics


def drawn(count, seed):
  """Images of a bright square on a dark ground, where the square is, and whether it is in each half."""
  rng = np.random.default_rng(seed)
  images = rng.integers(0, 140, (count, 8, 8, 1)).astype(np.uint8)
  masks, corners = np.zeros((count, 8, 8), np.uint8), rng.integers(0, 5, (count, 2))
  for image, mask, (row, column) in zip(images, masks, corners):
    image[row : row + 4, column : column + 4] += 80
    mask[row : row + 4, column : column + 4] = 1
  return images, masks, corners.astype(np.float32) / 4


def splits(make, counts=(48, 16, 24), **more):
  names = ("train", "validation", "test")
  return {name: make(count, seed) for seed, (name, count) in enumerate(zip(names, counts))} | more


def squares(ignored=False, counts=(48, 16, 24)):
  def make(count, seed):
    images, masks, _ = drawn(count, seed)
    if ignored:
      masks[:, 0] = 255
    return images, masks

  return splits(make, counts, classes=("ground", "square"))


def halves(single=False):
  def make(count, seed):
    images, _, corners = drawn(count, seed)
    labels = np.stack([corners[:, 0] > 0.5, corners[:, 1] > 0.5, corners.sum(1) > 1], 1)
    return images, labels[:, :1] if single else labels

  return splits(make, classes=("low",) if single else ("low", "right", "far"))


def places(constant=False):
  def make(count, seed):
    images, _, corners = drawn(count, seed)
    return images, 0 * corners if constant else corners

  return splits(make)


def both(beyond=0):
  def make(count, seed):
    images, masks, corners = drawn(count, seed)
    masks[3, 2, 1] = beyond or masks[3, 2, 1]
    return images, {"mask": masks, "place": corners}

  return splits(make)


def waves(tokens=False):
  def make(count, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    turns = np.arange(16) * (labels[:, None] + 1) * 0.7 + rng.normal(size=(count, 1))
    x = np.sin(turns) + 0.1 * rng.normal(size=(count, 16))
    return (np.digitize(x, [-0.5, 0.0, 0.5]) if tokens else np.stack([x, x**2], -1)), labels

  return splits(make, classes=("slow", "middle", "fast"))


class Masks(nn.Module):
  width: int = 6
  classes: int = 2

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(self.width, (3, 3))(x))
    return nn.Conv(self.classes, (1, 1))(x)


class Vector3(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(3)(nn.relu(nn.Dense(16)(x)))


class Vector(nn.Module):
  outputs: int = 2
  width: int = 16

  @nn.compact
  def __call__(self, x):
    x = x.reshape(x.shape[0], -1)
    return nn.Dense(self.outputs)(nn.relu(nn.Dense(self.width)(x)))


class Both(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Conv(6, (3, 3))(x))
    return {"mask": nn.Conv(2, (1, 1))(x), "place": nn.Dense(2)(x.reshape(x.shape[0], -1))}


class Embedded(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.Embed(4, 8)(x)
    return nn.Dense(3)(x.reshape(x.shape[0], -1))


def focal(gamma=2.0):
  """Lin et al., arXiv:1708.02002, without its weights."""

  def loss(student, teacher, label):
    log_p = jnp.take_along_axis(jax.nn.log_softmax(student), label.index[:, None], -1)[:, 0]
    return -((1 - jnp.exp(log_p)) ** gamma) * log_p

  return kd.loss(loss, "focal", reads=("label",), needs_teacher=False)


def sum_of_both(weight=1.0):
  """A loss of all outputs and all labels."""

  def fn(student, teacher, context):
    outputs, labels = student.logits, context.batch["label"]
    log_p = jax.nn.log_softmax(outputs["mask"])
    index = labels["mask"].astype(jnp.int32)[..., None]
    of_mask = -jnp.mean(jnp.take_along_axis(log_p, index, -1), (1, 2, 3))
    return kd.LossOut(of_mask + weight * jnp.mean((outputs["place"] - labels["place"]) ** 2, -1))

  return kd.Loss("sum_of_both", fn, needs_teacher=False)


def dice(smooth=1.0):
  def statistics(outputs, labels):
    yes, wanted = outputs.argmax(-1) == 1, labels == 1
    axes = tuple(range(1, labels.ndim))
    return {"common": np.sum(yes & wanted, axes), "both": np.sum(yes, axes) + np.sum(wanted, axes)}

  return metrics.Metric(
    "dice", statistics, lambda s: (2 * s["common"] + smooth) / (s["both"] + smooth), unit="%", title="Dice"
  )


def weighted_error():
  def statistics(outputs, labels):
    wrong = np.mean(outputs["mask"].argmax(-1) != labels["mask"], (1, 2))
    return {"wrong": wrong, "far": np.abs(outputs["place"] - labels["place"]).mean(-1), "count": np.ones(len(wrong))}

  return metrics.Metric("weighted_error", statistics, lambda s: (s["wrong"] + s["far"]) / s["count"], better="lower")


def broken(where="statistics"):
  def statistics(outputs, labels):
    return {"x": outputs[:, 99]} if where == "statistics" else {"x": np.zeros(len(outputs))}

  return metrics.Metric("broken", statistics, lambda s: 1 / int(s["x"]))


def misnamed():
  return metrics.Metric("my own", lambda outputs, labels: {}, lambda sums: 0.0)


def misread():
  return kd.loss(lambda student, teacher: student[:, 0], "misread", reads=("label",))


def no_metric():
  return 3


def plain(student, teacher):
  return student[:, 0]


def broken_data():
  return {"train": np.zeros(2)[5]}


def broken_loss():
  return kd.loss(
    lambda student, teacher, label: student[:, 99] + student[:, :3], "broken", reads=("label",), needs_teacher=False
  )
