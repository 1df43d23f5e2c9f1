"""Every distillation loss on one small convolutional teacher and student of Fashion-MNIST.

    python -m scripts.reproduce --table=kd_methods_fashion --workdir=runs/kd_methods
    python -m scripts.reproduce --table=kd_tuning_fashion --workdir=runs/kd_tuning

`cpu` trains on the first 5,000 examples, `paper` on all. The row to beat is `hinton`, whose weight and temperature
were chosen on the validation split among those of the second command, at the same number of updates. So were the
features' weight of `byot`, whose features are of another size than the paper's, and the learning rates of `hinton_sgd`
and of `dot`, which is the same with the optimizer of `kd.dot`. The other losses stand beside the labels' cross-entropy
with the weights that their papers or the field's benches use (RepDistiller, mdistiller); none was tuned here. Losses
on activations read the second convolution, or the hidden dense layer where they need one vector per example. `fsp` and
`kdsvd` compare maps of the same channels: they learn from `deep`, which is as wide as the student where they look, and
are to be compared with `hinton_deep`. `simkd` is trained without labels, and its student has the teacher's classifier.
`label_smoothing`, `tf_kd` and `byot` have no teacher.
"""

from ml_collections import ConfigDict

# argument: (training examples, 0 for all; the teacher's epochs; the students')
SIZES = {"cpu": (5_000, 25, 10), "paper": (0, 60, 60)}
WEIGHTS, TEMPERATURES = (0.5, 0.9, 1.0), (1.0, 2.0, 4.0, 8.0)
RATES, LAMS = (0.05, 0.02, 0.01, 0.005), (0.03, 0.003, 0.0003)
TUNED, SGD, DOT, LAM = (1.0, 2.0), 0.01, 0.005, 0.0003  # by `tune_cpu`, over two seeds

EARLY, MAP, VECTOR = "Conv_0/kernel:out", "Conv_1/kernel:out", "Dense_0/kernel:out"
BEFORE_RELU = "Conv_1/bias"


def pair(tap):
  return {"student": tap, "teacher": tap}


LABELS = {"hard_labels": {"weight": 1.0}}
SOFT = {"hard_labels": {"weight": 0.1}}
BOTH = {**LABELS, "hinton": {"weight": 1.0, "temperature": 2.0}}
# loss: what it is minimised with, its weight, its keywords
METHODS = {
  "soft_labels": (SOFT, 0.9, {"temperature": 4.0}),
  "logit_l2": (LABELS, 0.2, {}),
  "reverse_kl": (SOFT, 0.9, {"temperature": 4.0}),
  "jsd": (SOFT, 0.9, {"temperature": 4.0}),
  "total_variation": (SOFT, 0.9, {"temperature": 4.0}),
  "skew_kl": (SOFT, 0.9, {"temperature": 4.0}),
  "dkd": (LABELS, 1.0, {"alpha": 1.0, "beta": 2.0}),
  "nkd": (LABELS, 1.0, {}),
  "wsld": (LABELS, 2.5, {"temperature": 2.0}),
  "dist": (LABELS, 2.0, {"tau": 4.0}),
  "logit_standardisation": (SOFT, 9.0, {"temperature": 2.0}),
  "mlkd": (SOFT, 0.9, {}),
  "ctkd": (SOFT, 0.9, {"steps": 390}),
  "topk": (SOFT, 0.9, {"k": 3}),
  "label_smoothing": ({}, 1.0, {}),
  "tf_kd": (SOFT, 0.9, {}),
  "fitnet": (LABELS, 100.0, pair(MAP)),
  "at": (LABELS, 1000.0, {"student": (EARLY, MAP), "teacher": (EARLY, MAP)}),
  "sp": (LABELS, 3000.0, pair(MAP)),
  "cc": (LABELS, 0.02, pair(VECTOR)),
  "vid": (LABELS, 1.0, pair(MAP)),
  "rkd": (LABELS, 1.0, pair(VECTOR)),
  "pkt": (LABELS, 30_000.0, pair(VECTOR)),
  "ab": (LABELS, 1.0, pair(BEFORE_RELU)),
  "ft": (LABELS, 200.0, pair(MAP)),
  "nst": (LABELS, 50.0, pair(MAP)),
  "crd": (LABELS, 0.8, {**pair(VECTOR), "examples": 60_000, "negatives": 1024}),
  "ofd": (LABELS, 0.001, pair(BEFORE_RELU)),
  "review": (LABELS, 1.0, {"student": (EARLY, MAP), "teacher": (EARLY, MAP)}),
  "srrl": (LABELS, 1.0, {**pair(VECTOR), "classifier": "Dense_1"}),
  "mgd": (LABELS, 0.5, pair(MAP)),
  "cwd": (LABELS, 1.0, pair(MAP)),
  "ickd": (LABELS, 1.0, pair(MAP)),
  "simkd": ({}, 1.0, pair(VECTOR)),
  "byot": (LABELS, 1.0, {"student": (EARLY, MAP, VECTOR), "lam": LAM}),
}
SAME_WIDTHS = {  # the papers' losses on maps of the same channels
  "fsp": (LABELS, 50.0, {"student": (EARLY, MAP), "teacher": (EARLY, MAP)}),
  "kdsvd": (LABELS, 1.0, {"student": (EARLY, MAP), "teacher": (EARLY, MAP)}),
}
ALONE = ("label_smoothing", "tf_kd", "byot")  # without a teacher


