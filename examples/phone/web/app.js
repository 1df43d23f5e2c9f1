// The page: a drawing or a picture goes through the model, and its classes are shown as bars.
// ?model=PATH is the file (model.tflite), ?picture=PATH a picture that is shown at once, and ?report=PATH is where the
// outputs are posted then, as the test of this page does.

import { loadAndCompile, loadLiteRt, Tensor } from "@litertjs/core";
import { channels, prepare, resize } from "./pixels.js";
import { describe } from "./tflite.js";

const query = new URLSearchParams(location.search), find = (name) => document.getElementById(name);
const pad = find("pad"), pen = pad.getContext("2d", { willReadFrequently: true });
let net = null, busy = false, again = false;

async function openModel(content) {
  const about = describe(content), compiled = await loadAndCompile(content, { accelerator: "wasm" });
  net?.compiled.delete();
  net = { ...about, compiled };
  await run(new ImageData(1, 1)); // the first run takes longer than all others
  const [, height, width, depth] = about.input.shape;
  say(`${content.length.toLocaleString("en")} bytes; takes ${height}×${width} ${depth === 1 ? "grey" : "coloured"} pictures`);
}

// Returns the outputs as numbers, and the milliseconds of the model alone.
async function run(image) {
  const [, height, width, depth] = net.input.shape;
  let pixels = resize(channels(image.data, depth), image.height, image.width, depth, height, width);
  if (find("invert").checked) pixels = pixels.map((one) => 255 - one);
  const start = performance.now(), input = new Tensor(prepare(pixels, net.how, net.input), net.input.shape);
  const [result] = await net.compiled.run(input), outputs = Array.from(await result.data());
  const spent = performance.now() - start;
  input.delete();
  result.delete();
  return { outputs, spent };
}

async function classify() {
  again = busy; // one at a time, and the newest drawing last
  if (!net || busy) return null;
  busy = true;
  try {
    let found;
    do {
      again = false;
      found = await run(pen.getImageData(0, 0, pad.width, pad.height));
      show(found);
    } while (again);
    return found.outputs;
  } finally {
    busy = false;
  }
}

function show({ outputs, spent }) {
  const most = Math.max(...outputs), powers = outputs.map((one) => Math.exp(one - most));
  const sum = powers.reduce((one, other) => one + other, 0);
  const best = powers.map((one, place) => [one / sum, net.classes[place]]).sort((one, other) => other[0] - one[0]);
  find("bars").replaceChildren(
    ...best.slice(0, 10).map(([share, name]) => {
      const row = document.createElement("li"), bar = document.createElement("i");
      const texts = [name, `${(100 * share).toFixed(1)} %`].map((text) => {
        const one = document.createElement("span");
        one.textContent = text;
        return one;
      });
      bar.style.width = `${100 * share}%`;
      row.append(...texts, bar);
      return row;
    }),
  );
  find("time").textContent = `${spent.toFixed(1)} ms in this browser, on one thread`;
}

function say(text, wrong = false) {
  find("about").textContent = text;
  find("about").className = wrong ? "wrong" : "";
}

// Runs a step, and says in a sentence what went wrong.
async function safely(step) {
  try {
    return await step();
  } catch (error) {
    say(String(error.message ?? error), true);
    return null;
  }
}

function clear() {
  pad.width = pad.height = 280;
  Object.assign(pen, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "white", fillStyle: "black" });
  pen.fillRect(0, 0, pad.width, pad.height);
  find("bars").replaceChildren();
  find("time").textContent = "";
}

// Shows a picture in its own size, upright, over white.
async function open(blob) {
  const image = await createImageBitmap(blob, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error(`${blob.name ?? "the picture"} is not a readable picture`);
  });
  clear();
  [pad.width, pad.height] = [image.width, image.height];
  pen.fillStyle = "white";
  pen.fillRect(0, 0, pad.width, pad.height);
  pen.drawImage(image, 0, 0);
  pad.dataset.picture = "";
  return classify();
}

async function fetched(path) {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is not there (${answer.status}); put a model beside index.html, or choose one`);
  return answer;
}

const at = (event) => {
  const box = pad.getBoundingClientRect();
  return [((event.clientX - box.left) * pad.width) / box.width, ((event.clientY - box.top) * pad.height) / box.height];
};
pad.addEventListener("pointerdown", (event) => {
  if ("picture" in pad.dataset) clear();
  delete pad.dataset.picture;
  pad.setPointerCapture(event.pointerId);
  pen.beginPath();
  pen.moveTo(...at(event));
  pen.lineTo(...at(event));
  pen.stroke();
});
pad.addEventListener("pointermove", (event) => {
  if (!pad.hasPointerCapture(event.pointerId)) return;
  pen.lineTo(...at(event));
  pen.stroke();
  safely(classify);
});
pad.addEventListener("pointerup", () => safely(classify));
find("clear").addEventListener("click", () => (delete pad.dataset.picture, clear()));
find("invert").addEventListener("change", () => safely(classify));
find("picture").addEventListener("change", (event) => event.target.files[0] && safely(() => open(event.target.files[0])));
find("model").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) await safely(async () => (await openModel(new Uint8Array(await file.arrayBuffer())), classify()));
});

clear();
await safely(async () => {
  await loadLiteRt(new URL("node_modules/@litertjs/core/wasm/", location.href).href);
  await openModel(new Uint8Array(await (await fetched(query.get("model") ?? "model.tflite")).arrayBuffer()));
});
if (query.has("picture")) {
  const outputs = await safely(async () => open(await (await fetched(query.get("picture"))).blob()));
  const { clientWidth: width, scrollWidth: needs } = document.documentElement;
  const paper = getComputedStyle(document.body).backgroundColor, bars = find("bars").innerText, about = find("about").innerText;
  if (query.has("report"))
    await fetch(query.get("report"), { method: "POST", body: JSON.stringify({ outputs, width, needs, paper, bars, about }) });
}
