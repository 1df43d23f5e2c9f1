"""The example of a phone: the choice of a file by hand, pictures as training reads them, and a real browser."""

import functools
import html
import http.server
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from PIL import Image

import quant
from examples.phone import choose, classify, net
from leanax import deploy, graph
from leanax.core.errors import UserError
from leanax.engine import models
from leanax.engine.data.pictures import decode_image
from leanax.pipeline import build, stage
from leanax.pipeline.config import loading

ROOT = pathlib.Path(__file__).resolve().parents[2]
WEB = ROOT / "examples" / "phone" / "web"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
GREY, COLOUR = (12, 12, 1), (8, 12, 3)
HOW = deploy.Preprocessing(mean=(0.3,), std=(0.4,))
HOW_COLOUR = deploy.Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25), scale=1 / 255, resize="stretch")
CLASSES = ("a <b>shirt</b>", "bag", "shoe")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A grey int8 file with classes, a coloured float one without, one that takes pixels, and pictures of many kinds."""
  place = tmp_path_factory.mktemp("phone")
  random = np.random.default_rng(0)
  for shape, how in ((GREY, HOW), (COLOUR, HOW_COLOUR)):
    images = how.apply(random.integers(0, 256, (16, *shape), np.uint8))
    module = net.PhoneNet(width=2, classes=3)
    variables = jax.jit(module.init)(jax.random.key(1), images[:1])
    variables["params"]["Dense_0"]["kernel"] *= 1000.0  # so that classes are told apart
    plain = graph.fold_batch_norms(models.net(module, variables, images[:1]))
    if shape == COLOUR:
      deploy.save(plain, place / "colour.tflite", preprocessing=how)
      deploy.save(plain, place / "unprepared.tflite")
      continue
    about = deploy.Description(classes=CLASSES)
    rounded = quant.post_training(plain, [images], "w8a8")
    deploy.save(rounded, place / "grey.tflite", preprocessing=how, description=about)
    for name, inputs in (("floats", "float32"), ("pixels", "uint8")):
      ends = {"inputs": inputs, "outputs": "float32"}
      deploy.save(rounded, place / f"{name}.tflite", preprocessing=how, description=about, **ends)
  low = random.integers(0, 256, (7, 5, 3), np.uint8)
  smooth = Image.fromarray(low).resize((61, 47), Image.Resampling.BICUBIC)
  smooth.save(place / "photo.png")
  smooth.convert("L").save(place / "grey.png")
  smooth.convert("L").resize((12, 12)).save(place / "exact.png")
  smooth.quantize(16).save(place / "palette.gif")
  turned = Image.Exif()
  turned[0x0112] = 6
  smooth.save(place / "turned.jpg", exif=turned)
  veiled = smooth.copy()
  veiled.putalpha(smooth.convert("L"))
  veiled.save(place / "veiled.png")
  Image.fromarray(random.integers(0, 65536, (20, 30), np.uint16)).save(place / "deep.png")
  (place / "none.png").write_bytes(b"\x89PNG of nothing")
  smooth.save(place / "moving.gif", save_all=True, append_images=[Image.new("RGB", smooth.size)])
  return place


PICTURES = ("photo.png", "grey.png", "exact.png", "palette.gif", "turned.jpg", "veiled.png", "deep.png")


def native(file, picture):
  """The outputs of leanax's own way from a picture to a file."""
  opened = deploy.open_file(file)
  height, width, channels = opened.input.shape[1:]
  mode = "RGB" if channels == 3 else "L"
  return opened.run(decode_image(picture.read_bytes(), mode, (height, width), picture.name)[None])[0]


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("file", ["grey.tflite", "floats.tflite", "colour.tflite", "pixels.tflite"])
def test_a_picture_gives_the_outputs_that_leanax_gets(folder, file, picture):
  opened = classify.open_net(str(folder / file))
  found = opened.run(classify.picture(str(folder / picture), opened.shape, (opened.how or {}).get("resize", "")))
  assert np.unique(found).size > 1
  np.testing.assert_array_equal(found, native(folder / file, folder / picture))


