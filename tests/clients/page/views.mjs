// Walks the views beyond jobs as a person does: keys, data, models, evaluations, chat, nodes, alerts, prompts.
// node views.mjs URL TOKEN CHROMIUM FOLDER MODEL; a line of JSON on stdout for each thing seen.

import { join } from "node:path";
import { chromium } from "playwright-core";

const [url, token, executablePath, folder, model] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light" });
const page = await context.newPage();
page.setDefaultTimeout(60_000);
page.on("console", (message) => message.type() === "error" && say("console error", { text: message.text(), from: message.location().url }));
page.on("pageerror", (error) => say("page error", { text: error.message }));
page.on("dialog", (dialog) => say("page error", { text: `a dialog: ${dialog.message()}` }));
page.on("request", (request) => !request.url().startsWith(url) && !request.url().startsWith("blob:") && say("page error", { text: `another host: ${request.url()}` }));

const HOSTILE = '<script>alert("row")</script> \u202egpj.exe';
const button = (name) => page.getByRole("button", { name, exact: true });
const link = (name) => page.locator("[data-row]", { hasText: name }).first();
const tab = (name) => page.getByRole("tab", { name, exact: true }).click();
const shot = (name) => page.screenshot({ path: join(folder, `${name}.png`) });

async function keys() {
  await page.goto(`${url}/jobs#token=${token}`);
  await page.getByRole("heading", { name: "Jobs" }).waitFor();
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Keys" }).waitFor();
  await page.keyboard.press("Escape");
  await page.keyboard.press("Control+k");
  await page.getByRole("combobox").fill(model);
  await page.getByRole("option", { name: `model ${model}` }).waitFor();
  await page.getByRole("combobox").fill("page dataset");
  await page.getByRole("option", { name: "Datasets" }).waitFor();
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: "Datasets" }).waitFor();
  const title = await page.title();
  await page.getByRole("table", { name: "Datasets" }).waitFor();
  await page.keyboard.press("j");
  await page.keyboard.press("j");
  const focused = await page.evaluate(() => document.activeElement.innerText);
  const all = Number(await page.getByRole("table").getAttribute("aria-rowcount")) - 1;
  const drawn = await page.locator("[data-row]").count();
  await page.evaluate(() => scrollTo(0, document.body.scrollHeight));
  await page.locator("[data-row]", { hasText: "sums" }).waitFor();
  await page.keyboard.press("g");
  await page.keyboard.press("p");
  await page.locator("[data-row]", { hasText: "plain" }).waitFor();
  say("keys", { title, focused, all, drawn });
}

async function data() {
  await page.goto(`${url}/datasets?import=1`);
  const row = (text, answer) => JSON.stringify({ messages: [{ role: "user", content: text }, { role: "assistant", content: answer }] });
  const lines = [row(HOSTILE, "4"), row("x".repeat(10_000), "<img src=x onerror=alert(1)>"), row("what is 2 plus 2?", "4"), row("nothing", "")];
  await page.locator("input[type=file]").setInputFiles({ name: "Strange names.jsonl", mimeType: "text/plain", buffer: Buffer.from(lines.join("\n")) });
  await page.getByLabel("What it is (for people)").fill(`${HOSTILE} ${"long ".repeat(1900)}`);
  await button("Only check").click();
  await page.getByText("answer empty").waitFor();
  await button("Import").click();
  await page.getByRole("heading", { name: "strange-names" }).waitFor();
  await page.getByLabel("Rows").getByText(HOSTILE.replace("\u202e", "⟨U+202E⟩")).first().waitFor();
  await page.getByLabel("Render with base model").selectOption("tiny");
  await page.locator(".trained", { hasText: "4" }).first().waitFor();
  const learnt = await page.locator("pre .trained").first().innerText();
  await shot("preview");
  await tab("Statistics");
  await page.getByText("Tokens a row", { exact: true }).waitFor();
  await shot("statistics");
  const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
  say("data", { learnt, wide, url: page.url(), scripts: await page.locator("main script, main img").count() });
}

