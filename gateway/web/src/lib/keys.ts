// Keys of every page. A list marks its rows with `data-row`; what is typed into a field is left alone.

import { PAGES } from "./pages";
import { route } from "./route.svelte";

// So long a `g` waits for the letter of a page.
const CHORD_MS = 1200;
let chordUntil = 0;

export const KEYS: [string, string][] = [
  ["Ctrl K", "find a page, a job, a model, a dataset; or do something"],
  ["?", "show this"],
  ["j  k", "next, previous row"],
  ["Enter", "open the row"],
  ["x", "choose the row, to compare"],
  ["c", "compare what is chosen; on a job: compare it with others"],
  ["p  s  f", "on a job: pause or resume, save a checkpoint, fork"],
  ["/", "search on this page"],
  ["g then …", PAGES.map((page) => `${page.key} ${page.title}`).join(" · ")],
  ["Esc", "close what is open"],
];

function typing(target: EventTarget | null): boolean {
  if (target instanceof HTMLInputElement && /^(checkbox|radio|range)$/.test(target.type)) return false;
  return target instanceof HTMLElement && (target.isContentEditable || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName));
}

/** Whether a key is a view's own: nobody types, nothing lies above the view, no other part has used it. */
export function plainKey(event: KeyboardEvent): boolean {
  const modified = event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented;
  return !modified && !typing(event.target) && !document.querySelector("dialog[open]");
}

/** The last part of the address of the row that has the focus; empty when none has it. */
export function rowId(): string {
  const row = document.activeElement?.closest("[data-row], [role=row], li")?.querySelector("a[data-row]") ?? document.activeElement;
  return row?.matches("a[data-row]") ? (row.getAttribute("href")?.split("/").pop() ?? "") : "";
}

function move(by: number): void {
  const rows = [...document.querySelectorAll<HTMLElement>("[data-row]")];
  const at = rows.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
  const next = rows[at < 0 ? 0 : Math.min(rows.length - 1, Math.max(0, at + by))];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

/** Returns the handler of keys that lead through the page. */
export function keyHandler(open: { palette: () => void; help: () => void }): (event: KeyboardEvent) => void {
  return (event) => {
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      open.palette();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || typing(event.target) || document.querySelector("dialog[open]")) return;
    const page = performance.now() < chordUntil ? PAGES.find((each) => each.key === event.key) : undefined;
    chordUntil = 0;
    if (page) route.go(page.href);
    else if (event.key === "g") chordUntil = performance.now() + CHORD_MS;
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "?") open.help();
    else if (event.key === "/") document.querySelector<HTMLElement>("main input[type=search]")?.focus();
    else return;
    event.preventDefault();
  };
}
