// Walks sweeps, all runs chosen at once, and what is strange: thousands of metrics, curves of nothing, names that bite.
// node sweeps.mjs URL TOKEN CHROMIUM FOLDER WIDE HOSTILE; a line of JSON on stdout for each thing seen.

import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, token, executablePath, folder, wide, hostile] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
page.on("console", (message) => message.type() === "error" && say("console error", { text: message.text() }));
page.on("pageerror", (error) => say("page error", { text: error.message }));
page.on("dialog", (dialog) => say("page error", { text: `a dialog: ${dialog.message()}` }));

const tab = (name) => page.getByRole("tab", { name, exact: true }).click();
const shot = (name) => page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
const inAddress = (text) => page.waitForURL((address) => decodeURIComponent(address.href).includes(text));
const trials = () => page.getByRole("table", { name: "Trials" });
const over = () => page.evaluate(() => document.documentElement.scrollWidth - innerWidth);

/** Pretends that there are more jobs than one page of them; nothing but a person asks for the next. */
let listings = 0;
await context.route(/\/projects\/default\/jobs\?page_size/, async (route) => {
  listings += 1;
  const answer = await route.fetch();
  await route.fulfill({ response: answer, json: { ...(await answer.json()), next_page_token: `page-${listings}` } });
});

async function sweeps() {
  await page.goto(`${url}/sweeps#token=${token}`);
  const row = page.getByRole("row").filter({ has: page.getByRole("link", { name: "rates", exact: true }) });
  await row.waitFor();
  await page.locator("header .live.on").waitFor();
  say("list", { listings, row: await row.innerText(), names: await page.locator("a[data-row]").allInnerTexts() });
  await shot("sweeps");
  await row.getByRole("link").click();
  await trials().waitFor();
  const best = page.locator("[data-best]");
  const names = () => trials().locator("a[data-row] bdi").allInnerTexts();
  say("sweep", { best: await best.innerText(), id: await best.getAttribute("data-best"), first: (await names())[0], stairs: await page.getByLabel("Sweep", { exact: true }).locator("svg path").first().getAttribute("d") });
  await shot("sweep");
  await page.getByLabel("is the").selectOption("max");
  await inAddress("goal=max");
  await best.getByText("largest").waitFor();
  await page.reload();
  await best.getByText("largest").waitFor();
  say("turned", { first: (await names())[0] });
  await tab("What matters");
  say("matters", { first: await page.locator("[data-weight]").first().getAttribute("data-weight") });
  await tab("Parallel");
  await page.locator("canvas[data-lines]").waitFor();
  await page.setViewportSize({ width: 390, height: 844 });
  const narrow = [await over()];
  await page.goto(`${url}/sweeps`);
  await row.waitFor();
  narrow.push(await over());
  await page.setViewportSize({ width: 1280, height: 900 });
  say("narrow", { wide: narrow });
}

/** A sweep's trials compared: all of them are chosen, and the address names none. */
async function compare() {
  await page.goto(`${url}/sweeps/rates`);
  await page.getByRole("link", { name: "Compare these" }).click();
  const figure = page.locator("figure[data-lines]");
  await figure.waitFor();
  const all = await figure.getAttribute("data-lines");
  const address = page.url();
  const box = await page.locator(".u-over").first().boundingBox();
  // Somewhere on the way down there is a curve.
  const named = page.locator("figure figcaption .line bdi");
  for (let part = 0.05; part < 1 && !(await named.count()); part += 0.02) await page.mouse.move(box.x + box.width / 3, box.y + part * box.height);
  const pointed = await named.innerText();
  await page.getByRole("table", { name: "Runs" }).getByRole("checkbox").first().click();
  await page.waitForFunction((before) => document.querySelector("figure[data-lines]")?.dataset.lines === String(before - 1), Number(all));
  const but = page.url();
  await page.reload();
  await figure.waitFor();
  say("compared", { all, address, pointed, but, after: await figure.getAttribute("data-lines"), path: await page.getByText("chosen", { exact: false }).first().innerText() });
}

async function strange() {
  await page.goto(`${url}/jobs/${wide}`);
  const find = page.getByLabel("Find a metric");
  await find.waitFor();
  const metrics = page.getByRole("group", { name: "Metrics" });
  const shown = await metrics.getByRole("button").count();
  await find.fill("m1999");
  await metrics.getByRole("button", { name: "m1999", exact: true }).click();
  await page.locator("figcaption", { hasText: "m1999" }).locator(".line").first().waitFor();
  say("many metrics", { placeholder: await find.getAttribute("placeholder"), shown, found: await metrics.getByRole("button").count(), nodes: await page.locator("main *").count() });
  await find.fill("nothing");
  await metrics.getByRole("button", { name: "nothing", exact: true }).click();
  const nothing = page.locator("figure", { has: page.locator(".title", { hasText: /^nothing$/ }) });
  await nothing.locator("canvas").waitFor();
  say("curve of nothing", { value: await nothing.locator("figcaption .line strong").innerText() });
  await page.goto(`${url}/compare?y=strange%2Fnothing`);
  await page.getByRole("table", { name: "Runs" }).locator("a[data-row]").first().waitFor();
  await page.getByRole("button", { name: "Columns" }).click();
  const dialog = page.getByRole("dialog");
  await dialog.getByLabel("Find a column").fill("m19");
  const offered = await dialog.getByRole("checkbox").count();
  await dialog.getByRole("button", { name: "Close" }).click();
  for (const name of ["Scatter", "Parallel", "What matters"]) await tab(name);
  await page.getByText("Three runs with").waitFor();
  say("many columns", { offered });
  await page.goto(`${url}/sweeps/${encodeURIComponent(hostile)}`);
  await trials().waitFor();
  const title = await page.getByRole("heading", { level: 1 }).innerText();
  await page.getByRole("link", { name: "Compare these" }).click();
  await page.getByRole("table", { name: "Runs" }).locator("a[data-row]").first().waitFor();
  const cells = await page.getByRole("table", { name: "Runs" }).innerText();
  await tab("Differences");
  await page.locator("section[aria-label=Pictures] p").first().waitFor();
  say("hostile", { title, cells, scripts: await page.locator("main script, main img").count(), wide: await over() });
}

try {
  await sweeps();
  await compare();
  await strange();
  say("done");
} catch (error) {
  await shot("trouble").catch(() => undefined);
  say("trouble", { text: String(error.message ?? error), url: page.url() });
  process.exitCode = 1;
}
await browser.close();