@pytest.mark.parametrize("resize", ["stretch", "crop", "pad"])
def test_pictures_are_resized_as_the_file_says(folder, resize):
  content = (folder / "photo.png").read_bytes()
  wanted = decode_image(content, "RGB", (8, 12), "photo.png", resize)
  np.testing.assert_array_equal(classify.picture(str(folder / "photo.png"), COLOUR, resize), wanted)


def test_probabilities_by_hand():
  np.testing.assert_allclose(classify.softmax(np.log(np.array([1, 2, 5.0])) + 700), [0.125, 0.25, 0.625], rtol=1e-6)


def program(*arguments):
  """Runs classify.py where none of ours can be imported."""
  script = shutil.copy(ROOT / "examples" / "phone" / "classify.py", arguments[0].parent / "alone.py")
  code = (
    "import runpy, sys; sys.argv = sys.argv[1:]\n"
    "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    "finally: print('loaded', [one for one in ('jax', 'flax', 'leanax', 'quant', 'absl') if one in sys.modules])"
  )
  return subprocess.run(
    [sys.executable, "-c", code, script, *map(str, arguments)],
    cwd=arguments[0].parent,
    capture_output=True,
    text=True,
    check=False,
    env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    timeout=120,
  )


def test_the_program_prints_classes_needs_nothing_of_ours_and_goes_on_after_a_mistake(folder):
  wrong = ["missing.png", "none.png", "moving.gif"]
  done = program(folder / "grey.tflite", folder / "exact.png", *(folder / one for one in wrong), folder / "photo.png")
  exact, photo, loaded = done.stdout.splitlines()
  shares = classify.softmax(native(folder / "grey.tflite", folder / "exact.png"))
  order = [*np.argsort(-shares, kind="stable")]
  assert exact == f"{folder / 'exact.png'}: " + ", ".join(f"{CLASSES[k]} {100 * shares[k]:.1f} %" for k in order)
  assert photo.startswith(f"{folder / 'photo.png'}: ") and loaded == "loaded []" and done.returncode == 2
  said = [line for line in done.stderr.splitlines() if line.startswith(("error", "note", "Traceback"))]
  assert said == [
    f"error: {folder / 'missing.png'}: No such file or directory",
    f"error: {folder / 'none.png'}: is not a readable picture",
    f"error: {folder / 'moving.gif'}: is not a readable picture: it has 2 frames or pages; expected one picture",
    f"note: {folder / 'photo.png'} is stretched to 12x12 pixels; the file does not say how",
  ]


def test_a_file_without_classes_says_so_and_shows_numbers(folder, capsys):
  opened = classify.open_net(str(folder / "colour.tflite"))
  assert opened.classes == ["0", "1", "2"]
  assert (
    capsys.readouterr().err == f"note: {folder / 'colour.tflite'} does not name its classes; their numbers are shown\n"
  )


@pytest.mark.parametrize(
  ("content", "words"),
  [
    (None, "cannot be read: No such file or directory"),
    (b"no model at all", "is no .tflite file"),
    ("cut", "is damaged"),
    ("unprepared.tflite", "does not say how pixels become its input; expected a file that leanax wrote"),
  ],
)
def test_files_that_are_refused(folder, tmp_path, content, words):
  path = tmp_path / "x.tflite"
  if content == "cut":
    path.write_bytes((folder / "grey.tflite").read_bytes()[:600])
  elif isinstance(content, str):
    path = folder / content
  elif content:
    path.write_bytes(content)
  with pytest.raises(classify.Mistake, match=re.escape(f"{path}: {words}")):
    classify.open_net(str(path))


def file(name, size, median, right):
  return choose.File(name, size, median, median / 2, (right, 100), (right - 1, 100))


FILES = [
  file("big", 900, 50.0, 95),
  file("even", 400, 90.0, 90),
  file("small", 300, 80.0, 90),
  file("tiny", 100, 20, 70),
]


