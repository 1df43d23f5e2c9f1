"""Files side by side: the paired difference from its definition, the rule, words, and the program that runs a file."""

import io
import itertools
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import quant
from leanax import deploy, graph
from leanax.engine import metrics
from leanax.engine.data.pictures import decode_image
from leanax.pipeline.report import plain, report, shipping, snippet
from leanax.pipeline.tables import tables

CLOCK = {"wall_min": 8.0, "wall_median": 9.0, "cpu_min": 7.5, "runs": 40, "threads": 1, "rounds": [9.0, 9.2]}


def entry(name, size, lost, half=0.5, rounds=(9.0, 9.2), as_fast=(), **more):
  latency = {**CLOCK, "wall_median": float(np.median(rounds)), "rounds": list(rounds), "as_fast": list(as_fast)}
  one = {"name": name, "stage": name.split(".")[0], "bytes": size, "compressed_bytes": size - 1, "latency": latency}
  return {**one, "accuracy": 0.98 - lost / 100, "lost": {"points": lost, "half": half}, **more}


FILES = [
  entry("teacher.tflite", 472_000, 0.0),
  entry("alone.tflite", 55_000, 0.3, rounds=(4.0, 4.2)),
  entry("int8.tflite", 15_000, 0.8, rounds=(6.0, 6.2)),
  entry("tiny.tflite", 5_000, 4.0, rounds=(3.9, 4.1), as_fast=["alone.tflite"]),
]
FOUND = {"against": "teacher.tflite", "most_lost": 1.0, "recommended": "int8.tflite", "files": FILES}
FOUND |= {"snippet": "print(1 < 2)"}
SPEC = {"scale": 1 / 255, "mean": (0.0,), "std": (1.0,)}


def test_the_paired_difference_is_that_of_the_two_by_two_table():
  rng = np.random.default_rng(0)
  first, other = rng.random(400) < 0.95, rng.random(400) < 0.9
  difference = first.astype(np.float64) - other
  one, two = ({"right": x.tolist(), "count": [1] * 400} for x in (first, other))
  found = shipping.paired(metrics.accuracy(), one, two)
  assert found["points"] == pytest.approx(100 * difference.mean(), rel=1e-12)
  # Half an example in each cell: of both right, both wrong, and one right each way.
  weights = {(a, b): np.sum((first == a) & (other == b)) + 0.5 for a, b in itertools.product((0, 1), repeat=2)}
  count = sum(weights.values())
  mean = sum(w * (a - b) for (a, b), w in weights.items()) / count
  variance = sum(w * (a - b - mean) ** 2 for (a, b), w in weights.items()) / count
  assert found["half"] == pytest.approx(100 * 1.96 * np.sqrt(variance / count), rel=1e-12)
  same = shipping.paired(metrics.accuracy(), one, one)
  assert same["points"] == 0 and 0 < same["half"] < 0.6


def test_the_smallest_file_that_loses_little_is_recommended():
  assert shipping.recommended(FILES, 1.0) == "int8.tflite"
  assert shipping.recommended(FILES, 0.5) == "alone.tflite" and shipping.recommended(FILES, 4.0) == "tiny.tflite"
  assert shipping.recommended(FILES, 0.0) == "teacher.tflite"
  bad = [entry("a.tflite", 10, 5.0), entry("b.tflite", 20, 4.0), entry("c.tflite", 5, 4.0)]
  assert shipping.recommended(bad, 1.0) == "c.tflite"


def test_a_tiny_split_excuses_no_poor_file():
  """Of 40 examples a file has four less right, 10.00 ± 10.03 points: it may lose nothing, and is not recommended."""
  each = {"float": [0] * 40, "good": [0] * 39 + [1], "poor": [0] * 36 + [1] * 4}
  rows = [
    {
      "name": name,
      "file_accuracy": 1 - sum(wrong) / 40,
      "statistics": (kept := {"right": [1 - one for one in wrong], "count": [1] * 40}),
      "exports": {".tflite": {"file_bytes": size, "file_accuracy": 1 - sum(wrong) / 40, "statistics": kept}},
    }
    for size, (name, wrong) in zip((900, 300, 100), each.items(), strict=True)
  ]
  found = [shipping.shipping(rows, metrics.accuracy(), Path("none"), SPEC, most) for most in (1.0, 3.0, 30.0)]
  assert [one["recommended"] for one in found] == ["float.tflite", "good.tflite", "poor.tflite"]
  words = "It loses 2.50 ± 6.56 points to float.tflite on 40 test examples; that it loses at most 3 points is not shown"
  assert words in shipping.sentence(found[1], 40) and "not shown" not in shipping.sentence(found[0], 40)
  cells = [[line[4] for line in shipping.table(one)[1:]] for one in found]
  assert cells[0][1:] == ["2.50 ± 6.56", "10.00 ± 10.03"] and cells[1][1] == "2.50 ± 6.56 (not shown)"
  assert cells[2][1:] == ["2.50 ± 6.56", "10.00 ± 10.03"] and "at most 30 points" in shipping.notes(found[2])


