"use strict";
// The namespace of the page, and the parts of large files, which come as scripts: a page
// that was opened from disk may not fetch, but it may run scripts beside it.

const pacx = {parts: {}, about: null, gallery: null};

pacx.bytes = (text) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
};

// Called by the scripts of parts.
pacx.part = (file, text) => { pacx.parts[file] = pacx.bytes(text); };

pacx.script = (path) => new Promise((resolve, reject) => {
  const tag = document.createElement("script");
  tag.src = path;
  tag.onload = () => { tag.remove(); resolve(); };
  tag.onerror = () => reject(new Error(`${path} is missing beside this page`));
  document.head.append(tag);
});

// The bytes of a file that the export split into `count` parts.
pacx.whole = async (name, count, size, said) => {
  const bytes = new Uint8Array(size);
  let at = 0;
  for (let i = 0; i < count; i++) {
    const file = `${name}.${String(i).padStart(3, "0")}.js`;
    await pacx.script(file);
    bytes.set(pacx.parts[file], at);
    at += pacx.parts[file].length;
    delete pacx.parts[file];
    said(at / size);
  }
  if (at !== size) throw new Error(`${name} is incomplete: copy the whole folder`);
  return bytes;
};
