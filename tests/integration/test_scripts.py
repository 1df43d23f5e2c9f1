"""Each program run as a user runs it: what it prints, and the one sentence for what it cannot do."""

import json
import os
import socket
import subprocess
import sys

import pytest

from leanax import deploy
from leanax.engine.store.model_file import load_tree, save_tree
from leanax.pipeline.compress import compress
from tests.integration import jobs

RUN = ("teacher", "alone")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """A finished run of two stages, and its config file."""
  folder = tmp_path_factory.mktemp("scripts")
  config = jobs.write(folder / "tiny.py", run=RUN)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(sys, "argv", [str(jobs.ROOT / "scripts" / "compress.py"), f"--config={config}", "--workdir=x"])
    compress(jobs.experiment(run=RUN), folder / "run")
  return config, folder / "run"


def good(name, *arguments):
  result = jobs.program(name, *arguments)
  assert result.returncode == 0, result.stderr
  assert "Warning" not in result.stderr and "Traceback" not in result.stderr, result.stderr
  return result.stdout


def test_compress_prints_its_table_and_where_the_report_is(run):
  config, folder = run
  printed = good("compress", f"--config={config}", f"--workdir={folder}").splitlines()
  assert printed[1].split()[:3] == ["stage", "accuracy", "the"] and "same answer as" in printed[0]
  assert [line.split()[0] for line in printed[3:5]] == list(RUN)
  assert any(line.startswith("Ship ") for line in printed)
  assert printed[-1] == f"report: {folder}/report.html"


def test_what_a_run_writes_names_no_folder_and_no_host(run):
  """Orbax' own notes in checkpoints name their folder."""
  _, folder = run
  result = json.loads((folder / "result.json").read_text())
  assert result["command"] == "python -m scripts.compress --config=tiny.py"
  written = [path for name in ("files", "models", "tensorboard") for path in (folder / name).rglob("*.*")]
  written += [folder / name for name in ("config.json", "metrics.jsonl", "report.html", "report.md", "run.json")]
  for path in written:
    content, host = path.read_bytes(), socket.gethostname()
    assert str(folder.parent).encode() not in content and host not in path.name, path
    assert len(host) < 4 or host.encode() not in content, path


def test_a_trained_stage_without_a_file_is_a_row_a_warning_and_a_status(tmp_path):
  """What only numbers show; the table, the model and the report are there."""
  undefined = {"name": "tests.pipeline.nets:Undefined"}
  config = jobs.write(tmp_path / "c.py", run=("alone",), models__student=undefined, stages__alone__epochs=0)
  ended = jobs.program("compress", f"--config={config}", f"--workdir={tmp_path / 'run'}")
  assert ended.returncode == 1, ended.stderr
  assert ended.stdout.splitlines()[3].startswith("alone ")
  assert "warning: stage 'alone' was trained, but not exported: tflite: the kernel or the bias of" in ended.stderr
  assert "holds NaN or infinity" in (tmp_path / "run" / "report.html").read_text()
  assert (tmp_path / "run" / "models" / "alone.safetensors").exists()


def test_train_prints_the_last_numbers_of_the_stage(run, tmp_path):
  config, folder = run
  printed = good("train", f"--config={config}", f"--workdir={tmp_path}", "--stage=teacher")
  assert printed.startswith("grad_norm ") and "validation_accuracy " in printed
  trained = (tmp_path / "models" / "teacher.safetensors").read_bytes()
  assert trained == (folder / "models" / "teacher.safetensors").read_bytes()


def test_evaluate_prints_a_line_per_stage(run):
  _, folder = run
  printed = good("evaluate", f"--workdir={folder}").splitlines()
  assert [line.split(":")[0] for line in printed] == list(RUN)
  assert all(line.endswith(" % of 64") for line in printed)


def test_export_writes_the_file_that_the_job_wrote(run, tmp_path):
  _, folder = run
  printed = good("export", f"--workdir={folder}", "--stage=teacher", f"--out={tmp_path / 'x.tflite'}")
  content = (folder / "files" / "teacher.tflite").read_bytes()
  assert (tmp_path / "x.tflite").read_bytes() == content
  assert printed == f"{tmp_path / 'x.tflite'}: stage teacher, tflite, {len(content):,} bytes\n"
  good(
    "export",
    f"--workdir={folder}",
    "--stage=teacher",
    "--weights=float16",
    "--licence=MIT",
    f"--out={tmp_path / 'y.tflite'}",
  )
  about = deploy.open_file(tmp_path / "y.tflite").description
  assert about.classes == tuple(f"class_{k}" for k in range(4)) and about.licence == "MIT"
  assert about.made["stage"] == "teacher" and about.made["model"].endswith(":MLP")
  assert about.made["command"] == "python -m scripts.compress --config=tiny.py"  # without the folders of this machine