def test_the_sentence_says_bytes_points_and_times():
  assert shipping.sentence(FOUND, 360) == (
    "Ship int8.tflite: 15.0 kB, 15.0 kB compressed, 31.5 times smaller than teacher.tflite. It loses 0.80 ± 0.50 "
    "points to teacher.tflite on 360 test examples; that it loses at most 1 point is not shown by so few. It takes "
    "6.1 µs for one example on one thread (1.5x faster than "
    "teacher.tflite; 1.5x slower than tiny.tflite, the fastest)."
  )
  alone = {**FOUND, "recommended": "teacher.tflite", "files": FILES[:1]}
  assert shipping.sentence(alone).endswith("compressed. It takes 9.1 µs for one example on one thread.")
  untimed = [{key: value for key, value in one.items() if key != "latency"} for one in FILES]
  assert "takes" not in shipping.sentence({**FOUND, "files": untimed})
  assert shipping.sentence({}) == ""
  noisy = [FILES[0], entry("alone.tflite", 9, 0.3, as_fast=["teacher.tflite"])]
  words = shipping.sentence({**FOUND, "files": noisy, "recommended": "alone.tflite"})
  assert words.endswith("(within noise as fast as teacher.tflite, the fastest).")


def test_one_round_tells_no_speed():
  """Not that two files are as fast, and not that one is the fastest; the tile of the page is left out, too."""
  files = [entry("teacher.tflite", 90, 0.0, rounds=(9.0,), as_fast=["a.tflite"])]
  files += [entry("a.tflite", 9, 0.3, rounds=(8.0,), as_fast=["teacher.tflite"])]
  found = {**FOUND, "files": files, "recommended": "a.tflite"}
  words = "measured in one round, too few to tell"
  assert shipping.sentence(found).endswith(
    f"8.0 µs for one example on one thread ({words} its speed from that of others)."
  )
  assert [row[-2:] for row in shipping.table(found)[1:]] == [["–", "–"], [words, "–"]]
  assert shipping.ratio(files[1], files[0]) is None
  rows = [{"name": one["stage"], "latency_us": one["latency"]["wall_median"]} for one in files]
  assert "in the runtime" not in report._tiles(rows, found, shipping.measure_of(found))


def test_a_busy_machine_is_said():
  """Where the wall time is twice the CPU time or more, of a thread that waits for nothing else."""
  files = [FILES[0], entry("slow.tflite", 9, 0.3, rounds=(46_000.0, 46_006.0))]
  slow = {**FOUND, "files": files, "recommended": "slow.tflite"}
  assert shipping.sentence(slow).endswith("). The machine was busy: the CPU time of one example is 7.5 µs.")
  assert shipping.busy(15.0, 7.5) and not shipping.busy(14.9, 7.5) and not shipping.busy(9.0, 0.0)


def test_speeds_are_words_and_noise_is_said():
  assert tables.times(0.6) == "1.7x slower" and tables.times(12.3) == "12x faster"
  assert shipping.speed(FILES[3], FILES[1]) == "within noise" and shipping.speed(FILES[2], FILES[1]) == "1.5x slower"
  heads, *rows = shipping.table(FOUND)
  assert heads[4] == "points lost to teacher.tflite" and len({len(row) for row in (heads, *rows)}) == 1
  assert (
    rows[0][4] == "–"
    and rows[1][4] == "0.30 ± 0.50"
    and rows[2][4] == "0.80 ± 0.50 (not shown)"
    and rows[3][-1] == "alone.tflite"
  )


def test_an_estimate_of_energy_says_why_it_is_one():
  estimated = {"joules": 1e-6, "measured": False, "why": "counter may be read by the superuser alone"}
  found = {**FOUND, "files": [{**one, "energy": estimated} for one in FILES]}
  assert shipping.table(found)[0].count("energy, estimated") == 1
  assert shipping.notes(found).endswith("It was not measured: counter may be read by the superuser alone.")
  measured = {**FOUND, "files": [{**one, "energy": {"joules": 1e-6, "measured": True}} for one in FILES]}
  assert shipping.notes(measured).endswith(shipping.ENERGY)
  kept = {"statistics": {"right": [1], "count": [1]}, "file_accuracy": 1.0}
  figures = {"file_bytes": 1, **kept, "latency": {"no_joules": "none here"}}
  figures |= {"layers": [{"macs": 10, "weight_bits": 8, "input_bits": 8}]}
  row = {"name": "a", **kept, "exports": {".tflite": figures}}
  (one,) = shipping.shipping([row], metrics.accuracy(), Path("none"), SPEC)["files"]
  assert one["energy"] == {"joules": pytest.approx(3e-12), "measured": False, "why": "none here"}


def test_every_page_says_the_same():
  result = {"title": "t", "examples": 360, "rows": [{"name": "teacher", "accuracy": 0.98}], "shipping": FOUND}
  page, text = report.render(result), plain.render(result)
  for words in (
    "Ship int8.tflite: 15.0 kB",
    "1.5x faster than teacher.tflite",
    shipping.rule(FOUND),
    shipping.ERRORS,
    shipping.TIMED,
  ):
    assert words in page and words in text
  assert "print(1 &lt; 2)" in page and "```python\nprint(1 < 2)\n```" in text
  assert "| int8.tflite | 15.0 kB | 15.0 kB | 97.20 % | 0.80 ± 0.50 (not shown) |" in text
  assert plain.render({}).startswith("# A compressed model\n\n## Stages")


