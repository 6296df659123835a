// node reader.mjs FILE IMAGES LOGITS BATCH: what onnxruntime-web says to raw float32 images of 3 x 32 x 32.
import fs from "node:fs";
import * as ort from "onnxruntime-web";

const [path, given, found, batch] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync(path), { executionProviders: ["wasm"] });
const images = new Float32Array(new Uint8Array(fs.readFileSync(given)).buffer);
const logits = [];
const step = batch * 3 * 32 * 32;
for (let start = 0; start < images.length; start += step) {
  const part = new ort.Tensor("float32", images.subarray(start, start + step), [+batch, 3, 32, 32]);
  logits.push(...(await session.run({ images: part })).logits.data);
}
fs.writeFileSync(found, new Uint8Array(new Float32Array(logits).buffer));
