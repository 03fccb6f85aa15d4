// Memory of a page of ten live charts: node memory.mjs URL TOKEN CHROMIUM JOB MINUTES; a line of JSON each minute.

import { chromium } from "playwright-core";

const [url, token, executablePath, job, minutes] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const page = await (await browser.newContext({ viewport: { width: 1440, height: 900 } })).newPage();
page.setDefaultTimeout(60_000);
await page.goto(`${url}/jobs/${job}?metrics=${Array.from({ length: 10 }, (_, at) => `m${at}`).join(",")}#token=${token}`);
await page.locator("figure canvas").nth(9).waitFor();
const devtools = await page.context().newCDPSession(page);
await devtools.send("Performance.enable");
for (let minute = 0; minute <= Number(minutes); minute += 1) {
  // What nothing holds any more does not count.
  await devtools.send("HeapProfiler.collectGarbage");
  const { metrics } = await devtools.send("Performance.getMetrics");
  const of = Object.fromEntries(metrics.map(({ name, value }) => [name, value]));
  const last = await page.locator("figcaption .line strong").first().innerText();
  console.log(JSON.stringify({ minute, heap_mb: of.JSHeapUsedSize / 1e6, nodes: of.Nodes, listeners: of.JSEventListeners, last }));
  if (minute < Number(minutes)) await page.waitForTimeout(60_000);
}
await browser.close();
