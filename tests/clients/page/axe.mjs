// What axe-core finds in every view, light and dark; a line of JSON on stdout for each view.
// node axe.mjs URL TOKEN CHROMIUM NAMES

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { open, settled, tour } from "./tour.mjs";

const [url, token, executablePath, names] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const { browser, page } = await open(url, token, executablePath, say);

/** Goes where a link would lead, without loading the page and axe again. */
const go = (path) =>
  page.evaluate((to) => {
    history.pushState(null, "", to);
    dispatchEvent(new PopStateEvent("popstate"));
  }, `/${path}`);

/** What weighs, `impact rule: element` for each. Colours are all that can differ in the dark. */
const judge = (rules) =>
  page.evaluate(async (only) => {
    const found = await window.axe.run(document, { resultTypes: ["violations"], ...(only ? { runOnly: only } : {}) });
    return found.violations
      .filter(({ impact }) => impact === "serious" || impact === "critical")
      .flatMap(({ id, impact, nodes }) => nodes.map(({ target, any }) => `${impact} ${id}: ${target.join(" ")} (${any[0]?.message ?? ""})`));
  }, rules);

try {
  // The page's own policy admits no foreign script; the browser's debugger comes past it.
  await page.evaluate(readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8"));
  for (const view of tour(JSON.parse(names))) {
    await go(view.path);
    await view.seen(page);
    await view.act?.(page);
    await settled(page);
    const light = await judge();
    await page.emulateMedia({ colorScheme: "dark" });
    await settled(page);
    say(view.id, { light, dark: await judge(["color-contrast"]) });
    await page.emulateMedia({ colorScheme: "light" });
    if (view.dialog) await page.keyboard.press("Escape");
  }
  say("done");
} catch (error) {
  say("trouble", { text: String(error.message ?? error), url: page.url() });
  process.exitCode = 1;
}
await browser.close();
