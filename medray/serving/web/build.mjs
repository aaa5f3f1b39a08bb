// Makes dist/volume.js, the 3D view, of volume.src.mjs and NiiVue, with the licences of all that went into it.

import { build } from "esbuild";
import { mkdir, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";

await rm("dist", { recursive: true, force: true });
await mkdir("dist");
const { metafile } = await build({
  entryPoints: { volume: "volume.src.mjs" },
  outdir: "dist",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  // The page forbids eval, which cbor-x tries; this is its own build without.
  alias: { "cbor-x": "cbor-x/index-no-eval" },
  metafile: true,
  logLevel: "info",
});
const packages = new Set(Object.keys(metafile.inputs).map((file) => /node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(file)?.[1]).filter(Boolean));
const texts = await Promise.all([...packages].sort().map(async (name) => {
  const folder = join("node_modules", name);
  const { version, license } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  const file = (await readdir(folder)).find((other) => /^licen[cs]e/i.test(other));
  return `${name} ${version} (${license})\n\n${file ? await readFile(join(folder, file), "utf8") : ""}`;
}));
await writeFile(join("dist", "LICENSES.txt"), texts.join(`\n\n${"-".repeat(80)}\n\n`));
