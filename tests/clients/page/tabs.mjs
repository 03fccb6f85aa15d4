// Two tabs edit the same things: a card, a rule, an alias. What the second saves meanwhile is shown to the first.
// node tabs.mjs URL TOKEN CHROMIUM FOLDER MODEL RULE; a line of JSON on stdout for each thing seen.

import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, token, executablePath, folder, model, rule] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
// That a change is refused is an error to the browser's console as well.
const expected = /409|412|400 \(Bad Request\)/;
const button = (page, name) => page.getByRole("button", { name, exact: true });

async function open(path) {
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("console", (message) => message.type() === "error" && !expected.test(message.text()) && say("console error", { text: message.text() }));
  page.on("pageerror", (error) => say("page error", { text: error.message }));
  await page.goto(`${url}/${path}#token=${token}`);
  return page;
}

async function two(path) {
  return [await open(path), await open(path)];
}

async function card() {
  const [mine, other] = await two(`models/${model}?tab=card`);
  for (const page of [mine, other]) await button(page, "Edit").click();
  await mine.getByLabel("Summary").fill("mine: the summary");
  await mine.getByLabel("Intended use").fill("mine: the use");
  await other.getByLabel("Summary").fill("theirs: the summary");
  await other.getByLabel("Limitations").fill("theirs: the limits");
  await button(other, "Save").click();
  await other.getByRole("dialog").waitFor({ state: "detached" });
  await button(mine, "Save").click();
  const theirs = mine.locator("[data-theirs]");
  await theirs.waitFor();
  const values = async () => Object.fromEntries(await Promise.all(["Summary", "Intended use", "Limitations"].map(async (name) => [name, await mine.getByLabel(name).inputValue()])));
  say("card", { told: await mine.getByRole("dialog").getByRole("status").innerText(), fields: await theirs.count(), theirs: await theirs.innerText(), mine: await values() });
  await mine.screenshot({ path: join(folder, "card-conflict.png") });
  await button(mine, "Save mine over theirs").click();
  await mine.getByRole("dialog").waitFor({ state: "detached" });
  await mine.getByText("mine: the summary").waitFor();
  say("card saved");
  await Promise.all([mine.close(), other.close()]);
}

async function rules() {
  const [mine, other] = await two("alerts?tab=rules");
  const row = (page) => page.locator("tr", { hasText: rule });
  for (const page of [mine, other]) await button(row(page), "Switch off").waitFor();
  await button(row(other), "Switch off").click();
  await button(row(other), "Switch on").waitFor();
  const notice = mine.getByRole("status").filter({ hasText: "meanwhile" });
  await button(row(mine), "Switch off").click();
  await notice.waitFor();
  say("rule", { told: await notice.innerText(), choices: await notice.getByRole("button").allInnerTexts() });
  await button(notice, "Leave it so").click();
  // A program describes it anew, which neither tab has seen.
  const name = `projects/default/alertRules/${rule}`;
  const body = JSON.stringify({ rule: { name, description: "described meanwhile" }, update_mask: "description" });
  const answer = await fetch(`${url}/api/v1/${name}`, { method: "PATCH", headers: { authorization: `Bearer ${token}`, "content-type": "application/json" }, body });
  if (!answer.ok) throw new Error(await answer.text());
  await button(row(mine), "Switch on").click();
  await notice.waitFor();
  say("rule again", { told: await notice.innerText() });
  await button(notice, "Switch on all the same").click();
  await button(row(mine), "Switch off").waitFor();
  await notice.waitFor({ state: "detached" });
  await Promise.all([mine.close(), other.close()]);
}

async function aliases() {
  const [mine, other] = [await open(`models/${model}?version=1`), await open(`models/${model}?version=2`)];
  for (const page of [mine, other]) await page.getByLabel("New alias").fill("champion");
  await button(other, "Set").click();
  await other.getByLabel("Remove alias champion").waitFor();
  await button(mine, "Set").click();
  const notice = mine.getByRole("status").filter({ hasText: "quicker" });
  await notice.waitFor();
  say("alias", { told: await notice.innerText(), typed: await mine.getByLabel("New alias").inputValue() });
  await button(notice, "Let champion name version 1 all the same").click();
  await mine.getByLabel("Remove alias champion").waitFor();
  say("alias moved");
}

try {
  await card();
  await rules();
  await aliases();
  say("done");
} catch (error) {
  for (const [at, page] of context.pages().entries()) await page.screenshot({ path: join(folder, `trouble-${at}.png`) }).catch(() => undefined);
  say("trouble", { text: String(error.message ?? error) });
  process.exitCode = 1;
}
await browser.close();
