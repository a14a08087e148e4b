"use strict";
// From a file's bytes to grey levels, as pacx_jax/input/images.py makes them. An image is
// {height, width, channels (1 or 3), data: Uint8Array}.

pacx.MOST_PIXELS = 50_000_000;

pacx.decode = async (bytes) => {
  if (!bytes.length) throw new Error("the file is empty");
  if (bytes[0] === 0xff && bytes[1] === 0xd8) return pacx.jpeg(bytes);
  if (pacx.starts(bytes, 0, [0x89, 0x50, 0x4e, 0x47, 13, 10, 26, 10])) return pacx.png(bytes);
  if (pacx.isDicom(bytes)) return pacx.dicom(bytes);
  throw new Error("not a JPEG, PNG or DICOM image");
};

pacx.starts = (bytes, at, want) => want.every((b, i) => bytes[at + i] === b);

pacx.checkPixels = (height, width) => {
  if (!(height * width > 0 && height * width <= pacx.MOST_PIXELS)) {
    throw new Error(`${width} x ${height} pixels: 1 to ${pacx.MOST_PIXELS} are read`);
  }
};

// The browser's own decoder, without colour management.
pacx.byBrowser = async (bytes) => {
  const blob = new Blob([bytes], {type: "image/jpeg"});
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, {
      colorSpaceConversion: "none", premultiplyAlpha: "none",
    });
  } catch {
    throw new Error("unreadable JPEG: replace it");
  }
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [bitmap.width, bitmap.height];
  const context = canvas.getContext("2d", {willReadFrequently: true, alpha: false});
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
};

// Rows, columns, components and bits by the frame header of a JPEG.
pacx.jpegHeader = (bytes) => {
  let at = 2;
  while (at + 9 < bytes.length && bytes[at] === 0xff) {
    const marker = bytes[at + 1];
    const frame = marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker);
    if (frame) {
      const [bits, h1, h0, w1, w0, components] = bytes.subarray(at + 4, at + 10);
      return {bits, height: 256 * h1 + h0, width: 256 * w1 + w0, components, marker};
    }
    at += marker === 0xff ? 1 : 2 + 256 * bytes[at + 2] + bytes[at + 3];
  }
  throw new Error("JPEG without a frame header: cut off");
};

pacx.jpeg = async (bytes) => {
  const {height, width, components} = pacx.jpegHeader(bytes);
  pacx.checkPixels(height, width);
  if (components !== 1 && components !== 3) {
    throw new Error(`JPEG of ${components} components: convert it to grey or RGB`);
  }
  let end = bytes.length;
  while (end > 2 && (bytes[end - 1] === 0 || bytes[end - 1] === 0xff)) end--;
  if (!(bytes[end - 2] === 0xff && bytes[end - 1] === 0xd9)) {
    throw new Error("JPEG without its end: cut off");
  }
  const found = await pacx.byBrowser(bytes);
  return pacx.fromRgba(found, components);
};

pacx.fromRgba = ({height, width, data}, channels) => {
  const out = new Uint8Array(height * width * channels);
  for (let i = 0, j = 0; j < out.length; i += 4) {
    for (let c = 0; c < channels; c++) out[j++] = data[i + c];
  }
  return {height, width, channels, data: out};
};

const CRC = Uint32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n >>> 0;
});

function crc(bytes) {
  let found = 0xffffffff;
  for (const b of bytes) found = CRC[(found ^ b) & 255] ^ (found >>> 8);
  return (found ^ 0xffffffff) >>> 0;
}

// The parts of a PNG that its pixels need; text and profiles are passed over.
function chunks(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const found = {data: []};
  let at = 8;
  for (;;) {
    if (at + 12 > bytes.length) throw new Error("PNG without its end: cut off");
    const length = view.getUint32(at);
    const name = String.fromCharCode(...bytes.subarray(at + 4, at + 8));
    const content = bytes.subarray(at + 8, at + 8 + length);
    if (at + 12 + length > bytes.length) throw new Error("PNG without its end: cut off");
    if (name === "IEND") return found;
    if (["IHDR", "PLTE", "IDAT", "eXIf"].includes(name)) {
      const sum = view.getUint32(at + 8 + length);
      if (crc(bytes.subarray(at + 4, at + 8 + length)) !== sum) {
        throw new Error(`PNG with a damaged part (${name}): replace it`);
      }
      if (name === "IDAT") found.data.push(content);
      else found[name] = found[name] || content;
    }
    at += 12 + length;
  }
}

// Inflates to exactly `size` bytes, and no further than that.
async function inflate(parts, size) {
  const out = new Uint8Array(size);
  const stream = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate"));
  const reader = stream.getReader();
  let at = 0;
  try {
    while (at < size) {
      const {done, value} = await reader.read();
      if (done) break;
      out.set(value.subarray(0, size - at), at);
      at += value.length;
    }
  } catch {
    at = 0;
  }
  reader.cancel().catch(() => undefined);  // what is left is no pixel's
  if (at < size) throw new Error("PNG whose pixels are damaged or cut off: replace it");
  return out;
}

function unfilter(raw, at, rows, stride, step) {
  const out = new Uint8Array(rows * stride);
  for (let y = 0; y < rows; y++) {
    const filter = raw[at++];
    if (filter > 4) throw new Error("PNG with an unknown filter: damaged");
    const row = y * stride;
    for (let x = 0; x < stride; x++) {
      const left = x >= step ? out[row + x - step] : 0;
      const up = y ? out[row + x - stride] : 0;
      let add = 0;
      if (filter === 1) add = left;
      else if (filter === 2) add = up;
      else if (filter === 3) add = (left + up) >> 1;
      else if (filter === 4) {
        const corner = y && x >= step ? out[row + x - stride - step] : 0;
        const [a, b, c] = [Math.abs(up - corner), Math.abs(left - corner),
          Math.abs(left + up - 2 * corner)];
        add = a <= b && a <= c ? left : b <= c ? up : corner;
      }
      out[row + x] = raw[at++] + add;
    }
  }
  return out;
}

