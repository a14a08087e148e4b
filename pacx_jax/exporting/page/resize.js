"use strict";
// Pillow's antialiased bilinear resize of 8-bit images, in its whole-number arithmetic
// (Resample.c): the same grey levels as PIL.Image.resize.

const BITS = 22;

// First pixel and integer weights of every output pixel, along one side.
function weights(from, to) {
  const scale = from / to;
  const support = Math.max(scale, 1);
  return Array.from({length: to}, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(centre - support + 0.5), 0);
    const end = Math.min(Math.trunc(centre + support + 0.5), from);
    const found = new Float64Array(end - first);
    let sum = 0;
    for (let k = 0; k < found.length; k++) {
      const x = Math.abs((k + first - centre + 0.5) * (1 / support));
      found[k] = x < 1 ? 1 - x : 0;
      sum += found[k];
    }
    return {first, w: Int32Array.from(found, (x) => {
      const share = sum ? x * (1 / sum) : 0;
      return Math.trunc(0.5 + share * 2 ** BITS);
    })};
  });
}

// Resizes along one side: `inner` neighbouring numbers stay together.
function along(data, outer, from, to, inner) {
  const out = new Uint8Array(outer * to * inner);
  weights(from, to).forEach(({first, w}, i) => {
    for (let o = 0; o < outer; o++) {
      for (let c = 0; c < inner; c++) {
        let sum = 1 << (BITS - 1);
        let at = (o * from + first) * inner + c;
        for (let k = 0; k < w.length; k++, at += inner) sum += data[at] * w[k];
        out[(o * to + i) * inner + c] = Math.min(Math.max(sum >> BITS, 0), 255);
      }
    }
  });
  return out;
}

// The order of the two passes decides which halves are rounded. Newer Pillows begin with
// the columns of tall images; the export says whether its own does.
pacx.resize = ({height, width, channels, data}, size, tallFirst) => {
  const across = (x, rows) => (
    width === size ? x : along(x, rows, width, size, channels));
  const down = (x, columns) => (
    height === size ? x : along(x, 1, height, size, columns * channels));
  const tall = tallFirst && height > size && height - size > 2 * (width - size);
  const out = tall ? across(down(data, width), size) : down(across(data, height), size);
  return {height: size, width: size, channels, data: out};
};

// What the model takes: size x size with 3 channels, or 1 by PIL's luma.
pacx.prepare = (image, size, channels, tallFirst) => {
  const {data, channels: has} = pacx.resize(image, size, tallFirst);
  if (has === channels) return data;
  const out = new Uint8Array(size * size * channels);
  for (let i = 0; i < size * size; i++) {
    if (channels === 3) out.fill(data[i], 3 * i, 3 * i + 3);
    else {
      const [r, g, b] = data.subarray(3 * i, 3 * i + 3);
      out[i] = (r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16;
    }
  }
  return out;
};
