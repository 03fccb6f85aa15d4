import { basename } from "node:path";
import { vitePreprocess } from "@sveltejs/vite-plugin-svelte";

// Styles are told apart by the name of their part, of which there is one only: shorter than a hash, and it packs better.
const cssHash = ({ filename }) => basename(filename, ".svelte");

export default { preprocess: vitePreprocess(), compilerOptions: { runes: true, cssHash } };
