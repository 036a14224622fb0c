// Small corrections of a label: drawn in the viewer, saved as NIfTI with the header of the label,
// or as the PNG of a picture.
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

  /** The check sum that ends each part of a PNG. */
  function crc(content) {
    let sum = 0xffffffff;
    for (const byte of content) {
      sum ^= byte;
      for (let bit = 0; bit < 8; bit++) sum = (sum >>> 1) ^ (sum & 1 ? 0xedb88320 : 0);
    }
    return ~sum >>> 0;
  }

  /** A part of a PNG: its length, name, content and check sum. */
  function part(name, content) {
    const bytes = new Uint8Array(content.length + 12);
    const fields = new DataView(bytes.buffer);
    fields.setUint32(0, content.length);
    bytes.set(new TextEncoder().encode(name), 4);
    bytes.set(content, 8);
    fields.setUint32(content.length + 8, crc(bytes.subarray(4, content.length + 8)));
    return bytes;
  }

  /**
   * The PNG of a label of a picture: the class number of each pixel as grey, as `predict` writes it.
   * @param {string} base64 - of the label, gzipped NIfTI of one level, with the lowest row first
   * @param {Uint8Array} voxels - class numbers, in the order of that file
   */
  async function png(base64, voxels) {
    const packed = selfvox.data.bytes(base64);
    const label = await selfvox.data.through(packed, new DecompressionStream("gzip"));
    const fields = new DataView(label.buffer, label.byteOffset);
    const width = fields.getInt16(42, true);
    const height = fields.getInt16(44, true);
    if (width * height !== voxels.length) throw new Error("the drawing has another size");
    const rows = new Uint8Array(height * (width + 1)); // each begins with its filter: 0 is none
    for (let row = 0; row < height; row++) {
      const from = (height - 1 - row) * width;
      rows.set(voxels.subarray(from, from + width), row * (width + 1) + 1);
    }
    const size = new Uint8Array(13);
    new DataView(size.buffer).setUint32(0, width);
    new DataView(size.buffer).setUint32(4, height);
    size[8] = 8; // bits of grey; 0 for all that follows
    const pixels = await selfvox.data.through(rows, new CompressionStream("deflate"));
    const parts = [
      Uint8Array.of(0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a),
      part("IHDR", size),
      part("IDAT", pixels),
      part("IEND", new Uint8Array(0)),
    ];
    return new Uint8Array(await new Blob(parts).arrayBuffer());
  }

  return { file, png };
})();
