// What axe-core finds in every view, light and dark; a line of JSON on stdout for each view.
// node axe.mjs URL TOKEN CHROMIUM NAMES

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { open, settled, tour } from "./tour.mjs";

const [url, token, executablePath, names] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const { browser, page } = await open(url, token, executablePath, say);
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** What weighs: `impact rule: selector` for each element. The page's own policy admits no script, so axe comes past it. */
async function judge() {
  if (!(await page.evaluate(() => "axe" in window))) await page.evaluate(axe);
  return page.evaluate(async () => {
    const found = await window.axe.run(document, { resultTypes: ["violations"], elementRef: false });
    return found.violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .flatMap(({ id, impact, nodes }) => nodes.map(({ target, any }) => `${impact} ${id}: ${target.join(" ")} ${any[0]?.message ?? ""}`));
  });
}

try {
  for (const view of tour(JSON.parse(names))) {
    await page.goto(`${url}/${view.path}`);
    await view.seen(page);
    await view.act?.(page);
    const findings = {};
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await settled(page);
      findings[colorScheme] = await judge();
    }
    say(view.id, findings);
  }
  say("done");
} catch (error) {
  say("trouble", { text: String(error.message ?? error), url: page.url() });
  process.exitCode = 1;
}
await browser.close();