async function models() {
  await page.goto(`${url}/models`);
  await page.getByLabel("Find models").fill(model);
  await link(model).click();
  await tab("Card");
  await button("Edit").click();
  await page.getByLabel("Summary").fill("Knows **sums**. <img src=x onerror=alert(1)> [here](javascript:alert) [there](https://example.org/a)");
  await button("Save").click();
  await page.locator(".prose strong", { hasText: "sums" }).waitFor();
  const card = await page.locator(".prose").innerText();
  const links = await page.locator(".prose a").evaluateAll((all) => all.map((each) => each.getAttribute("href")));
  say("card", { text: card.includes("<img src=x onerror=alert(1)>"), links, images: await page.locator(".prose img").count() });
  await tab("Lineage");
  await page.locator("[data-lineage=dataset]").waitFor();
  say("lineage", { kinds: await page.locator("[data-lineage]").evaluateAll((all) => all.map((each) => each.dataset.lineage).sort()) });
  await shot("lineage");
  await button("Promote").click();
  await page.getByRole("dialog").getByText("not passed").waitFor();
  await page.getByLabel("To the stage").selectOption({ label: "staging" });
  await button("Ask for approval").click();
  await page.locator("[data-promotion=open]").waitFor();
  await button("Reject").click();
  await page.locator("[data-promotion=open]").waitFor({ state: "detached" });
  await button("Promote").click();
  await page.getByLabel("To the stage").selectOption({ label: "staging" });
  await button("Set the stage").click();
  await page.locator("[data-stage=staging]").first().waitFor();
  await tab("Stages");
  await page.getByText("rejected by").waitFor();
  await tab("Use");
  await button("Verify every byte").click();
  await page.locator("[data-verdict]").waitFor();
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: /^Download/ }).click()]);
  say("proved", { verdict: await page.locator("[data-verdict]").getAttribute("data-verdict"), file: download.suggestedFilename() });
}

async function evaluations() {
  await page.goto(`${url}/evaluations`);
  await page.locator("[data-row]").first().click();
  await page.getByRole("img", { name: /^tiny: / }).first().waitFor();
  const better = await page.getByLabel("Comparison").innerText();
  await shot("evaluation");
  await tab("Row by row");
  await page.getByLabel("Metric", { exact: true }).selectOption("perplexity");
  await page.getByLabel("Order", { exact: true }).selectOption({ label: "greatest difference first" });
  await page.locator(".answer").nth(1).waitFor();
  say("evaluation", { better, url: page.url(), answers: await page.locator("article").first().locator(".answer").count() });
}

async function chat() {
  await page.goto(`${url}/chat?a=${model}@1&b=tiny`);
  await page.getByText("Parameters and system message").click();
  await page.getByLabel("Longest answer").fill("12");
  await page.getByLabel("Message", { exact: true }).fill("what is 2 plus 2?");
  await page.keyboard.press("Enter");
  await page.locator("[data-answer=done]").nth(1).waitFor();
  await page.getByLabel("Dataset that keeps it").fill("kept");
  await button(`Keep that of ${model}@1`).click();
  await page.getByText("Kept as a row of kept.").waitFor();
  await shot("chat");
  await page.getByLabel("Longest answer").fill("4000");
  await page.getByLabel("Message", { exact: true }).fill("count");
  await page.keyboard.press("Enter");
  await button("Stop").click();
  await button("Send").waitFor();
  say("chat", { notes: await page.locator(".answer .who span").allInnerTexts() });
}

async function fleet() {
  await page.goto(`${url}/nodes`);
  await page.locator("[data-row]").first().click();
  await page.getByText("cpu · percent").waitFor();
  await shot("node");
  await button("Cordon").click();
  await page.getByRole("dialog").getByRole("button", { name: "Cordon" }).click();
  await page.locator("[data-node=NODE_STATE_CORDONED]").waitFor();
  await button("Uncordon").click();
  await page.locator("[data-node=NODE_STATE_READY]").waitFor();
  await page.goto(`${url}/alerts?tab=rules`);
  await page.locator("tr", { hasText: "any-failure" }).getByRole("button", { name: "Test" }).click();
  const tested = await page.getByRole("dialog").getByRole("status").filter({ hasText: "Nobody was told" }).innerText();
  await page.keyboard.press("Escape");
  await tab("Silences");
  await page.getByLabel("Rule", { exact: true }).fill("any-failure");
  await page.getByLabel("Why").fill(HOSTILE);
  await button("Silence").click();
  await page.getByRole("cell", { name: HOSTILE.replace("\u202e", "⟨U+202E⟩") }).waitFor();
  await button("End").click();
  await page.getByText("Nothing is silenced").waitFor();
  say("fleet", { tested });
}

/** Every view on a telephone in the dark: nothing is wider than the screen, and what is missing is told with a remedy. */
async function telephone() {
  await page.setViewportSize({ width: 390, height: 844 });
  await page.emulateMedia({ colorScheme: "dark" });
  const wide = [];
  const views = ["nodes", "models", `models/${model}`, `models/${model}?tab=use`, "datasets", "datasets/strange-names", "prompts/plain?dataset=sums", "evaluations", "chat", "alerts?tab=rules"];
  for (const view of views) {
    await page.goto(`${url}/${view}`);
    await page.locator("main .card").first().waitFor();
    const over = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (over > 0) wide.push(`${view}: ${over}`);
  }
  say("telephone", { wide });
  await shot("phone");
}

try {
  await keys();
  await data();
  await models();
  await evaluations();
  await chat();
  await fleet();
  await telephone();
  say("done");
} catch (error) {
  await shot("trouble");
  say("trouble", { text: String(error.message ?? error), url: page.url() });
  process.exitCode = 1;
}
await browser.close();
