// Data of the viewer: scripts next to the page, or texts inside of it. Both work without a server.
"use strict";
var selfvox = window.selfvox || {};
window.selfvox = selfvox;

selfvox.data = (() => {
  const waiting = new Map(); // by name: promised data, and what to call with them

  function receive(name, text) {
    const request = waiting.get(name);
    waiting.delete(name);
    if (request) request.resolve(text);
  }

  /** The base64 text that was added as `name`. */
  function load(name) {
    const inside = document.querySelector(`script[data-name="${CSS.escape(name)}"]`);
    if (inside) return Promise.resolve(inside.textContent);
    if (waiting.has(name)) return waiting.get(name).promise;
    const request = {};
    request.promise = new Promise((resolve, reject) => {
      const script = document.createElement("script");
      request.resolve = resolve;
      script.src = `data/${name}.js`;
      script.onload = () => script.remove();
      script.onerror = () => {
        waiting.delete(name);
        reject(new Error(`data/${name}.js is missing; make the report again`));
      };
      document.head.append(script);
    });
    waiting.set(name, request);
    return request.promise;
  }

  /** The bytes of base64 text. */
  function bytes(text) {
    return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  }

  /** Bytes through one of the browser's streams, such as `new CompressionStream("gzip")`. */
  async function through(content, stream) {
    const response = new Response(new Blob([content]).stream().pipeThrough(stream));
    return new Uint8Array(await response.arrayBuffer());
  }

  /** Let the person save bytes or text as a file. */
  function save(name, content, type) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([content], { type }));
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  return { receive, load, bytes, through, save };
})();
