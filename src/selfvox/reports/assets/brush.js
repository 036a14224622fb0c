// Small corrections of a label: drawn in the viewer, saved as NIfTI with the header of the label.
"use strict";
var selfvox = window.selfvox || {};
window.selfvox = selfvox;

selfvox.brush = (() => {
  /** Where the voxels of a NIfTI file begin. */
  function start(header) {
    const fields = new DataView(header.buffer, header.byteOffset);
    return fields.getInt32(0, true) === 540
      ? Number(fields.getBigInt64(168, true)) // NIfTI-2
      : fields.getFloat32(108, true);
  }

  /**
   * The file of a label with other voxels: its header stays as it is, byte by byte.
   * @param {string} base64 - of the label, gzipped NIfTI of 8 bits
   * @param {Uint8Array} voxels - class numbers, in the order of the file
   */
  async function file(base64, voxels) {
    const packed = selfvox.data.bytes(base64);
    const label = await selfvox.data.through(packed, new DecompressionStream("gzip"));
    const begin = start(label);
    if (label.length - begin !== voxels.length) throw new Error("the drawing has another size");
    const content = new Uint8Array(label);
    content.set(voxels, begin);
    return selfvox.data.through(content, new CompressionStream("gzip"));
  }

  return { file };
})();