@pytest.mark.parametrize(
  ("size", "microseconds", "name"),
  [(900, 50, "big"), (899, 100, "small"), (899, 80, "small"), (899, 79.9, "tiny"), (100, 20, "tiny"), (99, 500, None)],
)
def test_the_most_accurate_file_within_both_budgets(size, microseconds, name):
  found = choose.choose(FILES, size, microseconds)
  assert (found and found.name) == name


@pytest.mark.parametrize(
  ("size", "microseconds", "words"),
  [
    (99, 500, "tiny, is 1 bytes too large"),
    (800, 10, "tiny, is 10.0 µs too slow"),
    (50, 16, "tiny, is 50 bytes too large and 4.0 µs too slow"),
    (1000, 19, "tiny, is 1.0 µs too slow"),
  ],
)
def test_how_far_the_nearest_is_off(size, microseconds, words):
  nearest = choose.nearest(FILES, size, microseconds)
  assert choose.missed(nearest, size, microseconds) == f"no file fits; the nearest, {words}"


def test_the_nearest_is_so_by_shares_of_the_budgets():
  large, slow = file("large", 140, 900.0, 9), file("slow", 100, 1100.0, 9)
  assert choose.nearest([large, slow], 100, 1000.0) == slow and choose.nearest([large, slow], 130, 1000.0) == large


def test_the_interval_is_that_of_wilson():
  """Both ends solve (p - k / n)^2 = z^2 p (1 - p) / n."""
  for right, count in ((9, 10), (0, 20), (50, 50), (9123, 10000)):
    for end in choose.wilson(right, count):
      np.testing.assert_allclose((end - right / count) ** 2, 1.959964**2 * end * (1 - end) / count, atol=1e-12)


def test_the_table_shows_every_file_and_what_fits():
  head, *rows = choose.table(FILES, 899, 85.0).splitlines()
  assert head.split()[:4] == ["file", "bytes", "median", "least"]
  assert [row.split()[0] for row in rows] == ["big", "even", "small", "tiny"]
  assert [row.split()[-1] for row in rows] == ["no", "no", "yes", "yes"]
  assert rows[0].split()[1:10] == ["900", "50.0", "µs", "25.0", "µs", "95.00", "%", "94.00", "%"]


@pytest.mark.slow  # for time only
def test_the_presets_are_experiments_and_the_tiny_one_can_be_prepared():
  config = loading.experiment(str(ROOT / "examples/phone/config.py:tiny"))
  assert config.run == ("teacher", "w2", "w2_int8", "w3", "w3_int8", "w4", "w4_int8")
  stage.prepare(config, build.dataset(config))
  assert loading.experiment(str(ROOT / "examples/phone/config.py")).run[-1] == "w32_int8"
  with pytest.raises(UserError, match="unknown argument 'huge'; expected one of full, short, tiny"):
    loading.experiment(str(ROOT / "examples/phone/config.py:huge"))


def chosen(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "examples.phone.choose", *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
    timeout=900,
  )


def test_a_mistake_on_the_command_line_is_a_sentence(tmp_path):
  for words, sentence in (
    (["--bytes=5", "--microseconds=0"], "error: --microseconds=0: expected more than 0\n"),
    (["--microseconds=5"], "error: --bytes is missing: The most bytes that the file may have.\n"),
  ):
    done = chosen(*words, f"--workdir={tmp_path / 'run'}")
    assert (done.returncode, done.stderr, (tmp_path / "run").exists()) == (2, sentence, False)


@pytest.mark.slow
def test_the_whole_of_the_tiny_preset(tmp_path):
  run = tmp_path / "run"
  given = (f"--config={ROOT}/examples/phone/config.py:tiny", f"--workdir={run}")
  done = chosen(*given, "--bytes=60000", "--microseconds=1000000")
  assert done.returncode == 0, done.stderr
  names = [line.split()[0] for line in done.stdout.splitlines()[1:8]]
  assert sorted(f"{name}" for name in names) == sorted(path.name for path in (run / "files").glob("*.tflite"))
  best = re.search(r"by validation examples: (\S+)", done.stdout)
  assert best and pathlib.Path(best[1]).is_file()
  none = chosen(*given, "--bytes=60000", "--microseconds=0.001")
  assert none.returncode == 1 and re.search(r"no file fits; the nearest, \S+, is [\d.]+ µs too slow\n$", none.stdout)
  assert "step" not in none.stderr  # the run was read


