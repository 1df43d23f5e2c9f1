"""The page in a real browser: it fits a desk and a telephone, and is dark where its reader wants it dark."""

import html
import json
import re
import shutil
import subprocess

import pytest

from leanax.pipeline.report import classes, report
from tests.pipeline.report.test_parts import ADD, DENSE
from tests.pipeline.report.test_report import RESULT
from tests.pipeline.report.test_shipping import FOUND

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
WIDTHS = (1400, 390)
SCRIPT = """
<script>
addEventListener("load", () => {
  const found = [...document.querySelectorAll("iframe")].map(frame => {
    const page = frame.contentDocument, box = page.documentElement;
    const wide = [...page.querySelectorAll("section, .tile, h1, h2, p, svg")]
      .filter(one => one.getBoundingClientRect().right > box.clientWidth + 1).map(one => one.tagName);
    const scrolls = [...page.querySelectorAll(".scroll")].filter(one => one.scrollWidth > one.clientWidth).length;
    const paper = getComputedStyle(page.body).backgroundColor;
    return {width: box.clientWidth, needs: box.scrollWidth, wide, scrolls, paper};
  });
  document.title = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium")
@pytest.mark.parametrize(("scheme", "paper"), [(1, "rgb(246, 247, 249)"), (0, "rgb(18, 22, 28)")])
def test_the_page_fits(tmp_path, scheme, paper):
  names = [f"a class with a long name, {number}" for number in range(30)]
  decisions = {"teacher.tflite": [*range(30)] * 12, "int8.tflite": [*range(29), 0] * 12}
  long = {**DENSE, "name": "encoder/blocks_11/attention/query_and_key_and_value/kernel"}
  result = {**RESULT, "shipping": FOUND, "classes": classes.classes(decisions, [*range(30)] * 12, names)}
  run = {"int8": {"finished": "2026-11-28T10:00:00", "seconds": 84}}
  result |= {"layers": {"int8.tflite": [DENSE, ADD, long]}, "run": run}
  page = report.render(result).replace("<details>", "<details open>")
  frames = "".join(f'<iframe width="{w}" height="900" srcdoc="{html.escape(page)}"></iframe>' for w in WIDTHS)
  (tmp_path / "frames.html").write_text(f"<!doctype html><title></title>{frames}{SCRIPT}", encoding="utf-8")
  command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
  command += [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=1900,1200", "--dump-dom"]
  done = subprocess.run(
    [*command, f"file://{tmp_path}/frames.html"], capture_output=True, text=True, timeout=120, check=True
  )
  desk, telephone = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout).group(1)))
  for found, width in ((desk, 1400), (telephone, 390)):
    assert width - 20 <= found["width"] <= width
    assert found["needs"] <= found["width"] and found["wide"] == [] and found["paper"] == paper
  assert telephone["scrolls"] >= 4  # tables that are wider scroll by themselves