def test_a_stage_is_exported_to_onnx_and_evaluated_there(run, tmp_path):
  _, folder = run
  printed = good("export", f"--workdir={folder}", "--stage=teacher", "--format=onnx", f"--out={tmp_path / 'x.onnx'}")
  assert printed.startswith(f"{tmp_path / 'x.onnx'}: stage teacher, onnx, ")
  of_file = good("evaluate", f"--workdir={folder}", f"--model={tmp_path / 'x.onnx'}")
  of_stage = good("evaluate", f"--workdir={folder}").splitlines()[0]
  assert of_file.split(": ")[1].strip() == of_stage.split(": ")[1].strip()


def test_an_untrusted_file_runs_nothing_unless_a_flag_names_its_code(run, tmp_path):
  (tmp_path / "their_nets.py").write_text("from leanax.zoo.mlp import MLP\nprint('imported')\n")
  path = os.pathsep.join([str(tmp_path), str(jobs.ROOT)])
  tree, meta = load_tree(run[1] / "models" / "alone.safetensors")
  for name, kwargs in (("os:system", {"command": "echo imported"}), ("their_nets:MLP", meta["recipe"]["kwargs"])):
    save_tree(tmp_path / "model.safetensors", tree, {"recipe": {**meta["recipe"], "name": name, "kwargs": kwargs}})
    arguments = f"--workdir={run[1]}", f"--model={tmp_path / 'model.safetensors'}"
    refused = jobs.program("evaluate", *arguments, PYTHONPATH=path)
    assert refused.returncode == 2 and f"--model_code={name}" in refused.stderr, refused.stderr
    assert refused.stderr.count("\n") == 1 and "imported" not in refused.stdout
  given = jobs.program("evaluate", *arguments, "--model_code=their_nets:MLP", PYTHONPATH=path)
  assert given.returncode == 0 and "imported" in given.stdout and given.stdout.endswith(" % of 64\n"), given.stderr


def test_explain_prints_sites_and_settings(tmp_path):
  rules = {"rules": (("Dense_0*", "w4a8"), ("*", "w8a8"))}
  printed = good("explain", f"--config={jobs.write(tmp_path / 'c.py', stages__int8__quant=rules)}")
  student = printed[printed.index("model student") :]
  assert student.startswith(f"model student: {36 * 8 + 8 * 4} MACs\n")
  assert [line.split()[0] for line in student.splitlines()[2:6]] == [
    "Dense_0/kernel", "Dense_0/bias", "Dense_1/kernel", "Dense_1/bias"
  ]  # fmt: skip
  stage = printed[printed.index("stage int8") :].splitlines()
  assert stage[2].split()[0] == "Dense_0/kernel" and stage[2].endswith("Dense_0* (ends)")  # raised to 8 bits
  assert stage[3].split()[0] == "Dense_1/kernel" and stage[3].endswith("*")


def test_benchmark_prints_and_writes_figures(run, tmp_path):
  _, folder = run
  files = [f"--model={folder}/files/{name}.tflite" for name in RUN]
  printed = good("benchmark", *files, "--rounds=2", "--threads=1", f"--json={tmp_path / 'b.json'}").splitlines()
  assert [line.split()[0] for line in printed[:3]] == ["file", "teacher.tflite", "alone.tflite"]
  assert printed[0].endswith("against teacher.tflite  within noise of") and "speed-up" not in printed[0]
  figures = json.loads((tmp_path / "b.json").read_text())
  assert [row["name"] for row in figures["models"]] == ["teacher.tflite", "alone.tflite"]
  assert figures["models"][0]["ratio"] == 1.0 and figures["models"][0]["peak_bytes"] > 0