def named(*parts):
  """A stage's name from words and numbers."""
  return "".join(part if isinstance(part, str) else f"{part:g}" for part in parts).replace(".", "")


def momentum(name, rate):
  return {"name": name, "learning_rate": rate, "momentum": 0.9, "delta": 0.075, "warmup_steps": 20}


def byot(lam):
  return {**LABELS, "byot": {"weight": 1.0, "student": (EARLY, MAP, VECTOR), "lam": lam}}


def get_config(argument: str = "cpu") -> ConfigDict:
  tune, size = argument.startswith("tune_"), argument.removeprefix("tune_")
  if size not in SIZES:
    raise ValueError(f"unknown argument {argument!r}; expected one of cpu, paper, tune_cpu, tune_paper")
  limit, teacher_epochs, student_epochs = SIZES[size]
  rates = {"learning_rate": 1e-2, "warmup_steps": 20}
  student = {"epochs": student_epochs, "batch_size": 128, "optimizer": rates}
  distilled = {**student, "teacher": "teacher"}
  teacher = {"model": "teacher", "epochs": teacher_epochs, "batch_size": 128, "optimizer": rates}
  stages: dict[str, dict] = {"teacher": teacher, "alone": student}

  def hinton(weight, temperature):
    return {"hard_labels": {"weight": 1 - weight}, "hinton": {"weight": weight, "temperature": temperature}}

  if tune:
    for weight in WEIGHTS:
      for temperature in TEMPERATURES:
        stages[named("w", weight, "_T", temperature)] = {**distilled, "objective": hinton(weight, temperature)}
    for rate in RATES:
      for optimizer in ("sgd", "dot"):
        stages[named(optimizer, rate)] = {**distilled, "objective": BOTH, "optimizer": momentum(optimizer, rate)}
    for lam in LAMS:
      stages[named("byot", lam)] = {**student, "objective": byot(lam)}
  else:
    stages["bad"] = {**teacher, "epochs": 2, "optimizer": {}, "examples": {"labelled": 256, "unlabelled": False}}
    stages["resnet"] = {**teacher, "model": "resnet", "epochs": max(teacher_epochs // 4, 1)}
    stages["deep"] = {**teacher, "model": "deep"}
    stages["hinton"] = {**distilled, "objective": hinton(*TUNED)}
    for name, (beside, weight, keywords) in METHODS.items():
      objective = {"objective": {**beside, name: {"weight": weight, **keywords}}}
      stages[name] = {**(student if name in ALONE else distilled), **objective}
    by_deep = {**distilled, "teacher": "deep"}
    stages["hinton_deep"] = {**by_deep, "objective": hinton(*TUNED)}
    for name, (beside, weight, keywords) in SAME_WIDTHS.items():
      stages[name] = {**by_deep, "objective": {**beside, name: {"weight": weight, **keywords}}}
    stages["hinton_sgd"] = {**distilled, "objective": BOTH, "optimizer": momentum("sgd", SGD)}
    stages["dot"] = {**distilled, "objective": BOTH, "optimizer": momentum("dot", DOT)}
    stages["hinton_bad_teacher"] = {**stages["hinton"], "teacher": "bad"}
    stages["at_other_family"] = {
      **distilled,
      "teacher": "resnet",
      "objective": {**LABELS, "at": {"weight": 1000.0, "student": MAP, "teacher": "Block_1/Conv_2/kernel:add:out"}},
    }
  return ConfigDict({
    "name": f"distillation losses, Fashion-MNIST ({argument})",
    "data": {"name": "tfds:fashion_mnist", "limit": limit},
    "evaluations": 2,
    "gradient_norms": False,
    "models": {
      "teacher": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (16, 32), "dense": (64,)}},
      "resnet": {"name": "zoo.resnet:ResNet", "kwargs": {"blocks": (1, 1), "widths": (8, 16)}},
      "deep": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (4, 8, 32, 32), "dense": (64,)}},
      "student": {"name": "zoo.convnet:ConvNet", "kwargs": {"widths": (4, 8), "dense": (32,)}},
    },
    "stages": stages,
    "run": tuple(stages),
    "shared": ("teacher",) if tune else ("teacher", "bad", "resnet", "deep"),
  })  # fmt: skip
