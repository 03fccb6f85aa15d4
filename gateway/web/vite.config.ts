import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// The server's Content-Security-Policy allows files of its own only: no inline script, style or data.
export default defineConfig({
  plugins: [svelte()],
  build: {
    outDir: "../tunesmith_gateway/static",
    emptyOutDir: true,
    target: "es2022",
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
  },
  server: { proxy: { "/api": process.env.TUNESMITH_HTTP ?? "http://127.0.0.1:7460" } },
});
