// Looks at the run of a program of one's own while it saves, and makes a version of what it saved.
// node saved.mjs URL TOKEN CHROMIUM RUN; a line of JSON on stdout for each thing seen, so that the test acts.

import { chromium } from "playwright-core";

const [url, token, executablePath, run] = process.argv.slice(2);
const say = (saw, facts = {}) => console.log(JSON.stringify({ saw, ...facts }));
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const page = await (await browser.newContext({ viewport: { width: 390, height: 844 } })).newPage();
page.setDefaultTimeout(60_000);
page.on("pageerror", (error) => say("page error", { text: error.message }));

await page.goto(`${url}/jobs/${run}#token=${token}`);
const checkpoints = page.getByRole("region", { name: "Checkpoints" });
await checkpoints.getByText("none yet").waitFor();
say("nothing saved");
await checkpoints.getByText("step 7").waitFor();
const buttons = await checkpoints.getByRole("button").allTextContents();
const wide = await page.evaluate(() => document.documentElement.scrollWidth);
say("saved", { text: await checkpoints.getByRole("listitem").first().textContent(), buttons, wide });
await checkpoints.getByRole("button", { name: "make version" }).click();
const dialog = page.getByRole("dialog");
await dialog.getByLabel("Model", { exact: true }).fill("saved");
await dialog.getByRole("button", { name: "Make it" }).click();
await page.waitForURL("**/models/saved*");
await page.getByText("Made from").waitFor();
say("made", { text: await page.getByText("checkpoint ").first().textContent() });
await browser.close();
say("done");
