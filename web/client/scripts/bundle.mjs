// The whole client as one module in plain JavaScript, for pages without a build of their own.
import { rolldown } from "rolldown";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const bundle = await rolldown({ cwd: root, input: "src/index.ts", tsconfig: "tsconfig.build.json" });
await bundle.write({
  file: process.argv[2],
  format: "esm",
  banner: "// Made from web/client by `npm run page`; change it there.",
});
await bundle.close();
