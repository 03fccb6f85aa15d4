// A small part of Markdown as a tree: what model cards are written in. Nothing of it becomes HTML here, and HTML in it
// stays text, so a card cannot put anything into the page but words.

export type Inline =
  | { kind: "text"; text: string }
  | { kind: "code"; text: string }
  | { kind: "strong"; inside: Inline[] }
  | { kind: "em"; inside: Inline[] }
  | { kind: "link"; href: string; inside: Inline[] };

export type Block =
  | { kind: "heading"; level: number; inside: Inline[] }
  | { kind: "paragraph" | "quote"; inside: Inline[] }
  | { kind: "code"; text: string }
  | { kind: "list"; ordered: boolean; items: Inline[][] }
  | { kind: "table"; head: Inline[][]; rows: Inline[][][] }
  | { kind: "rule" };

// Nesting deeper than this is somebody's joke; the rest stays text.
const DEEPEST = 6;

/** Parses a document; front matter between `---` lines is left out. */
export function parse(source: string): Block[] {
  const lines = source.replace(/\r\n?/g, "\n").replace(/^---\n[\s\S]*?\n---\n/, "").split("\n");
  const blocks: Block[] = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at] ?? "";
    const heading = /^(#{1,6})\s+(.*)$/.exec(line);
    if (!line.trim()) at += 1;
    else if (line.startsWith("```")) at = fenced(lines, at, blocks);
    else if (heading) {
      blocks.push({ kind: "heading", level: heading[1]?.length ?? 1, inside: inline(heading[2] ?? "") });
      at += 1;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      blocks.push({ kind: "rule" });
      at += 1;
    } else if (line.startsWith("|") && /^\|[\s:|-]+\|?$/.test(lines[at + 1] ?? "")) at = table(lines, at, blocks);
    else if (/^\s*([-*+]|\d+[.)])\s+/.test(line)) at = list(lines, at, blocks);
    else at = paragraph(lines, at, blocks);
  }
  return blocks;
}

function fenced(lines: string[], at: number, blocks: Block[]): number {
  let end = at + 1;
  while (end < lines.length && !lines[end]?.startsWith("```")) end += 1;
  blocks.push({ kind: "code", text: lines.slice(at + 1, end).join("\n") });
  return end + 1;
}

function table(lines: string[], at: number, blocks: Block[]): number {
  let end = at + 2;
  while (lines[end]?.startsWith("|")) end += 1;
  const rows = lines.slice(at + 2, end).map((line) => cells(line).map((cell) => inline(cell)));
  blocks.push({ kind: "table", head: cells(lines[at] ?? "").map((cell) => inline(cell)), rows });
  return end;
}

function cells(line: string): string[] {
  return line
    .replace(/^\||\|\s*$/g, "")
    .split(/(?<!\\)\|/)
    .map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function list(lines: string[], at: number, blocks: Block[]): number {
  const ordered = /^\s*\d/.test(lines[at] ?? "");
  const items: string[] = [];
  while (at < lines.length) {
    const item = /^\s*(?:[-*+]|\d+[.)])\s+(.*)$/.exec(lines[at] ?? "");
    if (item) items.push(item[1] ?? "");
    else if (/^\s+\S/.test(lines[at] ?? "")) items.push(`${items.pop() ?? ""} ${lines[at]?.trim()}`);
    else break;
    at += 1;
  }
  blocks.push({ kind: "list", ordered, items: items.map((item) => inline(item)) });
  return at;
}

function paragraph(lines: string[], at: number, blocks: Block[]): number {
  const begin = at;
  const quote = lines[at]?.startsWith(">") ?? false;
  while (at < lines.length && lines[at]?.trim() && (at === begin || !/^(#{1,6}\s|```|\||\s*([-*+]|\d+[.)])\s)/.test(lines[at] ?? ""))) at += 1;
  const text = lines.slice(begin, at).map((line) => (quote ? line.replace(/^>\s?/, "") : line)).join("\n");
  blocks.push({ kind: quote ? "quote" : "paragraph", inside: inline(text) });
  return at;
}

const MARKS = /`([^`]+)`|\*\*([^*]+(?:\*(?!\*)[^*]+)*)\*\*|\*([^*\s][^*]*)\*|\[([^\]]*)\]\(([^()\s]*)\)/;

function inline(text: string, depth = 0): Inline[] {
  const out: Inline[] = [];
  let rest = text;
  while (rest) {
    const found = depth < DEEPEST ? MARKS.exec(rest) : null;
    if (!found) break;
    if (found.index) out.push({ kind: "text", text: rest.slice(0, found.index) });
    const [whole, code, strong, em, label, href] = found;
    if (code !== undefined) out.push({ kind: "code", text: code });
    else if (strong !== undefined) out.push({ kind: "strong", inside: inline(strong, depth + 1) });
    else if (em !== undefined) out.push({ kind: "em", inside: inline(em, depth + 1) });
    else if (safe(href ?? "")) out.push({ kind: "link", href: href ?? "", inside: inline(label ?? "", depth + 1) });
    else out.push({ kind: "text", text: whole });
    rest = rest.slice(found.index + whole.length);
  }
  if (rest) out.push({ kind: "text", text: rest });
  return out;
}

/** Whether an address may be a link: nothing that runs, and nothing that hides where it leads. */
function safe(href: string): boolean {
  return /^(https?:\/\/|mailto:|#|\/(?!\/))/i.test(href);
}
