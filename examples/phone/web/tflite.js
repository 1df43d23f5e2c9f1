// What a .tflite file says of itself, read from its flatbuffer: the ends of its network, its preprocessing and its
// classes, which the runtime does not give. Field numbers are those of LiteRT's schema.fbs.

const TYPES = { 0: "float32", 3: "uint8", 9: "int8" };

function reader(content) {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  const follow = (place) => place + view.getUint32(place, true);
  const field = (table, number) => { // the place of a field; 0 where the table lacks it
    const kinds = table - view.getInt32(table, true), at = 4 + 2 * number;
    const offset = at < view.getUint16(kinds, true) ? view.getUint16(kinds + at, true) : 0;
    return offset && table + offset;
  };
  const vector = (table, number) => { // [the place of its first entry, its length]
    const place = field(table, number);
    if (!place) return [0, 0];
    const start = follow(place);
    return [start + 4, view.getUint32(start, true)];
  };
  const item = (table, number, index) => follow(vector(table, number)[0] + 4 * index);
  const bytes = (table, number) => {
    const [start, length] = vector(table, number);
    return content.subarray(start, start + length);
  };
  return { view, follow, field, vector, item, bytes };
}

// Returns {input, output, how, classes}; ends are {shape, type}, and `how` is {scale, mean, std} from pixels to floats.
export function describe(content) {
  if (new TextDecoder().decode(content.subarray(4, 8)) !== "TFL3") throw new Error("the model is no .tflite file");
  const { view, follow, field, vector, item, bytes } = reader(content);
  const model = follow(0), graph = item(model, 2, 0);
  const end = (number) => {
    const [start, length] = vector(graph, number);
    if (length !== 1) throw new Error(`the model has ${length} ${number === 1 ? "inputs" : "outputs"}; expected one`);
    const tensor = item(graph, 0, view.getInt32(start, true));
    const [first, rank] = vector(tensor, 0), kind = field(tensor, 1), grid = field(tensor, 4);
    const shape = Array.from({ length: rank }, (_, axis) => view.getInt32(first + 4 * axis, true));
    const type = TYPES[kind ? view.getInt8(kind) : 0] ?? "other", codes = grid && vector(follow(grid), 2)[1];
    return { shape, type: codes && type === "uint8" ? "quantized uint8" : type };
  };
  const held = {}, text = new TextDecoder();
  for (let place = 0; place < vector(model, 6)[1]; place++) {
    const entry = item(model, 6, place), buffer = field(entry, 1);
    held[text.decode(bytes(entry, 0))] = bytes(item(model, 4, buffer ? view.getUint32(buffer, true) : 0), 0);
  }
  const json = (name) => (held[name] ? JSON.parse(text.decode(held[name])) : {});
  const input = end(1), output = end(2), how = json("leanax").preprocessing;
  if (input.shape.length !== 4 || ![1, 3].includes(input.shape[3]) || output.shape.length !== 2)
    throw new Error(`the model takes numbers of shape ${input.shape}; expected a grey or coloured picture, and classes`);
  if (!["float32", "uint8"].includes(input.type) || output.type !== "float32")
    throw new Error(
      `the model takes ${input.type} and gives ${output.type} numbers, which this page's runtime does not; write it by ` +
        "scripts.export with --input=float32 --output=float32",
    );
  if (!how && input.type === "float32")
    throw new Error("the model does not say how pixels become its input; expected a file that leanax wrote");
  if (["crop", "pad"].includes(how?.resize))
    throw new Error(`the model wants pictures resized by '${how.resize}'; this page only stretches them`);
  const count = output.shape.at(-1), named = json("leanax.description").classes ?? [];
  const classes = named.length === count ? named : Array.from({ length: count }, (_, number) => `class ${number}`);
  return { input, output, how, classes };
}
