// Pictures of every view, light and dark, 1280 and 390 wide.
// node shots.mjs URL TOKEN CHROMIUM FOLDER NAMES [IDS]

import { join } from "node:path";
import { open, settled, tour } from "./tour.mjs";

const [url, token, executablePath, folder, names, only = ""] = process.argv.slice(2);
const TALLEST = 2400;
const { browser, page } = await open(url, token, executablePath, (saw, { text }) => {
  console.error(`${saw}: ${text}`);
  process.exitCode = 1;
});

/** The whole page as far as it is worth looking at; of a dialog, what is in sight with it. */
async function shoot({ id, dialog }) {
  for (const width of [1280, 390]) {
    await page.setViewportSize({ width, height: width > 400 ? 900 : 844 });
    for (const colorScheme of ["light", "dark"]) {
      await page.emulateMedia({ colorScheme });
      await page.evaluate(() => scrollTo(0, 0));
      await settled(page);
      const height = Math.min(TALLEST, await page.evaluate(() => document.documentElement.scrollHeight));
      const whole = dialog ? {} : { fullPage: true, clip: { x: 0, y: 0, width, height } };
      await page.screenshot({ path: join(folder, `${id}-${colorScheme}-${width}.png`), ...whole });
    }
  }
  await page.setViewportSize({ width: 1280, height: 900 });
  await page.emulateMedia({ colorScheme: "light" });
}

const chosen = only.split(",").filter(Boolean);
for (const view of tour(JSON.parse(names))) {
  if (chosen.length && !chosen.includes(view.id)) continue;
  try {
    await page.goto(`${url}/${view.path}`);
    await view.seen(page);
    await view.act?.(page);
    await settled(page);
    await shoot(view);
    console.log(view.id);
  } catch (error) {
    console.error(`${view.id}: ${error.message}`);
    await page.screenshot({ path: join(folder, `${view.id}-trouble.png`) });
    process.exitCode = 1;
  }
}
await browser.close();
