"use strict";
const ROUNDS = 5, SECONDS = 2, CALLS = 200; // as mnv3 latency measures
const $ = (id) => document.getElementById(id);
const data = JSON.parse($("data").textContent);
$("data").remove();
let ort, networks = [];
let queue = Promise.resolve(); // one thing at a time, whatever a person starts meanwhile

// ---- Scaling, as mnv3lib.inference.as_pixels does it: the canvas's own differs from browser to browser

function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

/** For each of `size` outputs along a side of `side` pixels: the first input that counts, and the inputs' weights. */
function weightsOf(side, size) {
  const scale = side / size, wide = Math.max(scale, 1);
  return Array.from({ length: size }, (_, output) => {
    const centre = (output + 0.5) * scale;
    const first = Math.max(0, Math.floor(centre - 2 * wide + 0.5));
    const end = Math.min(side, Math.floor(centre + 2 * wide + 0.5));
    const raw = Array.from({ length: end - first }, (_, index) => cubic((first + index + 0.5 - centre) / wide));
    const sum = raw.reduce((total, value) => total + value);
    return { first, values: raw.map((value) => value / sum) };
  });
}

/**
 * Scale lines of pixels: output o of line l is the weighted sum of inputs, rounded. `step` is how far two pixels of a
 * line lie apart, `lineStep` how far two lines; the outputs lie `outStep` and `outLineStep` apart, three values each.
 */
function scaleLines(from, lines, step, lineStep, weights, to, outStart, outStep, outLineStep) {
  for (let line = 0; line < lines; line++) {
    weights.forEach(({ first, values }, output) => {
      let red = 0.5, green = 0.5, blue = 0.5;
      for (let index = 0, at = line * lineStep + first * step; index < values.length; index++, at += step) {
        red += values[index] * from[at];
        green += values[index] * from[at + 1];
        blue += values[index] * from[at + 2];
      }
      const at = outStart + line * outLineStep + output * outStep;
      to[at] = Math.floor(red); // the array clips to 0 and 255
      to[at + 1] = Math.floor(green);
      to[at + 2] = Math.floor(blue);
    });
  }
}

/** The middle square of an ImageBitmap, scaled: RGB, `size` pixels a side. Read in strips, to need little memory. */
function pixelsOf(picture, size) {
  const side = Math.min(picture.width, picture.height), rows = Math.min(side, 256);
  const left = Math.floor((picture.width - side) / 2), upper = Math.floor((picture.height - side) / 2);
  const weights = weightsOf(side, size);
  const canvas = new OffscreenCanvas(side, rows);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const narrow = new Uint8ClampedArray(side * size * 3);
  for (let top = 0; top < side; top += rows) {
    const count = Math.min(rows, side - top);
    context.fillStyle = "white"; // behind what is transparent
    context.fillRect(0, 0, side, rows);
    context.drawImage(picture, left, upper + top, side, count, 0, 0, side, count);
    const strip = context.getImageData(0, 0, side, count).data;
    scaleLines(strip, count, 4, 4 * side, weights, narrow, top * size * 3, 3, size * 3);
  }
  const pixels = new Uint8ClampedArray(size * size * 3);
  scaleLines(narrow, size, size * 3, 3, weights, pixels, 0, size * 3, 3);
  return pixels;
}

// ---- The networks

async function unpacked(text) {
  const packed = new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))]);
  const stream = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function addressOf(text) {
  return URL.createObjectURL(new Blob([await unpacked(text)], { type: "text/javascript" }));
}

async function start() {
  ort = await import(await addressOf(data.runtime.api));
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmPaths = { mjs: await addressOf(data.runtime.module) };
  ort.env.wasm.wasmBinary = (await unpacked(data.runtime.wasm)).buffer;
  for (const network of data.networks) {
    const file = await unpacked(network.file);
    networks.push({ ...network, file: null, bytes: file.length, session: await ort.InferenceSession.create(file) });
  }
  for (const id of ["pick", "camera", "measure"]) $(id).disabled = false;
  say("Ready.");
}

/** The probability of each class. */
async function probabilities(network, pixels) {
  const { logits } = await network.session.run({ images: tensorOf(network, pixels) });
  const highest = Math.max(...logits.data);
  const powers = Array.from(logits.data, (value) => Math.exp(value - highest));
  const sum = powers.reduce((total, value) => total + value);
  return powers.map((value) => value / sum);
}

function tensorOf({ size }, pixels) {
  const values = new Float32Array(3 * size * size);
  for (let index = 0; index < values.length; index++) {
    values[(index % 3) * size * size + Math.floor(index / 3)] = pixels[index] / 255;
  }
  return new ort.Tensor("float32", values, [1, 3, size, size]);
}

// ---- A picture

