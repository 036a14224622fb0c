// The drawings of all cases: kept while another case is shown, until the page is closed.
"use strict";
var selfvox = window.selfvox || {};
window.selfvox = selfvox;

selfvox.makeDrawings = function (viewer) {
  const kept = new Map(); // by case: which voxels differ from the prediction
  const exported = new Map(); // likewise, at the last export
  let open = null; // the case that is drawn on
  let predicted = null; // voxels of its prediction

  /** Places and class numbers of the voxels that differ from the prediction. */
  function differences() {
    const drawn = viewer.drawing();
    const places = [];
    for (let place = 0; place < drawn.length; place++) {
      if (drawn[place] !== predicted[place]) places.push(place);
    }
    return { places, values: places.map((place) => drawn[place]) };
  }

  const NOTHING = { places: [], values: [] };

  function isUnexported(shown) {
    const now = (shown === open ? differences() : kept.get(shown)) ?? NOTHING;
    return JSON.stringify(now) !== JSON.stringify(exported.get(shown) ?? NOTHING);
  }

  return {
    has: (shown) => kept.has(shown),
    /** Draw on the label of a case: as it was left, or as it was predicted. */
    open(shown, label, classes, colours) {
      viewer.startDrawing(label, classes, colours);
      predicted = viewer.drawing().slice();
      open = shown;
      const { places, values } = kept.get(shown) ?? NOTHING;
      if (!places.length) return;
      const drawn = predicted.slice();
      places.forEach((place, number) => (drawn[place] = values[number]));
      viewer.redraw(drawn);
    },
    /** Keep the drawing before another case is shown. */
    close() {
      if (!open) return;
      const changed = differences();
      if (changed.places.length || exported.has(open)) kept.set(open, changed);
      else kept.delete(open);
      viewer.closeDrawing();
      open = predicted = null;
    },
    /** Remember that the drawing of the shown case is in a file; the differences at that time. */
    setExported: (shown, changed) => exported.set(shown, changed),
    differences,
    isUnexported,
    /** Whether closing the page would lose a drawing. */
    hasUnexported: () => [...kept.keys(), open].some((shown) => shown && isUnexported(shown)),
  };
};