class Handler(http.server.SimpleHTTPRequestHandler):
  """Serves a folder and the libraries beside the page, and keeps what is posted by its path."""

  def translate_path(self, path):
    inside = path.partition("?")[0].lstrip("/")
    return str((WEB if inside.startswith("node_modules/") else pathlib.Path(self.directory)) / inside)

  def do_POST(self):
    found = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
    self.send_response(204)
    self.end_headers()
    self.server.posted[self.path] = found
    if len(self.server.posted) == self.server.wanted:
      self.server.done.set()

  def log_message(self, *_):
    pass


def browse(folder, pages, dark):
  """Opens pages in frames of a real browser, and returns what each of them reports."""
  for one in WEB.iterdir():
    if one.is_file() and one.suffix in (".html", ".js"):
      shutil.copy(one, folder)
  frames = "".join(
    f'<iframe width="{width}" height="900" src="{html.escape(f"index.html?{query}&report=/{key}")}"></iframe>'
    for key, (width, query) in pages.items()
  )
  (folder / "frames.html").write_text(f"<!doctype html>{frames}", encoding="utf-8")
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
  server.posted, server.wanted, server.done = {}, len(pages), threading.Event()
  threading.Thread(target=server.serve_forever, daemon=True).start()
  command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
  command += [f"--blink-settings=preferredColorScheme={int(not dark)}", "--remote-debugging-port=0"]
  opened = subprocess.Popen(
    [*command, "--window-size=1900,1200", f"http://127.0.0.1:{server.server_port}/frames.html"],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  try:
    assert server.done.wait(120), f"only {sorted(server.posted)} reported"
  finally:
    opened.terminate()
    opened.wait(30)
    server.shutdown()
    server.server_close()
  return {key.lstrip("/"): found for key, found in server.posted.items()}


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.skipif(not (WEB / "node_modules").is_dir(), reason="npm install was not run in examples/phone/web")
@pytest.mark.parametrize(("dark", "paper"), [(False, "rgb(246, 247, 249)"), (True, "rgb(18, 22, 28)")])
def test_the_browser_gives_the_outputs_of_the_native_runtime(folder, tmp_path, dark, paper):
  shutil.copytree(folder, tmp_path / "site")
  pictures = ("exact.png", "photo.png", "grey.png") if not dark else ("photo.png",)
  pages = {
    f"{file}/{picture}": (390 if file == "floats" else 1400, f"model={file}.tflite&picture={picture}")
    for file in ("floats", "colour", "pixels")
    for picture in pictures
  }
  pages["missing"] = 390, "model=missing.tflite&picture=exact.png"
  pages["unprepared"] = 390, "model=unprepared.tflite&picture=exact.png"
  pages["codes"] = 390, "model=grey.tflite&picture=exact.png"
  found = browse(tmp_path / "site", pages, dark)
  assert "takes int8 and gives int8 numbers" in found.pop("codes")["about"]
  assert "missing.tflite is not there (404)" in found.pop("missing")["about"]
  assert "does not say how pixels become its input" in found.pop("unprepared")["about"]
  for key, one in found.items():
    file, picture = key.split("/")
    wanted = native(folder / f"{file}.tflite", folder / picture)
    assert one["outputs"], one["about"]
    np.testing.assert_allclose(one["outputs"], wanted, rtol=1e-6, atol=1e-7 * (file == "colour"), err_msg=key)
    assert one["paper"] == paper and one["needs"] <= one["width"], key
    shares = classify.softmax(wanted)
    best = (CLASSES if file != "colour" else ("class 0", "class 1", "class 2"))[int(np.argmax(shares))]
    assert one["bars"].split("\n")[0] == best and f"{100 * shares.max():.1f} %" in one["bars"], key
