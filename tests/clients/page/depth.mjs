// Walks what lies deeper: runs compared in every picture, a job to its checkpoints, and the server lost and found.
// node depth.mjs URL TOKEN CHROMIUM FOLDER SPIKE WALKED; a line of JSON on stdout for each thing seen.

import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, token, executablePath, folder, spike, walked] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
// A refused filter and the server that is away are errors to the browser's console as well.
const expected = /400 \(Bad Request\)|net::ERR_/;
page.on("console", (message) => message.type() === "error" && !expected.test(message.text()) && say("console error", { text: message.text() }));
page.on("pageerror", (error) => say("page error", { text: error.message }));

const button = (name, within = page) => within.getByRole("button", { name, exact: true });
const tab = (name) => page.getByRole("tab", { name, exact: true }).click();
const shot = (name) => page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
const runs = () => page.getByRole("table", { name: "Runs" });
const names = () => runs().locator("a[data-row] bdi").allInnerTexts();
const pictures = () => page.getByLabel("Pictures");
const inAddress = (text) => page.waitForURL((address) => decodeURIComponent(address.href).includes(text));

async function choose() {
  await page.goto(`${url}/jobs#token=${token}`);
  await page.locator("a[data-row]").nth(2).waitFor();
  for (const key of ["j", "x", "j", "x"]) await page.keyboard.press(key);
  await page.getByText("2 chosen").waitFor();
  const first = await page.locator("a[data-row] strong").allInnerTexts();
  await page.keyboard.press("c");
  await runs().waitFor();
  say("chosen", { url: page.url(), from: first.slice(0, 2), names: await names(), boxes: await runs().getByRole("checkbox", { checked: true }).count() });
  await button("Only the chosen").or(button("Show all")).click();
  await runs().getByRole("checkbox", { checked: false }).first().waitFor();
  const all = Number(await runs().getAttribute("aria-rowcount")) - 1;
  say("all", { all, drawn: await runs().locator("a[data-row]").count() });
  await tab("Differences");
  const table = page.getByRole("table", { name: "Differences" });
  await table.getByText("training.seed").waitFor();
  say("differences", { rows: await table.locator("tbody tr").evaluateAll((rows) => rows.map((row) => row.cells[0].innerText)) });
}

async function filter(good) {
  await page.goto(`${url}/compare`);
  const field = page.getByLabel("Filter the runs");
  await runs().waitFor();
  await field.fill("train/loss << 3");
  const mark = page.locator("mark");
  await mark.waitFor();
  say("mistake", { before: await mark.evaluate((node) => node.previousSibling.textContent), at: await mark.innerText(), words: await page.locator(".trouble").innerText() });
  await field.fill(good);
  await mark.waitFor({ state: "detached" });
  await inAddress("q=experiment");
  await page.getByText(/^\d+ runs$/).waitFor();
  const colors = () =>
    runs().locator("a[data-row]").evaluateAll((rows) => Object.fromEntries(rows.map((row) => [row.innerText, getComputedStyle(row.querySelector("i")).backgroundColor])));
  const before = await colors();
  await runs().getByRole("button", { name: /^train\/loss/ }).click();
  await runs().locator("[aria-sort=ascending]").waitFor();
  await inAddress("sort=train/loss");
  await page.reload();
  await runs().waitFor();
  say("sorted", { names: await names(), before, after: await colors() });
}

async function draw() {
  await page.goto(`${url}/compare?q=${encodeURIComponent("experiment = sweep")}&group=training.learning_rate`);
  const readout = pictures().locator("figcaption .line");
  await readout.first().waitFor();
  say("groups", { lines: await readout.allInnerTexts() });
  await shot("groups");
  await tab("Scatter");
  await pictures().locator("circle").first().waitFor();
  say("scatter", { points: await pictures().locator("circle").count() });
  await shot("scatter");
  await tab("What matters");
  const weight = page.locator("[data-weight='training.learning_rate']");
  await weight.waitFor();
  say("weights", { weight: await weight.innerText(), first: await page.locator("[data-weight]").first().getAttribute("data-weight") });
  await shot("weights");
  await tab("Parallel");
  const grip = page.locator("[data-axis='training.learning_rate']");
  const box = await grip.boundingBox();
  // The upper quarter: the largest learning rate.
  await page.mouse.move(box.x + 12, box.y + 1);
  await page.mouse.down();
  await page.mouse.move(box.x + 12, box.y + box.height / 4, { steps: 4 });
  await page.mouse.up();
  await inAddress("keep=training.learning_rate");
  say("kept", { words: await pictures().getByRole("status").innerText() });
  await shot("parallel");
  await page.setViewportSize({ width: 390, height: 844 });
  const wide = [];
  for (const name of ["Curves", "Scatter", "Parallel", "What matters", "Differences"]) {
    await tab(name);
    wide.push(await page.evaluate(() => document.documentElement.scrollWidth - innerWidth));
  }
  await shot("compare-telephone");
  await page.setViewportSize({ width: 1280, height: 900 });
  say("narrow", { wide });
}

