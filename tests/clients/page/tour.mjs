// Every view of the page: where it is, and what stands there when it is drawn.

import { chromium } from "playwright-core";

/** Opens the browser at a page that is signed in; `say` hears of errors. */
export async function open(url, token, executablePath, say) {
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, colorScheme: "light", reducedMotion: "reduce" });
  const page = await context.newPage();
  page.setDefaultTimeout(60_000);
  page.on("pageerror", (error) => say("page error", { text: error.message }));
  // Not by way of home: who was there has seen what is new.
  await page.goto(`${url}/datasets#token=${token}`);
  await page.getByRole("heading", { name: "Datasets" }).waitFor();
  return { browser, page };
}

/**
 * The views in order, about the jobs, models and datasets of `names`; a name that is missing leaves its view out.
 * `seen` waits until the view shows what it is about, `act` does what it is looked at for.
 */
export function tour(names) {
  const text = (words) => (page) => page.getByText(words).first().waitFor();
  const curve = (page) => page.locator("canvas").first().waitFor();
  const row = (page) => page.locator("[data-row]").first().waitFor();
  const waterfall = (page) => curve(page).then(() => page.locator("section[aria-label=Trace] .lane").first().waitFor());
  const views = [
    { id: "home", path: "", seen: text("Since you last looked") },
    { id: "new-job", path: names.ended && `new?from=${names.ended}`, seen: (page) => page.locator("pre .trained").first().waitFor() },
    { id: "jobs", path: "jobs", seen: row },
    { id: "job-running", path: names.running && `jobs/${names.running}`, seen: curve },
    { id: "job-ended", path: names.ended && `jobs/${names.ended}?trace=1`, seen: waterfall },
    { id: "job-failed", path: names.failed && `jobs/${names.failed}`, seen: text("failed") },
    { id: "job-waiting", path: names.waiting && `jobs/${names.waiting}`, seen: text("Waits:") },
    { id: "compare", path: names.runs && `compare?y=train%2Floss&smooth=0.6&runs=${names.runs}`, seen: curve },
    { id: "compare-parallel", path: names.runs && `compare?tab=parallel&runs=${names.runs}`, seen: row },
    { id: "compare-diff", path: names.runs && `compare?tab=diff&runs=${names.runs}`, seen: row },
    { id: "sweeps", path: "sweeps", seen: row },
    { id: "sweep", path: names.sweep && `sweeps/${names.sweep}`, seen: row },
    { id: "nodes", path: "nodes", seen: row },
    { id: "node", path: names.node && `nodes/${names.node}`, seen: text("cpu · percent") },
    { id: "models", path: "models", seen: row },
    { id: "model", path: names.model && `models/${names.model}`, seen: text("Files") },
    { id: "model-card", path: names.model && `models/${names.model}?tab=card`, seen: (page) => page.locator("main .card").first().waitFor() },
    { id: "model-lineage", path: names.model && `models/${names.model}?tab=lineage`, seen: (page) => page.locator("[data-lineage]").first().waitFor() },
    { id: "model-stages", path: names.model && `models/${names.model}?tab=stages`, seen: (page) => page.locator("main .card").first().waitFor() },
    { id: "datasets", path: "datasets", seen: row },
    { id: "dataset", path: names.dataset && `datasets/${names.dataset}?base=${names.base}`, seen: (page) => page.getByLabel("Rows").locator("article, li, pre").first().waitFor() },
    { id: "dataset-statistics", path: names.dataset && `datasets/${names.dataset}?tab=statistics&base=${names.base}`, seen: text("Tokens a row") },
    { id: "prompts", path: "prompts", seen: row },
    { id: "prompt", path: names.prompt && `prompts/${names.prompt}?dataset=${names.mails}`, seen: (page) => page.locator("main .card").nth(1).waitFor() },
    { id: "evaluations", path: "evaluations", seen: row },
    { id: "evaluation", path: names.evaluation && `evaluations/${names.evaluation}`, seen: (page) => page.getByLabel("Comparison").waitFor() },
    { id: "evaluation-rows", path: names.evaluation && `evaluations/${names.evaluation}?tab=samples`, seen: (page) => page.locator(".answer").first().waitFor() },
    { id: "chat", path: names.model && `chat?a=${names.model}@1&b=${names.base}`, seen: (page) => page.getByLabel("Message", { exact: true }).waitFor(), act: ask },
    { id: "alerts", path: "alerts", seen: (page) => page.locator("main .card").first().waitFor() },
    { id: "alert-rules", path: "alerts?tab=rules", seen: (page) => page.locator("main .card").first().waitFor() },
    { id: "silences", path: "alerts?tab=silences", seen: (page) => page.locator("main .card").first().waitFor() },
    { id: "audit", path: "audit", seen: row },
    { id: "lost", path: "nothing-here", seen: text("There is no page") },
    { id: "palette", path: "jobs", seen: row, act: palette, dialog: true },
    { id: "keys", path: "jobs", seen: row, act: keys, dialog: true },
    { id: "sign-in", path: "jobs", seen: row, act: signOut },
  ];
  return views.filter((view) => view.path !== undefined);
}

async function ask(page) {
  await page.getByText("Parameters and system message").click();
  await page.getByLabel("Longest answer").fill("24");
  await page.getByText("Parameters and system message").click();
  await page.getByLabel("Message", { exact: true }).fill("Are you a robot?");
  await page.keyboard.press("Enter");
  await page.locator("[data-answer=done]").nth(1).waitFor();
}

async function palette(page) {
  await page.keyboard.press("Control+k");
  await page.getByRole("combobox").waitFor();
  await page.getByRole("option").nth(3).waitFor();
}

async function keys(page) {
  await page.keyboard.press("?");
  await page.getByRole("dialog", { name: "Keys" }).waitFor();
}

async function signOut(page) {
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByLabel("Your token").waitFor();
}

/** Waits until nothing is still being fetched and what came is painted. */
export async function settled(page) {
  await page.waitForFunction(() => !document.querySelector("[aria-busy=true]") && ![...document.querySelectorAll("[role=status]")].some((each) => /^(Loading|Rendering)/.test(each.textContent)));
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
}