async function show(file) {
  say(`${file.name} is being looked at.`);
  let picture;
  try { // upright as its EXIF block says, and its colours as they are stored, as mnv3 predict has them
    picture = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  } catch {
    $("seen").hidden = true;
    say(`${file.name} is no picture that this browser can read.`);
    return;
  }
  const sized = new Map(networks.map(({ size }) => [size, null]));
  for (const size of sized.keys()) sized.set(size, pixelsOf(picture, size));
  draw(picture, file.name, networks[0].size, sized.get(networks[0].size));
  const firsts = [];
  $("answers").replaceChildren();
  for (const network of networks) {
    const found = await probabilities(network, sized.get(network.size));
    const best = found.map((value, index) => [network.classes[index], value]).sort((a, b) => b[1] - a[1]).slice(0, 5);
    $("answers").append(answerOf(network, best));
    firsts.push(`${network.name}: ${best[0][0]}, ${percent(best[0][1])}`);
  }
  $("seen").hidden = false;
  picture.close();
  say(`${file.name}. ${firsts.join(". ")}.`);
}

function draw(picture, name, size, pixels) {
  const side = Math.min(picture.width, picture.height);
  const left = Math.floor((picture.width - side) / 2), upper = Math.floor((picture.height - side) / 2);
  const square = $("square").getContext("2d");
  square.fillStyle = "white";
  square.fillRect(0, 0, 256, 256);
  square.drawImage(picture, left, upper, side, side, 0, 0, 256, 256);
  $("square").ariaLabel = `The middle square of ${name}`;
  const small = $("small");
  small.width = small.height = size;
  const image = new ImageData(size, size);
  for (let at = 0; at < size * size; at++) {
    image.data.set([pixels[3 * at], pixels[3 * at + 1], pixels[3 * at + 2], 255], 4 * at);
  }
  small.getContext("2d").putImageData(image, 0, 0);
  small.ariaLabel = `${name}, scaled to ${size} × ${size} pixels`;
  $("caption").textContent = `${size} × ${size} pixels: all the networks get`;
}

function answerOf(network, best) {
  const section = element("section", "", element("h3", network.name), element("p", network.run));
  section.lastChild.className = "from";
  const list = element("ol", "");
  for (const [name, value] of best) {
    const bar = element("span", "");
    bar.className = "bar";
    bar.style.width = `${100 * value}%`;
    list.append(element("li", "", element("span", name), element("span", percent(value)), bar));
  }
  section.append(list);
  return section;
}

// ---- Time

async function measure() {
  const grain = clockGrain(), order = [...networks];
  for (const network of networks) {
    network.input = tensorOf(network, Uint8Array.from({ length: 3 * network.size ** 2 }, () => 256 * Math.random()));
    network.times = [];
    network.repeat = 1;
    await timed(network);
    // A browser's clock can be as coarse as a millisecond: so many calls a sample that its steps are a tenth at most.
    network.repeat = Math.ceil((10 * grain) / Math.max(await timed(network), grain / 10));
  }
  for (let round = 0; round <= ROUNDS; round++) {
    for (let last = order.length - 1; last > 0; last--) {
      const other = Math.floor(Math.random() * (last + 1));
      [order[last], order[other]] = [order[other], order[last]];
    }
    for (const network of order) {
      say(`Measuring, round ${round} of ${ROUNDS}: ${network.name}.`);
      await new Promise((resolve) => setTimeout(resolve)); // so that the line is seen
      const end = performance.now() + (1000 * SECONDS) / ROUNDS, taken = [];
      do taken.push(await timed(network)); while (performance.now() < end && taken.length < CALLS / ROUNDS);
      if (round > 0) network.times.push(...taken); // the first warms up
    }
  }
  tell(networks.map((network) => ({
    ...network, median: quantile(network.times, 0.5), p90: quantile(network.times, 0.9),
  })));
  say("Measured.");
}

/** Milliseconds a call. */
async function timed({ session, input, repeat }) {
  const start = performance.now();
  for (let call = 0; call < repeat; call++) await session.run({ images: input });
  return (performance.now() - start) / repeat;
}

function clockGrain() {
  let least = Infinity;
  for (let step = 0, before = performance.now(); step < 10; ) {
    const now = performance.now();
    if (now === before) continue;
    least = Math.min(least, now - before);
    before = now;
    step++;
  }
  return least;
}

function quantile(values, part) {
  const sorted = values.toSorted((a, b) => a - b), spot = part * (sorted.length - 1), low = Math.floor(spot);
  return sorted[low] + (spot - low) * ((sorted[low + 1] ?? sorted[low]) - sorted[low]);
}

