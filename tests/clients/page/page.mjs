// Looks at the page as a person does: signs in, sees a job appear, follows its loss live to the end, cancels one.
// node page.mjs URL TOKEN CHROMIUM FOLDER; a line of JSON on stdout for each thing seen, so that the test acts.

import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, token, executablePath, folder] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });

async function open(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  // What breaks the security policy is reported here as well.
  page.on("console", (message) => message.type() === "error" && say("console error", { text: message.text() }));
  page.on("pageerror", (error) => say("page error", { text: error.message }));
  return page;
}

/** Counts the pixels of the first chart that are drawn. */
function inked(page) {
  return page.locator("canvas").first().evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    let count = 0;
    for (let at = 3; at < data.length; at += 4) count += data[at] ? 1 : 0;
    return count;
  });
}

async function signIn(page) {
  await page.goto(`${url}/jobs`);
  await page.getByLabel("Your token").fill("not a token");
  await page.getByRole("button", { name: "Sign in" }).click();
  say("refused", { text: await page.getByRole("alert").innerText() });
  await page.getByLabel("Your token").fill(token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByText("No jobs yet").waitFor();
  await page.locator("article", { hasText: "ready" }).first().waitFor();
  say("empty list");
}

/** Follows a job that is submitted meanwhile, without one reload. */
async function followJob(page) {
  const row = page.locator("a.row", { hasText: "page" }).first();
  await row.waitFor();
  say("job in the list", { text: await row.innerText() });
  await row.click();
  await page.locator("canvas").first().waitFor();
  const loss = page.locator("[data-kpi=loss]");
  const first = await loss.innerText();
  await page.waitForFunction((before) => document.querySelector("[data-kpi=loss]").innerText !== before, first);
  say("loss moves", { from: first, to: await loss.innerText(), inked: await inked(page) });
  await page.getByLabel("Log lines").getByText("loss").first().waitFor();
  await page.screenshot({ path: join(folder, "running.png") });
  await page.locator("[data-state=JOB_STATE_SUCCEEDED]").waitFor();
  await page.getByText("page@1").waitFor();
  say("succeeded", { url: page.url(), inked: await inked(page), answers: await page.getByLabel("Answers").innerText() });
}

async function lookAround(page) {
  await page.getByRole("button", { name: "learning rate" }).click();
  await page.locator("canvas").nth(1).waitFor();
  say("second chart", { url: page.url() });
  await page.reload();
  await page.locator("canvas").nth(1).waitFor();
  say("reloaded", { charts: await page.locator("canvas").count() });
  await page.getByLabel("Filter the log").fill("no line says this");
  await page.getByText("No line fits.").waitFor();
  await page.getByLabel("Dark colours").click();
  say("dark", { theme: await page.locator("html").getAttribute("data-theme") });
  await page.screenshot({ path: join(folder, "dark.png"), fullPage: true });
}

async function cancelJob(page) {
  await page.getByRole("link", { name: "Jobs", exact: true }).click();
  say("back on the list");
  const row = page.locator("a.row", { hasText: "endless" }).first();
  await row.click();
  await page.locator("[data-state=JOB_STATE_RUNNING]").waitFor();
  await page.getByRole("button", { name: "Pause" }).click();
  await page.locator("[data-state=JOB_STATE_PAUSED]").waitFor();
  const checkpoint = page.getByLabel("Checkpoints").locator("li", { hasText: "step" }).first();
  await checkpoint.getByRole("button", { name: "pin" }).click();
  await checkpoint.getByRole("button", { name: "unpin" }).waitFor();
  await page.screenshot({ path: join(folder, "paused.png"), fullPage: true });
  await page.getByRole("button", { name: "Resume", exact: true }).click();
  await page.locator("[data-state=JOB_STATE_RUNNING]").waitFor();
  say("resumed", { checkpoint: await checkpoint.innerText() });
  await page.getByRole("button", { name: "Fork", exact: true }).click();
  await page.getByLabel("Learning rate").fill("0.001");
  await page.getByRole("dialog").getByRole("button", { name: "Fork", exact: true }).click();
  await page.getByText("forked from").waitFor();
  await page.getByText("Waits:").waitFor();
  say("forked", { waits: await page.locator(".notice").first().innerText() });
  await page.screenshot({ path: join(folder, "waiting.png"), fullPage: true });
  await page.getByRole("button", { name: "Cancel job" }).click();
  await page.getByRole("button", { name: "Cancel now" }).click();
  await page.locator("[data-state=JOB_STATE_CANCELLED]").waitFor();
  await page.goBack();
  await page.locator("[data-state=JOB_STATE_RUNNING]").waitFor();
  await page.getByRole("button", { name: "Cancel job" }).click();
  await page.getByRole("button", { name: "Cancel gracefully" }).click();
  await page.locator("[data-state=JOB_STATE_CANCELLED]").waitFor();
  say("cancelled", { buttons: await page.getByRole("button", { name: "Cancel job" }).count() });
}

/** A link with the token in its fragment signs in on a telephone, and the address forgets the token. */
async function telephone(path) {
  const page = await open({ viewport: { width: 390, height: 844 }, colorScheme: "dark" });
  await page.goto(`${url}${path}#token=${token}`);
  await page.locator("canvas").first().waitFor();
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  say("telephone", { url: page.url(), wide });
  await page.screenshot({ path: join(folder, "telephone.png"), fullPage: true });
}

try {
  const page = await open({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
  await signIn(page);
  await followJob(page);
  const { pathname } = new URL(page.url());
  await lookAround(page);
  await cancelJob(page);
  await telephone(pathname);
  say("done");
} catch (error) {
  say("trouble", { text: String(error.message ?? error) });
  process.exitCode = 1;
}
await browser.close();
