"use strict";
// The model in this browser: onnxruntime-web and the weights from the scripts beside the
// page, then one image at a time.

// A module of one function with a SIMD instruction.
const SIMD = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1,
  8, 0, 65, 0, 253, 15, 253, 98, 11];

pacx.checkBrowser = () => {
  if (typeof WebAssembly !== "object" || !WebAssembly.validate(new Uint8Array(SIMD))) {
    throw new Error(
      "This browser has no WebAssembly SIMD, which the model needs: use Chrome 91, "
      + "Firefox 89 or Safari 16.4, or newer ones");
  }
  if (typeof DecompressionStream !== "function" || typeof createImageBitmap !== "function") {
    throw new Error(
      "This browser cannot unpack images: use Chrome 80, Firefox 113 or Safari 16.4, or "
      + "newer ones");
  }
  // Protection against fingerprinting changes pixels that a page reads.
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [16, 16];
  const context = canvas.getContext("2d", {willReadFrequently: true, alpha: false});
  const drawn = context.createImageData(16, 16);
  for (let i = 0; i < drawn.data.length; i++) drawn.data[i] = i % 4 === 3 ? 255 : (i * 7) % 256;
  context.putImageData(drawn, 0, 0);
  const got = context.getImageData(0, 0, 16, 16).data;
  if (!drawn.data.every((level, i) => got[i] === level)) {
    throw new Error(
      "This browser changes the pixels that a page reads (protection against "
      + "fingerprinting): allow this page to read canvases, or use another browser");
  }
};

pacx.open = async (said) => {
  pacx.checkBrowser();
  const {parts} = pacx.about;
  const load = (name, from, share) => pacx.whole(
    name, parts[name].count, parts[name].size, (x) => said(from + share * x));
  const wasm = await load("runtime/ort-wasm-simd-threaded.wasm", 0, 0.2);
  const glue = await load("runtime/ort-wasm-simd-threaded.mjs", 0.2, 0);
  const model = await load("model/encoder.onnx", 0.2, 0.7);
  const url = URL.createObjectURL(new Blob([glue], {type: "text/javascript"}));
  ort.env.wasm.numThreads = 1;  // threads need headers that files have none of
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.wasmPaths = {mjs: url};
  try {
    pacx.session = await ort.InferenceSession.create(model, {executionProviders: ["wasm"]});
  } finally {
    URL.revokeObjectURL(url);
  }
  said(1);
};

// Everything about one image: {pixels, embedding, rollout, probabilities}.
pacx.run = async (image) => {
  const {image_size: s, channels, tall_first: tallFirst} = pacx.about;
  const pixels = pacx.prepare(image, s, channels, tallFirst);
  const input = new ort.Tensor("uint8", pixels, [1, s, s, channels]);
  const outputs = await pacx.session.run({images: input});
  const found = {pixels};
  for (const name of pacx.session.outputNames) found[name] = outputs[name].data.slice();
  if (!found.embedding.every(Number.isFinite)) {
    throw new Error("the model's output is not finite for this image");
  }
  return found;
};

// The nearest rows of the gallery by cosine: [{name, picture, similarity}].
pacx.nearest = (z, count) => {
  const {names, pictures, embeddings} = pacx.gallery;
  const norm = Math.hypot(...z) || 1;
  const all = names.map((name, i) => {
    let dot = 0;
    for (let j = 0; j < z.length; j++) dot += z[j] * embeddings[i * z.length + j];
    return {name, picture: pictures[i], similarity: dot / norm};
  });
  return all.sort((a, b) => b.similarity - a.similarity).slice(0, count);
};
