// The description of the API, drawn by Swagger UI, which comes from its Python package and not from the network.

/** OpenAPI 3.1 as 3.0, which is the newest that this Swagger UI reads: `null` as a type becomes `nullable`. */
function older(node) {
  if (Array.isArray(node)) return node.map(older);
  if (node === null || typeof node !== "object") return node;
  const { anyOf, ...rest } = Object.fromEntries(Object.entries(node).map(([name, value]) => [name, older(value)]));
  if (!Array.isArray(anyOf)) return anyOf === undefined ? rest : { ...rest, anyOf };
  const types = anyOf.filter((type) => type.type !== "null");
  if (types.length === anyOf.length) return { ...rest, anyOf };
  return types.length === 1 ? { ...types[0], ...rest, nullable: true } : { ...rest, anyOf: types, nullable: true };
}

async function draw() {
  const response = await fetch("/openapi.json");
  const spec = { ...older(await response.json()), openapi: "3.0.3" };
  window.SwaggerUIBundle({ spec, dom_id: "#swagger", deepLinking: true, defaultModelsExpandDepth: 0, validatorUrl: null });
}

draw();
