import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

// What the page begins with: sign-in, header, keys, and what most views use. Everything else comes with the first view.
// Two files instead of seventy: many small ones pack so much worse that the same page was 171 KiB and is 136.
const SHELL = /node_modules.(?!uplot)|src.lib.(route|session|api|fleet|events|words|keys|pages|load)\b|src.parts.(Header|Palette|Help|Notice|Modal|Command)\b/;

/** Leaves out of uPlot what no chart here has, and its one file would keep: calendars on an axis, bars, steps, splines. */
const lean: Plugin = {
  name: "lean-uplot",
  transform(code, id) {
    if (!id.endsWith("uPlot.esm.js")) return null;
    const [core, doors] = code.split("uPlot.assign = assign;");
    const calendars = [/let isTime = [^;]+;/g, /const _time(AxisSplits|AxisVals|SeriesVal) +=[^;]+;/g, /const \[ timeIncrs[^;]+;/g];
    if (!core || !doors || calendars.some((each) => !each.test(core))) throw new Error("uPlot has changed: see in vite.config.ts what is left out of it");
    const kept = core.replace(calendars[0]!, "const isTime = false;").replace(calendars[1]!, "const _time$1 = null;").replace(calendars[2]!, "");
    return `${kept}uPlot.pxRatio = pxRatio;\nuPlot.sync = _sync;\nexport { uPlot as default };`;
  },
};

// The server's Content-Security-Policy allows files of its own only: no inline script, style or data.
export default defineConfig({
  plugins: [lean, svelte()],
  build: {
    outDir: "../tunesmith_gateway/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    cssCodeSplit: false,
    modulePreload: { polyfill: false },
    rolldownOptions: {
      output: {
        codeSplitting: {
          groups: [
            { name: "shell", test: SHELL, priority: 2 },
            { name: "views", test: /src.(views|parts|lib)|uplot/, priority: 1 },
          ],
        },
      },
    },
  },
  server: { proxy: { "/api": process.env.TUNESMITH_HTTP ?? "http://127.0.0.1:7460" } },
});
