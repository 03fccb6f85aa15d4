// Walks from an empty platform to a running job: home, the form beside its file, the quote, home again, the audit.
// node start.mjs URL TOKEN CHROMIUM FOLDER; a line of JSON on stdout for each thing seen, so that the test acts.

import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, token, executablePath, folder] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
// Refusals that the walk brings about are errors to the console as well.
const meant = (text) => /401|ERR_FAILED/.test(text);
page.on("console", (message) => message.type() === "error" && !meant(message.text()) && say("console error", { text: message.text() }));
page.on("pageerror", (error) => say("page error", { text: error.message }));
page.on("dialog", (dialog) => say("page error", { text: `a dialog: ${dialog.message()}` }));
page.on("request", (request) => !request.url().startsWith(url) && say("page error", { text: `another host: ${request.url()}` }));

const HOSTILE = '<script>alert("prompt")</script> \u202egpj.exe';
const button = (name) => page.getByRole("button", { name, exact: true });
const field = (name) => page.getByRole("form", { name: "Form" }).getByLabel(name, { exact: true });
const file = page.getByLabel("Job file (YAML)");
const quote = page.getByLabel("Quote");
const shot = (name) => page.screenshot({ path: join(folder, `${name}.png`), fullPage: true });
/** Waits until the file says it. */
const says = (text) => page.waitForFunction((part) => document.querySelector("#job-file")?.value.includes(part), text);

async function empty() {
  await page.goto(`${url}/#token=${token}`);
  await page.getByText("Nothing has been trained yet").waitFor();
  await page.locator("article", { hasText: "ready" }).waitFor();
  await page.getByRole("link", { name: "New job" }).click();
  await page.getByText("name a registered base model", { exact: false }).first().waitFor();
  say("empty", { ready: await button("Start the job").isEnabled() });
}

/** Form and file tell the same, whichever is written in. */
async function inStep() {
  await field("base model").fill("tiny");
  await field("dataset").fill("nothing-such");
  await page.getByText("there is no dataset nothing-such").first().waitFor();
  await field("dataset").fill("sums");
  await quote.getByText("36 steps of 4 rows").waitFor();
  const told = await quote.innerText();
  await page.getByLabel("Preview").locator("pre .trained", { hasText: "0" }).first().waitFor();
  await shot("new");
  await file.fill("base_model: tiny\ndataset: sums\ntraining:\n  learning_rate: 30\n  num_epoch: 2\n");
  await button("line 5").waitFor();
  await button("line 4").click();
  const marked = await file.evaluate((area) => area.value.slice(area.selectionStart, area.selectionEnd));
  const beside = page.locator(".field", { hasText: "learning rate" }).locator(".trouble");
  const facts = { told, marked, rate: await field("learning rate").inputValue(), beside: await beside.innerText(), hint: await page.getByLabel("Mistakes").innerText() };
  await shot("mistakes");
  say("in step", { ...facts, ready: await button("Start the job").isEnabled() });
}

async function badInput() {
  await button("Quick try").click();
  await quote.getByText("20 steps of 4 rows").waitFor();
  await page.getByText("More: job").click();
  await field("sample prompts").fill(`${HOSTILE}\n${"x".repeat(10_000)}`);
  await field("experiment").click();
  await page.getByText("is longer than 4000 characters").first().waitFor();
  await field("sample prompts").fill(HOSTILE);
  await field("experiment").fill("<b>no</b>");
  await page.getByText("does not match").first().waitFor();
  await field("experiment").fill("first");
  await page.locator("section[aria-busy=false] dl").waitFor();
  say("bad input", { file: await file.inputValue(), scripts: await page.locator("main script, main b").count() });
}

/** A token that ends and a server that is away cost nothing of what was written. */
async function interrupted() {
  const path = "**/jobs:quote";
  await page.route(path, (route) => route.fulfill({ status: 401, contentType: "application/problem+json", body: '{"detail":"the token has ended","status":401}' }));
  await field("num epochs").fill("7");
  await page.getByText("the token has ended").waitFor();
  await page.unroute(path);
  await page.getByLabel("Your token").fill(token);
  await button("Sign in").click();
  await says("num_epochs: 7");
  const kept = await file.inputValue();
  await page.route(path, (route) => route.abort());
  await field("num epochs").fill("");
  await page.getByRole("alert").getByText("the server cannot be reached").waitFor();
  await page.unroute(path);
  await quote.getByText("20 steps of 4 rows").waitFor();
  await page.getByText("the server cannot be reached").waitFor({ state: "detached" });
  say("interrupted", { kept, now: await file.inputValue() });
}

async function start() {
  await button("Start the job").dblclick();
  await page.locator("[data-state]").first().waitFor();
  await page.locator("[data-state=JOB_STATE_SUCCEEDED]").first().waitFor();
  const id = new URL(page.url()).pathname.split("/").pop();
  await page.getByRole("link", { name: "Clone" }).click();
  await says("experiment: first");
  const file = await page.locator("#job-file").inputValue();
  await field("experiment").fill("second");
  await field("max steps").fill("1000000");
  await quote.getByText("1,000,000 steps").waitFor();
  await quote.getByText("learnt from 1 earlier job").waitFor();
  await button("Start the job").click();
  await page.locator("[data-state=JOB_STATE_RUNNING]").first().waitFor();
  say("started", { id, file });
}

async function home() {
  await page.goto(url);
  const running = page.getByLabel("Running");
  await running.getByText("second-").waitFor();
  await running.locator("svg path[d^=M]").waitFor();
  const waiting = page.getByLabel("Waiting", { exact: true });
  await waiting.getByText("every fitting node is busy").waitFor();
  const since = page.getByLabel("Since you last looked");
  await since.getByText("made first@1").waitFor();
  await page.getByRole("img", { name: /^Busy in the last hour; now \w+ \d+ %/ }).waitFor();
  await shot("home");
  await button("All seen").click();
  await since.getByText("Nothing new.").waitFor();
  await page.reload();
  await since.getByText("Nothing new.").waitFor();
  say("home", { running: await running.innerText(), waiting: await waiting.innerText() });
}

async function audit() {
  await page.keyboard.press("g");
  await page.keyboard.press("u");
  await page.getByRole("table", { name: "Audit" }).waitFor();
  const all = await page.locator("[data-row]").count();
  await page.getByLabel("Find in the audit").fill("dataset admin");
  await page.waitForFunction(() => document.querySelectorAll("[data-row]").length === 1);
  const row = await page.getByRole("row").nth(1).innerText();
  await shot("audit");
  await page.locator("[data-row]").click();
  await page.getByRole("link", { name: "Train on it" }).click();
  await says("dataset: sums");
  say("audit", { all, row });
}

async function telephone() {
  await page.setViewportSize({ width: 390, height: 844 });
  await page.emulateMedia({ colorScheme: "dark" });
  const wide = [];
  for (const view of ["", "audit", "new?base_model=tiny&dataset=sums"]) {
    await page.goto(`${url}/${view}`);
    await page.locator("main .card").first().waitFor();
    if (view.startsWith("new")) await page.getByLabel("Preview").locator("pre .trained").first().waitFor();
    const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (over > 0) wide.push(`${view}: ${over}`);
  }
  await shot("telephone");
  say("telephone", { wide });
}

try {
  await empty();
  await inStep();
  await badInput();
  await interrupted();
  await start();
  await home();
  await audit();
  await telephone();
  say("done");
} catch (error) {
  await shot("trouble");
  say("trouble", { text: String(error.message ?? error), url: page.url() });
  process.exitCode = 1;
}
await browser.close();
