// A user's whole day, in the page alone: data, wizard, live training, pause, resume, compare, evaluate, promote, chat, export.
// node day.mjs URL TOKEN CHROMIUM FOLDER DATA; a line of JSON on stdout for each thing seen.

import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, token, executablePath, folder, data] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light", acceptDownloads: true });
const page = await context.newPage();
page.setDefaultTimeout(240_000);
page.on("console", (message) => message.type() === "error" && say("console error", { text: message.text() }));
page.on("pageerror", (error) => say("page error", { text: error.message }));

const button = (name, within = page) => within.getByRole("button", { name, exact: true });
const link = (name) => page.getByRole("link", { name, exact: true });
const field = (name) => page.getByRole("form", { name: "Form" }).getByLabel(name, { exact: true });
const tab = (name) => page.getByRole("tab", { name, exact: true }).click();
const state = (name) => page.locator(`[data-state=JOB_STATE_${name}]`).first().waitFor();
const id = () => new URL(page.url()).pathname.split("/").pop();
const says = (text) => page.waitForFunction((part) => document.querySelector("#job-file")?.value.includes(part), text);

async function importData() {
  await page.goto(`${url}/#token=${token}`);
  await link("Datasets").click();
  await button("Import a file").click();
  await page.getByLabel("File", { exact: true }).setInputFiles(data);
  await button("Only check").click();
  await page.getByText("200 rows").first().waitFor();
  await button("Import").click();
  await page.getByRole("heading", { name: "support" }).waitFor();
  await page.getByLabel("Rows").getByText("what is 7 plus 7?").waitFor();
  say("imported", { url: page.url() });
}

/** The wizard, then the training seen live, paused and resumed. */
async function train() {
  await link("Train on it").first().click();
  await says("dataset: support");
  await field("base model").fill("tiny");
  await field("experiment").fill("day");
  await field("max steps").fill("200");
  await page.getByText("More: training").click();
  await field("num threads").fill("1");
  await field("eval fraction").fill("0.1");
  await page.getByLabel("Quote").getByText("200 steps of 4 rows").waitFor();
  await button("Start the job").click();
  await state("RUNNING");
  await button("Pause").click();
  await state("PAUSED");
  await page.getByLabel("Checkpoints").locator("li", { hasText: "step" }).first().waitFor();
  await page.locator("canvas").first().waitFor();
  const loss = page.locator("[data-kpi=loss]");
  const first = await loss.innerText();
  await button("Resume").click();
  await page.waitForFunction((before) => document.querySelector("[data-kpi=loss]").innerText !== before, first);
  await state("SUCCEEDED");
  await page.getByText("day@1").waitFor();
  say("trained", { id: id() });
}

async function again() {
  await link("Clone").click();
  await says("experiment: day");
  await field("learning rate").fill("0.001");
  await page.getByLabel("Quote").getByText("learnt from 1 earlier job").waitFor();
  await button("Start the job").click();
  await state("SUCCEEDED");
  await page.getByText("day@2").waitFor();
  say("trained again", { id: id() });
}

async function compare() {
  await link("Jobs").click();
  await page.locator("a[data-row]").nth(1).waitFor();
  for (const key of ["j", "x", "j", "x", "c"]) await page.keyboard.press(key);
  await page.getByRole("table", { name: "Runs" }).waitFor();
  await page.getByLabel("Pictures").locator("canvas").first().waitFor();
  await tab("Differences");
  const table = page.getByRole("table", { name: "Differences" });
  await table.getByText("training.learning_rate").waitFor();
  say("compared", { rows: await table.locator("tbody tr").evaluateAll((rows) => rows.map((row) => row.cells[0].innerText)) });
}

async function evaluate() {
  await page.goto(`${url}/models/day`);
  await tab("Use");
  await link("Evaluate, beside its base model").click();
  const form = page.getByRole("dialog", { name: "New evaluation" });
  const models = [await form.getByLabel("Model 1").inputValue(), await form.getByLabel("Model 2").inputValue()];
  await button("One more", form).click();
  await form.getByLabel("Model 3").fill("day@1");
  await form.getByLabel("Dataset").fill("support");
  await form.getByLabel("perplexity").check();
  await form.getByLabel("Most rows").fill("16");
  await form.getByLabel("Longest answer, tokens").fill("8");
  await page.screenshot({ path: join(folder, "evaluate.png") });
  await button("Evaluate", form).click();
  await state("SUCCEEDED");
  await page.getByRole("link", { name: "its scores" }).click();
  await page.getByRole("img", { name: /^tiny: / }).first().waitFor();
  say("evaluated", { models, better: await page.getByLabel("Comparison").innerText() });
}

async function promote() {
  await page.goto(`${url}/models/day`);
  await button("Promote").click();
  await page.getByLabel("To the stage").selectOption({ label: "production" });
  await page.getByLabel("Why (for people)").fill("the lower perplexity");
  await button("Set the stage").click();
  await page.locator("[data-stage=production]").first().waitFor();
  say("promoted");
}

async function chat() {
  await tab("Use");
  await link("Chat, beside its base model").click();
  await page.getByText("Parameters and system message").click();
  await page.getByLabel("Longest answer").fill("8");
  await page.getByLabel("Message", { exact: true }).fill("what is 7 plus 7?");
  await page.keyboard.press("Enter");
  await page.locator("[data-answer=done]").nth(1).waitFor();
  say("chatted", { url: page.url() });
}

async function take() {
  await page.goto(`${url}/models/day?tab=use`);
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: /^Download/ }).click()]);
  await download.saveAs(join(folder, "day.tar"));
  await page.getByRole("button", { name: /^Merge into/ }).click();
  await state("SUCCEEDED");
  await page.getByText("day-merged@1").waitFor();
  say("exported", { file: download.suggestedFilename() });
}

try {
  await importData();
  await train();
  await again();
  await compare();
  await evaluate();
  await promote();
  await chat();
  await take();
  say("done");
} catch (error) {
  await page.screenshot({ path: join(folder, "trouble.png"), fullPage: true });
  say("trouble", { text: String(error.message ?? error), url: page.url() });
  process.exitCode = 1;
}
await browser.close();
