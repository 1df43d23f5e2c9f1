// From the pixels of a picture to the numbers that a file takes, in the arithmetic of pillow and of leanax.

// RGBA bytes to grey ones (the luma of ITU-R 601-2, as pillow rounds it) or to RGB.
export function channels(rgba, wanted) {
  const count = rgba.length / 4, found = new Uint8Array(count * wanted);
  for (let place = 0; place < count; place++) {
    const [red, green, blue] = [rgba[4 * place], rgba[4 * place + 1], rgba[4 * place + 2]];
    if (wanted === 1) found[place] = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    else found.set([red, green, blue], 3 * place);
  }
  return found;
}

// The weights of one axis: a triangle as wide as an output pixel, at least as an input pixel, in 22 bits.
function triangle(from, to) {
  const scale = from / to, wide = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const low = Math.max(Math.trunc(centre - wide + 0.5), 0), high = Math.min(Math.trunc(centre + wide + 0.5), from);
    const weights = Array.from({ length: high - low }, (_, k) => Math.max(1 - Math.abs((k + low - centre + 0.5) / wide), 0));
    const sum = weights.reduce((one, other) => one + other, 0);
    return { low, weights: weights.map((one) => Math.trunc(0.5 + (one / sum) * 2 ** 22)) };
  });
}

// One pass of a resize: `outer` lines of `from` entries, each `inner` numbers apart.
function pass(pixels, outer, from, to, inner) {
  if (from === to) return pixels;
  const found = new Uint8Array(outer * to * inner), rows = triangle(from, to);
  for (let line = 0; line < outer; line++)
    rows.forEach(({ low, weights }, place) => {
      for (let k = 0; k < inner; k++) {
        let sum = 2 ** 21;
        weights.forEach((weight, step) => (sum += weight * pixels[(line * from + low + step) * inner + k]));
        found[(line * to + place) * inner + k] = Math.min(Math.floor(sum / 2 ** 22), 255);
      }
    });
  return found;
}

// Bilinear and antialiased, as pillow's Image.resize: rows first, then columns, rounded to bytes in between.
export function resize(pixels, height, width, depth, tall, broad) {
  return pass(pass(pixels, height, width, broad, depth), 1, height, tall, broad * depth);
}

// The numbers of the file's input: pixels as they are, or (pixel * scale - mean) / std as one float32 product and sum.
export function prepare(pixels, how, input) {
  if (input.type === "uint8") return pixels;
  const f = Math.fround, depth = input.shape[3];
  const at = (values, channel) => values[values.length > 1 ? channel : 0];
  const factor = Array.from({ length: depth }, (_, c) => f(how.scale / at(how.std, c)));
  const offset = Array.from({ length: depth }, (_, c) => f(-at(how.mean, c) / at(how.std, c)));
  return Float32Array.from(pixels, (pixel, place) => f(pixel * factor[place % depth]) + offset[place % depth]);
}
