"use strict";
// The page: files in, one after the other, a card for each, and a CSV of all.

const NEIGHBOURS = 5;
const results = [];
const at = (id) => document.getElementById(id);

function make(name, parent, text, about = {}) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  Object.assign(made, about);
  parent.append(made);
  return made;
}

function say(text, wrong = false) {
  at("state").textContent = text;
  at("state").className = wrong ? "error" : "";
}

// The image as the model sees it, and the rollout over it, as strong as the slider says.
function draw(canvas, {pixels, rollout}) {
  const {image_size: s, channels, grid} = pacx.about;
  const low = Math.min(...rollout);
  const span = Math.max(...rollout) - low || 1;
  const strength = Number(at("strength").value) / 100;
  const out = new ImageData(s, s);
  for (let y = 0; y < s; y++) {
    for (let x = 0; x < s; x++) {
      const i = y * s + x;
      const cell = Math.floor((y * grid) / s) * grid + Math.floor((x * grid) / s);
      const heat = (rollout[cell] - low) / span;
      const warm = [255 * Math.min(1, 2 * heat), 255 * Math.max(0, 2 * heat - 1), 30];
      for (let c = 0; c < 3; c++) {
        const grey = pixels[i * channels + (channels === 3 ? c : 0)];
        out.data[4 * i + c] = (1 - strength * heat) * grey + strength * heat * warm[c];
      }
      out.data[4 * i + 3] = 255;
    }
  }
  canvas.getContext("2d").putImageData(out, 0, 0);
}

function showPredictions(card, probabilities) {
  const {labels, thresholds, calibrated} = pacx.about;
  const table = make("table", card);
  make("caption", table, calibrated.length ? "Calibrated probability" : "Probability");
  labels.forEach((label, i) => {
    const row = make("tr", table);
    make("th", row, label, {scope: "row"});
    make("td", row, probabilities[i].toFixed(3), {className: "number"});
    const bar = make("td", row);
    make("meter", bar, "", {min: 0, max: 1, value: probabilities[i], ariaLabel: label});
    const limit = thresholds[label];
    const verdict = limit === undefined ? "no threshold"
      : `${probabilities[i] >= limit ? "at or above" : "below"} ${limit.toFixed(3)}`;
    make("td", row, calibrated.includes(label) ? verdict : `${verdict}, not calibrated`);
  });
}

function showNeighbours(card, embedding) {
  const list = make("ol", card, undefined, {className: "neighbours"});
  for (const {name, picture, similarity} of pacx.nearest(embedding, NEIGHBOURS)) {
    const item = make("li", list);
    make("img", item, undefined, {src: picture, alt: "", width: 96, height: 96});
    make("span", item, `${name} (${similarity.toFixed(3)})`);
  }
}

function show(result) {
  const card = make("article", at("results"));
  make("h2", card, result.name);
  if (result.error) {
    make("p", card, result.error, {className: "error"});
    return;
  }
  const s = pacx.about.image_size;
  result.canvas = make("canvas", card, undefined, {width: s, height: s, role: "img",
    ariaLabel: `${result.name}, with the attention rollout over it`});
  draw(result.canvas, result);
  if (result.probabilities) showPredictions(card, result.probabilities);
  if (pacx.gallery) showNeighbours(card, result.embedding);
}

pacx.file = async (name, bytes) => {
  try {
    return {name, ...(await pacx.run(await pacx.decode(bytes)))};
  } catch (error) {
    return {name, error: error.message};
  }
};

let queue = Promise.resolve();

function take(files) {
  queue = queue.then(async () => {
    let done = 0;
    for (const file of files) {
      say(`${++done} of ${files.length}: ${file.name}`);
      let bytes = null;
      try {
        bytes = new Uint8Array(await file.arrayBuffer());
      } catch (error) {
        bytes = new Uint8Array(0);  // a folder, or a file that went away
      }
      const result = await pacx.file(file.name, bytes);
      results.push(result);
      show(result);
      at("csv").disabled = at("clear").disabled = false;
    }
    const bad = results.filter((r) => r.error).length;
    say(`${results.length} files, ${bad} of them could not be read`);
  });
}

function cell(value) {
  let text = String(value);
  // A spreadsheet would compute a name that begins like a formula.
  if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

pacx.csv = (rows, withEmbeddings) => {
  const {labels, width} = pacx.about;
  const numbers = withEmbeddings ? Array.from({length: width}, (_, i) => `z${i}`) : [];
  const near = pacx.gallery ? ["nearest", "similarity"] : [];
  const lines = [["file", "error", ...labels, ...near, ...numbers]];
  for (const row of rows) {
    const line = [row.name, row.error || ""];
    if (!row.error) {
      line.push(...(row.probabilities || []));
      if (pacx.gallery) {
        const [first] = pacx.nearest(row.embedding, 1);
        line.push(first.name, first.similarity);
      }
      if (withEmbeddings) line.push(...row.embedding);
    }
    lines.push([...line, ...Array(lines[0].length - line.length).fill("")]);
  }
  return `${lines.map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`;
};

function save() {
  const text = pacx.csv(results, at("embeddings").checked);
  const url = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
  const link = make("a", document.body, "", {href: url, download: "pacx.csv", hidden: true});
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function listen() {
  at("files").addEventListener("change", () => {
    take([...at("files").files]);
    at("files").value = "";
  });
  for (const name of ["dragover", "drop"]) {
    document.addEventListener(name, (event) => event.preventDefault());
  }
  document.addEventListener("drop", (event) => {
    if (!at("files").disabled) take([...event.dataTransfer.files]);
  });
  at("csv").addEventListener("click", save);
  at("clear").addEventListener("click", () => {
    results.length = 0;
    at("results").replaceChildren();
    at("csv").disabled = at("clear").disabled = true;
    say("Ready.");
  });
  at("strength").addEventListener("input", () => {
    for (const result of results) if (result.canvas) draw(result.canvas, result);
  });
}

pacx.ready = (async () => {
  try {
    await pacx.script("model/about.js");
    at("about").textContent = pacx.about.card;
    if (pacx.about.gallery) {
      await pacx.script("model/gallery.js");
      const bytes = pacx.bytes(pacx.gallery.embeddings);
      pacx.gallery.embeddings = new Float32Array(bytes.buffer);
    }
    await pacx.open((x) => say(`Loading the model: ${Math.round(100 * x)}%`));
    listen();
    at("files").disabled = false;
    say("Ready.");
  } catch (error) {
    say(error.message, true);
    throw error;
  }
})();
pacx.ready.catch(() => undefined);  // the page says it
