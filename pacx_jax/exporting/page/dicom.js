"use strict";
// DICOM X-rays to grey levels by the pipeline of pacx_jax/input/dicom.py: uncompressed
// little endian and JPEG baseline; other transfer syntaxes are refused.

const LONG = ["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"];
const ITEM = 0xfffee000;
const SYNTAX = 0x00020010;
const PIXELS = 0x7fe00010;
const IMPLICIT = "1.2.840.10008.1.2";
const EXPLICIT = "1.2.840.10008.1.2.1";
const BASELINE = "1.2.840.10008.1.2.4.50";

pacx.isDicom = (bytes) => {
  if (pacx.starts(bytes, 128, [0x44, 0x49, 0x43, 0x4d])) return true;
  const [group, high, element, last] = bytes;
  return [2, 8].includes(group) && high === 0 && [0, 1, 5, 8, 0x16].includes(element)
    && last === 0;
};

// Reads elements into {tag: {vr, at, length, items}} up to `end`, or a delimiter.
function read(view, at, end, explicit, found = {}, stop = () => false) {
  while (at + 8 <= end) {
    const tag = view.getUint16(at, true) * 65536 + view.getUint16(at + 2, true);
    if (tag === 0xfffee00d || tag === 0xfffee0dd) return at + 8;
    if (stop(tag)) return at;
    let vr = "";
    let length;
    if (explicit && tag !== ITEM) {
      vr = String.fromCharCode(view.getUint8(at + 4), view.getUint8(at + 5));
      const long = LONG.includes(vr);
      length = long ? view.getUint32(at + 8, true) : view.getUint16(at + 6, true);
      at += long ? 12 : 8;
    } else {
      length = view.getUint32(at + 4, true);
      at += 8;
    }
    const open = length === 0xffffffff;
    if (!open && at + length > end) throw new Error("an element is cut off");
    const element = {vr, at, length, items: []};
    found[tag] = element;
    if (tag === PIXELS && open) {
      element.items = fragments(view, at, end);
      return end;
    }
    if (vr === "SQ" || open || TABLES.includes(tag)) {
      // An unknown element of no length is a sequence without VRs (PS3.5 6.2.2).
      at = items(view, at, open ? end : at + length, explicit && vr !== "UN", element);
    } else {
      at += length;
    }
    if (tag === PIXELS) return at;
  }
  return at;
}

const TABLES = [0x00283000, 0x00283010];

function items(view, at, end, explicit, element) {
  while (at + 8 <= end) {
    const tag = view.getUint16(at, true) * 65536 + view.getUint16(at + 2, true);
    const length = view.getUint32(at + 4, true);
    at += 8;
    if (tag === 0xfffee0dd) return at;
    if (tag !== ITEM) throw new Error("a sequence is damaged");
    const open = length === 0xffffffff;
    if (!open && at + length > end) throw new Error("a sequence is cut off");
    const item = {};
    const after = read(view, at, open ? end : at + length, explicit, item);
    element.items.push(item);
    at = open ? after : at + length;
  }
  return at;
}

function fragments(view, at, end) {
  const found = [];
  while (at + 8 <= end) {
    const tag = view.getUint16(at, true) * 65536 + view.getUint16(at + 2, true);
    const length = view.getUint32(at + 4, true);
    if (tag !== ITEM) break;
    if (at + 8 + length > end) throw new Error("PixelData is cut off");
    found.push({at: at + 8, length});
    at += 8 + length;
  }
  return found.slice(1);  // the first has offsets
}

pacx.dicom = async (bytes) => {
  try {
    return await decoded(bytes);
  } catch (error) {
    throw new Error(`DICOM ${error.message}`);
  }
};

