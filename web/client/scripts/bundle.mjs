// The whole client as one module in plain JavaScript, for pages without a build of their own.
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { rolldown } from "rolldown";

const root = fileURLToPath(new URL("..", import.meta.url));
const file = resolve(root, process.argv[2]);
const bundle = await rolldown({ cwd: root, input: "src/index.ts", tsconfig: "tsconfig.build.json" });
const { output } = await bundle.generate({ format: "esm" });
await bundle.close();
mkdirSync(dirname(file), { recursive: true });
writeFileSync(file, `// Made from web/client by \`npm run page\`; change it there.\n${output[0].code}`);
