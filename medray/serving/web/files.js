// What a person drops or chooses, as uploads: one file as it is, several DICOM files as one zip without compression.

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? 0xedb88320 ^ (value >>> 1) : value >>> 1;
  return value >>> 0;
});

function crc32(bytes) {
  let value = 0xffffffff;
  for (let at = 0; at < bytes.length; at += 1) value = TABLE[(value ^ bytes[at]) & 255] ^ (value >>> 8);
  return (value ^ 0xffffffff) >>> 0;
}

function record(signature, length, fields) {
  const view = new DataView(new ArrayBuffer(length));
  view.setUint32(0, signature, true);
  for (const [at, size, value] of fields) size === 2 ? view.setUint16(at, value, true) : view.setUint32(at, value, true);
  return view.buffer;
}

/** A zip (PKWARE APPNOTE 6.3) of [name, File], stored; names are ASCII. Only one file at a time is in memory. */
export async function zipped(entries, say = () => {}) {
  const parts = [];
  const directory = [];
  let offset = 0;
  for (const [number, [name, file]] of entries.entries()) {
    say("Packing", number / entries.length);
    const encoded = new TextEncoder().encode(name);
    const crc = crc32(new Uint8Array(await file.arrayBuffer()));
    // 33 is 1 January 1980: a zip needs a date, and this one says nothing.
    const shared = [[10, 2, 0], [12, 2, 33], [14, 4, crc], [18, 4, file.size], [22, 4, file.size], [26, 2, encoded.length]];
    parts.push(record(0x04034b50, 30, [[4, 2, 20], ...shared]), encoded, file);
    const entry = shared.map(([at, size, value]) => [at + 2, size, value]);
    directory.push(record(0x02014b50, 46, [[4, 2, 20], [6, 2, 20], ...entry, [42, 4, offset]]), encoded);
    offset += 30 + encoded.length + file.size;
    if (offset > 0xffffffff) throw new RangeError("more than 4 GiB: pack the series on your machine");
  }
  const size = new Blob(directory).size;
  const count = entries.length;
  const end = record(0x06054b50, 22, [[8, 2, count], [10, 2, count], [12, 4, size], [16, 4, offset]]);
  return new Blob([...parts, ...directory, end], { type: "application/zip" });
}

const hidden = (file) => file.name.startsWith(".") || /^(dicomdir|thumbs\.db)$/i.test(file.name);

async function isDicom(file) {
  return (await file.slice(128, 132).text()) === "DICM";
}

/** What to send: [{name, content(say) -> Blob}]. DICOM files are one series, others are images of their own. */
export async function uploads(files) {
  const seen = files.filter((file) => !hidden(file));
  if (seen.length <= 1) return seen.map((file) => ({ name: file.name, content: async () => file }));
  const known = await Promise.all(seen.map(isDicom));
  if (!known.some(Boolean)) return seen.map((file) => ({ name: file.name, content: async () => file }));
  const series = seen.filter((file, place) => known[place] || !/\.[a-z]+$/i.test(file.name) || /\.dcm$/i.test(file.name));
  // Numbers for names: those of a hospital's files may be a patient's.
  const entries = series.map((file, number) => [`${String(number).padStart(5, "0")}.dcm`, file]);
  const folder = series[0].webkitRelativePath?.split("/")[0];
  return [{ name: folder || `series of ${series.length} files`, content: (say) => zipped(entries, say) }];
}

/** The files of a drop, those in folders too. */
export async function dropped(transfer) {
  // Entries are gone after the first pause, so all are taken at once.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return [...transfer.files];
  return (await Promise.all(entries.map(inside))).flat();
}

async function inside(entry) {
  if (entry.isFile) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const found = [];
  // A reader gives a hundred at a time.
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) return (await Promise.all(found.map(inside))).flat();
    found.push(...some);
  }
}
