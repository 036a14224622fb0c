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
  // what each volume is, in the order of view.volumes: "scan", "label" or "map"
  let roles = [];

  function place(role) {
    return roles.indexOf(role);
  }

  async function image(name, base64, options) {
    return NVImage.loadFromBase64({ base64, name: `${name}.nii.gz`, ...options });
  }

  /** NiiVue draws the border of a label with an opacity of its own; 0 would hide all of it. */
  function styleLabel(opacity, outlinesOnly) {
    view.opts.atlasOutline = outlinesOnly ? opacity : 0;
    if (place("label") >= 0) view.setOpacity(place("label"), outlinesOnly ? 0.01 : opacity);
  }

  function remove(role) {
    const index = place(role);
    if (index < 0) return;
    view.removeVolumeByIndex(index);
    roles.splice(index, 1);
  }

  return {
    /** Forget the case before, and show a scan; base64 of NIfTI, and the values of black and white. */
    async showScan(base64, window_, flat) {
      view.closeDrawing();
      const scan = await image("scan", base64, {
        colormap: "gray",
        cal_min: window_[0],
        cal_max: window_[1],
        trustCalMinMax: false,
      });
      while (view.volumes.length) view.removeVolumeByIndex(view.volumes.length - 1);
      roles = ["scan"];
      view.opts.isOrientationTextVisible = !flat;
      view.addVolume(scan);
      view.setSliceType(flat ? planes.axial : planes.multi);
    },
    /** Show class numbers; names and colours (#rrggbb) by number. */
    async showLabel(base64, names, colours, opacity, outlinesOnly) {
      remove("label");
      const numbers = Object.keys(names).map(Number).sort((a, b) => a - b);
      const map = { R: [], G: [], B: [], A: [], I: [], labels: [] };
      for (const number of numbers) {
        const colour = colours[number] || "#000000";
        map.R.push(parseInt(colour.slice(1, 3), 16));
        map.G.push(parseInt(colour.slice(3, 5), 16));
        map.B.push(parseInt(colour.slice(5, 7), 16));
        map.A.push(number === 0 ? 0 : 255);
        map.I.push(number);
        map.labels.push(names[number]);
      }
      const label = await image("label", base64, { opacity: 0.01, colorbarVisible: false });
      label.hdr.intent_code = 1002; // of labels: NiiVue outlines no others
      label.setColormapLabel(map);
      view.addVolume(label);
      roles.push("label");
      styleLabel(opacity, outlinesOnly);
    },
    hideLabel: () => remove("label"),
    /** Show a map from `threshold` to `largest` in colours. */
    async showMap(base64, threshold, largest, opacity) {
      remove("map");
      const map = await image("map", base64, {
        colormap: "inferno",
        opacity,
        cal_min: threshold,
        cal_max: largest,
      });
      view.addVolume(map);
      roles.push("map");
    },
    hideMap: () => remove("map"),
    setWindow(low, high) {
      const scan = view.volumes[0];
      if (!scan) return;
      scan.cal_min = low;
      scan.cal_max = high;
      view.updateGLVolume();
    },
    setThreshold(threshold) {
      if (place("map") < 0) return;
      view.volumes[place("map")].cal_min = threshold;
      view.updateGLVolume();
    },
    setMapOpacity(opacity) {
      if (place("map") >= 0) view.setOpacity(place("map"), opacity);
    },
    styleLabel,
    setPlanes: (name) => view.setSliceType(planes[name]),
    setRadiological: (is) => view.setRadiologicalConvention(is),
    follow: (other) => view.broadcastTo([other.niivue], { "2d": true, "3d": true }),
    /** Turn a label into a drawing that can be changed. */
    async startDrawing(base64, names, colours) {
      const label = await image("label", base64, {});
      const map = { R: [0], G: [0], B: [0], A: [0], I: [0], labels: ["background"], min: 0, max: 0 };
      for (const number of Object.keys(names).map(Number).filter((value) => value > 0)) {
        const colour = colours[number];
        map.R.push(parseInt(colour.slice(1, 3), 16));
        map.G.push(parseInt(colour.slice(3, 5), 16));
        map.B.push(parseInt(colour.slice(5, 7), 16));
        map.A.push(255);
        map.I.push(number);
        map.labels.push(names[number]);
      }
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
    undo: () => view.drawUndo(),
    isDrawn: () => Boolean(view.drawBitmap),
    /** The drawn class numbers in the order of the file, one byte each. */
    async drawnVoxels() {
      const file = await view.saveImage({ filename: "", isSaveDrawing: true });
      const start = new DataView(file.buffer, file.byteOffset).getFloat32(108, true);
      return file.slice(start);
    },
    niivue: view,
  };
};
