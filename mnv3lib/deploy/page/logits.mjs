// What the page's runtime says to images, for a check before the page is written:
// node logits.mjs FOLDER SIZE
// FOLDER holds the runtime, network.onnx and images.bin, float32 [n, 3, SIZE, SIZE]; logits.bin is written to it.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, size] = process.argv.slice(2);
const place = (name) => path.join(folder, name);
const ort = await import(pathToFileURL(place("ort.wasm.min.mjs")));
ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = fs.readFileSync(place("ort-wasm-simd-threaded.wasm"));
const session = await ort.InferenceSession.create(fs.readFileSync(place("network.onnx")));
const images = new Float32Array(new Uint8Array(fs.readFileSync(place("images.bin"))).buffer);
const shape = [1, 3, Number(size), Number(size)], each = 3 * size * size, found = [];
for (let start = 0; start < images.length; start += each) {
  const tensor = new ort.Tensor("float32", images.subarray(start, start + each), shape);
  found.push(...(await session.run({ images: tensor })).logits.data);
}
fs.writeFileSync(place("logits.bin"), Float32Array.from(found));