async function decoded(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const all = {};
  let at = pacx.starts(bytes, 128, [0x44, 0x49, 0x43, 0x4d]) ? 132 : 0;
  at = read(view, at, bytes.length, true, all, (tag) => tag >= 0x00030000);
  const values = valuesOf(bytes, all);
  const guess = /^[A-Z]{2}$/.test(String.fromCharCode(...bytes.subarray(at + 4, at + 6)));
  const syntax = values.text(SYNTAX, guess ? EXPLICIT : IMPLICIT);
  if (![IMPLICIT, EXPLICIT, BASELINE].includes(syntax)) {
    throw new Error(
      `TransferSyntaxUID ${syntax} is not read in a browser: convert it to Explicit VR `
      + "Little Endian (dcmconv +te, dcmdjpeg), or use pacx embed or pacx serve");
  }
  read(view, at, bytes.length, syntax !== IMPLICIT, all, (tag) => tag > PIXELS);
  if (!all[PIXELS]) throw new Error("PixelData is absent: cut off, or not an image");
  const [h, w, allocated, bits, signed] = [0x00280010, 0x00280011, 0x00280100, 0x00280101,
    0x00280103].map((tag) => values.whole(tag));
  const photometric = values.text(0x00280004);
  if (!["MONOCHROME1", "MONOCHROME2"].includes(photometric)
      || values.whole(0x00280002, 1) !== 1 || values.number(0x00280008, 1) !== 1) {
    throw new Error(`${photometric}: one grey frame a file is read`);
  }
  pacx.checkPixels(h, w);
  if (![8, 16].includes(allocated) || bits < 1 || bits > allocated
      || values.whole(0x00280102, bits - 1) !== bits - 1) {
    throw new Error(`BitsAllocated ${allocated}, BitsStored ${bits}: not the low bits`);
  }
  const stored = syntax === BASELINE
    ? await compressed(bytes, all[PIXELS], h, w, bits)
    : native(bytes, all[PIXELS], h, w, allocated, bits);
  const table = greyTable(values, stored, bits, signed, photometric);
  const data = Uint8Array.from(stored, (x) => table[x]);
  return {height: h, width: w, channels: 1, data};
}

function native(bytes, {at, length}, h, w, allocated, bits) {
  const n = (h * w * allocated) / 8;
  if (length < n || length >= Math.max(2 * n, n + 2)) {
    throw new Error(`PixelData has ${length} bytes, where ${h} x ${w} pixels make ${n}`);
  }
  const out = new Uint16Array(h * w);
  const mask = 2 ** bits - 1;
  for (let i = 0; i < out.length; i++) {
    const low = allocated === 8 ? bytes[at + i] : bytes[at + 2 * i];
    out[i] = (allocated === 8 ? low : low + 256 * bytes[at + 2 * i + 1]) & mask;
  }
  return out;
}

async function compressed(bytes, {items: parts}, h, w, bits) {
  const frame = new Uint8Array(parts.reduce((sum, p) => sum + p.length, 0));
  let at = 0;
  for (const p of parts) {
    frame.set(bytes.subarray(p.at, p.at + p.length), at);
    at += p.length;
  }
  const header = pacx.jpegHeader(frame);
  if (header.height !== h || header.width !== w || header.components !== 1
      || header.bits !== 8 || bits !== 8) {
    throw new Error("its compressed image has another size, depth or colour");
  }
  const found = pacx.fromRgba(await pacx.byBrowser(frame), 1);
  return Uint16Array.from(found.data);
}

// Values of elements, the first of several.
function valuesOf(bytes, all) {
  const raw = (tag) => {
    const found = all[tag];
    if (!found || !found.length) return null;
    const text = String.fromCharCode(...bytes.subarray(found.at, found.at + found.length));
    return text.split("\\")[0].replace(/^[\0 ]+|[\0 ]+$/g, "");
  };
  const absent = (tag) => new Error(
    `element ${tag.toString(16).padStart(8, "0")} is absent: cut off, or not an image`);
  const found = {
    all,
    bytes,
    text: (tag, otherwise) => {
      const text = raw(tag);
      if (text) return text;
      if (otherwise === undefined) throw absent(tag);
      return otherwise;
    },
    whole: (tag, otherwise) => {
      const element = all[tag];
      if (element && element.length >= 2) {
        return bytes[element.at] + 256 * bytes[element.at + 1];
      }
      if (otherwise === undefined) throw absent(tag);
      return otherwise;
    },
    number: (tag, otherwise) => {
      const text = raw(tag);
      if (!text) return otherwise;
      if (!/^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,2})?$/.test(text)) {
        throw new Error(`element ${tag.toString(16)} ${text.slice(0, 40)} is no number`);
      }
      return Number(text);
    },
  };
  return found;
}

function greyTable(values, stored, bits, signed, photometric) {
  const n = 2 ** bits;
  const x = Float64Array.from({length: n}, (_, i) => (signed && i >= n / 2 ? i - n : i));
  const padding = paddingOf(values, x, signed);
  const seen = new Uint8Array(n);
  for (const level of stored) seen[level] = 1;
  if (values.all[TABLES[0]] && values.all[TABLES[0]].items.length) {
    x.set(lookUp(values, values.all[TABLES[0]].items[0], x).found);
  } else {
    const slope = values.number(0x00281053, 1);
    if (slope === 0) throw new Error("RescaleSlope 0 makes all values one");
    const intercept = values.number(0x00281052, 0);
    x.forEach((v, i) => { x[i] = v * slope + intercept; });
  }
  const inside = [...x.keys()].filter((i) => seen[i] && !padding[i]);
  const grey = voi(values, x, inside);
  const shown = inside.map((i) => grey[i]);
  if (inside.length > 1 && shown.every((g) => g === shown[0])) {
    throw new Error("all its values are one grey level by the window or table");
  }
  const shape = values.text(0x20500020, "IDENTITY");
  if (!["IDENTITY", "INVERSE"].includes(shape)) {
    throw new Error(`PresentationLUTShape ${shape}: not IDENTITY or INVERSE`);
  }
  const turn = shape === "INVERSE" || photometric === "MONOCHROME1";
  return Uint8Array.from(grey, (g, i) => (padding[i] ? 0 : even(255 * (turn ? 1 - g : g))));
}