/** Where the curve's colour stands in the upper fifth of the first chart, as shares of its width. */
function high() {
  return page.locator("figure").first().evaluate((figure) => {
    const canvas = figure.querySelector("canvas");
    const over = figure.querySelector(".u-over").getBoundingClientRect();
    const whole = canvas.getBoundingClientRect();
    const scale = canvas.width / whole.width;
    const [left, top] = [(over.left - whole.left) * scale, (over.top - whole.top) * scale];
    const [width, height] = [Math.floor(over.width * scale), Math.floor((over.height * scale) / 5)];
    const { data } = canvas.getContext("2d").getImageData(left, top, width, height);
    const places = new Set();
    for (let at = 0; at < data.length; at += 4) {
      // The first curve is blue; lines of the grid are grey.
      if (data[at + 3] > 40 && data[at + 2] - data[at] > 40) places.add(((at / 4) % width) / width);
    }
    return { from: Math.min(...places), to: Math.max(...places), columns: places.size, width };
  });
}

async function needle() {
  await page.goto(`${url}/jobs/${spike}`);
  await page.locator("canvas").first().waitFor();
  await page.waitForFunction(() => document.querySelector("figcaption .line"));
  const found = await high();
  await shot("spike");
  const over = page.locator(".u-over").first();
  const box = await over.boundingBox();
  await page.mouse.move(box.x + 0.6 * box.width, box.y + 60);
  await page.mouse.down();
  await page.mouse.move(box.x + 0.7 * box.width, box.y + 60, { steps: 6 });
  await page.mouse.up();
  await inAddress("zoom=");
  await button("Whole run").waitFor();
  const zoomed = page.url();
  await page.reload();
  await button("Whole run").click();
  await page.waitForURL((address) => !address.href.includes("zoom"));
  say("spike", { ...found, zoomed });
}

/** The steps that the crosshair names over the whole width of the first chart. */
function named() {
  return page.locator("figure").first().evaluate(async (figure) => {
    const over = figure.querySelector(".u-over");
    const frame = () => new Promise((done) => requestAnimationFrame(done));
    const box = over.getBoundingClientRect();
    const steps = [];
    for (let x = 2; x < box.width; x += 5) {
      over.dispatchEvent(new MouseEvent("mousemove", { clientX: box.left + x, clientY: box.top + 40, bubbles: true }));
      await frame();
      await frame();
      const found = /step ([\d.]+)(k?)/.exec(figure.querySelector(".step").innerText);
      if (found) steps.push(Number(found[1]) * (found[2] ? 1000 : 1));
    }
    return steps;
  });
}

async function lose() {
  await page.goto(`${url}/jobs/${walked}`);
  await page.locator("[data-state=JOB_STATE_RUNNING]").waitFor();
  await page.locator("canvas").first().waitFor();
  say("training");
  const banner = page.getByText("The server does not answer.");
  await banner.waitFor();
  say("lost");
  await banner.waitFor({ state: "detached" });
  await page.locator("[data-state=JOB_STATE_PAUSED]").waitFor();
  // The last point is there when the crosshair at the right end names the step at which the job stands.
  const step = Number((await page.locator("dt", { hasText: /^Step$/ }).locator("+ dd").innerText()).replaceAll(",", ""));
  let steps = [];
  for (let again = 0; again < 30 && !((steps.at(-1) ?? 0) >= 0.98 * step); again += 1) steps = await named();
  say("found", { step, steps });
}