# Reads command lines and runs each as `python -m scripts.NAME` in a process of its own, forked off one that has loaded
# jax and not started it; writes the exit status.
FORKING = """
import json, os, runpy, sys
import leanax.pipeline.compress, leanax.pipeline.evaluate, leanax.pipeline.explain
for line in sys.stdin:
  name, arguments, *files = json.loads(line)
  if child := os.fork():
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    continue
  for number, file in enumerate((os.devnull, *files)):
    os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), number)
  sys.argv[1:] = arguments
  runpy.run_module(f"scripts.{name}", run_name="__main__", alter_sys=True)
  sys.exit()
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
  """The programs as processes that share the time of loading jax: `program(name, *arguments)` gives what `run` does."""
  pipe = subprocess.PIPE
  with subprocess.Popen([sys.executable, "-c", FORKING], cwd=jobs.ROOT, stdin=pipe, stdout=pipe, text=True) as process:

    def run(name, *arguments):
      files = [tmp_path_factory.mktemp("printed") / each for each in ("stdout", "stderr")]
      process.stdin.write(json.dumps([name, arguments, *map(str, files)]) + "\n")
      process.stdin.flush()
      return subprocess.CompletedProcess(name, int(process.stdout.readline()), *(file.read_text() for file in files))

    yield run
    process.stdin.close()


@pytest.mark.parametrize(
  ("name", "arguments", "sentence"),
  [
    ("evaluate", ["--workdir={tmp}"], "'{tmp}' holds no run: there is no config.json in it"),
    ("evaluate", ["--workdir={run}", "--model={tmp}/x.tflite"], "cannot read the LiteRT file '{tmp}/x.tflite'"),
    ("evaluate", ["--workdir={run}", "--model={tmp}/x.safetensors"], "there is no file {tmp}/x.safetensors"),
    ("evaluate", ["--workdir={run}", "--model={run}/config.json"], "config.json"),
    ("evaluate", ["--workdir={run}", "--modle=x"], "unknown flag '--modle'; did you mean '--model'"),
    ("export", ["--workdir={run}", "--stage=alon", "--out={tmp}/x"], "finished stage 'alon'; did you mean 'alone'"),
    ("export", ["--workdir={run}"], "--out is missing: The file to write."),
    ("export", ["--workdir={run}", "--format=tflite", "--out={tmp}/x.bin"], "has not the suffix of the format"),
    ("export", ["--workdir={run}", "--out={tmp}/x.bin"], "expected one of .onnx, .packed, .stablehlo, .tflite"),
    ("export", ["--workdir={run}", "--format=packed", "--out={tmp}/x.bin"], "expected a name that ends in .packed"),
    ("export", ["--workdir={run}", "--input=uint8", "--out={tmp}/x.packed"], "holds the model as it is; expected no"),
    ("evaluate", [], "--workdir, or --model and --data is missing; expected what names the files and the data"),
    ("export", ["--workdir={run}", "--out={tmp}/nowhere/x.tflite"], "'{tmp}/nowhere/x.tflite' cannot be written: "),
    ("benchmark", ["--model={tmp}/x.tflite"], "cannot read the LiteRT file '{tmp}/x.tflite'"),
    ("benchmark", ["--model={run}/config.json"], "suffix of no file format; expected one of .onnx, .stablehlo"),
    ("benchmark", [], "--model is missing: "),
    # Before the file is opened, which there is not.
    ("benchmark", ["--model={tmp}/x.tflite", "--json={tmp}/no/b.json"], "'{tmp}/no/b.json' cannot be written: No such"),
    ("benchmark", ["--model={run}/files/alone.tflite", "--rounds=0"], "rounds"),
    ("train", ["--config={config}", "--workdir={tmp}", "--stage=techer"], "stage 'techer'; did you mean 'teacher'?"),
    ("explain", ["--config={config}", "--config.models.student.name=zoo.mlp:MPL"], "'MPL'; did you mean 'MLP'?"),
    ("reproduce", ["--table=digts", "--workdir={tmp}"], "unknown table 'digts'; did you mean 'digits'?"),
    ("reproduce", ["--table=digits", "--workdir={tmp}", "--seeds=1"], "seeds"),
  ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(run, program, tmp_path, name, arguments, sentence):
  names = {"config": run[0], "run": run[1], "tmp": tmp_path}
  result = program(name, *(word.format(**names) for word in arguments))
  assert (result.returncode, result.stdout) == (2, ""), result.stderr
  assert len(result.stderr.splitlines()) == 1, result.stderr
  assert result.stderr.startswith("error: ") and sentence.format(**names) in result.stderr