// First column and row, and steps, of the passes of an interlaced PNG.
const PASSES = [[0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4],
  [1, 0, 2, 2], [0, 1, 1, 2]];

pacx.png = async (bytes) => {
  const found = chunks(bytes);
  if (!found.IHDR || found.IHDR.length !== 13) throw new Error("PNG without a header");
  const header = new DataView(found.IHDR.buffer, found.IHDR.byteOffset, 13);
  const [width, height] = [header.getUint32(0), header.getUint32(4)];
  const [depth, colour, , , interlaced] = found.IHDR.subarray(8);
  pacx.checkPixels(height, width);
  const samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour];
  const depths = {0: [1, 2, 4, 8, 16], 3: [1, 2, 4, 8]}[colour] || [8, 16];
  if (!samples || !depths.includes(depth) || (colour === 3 && !found.PLTE)) {
    throw new Error(`PNG of colour type ${colour} and ${depth} bits: damaged`);
  }
  const passes = (interlaced ? PASSES : [[0, 0, 1, 1]]).map(([x, y, dx, dy]) => {
    const [w, h] = [Math.ceil((width - x) / dx), Math.ceil((height - y) / dy)];
    return {x, y, dx, dy, w, h, stride: Math.ceil((w * samples * depth) / 8)};
  }).filter((p) => p.w > 0 && p.h > 0);
  const size = passes.reduce((sum, p) => sum + p.h * (p.stride + 1), 0);
  const raw = await inflate(found.data, size);
  const channels = colour === 2 || colour === 3 || colour === 6 ? 3 : 1;
  const kept = colour === 3 ? 1 : channels;
  const levels = new Uint16Array(height * width * kept);
  let at = 0;
  for (const p of passes) {
    const step = Math.max(1, (samples * depth) >> 3);
    const pixels = unfilter(raw, at, p.h, p.stride, step);
    at += p.h * (p.stride + 1);
    for (let y = 0; y < p.h; y++) {
      for (let x = 0; x < p.w; x++) {
        const to = ((p.y + y * p.dy) * width + p.x + x * p.dx) * kept;
        for (let c = 0; c < kept; c++) {
          const i = x * samples + c;
          if (depth === 8) levels[to + c] = pixels[y * p.stride + i];
          else if (depth === 16) {
            const j = y * p.stride + 2 * i;
            levels[to + c] = 256 * pixels[j] + pixels[j + 1];
          } else {
            const bit = i * depth;
            const shift = 8 - depth - (bit & 7);
            const mask = (1 << depth) - 1;
            levels[to + c] = (pixels[y * p.stride + (bit >> 3)] >> shift) & mask;
          }
        }
      }
    }
  }
  const data = colour === 3 ? palette(levels, found.PLTE) : to8Bits(levels, depth);
  return pacx.turned({height, width, channels, data}, found.eXIf);
};

function palette(levels, colours) {
  const out = new Uint8Array(3 * levels.length);
  levels.forEach((level, i) => {
    for (let c = 0; c < 3; c++) out[3 * i + c] = colours[3 * level + c] || 0;
  });
  return out;
}

// 16 bits by their full range, round(x / 257); fewer than 8 by theirs.
function to8Bits(levels, depth) {
  const out = new Uint8Array(levels.length);
  if (depth < 16) {
    const scale = 255 / (2 ** depth - 1);
    for (let i = 0; i < out.length; i++) out[i] = levels[i] * scale;
    return out;
  }
  let high = 0;
  for (let i = 0; i < out.length; i++) {
    if (levels[i] > high) high = levels[i];
    out[i] = (levels[i] + 128) / 257;
  }
  if (high > 0 && high < 2 ** 14) {
    throw new Error(`values up to ${high} in 16 bits: scale them to 0 to 65535`);
  }
  return out;
}

// Turns an image as its EXIF says (the browser does so for JPEGs).
pacx.turned = (image, exif) => {
  const turn = exif ? orientation(exif) : 1;
  if (turn < 2 || turn > 8) return image;
  const {height, width, channels, data} = image;
  const swap = turn >= 5;
  const [h, w] = swap ? [width, height] : [height, width];
  const out = new Uint8Array(data.length);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const v = [3, 4, 7, 8].includes(turn) ? h - 1 - y : y;
      const u = [2, 3, 6, 7].includes(turn) ? w - 1 - x : x;
      const from = swap ? u * width + v : v * width + u;
      for (let c = 0; c < channels; c++) {
        out[(y * w + x) * channels + c] = data[from * channels + c];
      }
    }
  }
  return {height: h, width: w, channels, data: out};
};

function orientation(exif) {
  try {
    const view = new DataView(exif.buffer, exif.byteOffset, exif.byteLength);
    const little = view.getUint8(0) === 0x49;
    const at = view.getUint32(4, little);
    for (let i = 0; i < view.getUint16(at, little); i++) {
      const entry = at + 2 + 12 * i;
      if (view.getUint16(entry, little) === 0x112) return view.getUint16(entry + 8, little);
    }
  } catch { /* damaged EXIF says nothing */ }
  return 1;
}
