"use strict";
// Sends files one at a time, so that one bad file does not hide the others' results.

const at = (id) => document.getElementById(id);

function element(name, text, parent, kind) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (kind) made.className = kind;
  if (parent) parent.append(made);
  return made;
}

async function begin() {
  const about = await (await fetch("openapi.json")).json();
  for (const [path, item] of Object.entries(about.paths)) {
    if (!item.post) continue;
    const option = element("option", item.post.summary, at("work"));
    option.value = path.slice(1);
  }
  const ready = await (await fetch("ready")).json();
  at("state").textContent = ready.status === "ready" ? "" : `The service is ${ready.status}.`;
}

async function send(file, work) {
  const headers = {"Content-Type": "application/octet-stream"};
  if (at("token").value) headers.Authorization = `Bearer ${at("token").value}`;
  const answer = await fetch(work, {method: "POST", body: file, headers});
  const found = await answer.json();
  if (!answer.ok) throw new Error(`${answer.status}: ${found.error}`);
  return found;
}

function heat(grid, parent) {
  const canvas = element("canvas", undefined, parent);
  canvas.width = grid[0].length;
  canvas.height = grid.length;
  canvas.style.imageRendering = "pixelated";
  canvas.style.width = "12rem";
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "attention rollout, bright where the share is large");
  const values = grid.flat();
  const low = Math.min(...values);
  const span = Math.max(...values) - low || 1;
  const pixels = new ImageData(canvas.width, canvas.height);
  values.forEach((v, i) => {
    const x = (v - low) / span;
    pixels.data.set([255 * Math.min(1, 2 * x), 255 * Math.max(0, 2 * x - 1), 40, 255], 4 * i);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

function show(found, cell) {
  const result = found.results[0];
  if (result.embedding) {
    element("code", `${found.width} numbers: ${result.embedding.slice(0, 6)} …`, cell);
  } else if (result.rollout) {
    heat(result.rollout, cell);
  } else {
    const table = element("table", undefined, cell);
    for (const label of found.labels) {
      const row = element("tr", undefined, table);
      element("th", label, row).scope = "row";
      element("td", result.probabilities[label].toFixed(3), row, "number");
      const called = {true: "called", false: "not called", null: "no threshold"};
      element("td", called[result.called[label]], row);
      element("td", found.calibrated.includes(label) ? "" : "not calibrated", row);
    }
  }
}

at("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const [files, work] = [[...at("files").files], at("work").value];
  at("results").replaceChildren();
  const table = element("table", undefined, at("results"));
  for (const [i, file] of files.entries()) {
    at("state").textContent = `${i + 1} of ${files.length}`;
    const row = element("tr", undefined, table);
    element("th", file.name, row).scope = "row";
    const cell = element("td", undefined, row);
    try {
      show(await send(file, work), cell);
    } catch (error) {
      cell.className = "error";
      cell.textContent = error.message;
    }
  }
  at("state").textContent = `${files.length} done`;
});

begin().catch((error) => { at("state").textContent = error.message; });
