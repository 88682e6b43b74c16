// Removes a folder of this package, so that nothing old is published.
import { rmSync } from "node:fs";

rmSync(new URL(`../${process.argv[2]}/`, import.meta.url), { recursive: true, force: true });