function tell(rows) {
  $("rows").replaceChildren(...rows.map(({ name, top1, bytes, median, p90 }) => {
    const cells = [top1.toFixed(2), (bytes / 1e6).toFixed(2), median.toPrecision(3), p90.toPrecision(3)];
    const heading = element("th", name);
    heading.scope = "row";
    return element("tr", "", heading, ...cells.map((text) => element("td", text)));
  }));
  const several = rows.filter(({ repeat }) => repeat > 1).map(({ name, repeat }) => `${repeat} of ${name}`);
  $("note").textContent = several.length
    ? `This browser's clock is coarse, so a sample is the mean of several calls: ${several.join(", ")}.` : "";
  $("plot").replaceChildren(plotOf(rows));
  const when = new Date().toISOString(), heading = "run,network,top1,bytes,batch,samples,calls_a_sample,median_ms,p90_ms";
  const lines = rows.map((row) => [row.run, row.name, row.top1, row.bytes, 1, row.times.length, row.repeat,
    row.median.toPrecision(6), row.p90.toPrecision(6), data.runtime.version, when, navigator.userAgent]);
  $("csv").value = [`${heading},onnxruntime_web,measured,browser`, ...lines.map((line) => line.map(quoted).join(","))]
    .join("\n") + "\n";
  $("copied").textContent = "";
  $("measured").hidden = false;
}

function quoted(value) {
  return /[",\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
}

/** Accuracy against time, the times on a logarithmic axis. */
function plotOf(rows) {
  const [width, height, left, bottom] = [358, 230, 34, 36];
  const times = rows.map(({ median }) => median), tops = rows.map(({ top1 }) => top1);
  const [low, high] = [Math.min(...times) / 1.5, Math.max(...times) * 1.5];
  const [least, most] = [Math.floor(Math.min(...tops) - 1), Math.ceil(Math.max(...tops) + 1)];
  const x = (time) => left + (Math.log(time / low) / Math.log(high / low)) * (width - left - 8);
  const y = (top1) => height - bottom - ((top1 - least) / (most - least)) * (height - bottom - 8);
  const image = drawn("svg", { viewBox: `0 0 ${width} ${height}`, role: "img" });
  image.append(drawn("title", {}, "Top-1 accuracy against median time; the table below has the numbers"));
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
    for (const time of [1, 2, 5].map((digit) => digit * 10 ** power).filter((one) => one >= low && one <= high)) {
      image.append(drawn("line", { x1: x(time), x2: x(time), y1: 8, y2: height - bottom }));
      image.append(drawn("text", { x: x(time), y: height - 20, "text-anchor": "middle" }, Number(time.toPrecision(1))));
    }
  }
  const step = Math.ceil((most - least) / 5);
  for (let top1 = least; top1 <= most; top1 += step) {
    image.append(drawn("line", { x1: left, x2: width - 8, y1: y(top1), y2: y(top1) }));
    image.append(drawn("text", { x: left - 4, y: y(top1) + 4, "text-anchor": "end" }, top1));
  }
  image.append(drawn("text", { x: left, y: height - 4 }, "median (ms), against top-1 (%)"));
  let lowest = -Infinity; // of the names so far, which must not lie on each other
  for (const { name, median, top1 } of [...rows].sort((a, b) => b.top1 - a.top1)) {
    lowest = Math.max(y(top1) + 4, lowest + 12);
    const far = x(median) > width / 2;
    image.append(drawn("circle", { cx: x(median), cy: y(top1), r: 4 }));
    image.append(drawn("text", { x: x(median) + (far ? -8 : 8), y: lowest, "text-anchor": far ? "end" : "start" }, name));
  }
  return image;
}

async function copy() {
  const text = $("csv");
  text.select();
  try {
    await navigator.clipboard.writeText(text.value);
    $("copied").textContent = "Copied.";
  } catch { // pages from an http address may not
    $("copied").textContent = document.execCommand("copy") ? "Copied." : "Copy the text below; it is selected.";
  }
}

// ---- The page

function element(name, text, ...children) {
  const made = document.createElement(name);
  made.textContent = text;
  made.append(...children);
  return made;
}

function drawn(name, attributes, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

const percent = (value) => `${(100 * value).toFixed(1)} %`.replace(" ", "\u00a0");

function say(text) {
  $("status").textContent = text;
}

/** Do it after what was asked before, and say so if it fails. */
function inTurn(job) {
  queue = queue.then(job).catch((error) => say(`That did not work: ${error.message ?? error}`));
  return queue;
}

for (const id of ["pick", "camera"]) {
  $(id).addEventListener("change", ({ target }) => {
    const file = target.files[0];
    target.value = ""; // so that the same one can be picked again
    if (file) inTurn(() => show(file));
  });
}
$("measure").addEventListener("click", async ({ target }) => {
  target.disabled = true;
  await inTurn(measure);
  target.disabled = false;
});
$("copy").addEventListener("click", copy);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const file = event.dataTransfer.files[0];
  if (networks.length < data.networks.length) return;
  if (file) inTurn(() => show(file));
  else say("What was dropped is no file: save the picture and drop that.");
});
if (typeof DecompressionStream === "undefined" || typeof OffscreenCanvas === "undefined") {
  say("This browser is too old for this page: it needs one of 2023 or later.");
} else {
  inTurn(start);
}