/** The waterfall of a job's trace, by keyboard; a reload brings back what was chosen in it. */
async function waterfall() {
  const trace = page.locator("section[aria-label=Trace]");
  await trace.locator("summary").press("Enter");
  // The second attempt's spans come about a second after it has begun.
  const launch = trace.getByRole("button", { name: /launch/ });
  await launch.nth(1).press("Enter");
  await inAddress("span=");
  await page.reload();
  await trace.locator("[aria-expanded=true]").getByText("launch").waitFor();
  say("trace", { rows: await trace.locator(".name").allInnerTexts(), facts: await trace.locator("ul").innerText(), bars: await trace.locator("button .lane i").count() });
}

async function use() {
  const points = page.getByLabel("Checkpoints");
  const first = points.locator("li").first();
  await button("make version", first).click();
  await page.getByLabel("Model", { exact: true }).fill("from-checkpoint");
  await button("Make it").click();
  await page.waitForURL((address) => !address.pathname.endsWith(walked));
  await page.locator("[data-state=JOB_STATE_SUCCEEDED]").waitFor();
  await page.getByText("from-checkpoint@1").waitFor();
  say("made");
  await page.goBack();
  await button("fork", first).waitFor();
  const words = await first.innerText();
  await button("fork", first).click();
  const chosen = await page.getByRole("dialog").getByLabel("Checkpoint").inputValue();
  await page.keyboard.press("Escape");
  await page.keyboard.press("p");
  await page.locator("[data-state=JOB_STATE_RUNNING]").waitFor();
  await page.getByLabel("Timeline").locator("summary").press("Enter");
  await page.getByLabel("Timeline").getByText("2 · running").waitFor();
  say("resumed", { words, chosen, rows: await page.getByLabel("Timeline").locator("li > span:first-child").allInnerTexts() });
  await waterfall();
  await page.getByLabel("machine").check();
  await page.getByLabel("Machine").getByText("cpu percent", { exact: true }).waitFor();
  const plot = page.locator(".u-over").first();
  const box = await plot.boundingBox();
  await page.mouse.click(box.x + box.width / 2, box.y + 30);
  await inAddress("step=");
  const step = Number(new URL(page.url()).searchParams.get("step"));
  await button("Back to the end").waitFor();
  const line = page.getByLabel("Log lines").locator("[aria-current]");
  await line.waitFor();
  say("jumped", { step, line: Number(await line.getAttribute("data-step")) });
  const axes = [];
  for (const name of ["time", "tokens", "epoch"]) {
    await page.getByLabel("x axis").selectOption(name);
    await page.getByRole("img", { name: `loss over ${name === "time" ? "seconds" : name}` }).waitFor();
    await page.waitForFunction(() => Number(document.querySelector("figcaption .line strong")?.innerText) > 0);
    axes.push(name);
  }
  await page.getByLabel("x axis").selectOption("step");
  await page.getByLabel("Environment").locator("summary").press("Enter");
  const facts = await page.getByLabel("Environment").locator("dt").allInnerTexts();
  const kpis = await page.locator("[data-kpi]").evaluateAll((all) => Object.fromEntries(all.map((each) => [each.dataset.kpi, each.innerText])));
  say("depths", { axes, facts, kpis });
  await page.getByLabel("Configuration").locator("summary").press("Enter");
  await page.getByLabel("Beside").selectOption(spike);
  const beside = page.getByRole("table", { name: /^Differences from/ });
  await beside.getByText("base_model").waitFor();
  say("beside", { rows: await beside.locator("td:first-child").allInnerTexts() });
  await shot("job");
  await page.emulateMedia({ colorScheme: "dark" });
  await page.setViewportSize({ width: 390, height: 844 });
  await shot("job-telephone");
  const beyond = await page.locator("main *").evaluateAll((all) => all.filter((each) => each.getBoundingClientRect().right > innerWidth + 1).map((each) => `${each.tagName} ${each.className}`));
  say("telephone", { wide: await page.evaluate(() => document.documentElement.scrollWidth - innerWidth), beyond: beyond.slice(0, 5) });
}

try {
  await choose();
  await filter("experiment = sweep and training.learning_rate = 0.01");
  await draw();
  await needle();
  await lose();
  await use();
  say("done");
} catch (error) {
  await shot("trouble").catch(() => undefined);
  say("trouble", { text: String(error.message ?? error) });
  process.exitCode = 1;
}
await browser.close();
