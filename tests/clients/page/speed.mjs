// How quick the page is: node speed.mjs URL TOKEN CHROMIUM PART …; the last line is JSON.
//   long JOB            a run of a million points: cold load, first draw, zoom
//   live WATCHED WIDE SECONDS   when the values of one run are seen, and frames while ten charts of another are live
//   table RUNS          frames while a table of so many runs is scrolled
//   compare RUNS        how long each picture of so many runs takes, and frames while they are pointed at and brushed

import { chromium } from "playwright-core";
import { framesOf, noteDrawings, quantile } from "./recorder.mjs";

const [url, token, executablePath, part, ...rest] = process.argv.slice(2);
const ROUNDS = 5;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });

async function open(path) {
  const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
  await context.addInitScript(noteDrawings);
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  await page.goto(`${url}${path}#token=${token}`);
  return page;
}

/** Waits for the first curve that is on the screen later than a time of the page; returns when that was. */
async function drawnAfter(page, time) {
  const found = await page.waitForFunction((from) => window.drawn.find((each) => each > from), time);
  return found.jsonValue();
}

/** A new browser context has nothing in its cache: page, job and curve come over the wire. */
async function cold(job) {
  const page = await open(`/jobs/${job}`);
  const took = await drawnAfter(page, 0);
  await page.context().close();
  return took;
}

/** From the click on the job in the list to its curve. */
async function draw(page, job) {
  await page.goto(`${url}/jobs`);
  await page.locator(`a.row[href$="${job}"]`).waitFor();
  await page.evaluate(() => addEventListener("click", () => (window.clicked = performance.now()), { once: true, capture: true }));
  await page.locator(`a.row[href$="${job}"]`).click();
  const clicked = await page.evaluate(() => window.clicked);
  return (await drawnAfter(page, clicked)) - clicked;
}

/** From the end of the drag to the finer curve that the server sent. */
async function zoom(page) {
  const box = await page.locator(".u-over").first().boundingBox();
  await page.evaluate(() => addEventListener("mouseup", () => (window.released = performance.now()), { once: true, capture: true }));
  await page.mouse.move(box.x + 0.4 * box.width, box.y + 40);
  await page.mouse.down();
  await page.mouse.move(box.x + 0.6 * box.width, box.y + 60, { steps: 8 });
  await page.mouse.up();
  const came = await page.waitForFunction(
    () => performance.getEntriesByType("resource").find((each) => /series\?.*min_step/.test(each.name) && each.startTime >= window.released && each.responseEnd)?.responseEnd,
  );
  const drawn = await drawnAfter(page, await came.jsonValue());
  return drawn - (await page.evaluate(() => window.released));
}

async function long(job) {
  const times = { first_chart_ms: [], first_draw_1m_ms: [], zoom_1m_ms: [] };
  for (let round = 0; round < ROUNDS; round += 1) times.first_chart_ms.push(await cold(job));
  const page = await open("/jobs");
  for (let round = 0; round < ROUNDS; round += 1) {
    times.first_draw_1m_ms.push(await draw(page, job));
    times.zoom_1m_ms.push(await zoom(page));
  }
  return Object.fromEntries(Object.entries(times).map(([name, all]) => [name, quantile(all, 0.5)]));
}

