// The only file that knows NiiVue (0.69): scans, labels and maps in a canvas.
"use strict";
var selfvox = window.selfvox || {};
window.selfvox = selfvox;

selfvox.makeViewer = async function (canvas, onLocation) {
  const { Niivue, NVImage, SLICE_TYPE } = window.niivue;
  const planes = {
    multi: SLICE_TYPE.MULTIPLANAR,
    axial: SLICE_TYPE.AXIAL,
    coronal: SLICE_TYPE.CORONAL,
    sagittal: SLICE_TYPE.SAGITTAL,
  };
  const view = new Niivue({
    dragAndDropEnabled: false,
    crosshairWidth: 0.25,
    crosshairWidthUnit: "percent",
    crosshairGap: 0,
    crosshairColor: [0.2, 0.7, 1, 0.6],
    backColor: [0, 0, 0, 1],
    fontColor: [0.85, 0.85, 0.85, 1],
    loadingText: "",
    isColorbar: false,
    showLegend: false,
    multiplanarShowRender: 0,
    clipPlaneHotKey: "",
    cycleClipPlaneHotKey: "",
    viewModeHotKey: "",
    logLevel: "error",
    isNearestInterpolation: false,
  });
  await view.attachToCanvas(canvas);
  view.onLocationChange = onLocation;
  const layers = { scan: null, label: null, map: null };
  let isHeld = false; // several layers change: they are drawn together

  /** Draw all layers: each update sends every volume to the graphics card again. */
  function apply() {
    if (isHeld) return;
    view.volumes = [layers.scan, layers.label, layers.map].filter(Boolean);
    view.back = view.volumes[0] ?? null;
    view.overlays = view.volumes.slice(1);
    view.updateGLVolume();
  }

  async function image(name, base64, options) {
    return NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...options });
  }

  /** NiiVue draws the border of a label with an opacity of its own; 0 would hide all of it. */
  function setStyle(opacity, outlinesOnly) {
    view.opts.atlasOutline = outlinesOnly ? opacity : 0;
    view.drawOpacity = opacity * 0.6; // a drawing has no outline, and the scan below is seen
    if (layers.label) layers.label.opacity = outlinesOnly ? 0.01 : opacity;
  }

  function colourTable(names, colours) {
    const table = { R: [], G: [], B: [], A: [], I: [], labels: [] };
    for (const number of Object.keys(names).map(Number).sort((a, b) => a - b)) {
      const colour = colours[number] || "#000000";
      table.R.push(parseInt(colour.slice(1, 3), 16));
      table.G.push(parseInt(colour.slice(3, 5), 16));
      table.B.push(parseInt(colour.slice(5, 7), 16));
      table.A.push(number === 0 ? 0 : 255);
      table.I.push(number);
      table.labels.push(names[number]);
    }
    return table;
  }

  return {
    /** Change several layers, and draw them once. */
    async together(change) {
      isHeld = true;
      try {
        await change();
      } finally {
        isHeld = false;
      }
      apply();
    },
    /**
     * Show a scan without label and map; base64 of NIfTI, and the values of black and white.
     * A drawing stays: it is on the grid of all channels of a case.
     */
    async showScan(base64, window_, flat, planesName) {
      layers.scan = await image("scan", base64, {
        colormap: "gray",
        cal_min: window_[0],
        cal_max: window_[1],
        trustCalMinMax: false,
      });
      layers.label = null;
      layers.map = null;
      view.opts.isOrientationTextVisible = !flat;
      view.opts.sliceType = flat ? planes.axial : planes[planesName];
      apply();
    },
    /** Show class numbers; names and colours (#rrggbb) by number. */
    async showLabel(base64, names, colours, opacity, outlinesOnly) {
      layers.label = await image("label", base64, { colorbarVisible: false });
      layers.label.hdr.intent_code = 1002; // of labels: NiiVue outlines no others
      layers.label.setColormapLabel(colourTable(names, colours));
      setStyle(opacity, outlinesOnly);
      apply();
    },
    /** Move the cross to a place in mm. */
    goTo(mm) {
      view.scene.crosshairPos = view.mm2frac(mm);
      view.drawScene();
    },
    hideLabel() {
      layers.label = null;
      apply();
    },
    /** Show a map from `threshold` to `largest` in colours. */
    async showMap(base64, threshold, largest, opacity) {
      layers.map = await image("map", base64, {
        colormap: "inferno",
        opacity,
        cal_min: threshold,
        cal_max: largest,
      });
      apply();
    },
    hideMap() {
      layers.map = null;
      apply();
    },
    setWindow(low, high) {
      if (!layers.scan) return;
      layers.scan.cal_min = low;
      layers.scan.cal_max = high;
      apply();
    },
    setThreshold(threshold) {
      if (!layers.map) return;
      layers.map.cal_min = threshold;
      apply();
    },
    setMapOpacity(opacity) {
      if (!layers.map) return;
      layers.map.opacity = opacity;
      apply();
    },
    styleLabel(opacity, outlinesOnly) {
      setStyle(opacity, outlinesOnly);
      apply();
    },
    setPlanes: (name) => view.setSliceType(planes[name]),
    setRadiological: (is) => view.setRadiologicalConvention(is),
    follow: (other) => view.broadcastTo([other.niivue], { "2d": true, "3d": true }),
    /** Move the cross by a slice of the plane that is shown; of all three, of the axial one. */
    step(by) {
      if (!view.opts.isOrientationTextVisible) return; // a picture has one slice
      const isCoronal = view.opts.sliceType === planes.coronal;
      const isSagittal = view.opts.sliceType === planes.sagittal;
      const isAxial = !isCoronal && !isSagittal;
      view.moveCrosshairInVox(isSagittal ? by : 0, isCoronal ? by : 0, isAxial ? by : 0);
    },
    readLabel: (base64) => image("label", base64, {}),
    /** Turn a label, read, into a drawing that can be changed. */
    startDrawing(label, names, colours) {
      const map = { ...colourTable(names, colours), min: 0, max: 0 };
      if (!view.loadDrawing(label)) throw new Error("the label does not fit the scan");
      view.drawLut = window.niivue.cmapper.makeDrawLut(map);
      view.updateGLVolume();
    },
    draw(is, number, size) {
      view.setDrawingEnabled(is);
      if (!is) return;
      view.opts.penSize = size;
      view.setPenValue(number, false);
    },
    /** Replace the drawing; `undo` goes back to this one at most. */
    redraw(voxels) {
      view.drawBitmap.set(voxels);
      view.drawClearAllUndoBitmaps();
      view.drawAddUndoBitmap();
      view.refreshDrawing(true);
    },
    closeDrawing() {
      view.setDrawingEnabled(false);
      view.closeDrawing();
    },
    undo: () => view.drawUndo(),
    isDrawn: () => Boolean(view.drawBitmap),
    /** The drawn class numbers in the order of the viewer; null where nothing is drawn. */
    drawing: () => view.drawBitmap,
    /** The drawn class numbers in the order of the file, one byte each. */
    async drawnVoxels() {
      const file = await view.saveImage({ filename: "", isSaveDrawing: true });
      const start = new DataView(file.buffer, file.byteOffset).getFloat32(108, true);
      return file.slice(start);
    },
    niivue: view,
  };
};
