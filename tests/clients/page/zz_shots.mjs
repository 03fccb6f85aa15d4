import { chromium } from "playwright-core";
import { readFileSync } from "node:fs";
const info = JSON.parse(readFileSync("/tmp/boot5/g/root/info.json"));
const only = process.argv[2];
const browser = await chromium.launch({ executablePath: process.argv[3] ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-dev-shm-usage"] });
const api = async (p) => (await fetch(`${info.http}/api/v1/${p}`, { headers: { authorization: `Bearer ${info.token}` } })).json();
const ev = (await api("projects/default/evaluations")).evaluations[0].evaluation_id;
const node = (await api("nodes")).nodes[0].node_id;
const paths = { jobs: "/", nodes: "/nodes", node: `/nodes/${node}`, models: "/models", bases: "/models?kind=base_model", versions: "/models?kind=version", model: "/models/support", card: "/models/support?tab=card", mlin: "/models/support?tab=lineage", mev: "/models/support?tab=evaluations", muse: "/models/support?tab=use", mstages: "/models/support?tab=stages", datasets: "/datasets", dataset: "/datasets/support-chat", masked: "/datasets/support-chat?base=tiny", stats: "/datasets/support-chat?tab=statistics&base=tiny", mails: "/datasets/mails?tab=statistics", report: "/datasets/support-chat?tab=report&version=1", dlin: "/datasets/support-train?tab=lineage", duse: "/datasets/support-chat?tab=use", imp: "/datasets?import=1", prompts: "/prompts", prompt: "/prompts/sort?dataset=mails&base=tiny", evals: "/evaluations", ev: `/evaluations/${ev}`, evs: `/evaluations/${ev}?tab=samples&metric=perplexity&order=DIFFERENCE`, chat: "/chat?a=support@2&b=tiny", alerts: "/alerts", rules: "/alerts?tab=rules", silences: "/alerts?tab=silences", nowhere: "/what/is/this" };
for (const [kind, options] of Object.entries({ light: { viewport: { width: 1280, height: 860 }, colorScheme: "light" }, dark: { viewport: { width: 1280, height: 860 }, colorScheme: "dark" }, phone: { viewport: { width: 390, height: 844 }, colorScheme: "light" } })) {
  if (only && !only.split(",").includes(kind) && only.split(",").some((w) => ["light", "dark", "phone"].includes(w))) continue;
  const names = only ? only.split(",").filter((w) => paths[w]) : [];
  const page = await (await browser.newContext(options)).newPage();
  page.on("console", (m) => m.type() === "error" && console.log(kind, page.url().replace(info.http, ""), "CONSOLE", m.text().slice(0, 300)));
  page.on("pageerror", (e) => console.log(kind, page.url(), "PAGEERROR", e.message));
  await page.goto(`${info.http}/#token=${info.token}`);
  await page.locator("nav").waitFor();
  for (const [name, path] of Object.entries(paths)) {
    if (names.length && !names.includes(name)) continue;
    await page.goto(info.http + path);
    await page.waitForTimeout(900);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    if (wide > 0) console.log(kind, name, "TOO WIDE", wide);
    await page.screenshot({ path: `/tmp/boot5/shots/${kind}-${name}.png` });
  }
}
await browser.close();