/** Notes `[value, when]` for each value that the first chart names as its last, when its frame has been shown. */
function noteValues() {
  window.shown = [];
  let before = "";
  const look = () => {
    const now = document.querySelector("figcaption .line strong")?.innerText ?? "";
    if (now !== before && Number.isFinite(Number(now))) window.shown.push([Number(now), performance.timeOrigin + performance.now()]);
    before = now;
    requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
}

async function live(watched, wide, seconds) {
  const page = await open(`/jobs/${watched}`);
  await drawnAfter(page, 0);
  await page.evaluate(noteValues);
  await page.waitForTimeout(1000 * seconds);
  const shown = await page.evaluate(() => window.shown);
  await page.goto(`${url}/jobs/${wide}?metrics=${Array.from({ length: 10 }, (_, at) => `m${at}`).join(",")}`);
  await page.locator("figure canvas").nth(9).waitFor();
  await page.waitForTimeout(1000);
  const before = await page.evaluate(() => window.drawn.length);
  const gaps = await framesOf(page, () => page.waitForTimeout(1000 * seconds));
  const drawn = (await page.evaluate(() => window.drawn.length)) - before;
  const lines = await page.locator("figcaption .line").count();
  return { shown, fps: (1000 * gaps.length) / gaps.reduce((a, b) => a + b, 0), worst_ms: quantile(gaps, 1), lines, drawn };
}

async function table(runs) {
  const page = await open("/compare");
  await page.waitForFunction((all) => Number(document.querySelector("[role=table], table[aria-rowcount]")?.getAttribute("aria-rowcount")) > all, Number(runs));
  await page.locator("[data-row]").first().scrollIntoViewIfNeeded();
  const box = await page.locator("[data-row]").nth(3).boundingBox();
  await page.mouse.move(box.x + 80, Math.min(box.y + 10, 800));
  const gaps = await framesOf(page, async () => {
    for (let step = 0; step < 60; step += 1) {
      await page.mouse.wheel(0, step < 40 ? 400 : -400);
      await page.waitForTimeout(30);
    }
  });
  return { table_worst_frame_ms: quantile(gaps, 1), p95_ms: quantile(gaps, 0.95), frames: gaps.length };
}

/** From the click on a tab to the picture of so many runs that stands on the screen. */
async function picture(page, name, there) {
  const from = await page.evaluate(() => performance.now());
  await page.getByRole("tab", { name, exact: true }).click();
  await page.locator(there).first().waitFor();
  return page.evaluate((since) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame((now) => done(now - since)))), from);
}

/** Frames while the pointer goes to and fro over a picture, `down` with its button pressed. */
async function pointing(page, selector, down = false) {
  const box = await page.locator(selector).first().boundingBox();
  const gaps = await framesOf(page, async () => {
    await page.mouse.move(box.x + box.width / 2, box.y + 4);
    if (down) await page.mouse.down();
    for (let step = 0; step < 60; step += 1) {
      const part = (step % 20) / 20;
      await page.mouse.move(box.x + box.width * (down ? 0.5 : 0.1 + 0.8 * part), box.y + 4 + (box.height - 8) * part);
      await page.waitForTimeout(16);
    }
    if (down) await page.mouse.up();
  });
  return gaps;
}

/** All runs chosen: a cold load to their curves, each other picture, and every frame while somebody looks at them. */
async function compare(runs) {
  const all = `[data-lines="${runs}"]`;
  const times = [];
  let page;
  for (let round = 0; round < ROUNDS; round += 1) {
    await page?.context().close();
    page = await open("/compare?runs=*&y=train%2Floss");
    await page.locator(all).waitFor();
    times.push(await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))));
  }
  const gaps = { hover: await pointing(page, ".u-over") };
  const took = { scatter: await picture(page, "Scatter", `svg[aria-label*=" of ${runs} runs"]`) };
  gaps.points = await pointing(page, `svg[aria-label*=" of ${runs} runs"]`);
  took.parallel = await picture(page, "Parallel", `canvas${all}`);
  gaps.lines = await pointing(page, `canvas${all} + svg`);
  gaps.brush = await pointing(page, "[data-axis]", true);
  took.weights = await picture(page, "What matters", "[data-weight]");
  took.diff = await picture(page, "Differences", "table[aria-label=Differences]");
  took.curves = await picture(page, "Curves", all);
  const worst = Object.fromEntries(Object.entries(gaps).map(([name, all]) => [name, quantile(all, 1)]));
  return { compare_1000_ms: quantile(times, 0.5), compare_worst_frame_ms: Math.max(...Object.values(worst)), worst, took };
}

const found = await { long: () => long(rest[0]), live: () => live(rest[0], rest[1], Number(rest[2])), table: () => table(rest[0]), compare: () => compare(rest[0]) }[part]();
await browser.close();
console.log(JSON.stringify(found));