@pytest.mark.parametrize(("setting", "mean", "std"), [("", (0.3,), (0.25,)), ("w8a8", (0.3, 0.4), (0.25, 0.5))])
def test_the_snippet_runs_the_file(tmp_path, setting, mean, std):
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 256, (20, 3, 4, len(mean)), np.uint8)
  kernel = rng.normal(size=(12 * len(mean), 5)).astype(np.float32)
  spec = deploy.Preprocessing(mean, std)

  def fn(v, x):
    return x.reshape(x.shape[0], -1) @ v["kernel"]

  x, grids = spec.apply(pixels), None
  if setting:
    net = quant.post_training(graph.net(fn, {"kernel": kernel}, jax.ShapeDtypeStruct(x.shape, x.dtype)), [x], setting)
    grids = quant.grids(net)
  network = deploy.lift(fn, {"kernel": kernel}, x[:1], grids, spec)
  for suffix in (".tflite", ".onnx"):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(deploy.format_of(path).write(network))
    file = deploy.open_file(path)
    program = snippet.snippet(str(path), file.input.dtype, {"scale": 1 / 255, "mean": mean, "std": std})
    assert len(program.splitlines()) <= 11 and "import leanax" not in program and "from leanax" not in program
    zeros = next(line for line in program.splitlines() if "pixels = " in line)
    for image, logits in zip(pixels[:, None], file.run(pixels), strict=True):
      own, printed = program.replace(zeros, "pixels = image"), io.StringIO()
      with redirect_stdout(printed):
        exec(own, {"image": image})
      assert int(printed.getvalue()) == logits.argmax()
  assert snippet.snippet("net.npz", "float32", {"scale": 1.0, "mean": (0.0,), "std": (1.0,)}) == ""


@pytest.mark.parametrize("way", ["stretch", "crop", "pad"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_snippet_resizes_a_picture_as_the_data_was(tmp_path, monkeypatch, way, channels):
  kernel = np.random.default_rng(2).normal(size=(8 * 6 * channels, 5)).astype(np.float32)
  spec = deploy.Preprocessing((0.4,), (0.3,), resize=way)
  network = deploy.lift(
    lambda v, x: x.reshape(x.shape[0], -1) @ v, kernel, jax.ShapeDtypeStruct((1, 8, 6, channels), "float32"), None, spec
  )
  picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (23, 31, 3), np.uint8))
  exif = Image.Exif()
  exif[0x0112] = 6
  picture.save(tmp_path / "picture.jpg", "PNG", exif=exif)
  content, mode = (tmp_path / "picture.jpg").read_bytes(), "RGB" if channels == 3 else "L"
  pixels = decode_image(content, mode, (8, 6), "picture.jpg", way)
  monkeypatch.chdir(tmp_path)
  for suffix in (".tflite", ".onnx"):
    path = tmp_path / f"net{suffix}"
    path.write_bytes(deploy.format_of(path).write(network))
    assert deploy.open_file(path).preprocessing == spec  # the file says it
    program = snippet.snippet(path.name, "float32", {"scale": 1 / 255, "mean": (0.4,), "std": (0.3,), "resize": way})
    printed, own = io.StringIO(), {}
    with redirect_stdout(printed):
      exec(program, own)
    np.testing.assert_array_equal(own["pixels"], pixels[None])
    assert int(printed.getvalue()) == deploy.open_file(path).run(pixels[None]).argmax()


def test_the_snippet_of_a_stablehlo_file_needs_jax_alone(tmp_path):
  """In a process of its own, which knows neither the function nor flax."""
  rng = np.random.default_rng(1)
  pixels = rng.integers(0, 256, (1, 3, 4, 2), np.uint8)
  spec, kernel = deploy.Preprocessing((0.3, 0.4), (0.25, 0.5)), rng.normal(size=(24, 5)).astype(np.float32)
  net = graph.net(lambda v, x: x.reshape(x.shape[0], -1) @ v["kernel"], {"kernel": kernel}, spec.apply(pixels))
  path = tmp_path / "net.stablehlo"
  path.write_bytes(deploy.stablehlo().write(deploy.Model(net, spec)))
  program = snippet.snippet(str(path), "float32", {"scale": 1 / 255, "mean": spec.mean, "std": spec.std})
  zeros = next(line for line in program.splitlines() if "pixels = " in line)
  own = program.replace(zeros, f"pixels = np.array({pixels.tolist()}, np.uint8)")
  own += "\nimport sys\nprint([name for name in ('flax', 'orbax', 'onnx') if name in sys.modules])"
  found = subprocess.run([sys.executable, "-c", own], capture_output=True, text=True, check=True).stdout.split("\n")
  assert found[:2] == [str(deploy.open_file(path).run(pixels).argmax()), "[]"] and len(program.splitlines()) <= 11
