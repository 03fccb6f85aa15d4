// How fluent the page of a long job is: times of frames while charts are added, zoomed, smoothed and scrolled.
// node frames.mjs URL TOKEN CHROMIUM JOB FOLDER; the last line is JSON.

import { join } from "node:path";
import { chromium } from "playwright-core";
import { framesOf, quantile } from "./recorder.mjs";

const [url, token, executablePath, job, folder] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1440, height: 900 } });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
const found = {};

/** Records every frame while something is done. */
async function frames(name, act) {
  const gaps = await framesOf(page, act);
  found[name] = { frames: gaps.length, p50_ms: quantile(gaps, 0.5), p95_ms: quantile(gaps, 0.95), worst_ms: quantile(gaps, 1) };
}

const pause = (milliseconds) => page.waitForTimeout(milliseconds);

/** Drags over a part of the first chart and waits until its finer points are there. */
async function zoom() {
  const plot = page.locator(".u-over").first();
  await plot.scrollIntoViewIfNeeded();
  const box = await plot.boundingBox();
  const answer = page.waitForResponse((response) => response.url().includes("/series?"));
  await page.mouse.move(box.x + 0.4 * box.width, box.y + 40);
  await page.mouse.down();
  await page.mouse.move(box.x + 0.6 * box.width, box.y + 60, { steps: 8 });
  await page.mouse.up();
  await answer;
  await pause(100);
}

await page.goto(`${url}/jobs#token=${token}`);
await page.locator("a[data-row]").first().waitFor();
const began = Date.now();
await page.goto(`${url}/jobs/${job.split("/").pop()}`);
await page.locator(".u-over").first().waitFor();
found.first_chart_ms = Date.now() - began;
await frames("scroll", async () => {
  for (let step = 0; step < 20; step += 1) {
    await page.mouse.wheel(0, step < 10 ? 120 : -120);
    await pause(50);
  }
});
await frames("zoom", async () => {
  for (let time = 0; time < 3; time += 1) await zoom();
});
await page.getByRole("button", { name: "Whole run" }).click();
await frames("ten charts", async () => {
  const buttons = page.getByRole("group", { name: "Metrics" }).locator("button[aria-pressed=false]");
  for (let chart = 0; chart < 9; chart += 1) await buttons.first().click();
  await page.locator("canvas").nth(9).waitFor();
});
await frames("smooth", async () => {
  const slider = page.getByLabel("Smooth");
  for (const weight of ["0.2", "0.4", "0.6", "0.8", "0.9", "0.98"]) {
    await slider.fill(weight);
    await pause(100);
  }
});
await page.screenshot({ path: join(folder, "million.png") });

const log = page.getByLabel("Log lines");
/** Scrolls the log as a wheel does, and waits for what comes. */
const roll = (distance) => async () => {
  for (let step = 0; step < 100; step += 1) {
    await log.evaluate((view, by) => (view.scrollTop += by), distance);
    await pause(16);
  }
};
await log.scrollIntoViewIfNeeded();
await frames("log from its end", roll(-300));
const jump = Date.now();
await page.getByLabel("from step").fill("50000");
await page.getByLabel("from step").press("Enter");
await log.locator("[aria-current]").waitFor();
found.log_jump_ms = Date.now() - jump;
await pause(500);
await frames("log up from a step", roll(-300));
await frames("log down from a step", roll(300));
found.log_lines_held = await log.locator(".line").count();
await page.screenshot({ path: join(folder, "log.png") });
await page.getByRole("button", { name: "Back to the end" }).click();
const asked = Date.now();
await page.getByLabel("Filter the log").fill("needle");
await page.waitForFunction(() => document.querySelectorAll("[role=log] .line").length === 1);
found.log_search_ms = Date.now() - asked;
await browser.close();
console.log(JSON.stringify(found));