// Rounds halves to even, as NumPy does.
function even(x) {
  const down = Math.floor(x);
  if (x - down !== 0.5) return Math.round(x);
  return down % 2 ? down + 1 : down;
}

function paddingOf(values, x, signed) {
  const one = values.whole(0x00280120, -1);
  if (one < 0) return x.map(() => 0);
  let ends = [one, values.whole(0x00280121, one)];
  if (signed) ends = ends.map((end) => (end >= 2 ** 15 ? end - 2 ** 16 : end));
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  return x.map((v) => (v >= low && v <= high ? 1 : 0));
}

function voi(values, x, inside) {
  const sequence = values.all[TABLES[1]];
  if (sequence && sequence.items.length) {
    const {found, bits} = lookUp(values, sequence.items[0], x);
    return found.map((g) => Math.min(Math.max(g / (2 ** bits - 1), 0), 1));
  }
  if (!values.text(0x00281050, "") && !values.text(0x00281051, "")) {
    let [low, high] = [Infinity, -Infinity];
    for (const i of inside) {
      low = Math.min(low, x[i]);
      high = Math.max(high, x[i]);
    }
    if (!inside.length) [low, high] = [0, 0];
    const span = Math.max(high - low, 1e-30);
    return x.map((v) => Math.min(Math.max((v - low) / span, 0), 1));
  }
  let [centre, width] = [values.number(0x00281050), values.number(0x00281051)];
  if (centre === undefined || width === undefined) {
    throw new Error("WindowCenter or WindowWidth is absent");
  }
  const way = values.text(0x00281056, "LINEAR").toUpperCase();
  if (width < (way === "LINEAR" ? 1 : Number.MIN_VALUE)) {
    throw new Error(`WindowWidth ${width} is too small`);
  }
  if (way === "SIGMOID") return x.map((v) => 1 / (1 + Math.exp((-4 * (v - centre)) / width)));
  if (way === "LINEAR") [centre, width] = [centre - 0.5, width - 1];
  else if (way !== "LINEAR_EXACT") throw new Error(`VOILUTFunction ${way} is unknown`);
  return x.map((v) => {
    if (v <= centre - width / 2) return 0;
    return v > centre + width / 2 ? 1 : (v - centre) / width + 0.5;
  });
}

// Values through a look-up table, and the bits of its entries (PS3.3 C.11.1.1).
function lookUp({bytes}, item, x) {
  const [about, content] = [item[0x00283002], item[0x00283006]];
  if (!about || !content || about.length < 6) throw new Error("a table is incomplete");
  const at = (i) => bytes[about.at + 2 * i] + 256 * bytes[about.at + 2 * i + 1];
  let [n, first, bits] = [at(0) || 2 ** 16, at(1), at(2)];
  const short = bits === 8 && [n, n + 1].includes(content.length) && n > 1;
  const size = short ? 1 : 2;
  if (bits < 8 || bits > 16 || ![0, 1].includes(content.length - n * size)) {
    throw new Error("a table and its description do not fit");
  }
  const table = Float64Array.from({length: n}, (_, i) => {
    const j = content.at + i * size;
    return short ? bytes[j] : bytes[j] + 256 * bytes[j + 1];
  });
  const top = table.reduce((a, b) => Math.max(a, b), 0);
  if (top >= 2 ** bits) throw new Error("a table and its description do not fit");
  const [low, high] = x.reduce(([a, b], v) => [Math.min(a, v), Math.max(b, v)],
    [Infinity, -Infinity]);
  if (first >= 2 ** 15 && (low < 0 || high < first)) first -= 2 ** 16;
  if (bits === 16 && top < 2 ** 14) bits = Math.max(Math.floor(Math.log2(top || 1)) + 1, 8);
  const found = x.map((v) => table[Math.min(Math.max(even(v) - first, 0), n - 1)]);
  return {found, bits};
}
