// The page of predictions: which case is shown and how, by keys and controls.
"use strict";
(async () => {
  const review = JSON.parse(document.getElementById("review").textContent);
  const element = (id) => document.getElementById(id);
  const marks = selfvox.makeMarks(review.id, review.marks);
  const rows = new Map([...document.querySelectorAll("#cases tbody tr[data-key]")].map((row) => [row.dataset.key, row]));
  const cases = new Map(review.cases.map((shown) => [shown.key, shown]));
  let viewer = null; // null where the browser has no WebGL2
  let drawings = null; // of all cases
  let second = null; // the linked view
  let current = null;
  let turn = 0; // a case that is left while it loads is not shown any more
  let showing = Promise.resolve(); // ends when the viewer shows what was asked for last
  const texts = {}; // data of the case that is shown, by name

  function state(text) {
    document.documentElement.dataset.state = text;
  }

  function message(text) {
    element("message").textContent = text;
  }

  // ---------------------------------------------------------------- table and marks

  function showMark(shown) {
    const { mark = "", note = "", corrected = "" } = marks.get(shown);
    const cell = rows.get(shown.key).querySelector("td.mark");
    const drawn = shown !== current && drawings?.isUnexported(shown) && "drawn"; // not exported
    cell.textContent = [mark, note && "✎", corrected && "corrected", drawn].filter(Boolean).join(" ");
    cell.title = note;
    cell.className = `mark mark-${mark}`;
    if (shown === current) {
      for (const button of document.querySelectorAll("[data-mark]")) {
        button.setAttribute("aria-pressed", String(button.dataset.mark === mark));
      }
      if (document.activeElement !== element("note")) element("note").value = note;
    }
    const count = review.cases.filter((each) => marks.get(each).mark).length;
    element("marks-count").textContent = `${count} of ${review.cases.length} marked`;
  }

  function change(changes, shown = current) {
    if (!shown) return;
    if (!marks.change(shown, changes)) message("This browser keeps no marks: export them before you close the page.");
    showMark(shown);
  }

  function toggleMark(mark) {
    change({ mark: marks.get(current).mark === mark ? "" : mark });
  }

  /** The case so many rows below the current one, in the order of the table. */
  function step(by) {
    const shownRows = [...document.querySelectorAll("#cases tbody tr[data-key]")];
    const place = shownRows.findIndex((row) => current && row.dataset.key === current.key);
    const row = shownRows[Math.min(Math.max(place + by, 0), shownRows.length - 1)];
    if (row) select(cases.get(row.dataset.key));
  }

  // ---------------------------------------------------------------- viewer

  async function load(name) {
    texts[name] ??= await selfvox.data.load(name);
    return texts[name];
  }

  function labelStyle() {
    return [Number(element("label-opacity").value), element("outline").checked];
  }

  function styleLabels() {
    for (const view of [viewer, second]) if (view) view.styleLabel(...labelStyle());
  }

  async function showLabels() {
    const shown = current;
    if (!viewer || !shown) return;
    const name = element("show-truth").checked && !element("linked").checked ? shown.truth : element("show-label").checked ? shown.label : null;
    if (viewer.isDrawn()) return;
    if (!name) viewer.hideLabel();
    else await viewer.showLabel(await load(name), review.classes, review.colours, ...labelStyle());
  }

  async function showMap() {
    const map = current.maps[element("map").value];
    if (!map) {
      viewer.hideMap();
      element("map-text").textContent = "";
      return;
    }
    const threshold = Number(element("map-threshold").value) * map.largest;
    element("map-text").textContent = `${threshold.toPrecision(2)} to ${map.largest.toPrecision(2)}`;
    await viewer.showMap(await load(map.data), threshold, map.largest, Number(element("map-opacity").value));
  }

  function setThreshold() {
    const map = current && current.maps[element("map").value];
    if (!map) return;
    const threshold = Number(element("map-threshold").value) * map.largest;
    element("map-text").textContent = `${threshold.toPrecision(2)} to ${map.largest.toPrecision(2)}`;
    viewer.setThreshold(threshold);
  }

  function channel() {
    return current.channels[Number(element("channel").value) || 0];
  }

  function drawHistogram(low, high) {
    const { histogram, range } = channel();
    const largest = Math.max(...histogram.map((count) => Math.log1p(count)));
    const width = 240 / histogram.length;
    element("histogram").innerHTML = histogram
      .map((count, bin) => {
        const value = range[0] + ((bin + 0.5) / histogram.length) * (range[1] - range[0]);
        const height = (50 * Math.log1p(count)) / largest;
        const inside = value >= low && value <= high ? ' class="inside"' : "";
        return `<rect${inside} x="${bin * width}" y="${50 - height}" width="${width}" height="${height}"></rect>`;
      })
      .join("");
  }

  function describeWindow(low, high) {
    element("window-low").value = low;
    element("window-high").value = high;
    element("window-text").textContent = `${low.toPrecision(3)} to ${high.toPrecision(3)}`;
    drawHistogram(low, high);
  }

  function setWindow(low, high) {
    describeWindow(low, high);
    if (viewer) viewer.setWindow(low, high);
    if (second) second.setWindow(low, high);
  }

  function prepareWindow() {
    const { range, window: first, ct, colour } = channel();
    for (const id of ["window-low", "window-high"]) {
      element(id).min = range[0];
      element(id).max = range[1];
      element(id).step = (range[1] - range[0]) / 200 || 1;
      element(id).disabled = colour;
    }
    element("preset-label").hidden = !ct;
    element("preset").value = "";
    describeWindow(...first);
  }

  /** One after another: a scan that loads slowly would replace the next one. */
  function showChannel() {
    const mine = ++turn;
    showing = showing.catch(() => {}).then(() => mine === turn && showScan(mine));
    return showing;
  }

  async function showScan(mine) {
    const shown = current;
    const text = await load(channel().data);
    if (mine !== turn) return;
    prepareWindow();
    await viewer.together(async () => {
      await viewer.showScan(text, channel().window, shown.flat, element("planes").value);
      if (!drawings.has(shown)) await showLabels();
      if (shown.maps.length && element("map").value) await showMap();
    });
    if (drawings.has(shown)) await openDrawing();
    if (shown.focus) viewer.goTo(shown.focus);
    await showSecond();
    if (mine === turn) state(`ready ${shown.key}`);
  }

  /** The same scan with the truth, in a view that moves together with the first. */
  async function showSecond() {
    const is = element("linked").checked && Boolean(current.truth);
    element("canvas-box").classList.toggle("linked", is);
    if (element("canvas-2")) element("canvas-2").parentElement.hidden = !is;
    if (!is) return;
    if (!second) {
      const box = document.createElement("div");
      const canvas = document.createElement("canvas");
      canvas.id = "canvas-2";
      canvas.setAttribute("aria-label", "Second view: the same slices with the truth");
      box.append(canvas);
      element("canvas-box").append(box);
      second = await selfvox.makeViewer(canvas, () => {});
      viewer.follow(second);
      second.follow(viewer);
    }
    await second.together(async () => {
      await second.showScan(await load(channel().data), channel().window, current.flat, element("planes").value);
      await second.showLabel(await load(current.truth), review.classes, review.colours, ...labelStyle());
    });
  }

  function fill(select, texts_, first) {
    select.replaceChildren();
    const options = texts_.map((text, place) => [String(place), text]);
    for (const [value, text] of first ? [["", first], ...options] : options) {
      const option = document.createElement("option");
      option.value = value;
      option.textContent = text;
      select.append(option);
    }
  }

  async function select(shown) {
    if (shown === current) return;
    const map = element("map").selectedOptions[0]?.textContent; // the same map of the next case
    const before = current;
    current = shown;
    drawings?.close();
    if (before) showMark(before);
    for (const name of Object.keys(texts)) delete texts[name];
    state(`loading ${shown.key}`);
    message("");
    const row = rows.get(shown.key);
    document.querySelectorAll("tr.chosen").forEach((other) => other.classList.remove("chosen"));
    row.classList.add("chosen");
    row.scrollIntoView({ block: "nearest" });
    element("case-heading").textContent = shown.id;
    const picture = document.querySelector(`tr.picture[data-of="${CSS.escape(shown.key)}"] img`);
    element("mosaic").hidden = !picture;
    if (picture) {
      element("mosaic").src = picture.getAttribute("src");
      element("mosaic").alt = picture.alt;
    }
    showMark(shown);
    showCommands();
    element("draw").checked = false;
    document.documentElement.dataset.drawing = "false";
    element("brush").disabled = !shown.editable;
    element("channel-label").hidden = shown.channels.length < 2;
    fill(element("channel"), shown.channels.map((each) => each.name));
    element("truth-label").hidden = element("linked-label").hidden = !shown.truth;
    element("maps").hidden = !shown.maps.length;
    element("labels").hidden = !shown.label;
    element("brush").hidden = !shown.label;
    element("canvas-box").classList.toggle("flat", shown.flat);
    // a picture has one plane, and no left of a patient
    element("planes-label").hidden = element("radiological-label").hidden = shown.flat;
    element("view").hidden = shown.flat && !shown.truth;
    fill(element("map"), shown.maps.map((each) => each.name), "none");
    element("map").value = String(Math.max(shown.maps.findIndex((each) => each.name === map), -1)).replace("-1", "");
    if (!viewer || !shown.channels.length) {
      turn++;
      state(`ready ${shown.key}`);
      return;
    }
    try {
      await showChannel();
    } catch (error) {
      message(error.message);
      state(`failed ${shown.key}`);
    }
  }

  // ---------------------------------------------------------------- correcting

  async function openDrawing() {
    const shown = current;
    if (viewer.isDrawn()) return;
    const label = await viewer.readLabel(await load(shown.label));
    if (shown !== current || viewer.isDrawn()) return;
    viewer.hideLabel();
    drawings.open(shown, label, review.classes, review.colours);
  }

  async function draw() {
    const shown = current;
    if (!viewer || !shown.label) return;
    if (element("draw").checked) {
      await showing; // a drawing needs the scan of its case
      await openDrawing();
    }
    if (shown !== current) return;
    const is = element("draw").checked;
    viewer.draw(is, Number(element("pen").value), Number(element("pen-size").value));
    document.documentElement.dataset.drawing = String(is);
  }

  async function exportLabel() {
    if (!viewer || !viewer.isDrawn()) {
      message("Nothing is drawn yet: choose “draw” first.");
      return;
    }
    // another case may be chosen before the file is written
    const shown = current;
    const changed = drawings.differences();
    const voxels = viewer.drawnVoxels();
    const name = shown.id + (shown.flat ? ".png" : ".nii.gz");
    const write = shown.flat ? selfvox.brush.png : selfvox.brush.file;
    const content = await write(await load(shown.label), await voxels);
    selfvox.data.save(name, content, shown.flat ? "image/png" : "application/gzip");
    drawings.setExported(shown, changed);
    change({ corrected: name }, shown);
  }

  function showCommands() {
    const scans = element("folder-scans").value || "SCANS";
    const predictions = element("folder-predictions").value || "PREDICTIONS";
    element("elsewhere").hidden = !current || !current.label_file || !current.scan_file;
    if (element("elsewhere").hidden) {
      element("commands").textContent = "";
      return;
    }
    const scan = `"${scans}/${current.scan_file}"`;
    const label = `"${predictions}/${current.label_file}"`;
    element("commands").textContent =
      `itksnap -g ${scan} -s ${label}\n` +
      `Slicer --python-code 'slicer.util.loadVolume(${scan}); slicer.util.loadSegmentation(${label})'`;
  }

  // ---------------------------------------------------------------- events

  function on(id, event, action) {
    element(id).addEventListener(event, () => Promise.resolve(action()).catch((error) => message(error.message)));
  }

  for (const [key, row] of rows) {
    row.addEventListener("click", () => select(cases.get(key)));
  }
  for (const button of document.querySelectorAll("[data-mark]")) {
    button.addEventListener("click", () => toggleMark(button.dataset.mark));
  }
  on("previous", "click", () => step(-1));
  on("next", "click", () => step(1));
  on("note", "input", () => change({ note: element("note").value }));
  on("gallery", "change", () => element("cases").classList.toggle("with-pictures", element("gallery").checked));
  on("export-marks", "click", () => selfvox.data.save("review_marks.csv", marks.table(review.cases), "text/csv"));
  on("channel", "change", showChannel);
  on("window-low", "input", () => setWindow(Number(element("window-low").value), Number(element("window-high").value)));
  on("window-high", "input", () => setWindow(Number(element("window-low").value), Number(element("window-high").value)));
  on("preset", "change", () => element("preset").value && setWindow(...element("preset").value.split(",").map(Number)));
  on("show-label", "change", showLabels);
  on("show-truth", "change", showLabels);
  on("label-opacity", "input", styleLabels);
  on("outline", "change", styleLabels);
  on("map", "change", showMap);
  on("map-threshold", "input", setThreshold);
  on("map-opacity", "input", () => viewer.setMapOpacity(Number(element("map-opacity").value)));
  on("planes", "change", () => [viewer, second].forEach((view) => view && view.setPlanes(element("planes").value)));
  on("radiological", "change", () => [viewer, second].forEach((view) => view && view.setRadiological(element("radiological").checked)));
  on("linked", "change", async () => {
    await showLabels();
    await showSecond();
  });
  on("draw", "change", draw);
  on("pen", "change", draw);
  on("pen-size", "input", draw);
  on("undo", "click", () => viewer.undo());
  on("export-label", "click", exportLabel);
  on("folder-scans", "input", showCommands);
  on("folder-predictions", "input", showCommands);

  function click(id) {
    if (!element(id).closest("[hidden], :disabled")) element(id).click();
  }

  function nextMap() {
    const select_ = element("map");
    select_.selectedIndex = (select_.selectedIndex + 1) % select_.options.length;
    select_.dispatchEvent(new Event("change"));
  }

  function choosePlanes(name) {
    if (element("planes-label").hidden) return;
    element("planes").value = name;
    element("planes").dispatchEvent(new Event("change"));
  }

  const keys = {
    j: () => step(1),
    ArrowDown: () => step(1),
    k: () => step(-1),
    ArrowUp: () => step(-1),
    p: () => toggleMark("pass"),
    f: () => toggleMark("fail"),
    a: () => toggleMark("artefact"),
    n: () => element("note").focus(),
    l: () => click("show-label"),
    t: () => click("show-truth"),
    m: nextMap,
    o: () => click("outline"),
    d: () => click("draw"),
    u: () => click("undo"),
    1: () => choosePlanes("multi"),
    2: () => choosePlanes("axial"),
    3: () => choosePlanes("coronal"),
    4: () => choosePlanes("sagittal"),
    PageUp: () => viewer?.step(1),
    PageDown: () => viewer?.step(-1),
  };
  document.addEventListener(
    "keydown",
    (event) => {
      const typing = event.target.matches("input[type=text]");
      if (typing && event.key === "Escape") event.target.blur();
      if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
      // sliders and lists keep their keys
      if (/^(Arrow|Page)/.test(event.key) && event.target.matches("input, select")) return;
      const action = keys[event.key];
      if (!action) return;
      event.preventDefault();
      event.stopPropagation(); // the viewer has keys of its own
      action();
    },
    true,
  );

  window.addEventListener("beforeunload", (event) => {
    if (drawings?.hasUnexported()) event.preventDefault(); // the browser asks
  });

  // ---------------------------------------------------------------- start

  element("folder-scans").value = review.folders.scans || "";
  element("folder-predictions").value = review.folders.predictions || "";
  for (const [value, name] of Object.entries(review.classes)) {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = name;
    element("pen").append(option);
  }
  element("pen").selectedIndex = Math.min(1, element("pen").options.length - 1);
  review.cases.forEach(showMark);
  // NiiVue fills the parent of its canvas
  const box = document.createElement("div");
  element("canvas").replaceWith(box);
  const canvas = document.createElement("canvas");
  canvas.id = "canvas";
  canvas.tabIndex = 0;
  canvas.setAttribute("aria-label", "Viewer: slices of the scan with outlines");
  box.append(canvas);
  try {
    if (!document.createElement("canvas").getContext("webgl2")) throw new Error("no WebGL2");
    viewer = await selfvox.makeViewer(canvas, (location) => {
      element("location").textContent = location.string;
    });
    selfvox.viewer = viewer;
    drawings = selfvox.makeDrawings(viewer);
  } catch {
    element("canvas-box").hidden = true;
    message("This browser has no WebGL2, so that only the pictures are shown.");
  }
  step(1);
})();
