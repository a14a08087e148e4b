"use strict";
// Writes out openapi.json.

function element(name, text, parent) {
  const made = document.createElement(name);
  made.textContent = text;
  parent.append(made);
  return made;
}

function schemaOf(content) {
  const [found] = Object.values(content || {});
  return found && found.schema ? JSON.stringify(found.schema, null, 1) : "";
}

async function begin() {
  const about = await (await fetch("openapi.json")).json();
  document.getElementById("about").textContent =
    `Version ${about.info.version}. ${about.info.description}`;
  const routes = document.getElementById("routes");
  for (const [path, item] of Object.entries(about.paths)) {
    for (const [method, route] of Object.entries(item)) {
      element("h2", `${method.toUpperCase()} ${path}`, routes);
      element("p", `${route.summary}. ${route.description || ""}`, routes);
      for (const p of route.parameters || []) {
        element("p", `Query ${p.name}: ${p.description}`, routes);
      }
      const needsToken = about.security && !route.security;
      const token = needsToken ? ' --header "Authorization: Bearer TOKEN"' : "";
      const file = method === "post" ? " --form file=@film.png" : "";
      element("pre", `curl${token}${file} ${location.origin}${path}`, routes);
      const table = element("table", "", routes);
      for (const [status, answer] of Object.entries(route.responses)) {
        const row = element("tr", "", table);
        element("th", status, row).scope = "row";
        const cell = element("td", answer.description, row);
        const schema = schemaOf(answer.content);
        if (schema && status === "200") element("pre", schema, cell);
      }
    }
  }
}

begin().catch((error) => { document.getElementById("about").textContent = error.message; });
