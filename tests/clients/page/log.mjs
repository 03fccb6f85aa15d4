// Reads a long log: its end, a step, one rank, both directions, a search, and on a telephone.
// node log.mjs URL TOKEN CHROMIUM FOLDER JOB STEP; a line of JSON on stdout for each thing seen.

import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, token, executablePath, folder, job, step] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
page.on("console", (message) => message.type() === "error" && say("console error", { text: message.text() }));
page.on("pageerror", (error) => say("page error", { text: error.message }));

const log = page.getByLabel("Log lines");
const lines = log.locator(".line");
const shot = (name) => page.screenshot({ path: join(folder, `${name}.png`) });

/** Scrolls by a distance in steps, as a wheel does; gives by how much the lines in sight moved otherwise, at most. */
function wheel(distance) {
  return log.evaluate(async (view, all) => {
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const sight = () => [...view.querySelectorAll(".line")].find((line) => line.getBoundingClientRect().top > view.getBoundingClientRect().top);
    let moved = 0;
    for (let gone = 0; Math.abs(gone) < Math.abs(all); gone += Math.sign(all) * 900) {
      const line = sight();
      const before = line.getBoundingClientRect().top;
      const from = view.scrollTop;
      view.scrollTop += Math.sign(all) * 900;
      const wanted = before - (view.scrollTop - from);
      for (let wait = 0; wait < 2; wait += 1) await frame();
      if (line.isConnected) moved = Math.max(moved, Math.abs(line.getBoundingClientRect().top - wanted));
    }
    return moved;
  }, distance);
}

const numbers = () => lines.evaluateAll((all) => all.map((line) => Number(line.innerText.split(" ")[1])));

async function far(distance, reached) {
  let moved = 0;
  for (let time = 0; time < 60 && !reached(await numbers()); time += 1) moved = Math.max(moved, await wheel(distance));
  return moved;
}

try {
  await page.goto(`${url}/jobs#token=${token}`);
  await page.locator("a[data-row]").first().waitFor();
  await page.goto(`${url}/jobs/${job}`);
  await lines.last().waitFor();
  say("end", { last: (await lines.last().innerText()).replace(/^\d/, ""), held: await lines.count() });
  await page.getByLabel("from step").fill(step);
  await page.getByLabel("from step").press("Enter");
  const mark = log.locator("[aria-current]");
  await mark.waitFor();
  await lines.nth(250).waitFor(); // what stands before it came as well
  const top = await mark.evaluate((line) => line.getBoundingClientRect().top - line.closest("[role=log]").getBoundingClientRect().top);
  say("jumped", { step: await mark.getAttribute("data-step"), top, url: page.url() });
  await log.scrollIntoViewIfNeeded();
  await shot("log");
  await page.getByLabel("Rank").selectOption("1");
  await page.waitForFunction(() => ![...document.querySelectorAll("[role=log] .line")].some((line) => line.innerText.startsWith("0") || line.innerText.startsWith("r0")));
  await mark.waitFor();
  say("one rank", { url: page.url(), ranks: [...new Set(await lines.evaluateAll((all) => all.map((line) => line.innerText.split(" ")[0])))] });
  const begin = Number(step) * 10;
  const up = await far(-9000, (seen) => seen[0] < begin - 1300);
  const least = (await numbers())[0];
  const down = await far(9000, (seen) => seen.at(-1) > begin + 1300 && seen[0] > least);
  const seen = await numbers();
  say("read", { numbers: seen, least, most: seen.at(-1), held: seen.length, moved: Math.max(up, down) });
  await page.goto(`${url}/jobs/${job}`);
  await page.getByLabel("Filter the log").fill("needle");
  await page.getByLabel("Level").selectOption("LOG_LEVEL_ERROR");
  const needle = async () => {
    await page.waitForURL((address) => address.search.includes("log=needle") && address.search.includes("level=error"));
    await page.waitForFunction(() => document.querySelectorAll("[role=log] .line").length === 1);
    return { lines: await lines.allInnerTexts(), query: new URL(page.url()).search.slice(1).split("&") };
  };
  say("found", await needle());
  await page.reload();
  say("reloaded", await needle());
  await page.emulateMedia({ colorScheme: "dark" });
  await page.setViewportSize({ width: 390, height: 844 });
  await page.getByLabel("Filter the log").fill("");
  await page.getByLabel("Level").selectOption("");
  await lines.nth(20).waitFor();
  await log.scrollIntoViewIfNeeded();
  await shot("log-telephone");
  say("telephone", { wide: await page.evaluate(() => document.documentElement.scrollWidth - innerWidth) });
  say("done");
} catch (error) {
  await shot("trouble").catch(() => undefined);
  say("trouble", { text: String(error.message ?? error) });
  process.exitCode = 1;
}
await browser.close();
