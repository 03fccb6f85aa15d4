// Runs side by side: what stands in their rows, which are chosen, the colour of each, and how curves of many are laid over another.

import type { Run } from "../contract";
import type { Curve } from "./curves.svelte";
import { lastPart, lower } from "./words";

/** What a run or a group is drawn in: always the same for the same name, whatever else is shown. */
export function colorOf(name: string, dark: boolean): string {
  let hash = 2166136261;
  for (const letter of name) hash = Math.imul(hash ^ (letter.codePointAt(0) ?? 0), 16777619);
  // Mixed on, so that names that differ in their last letter lie far apart.
  let mixed = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b);
  mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
  mixed = (mixed ^ (mixed >>> 16)) >>> 0;
  const [saturation, light] = dark ? [68, 66 + (mixed % 3) * 5] : [66, 34 + (mixed % 3) * 6];
  return `hsl(${(mixed >>> 4) % 360} ${saturation}% ${light}%)`;
}

/** The values of a field in their order, each with a colour as far from the others' as it can be. */
export function groupColors(runs: Run[], group: string, dark: boolean): Map<string, string> {
  const values = [...new Set(runs.map((run) => textOf(run, group) || "none"))].sort((a, b) => Number(a) - Number(b) || a.localeCompare(b));
  return new Map(values.map((value, at) => [value, `hsl(${Math.round(232 + (330 * at) / values.length) % 360} ${dark ? "68% 68%" : "66% 40%"})`]));
}

export function idOf(run: Run): string {
  return lastPart(run.job);
}

/** The states in which a run changes no more; empty where the jobs service has not told. */
export const ENDED = /^(SUCCEEDED|FAILED|CANCELLED|)$/;

/** Which runs are chosen, as the address says it: ids; or `*`, all that meet the filter, and the ids of those that are not.
 * So a thousand runs need no thousand names. */
export class Choice {
  private readonly all: boolean;
  private readonly named: Set<string>;

  constructor(text: string) {
    this.all = text.startsWith("*");
    this.named = new Set(text.slice(this.all ? 1 : 0).split(",").filter(Boolean));
  }

  has(id: string): boolean {
    return this.named.has(id) !== this.all;
  }

  /** The same with one run more or less, as text. */
  toggled(id: string): string {
    const next = new Set(this.named);
    if (!next.delete(id)) next.add(id);
    return (this.all ? "*" : "") + [...next].join(",");
  }
}

/** Returns what came, with the objects that were there before where nothing changed: what is the same is not drawn anew. */
export function settled(before: Run[], now: Run[]): Run[] {
  const known = new Map(before.map((run) => [run.job, run]));
  const kept = now.map((run) => {
    const old = known.get(run.job);
    return old && JSON.stringify(old) === JSON.stringify(run) ? old : run;
  });
  return kept.length === before.length && kept.every((run, at) => run === before[at]) ? before : kept;
}

/** Whether the smaller value of a metric is the better one, when nobody says. */
export function smallerIsBetter(metric: string): boolean {
  return !/accuracy|match|f1|rouge|bleu|chrf|score|reward|win|tokens_per|precision|recall/i.test(metric);
}

/** Returns a name as filters and orders take it. */
export function quoted(name: string): string {
  return /^[\w./-]+$/.test(name) && !/^(and|or|not|in|has|asc|desc)$/i.test(name) ? name : `\`${name}\``;
}

/** Returns the value of a metric, a field of the configuration or a fact, as text; empty where there is none. */
export function textOf(run: Run, name: string): string {
  if (name in run.metrics) return String(run.metrics[name]);
  if (name.startsWith("label.")) return run.labels[name.slice(6)] ?? "";
  return { experiment: run.experiment, state: lower(run.state, ""), name: run.display_name, created: run.create_time }[name] ?? run.config[name] ?? "";
}

/** The same as a number; NaN where it is none. */
export function valueOf(run: Run, name: string): number {
  const text = textOf(run, name);
  if (name === "created") return Date.parse(text);
  return text === "" ? NaN : Number(text);
}

/** Whether a field is a number in every run that has it. */
export function numeric(runs: Run[], name: string): boolean {
  return runs.every((run) => textOf(run, name) === "" || textOf(run, name) === "NaN" || !Number.isNaN(valueOf(run, name)));
}

const MINUTE_MS = 60_000;
const DAY_MS = 1440 * MINUTE_MS;

/** Returns places for values from 0 to 1: numbers by size, or by their logarithm; words in their order. */
export class Scale {
  readonly words: string[] = [];
  private readonly places = new Map<string, number>();
  readonly low: number;
  readonly high: number;
  readonly log: boolean;

  constructor(runs: Run[], readonly name: string) {
    if (!numeric(runs, name)) {
      this.words = [...new Set(runs.map((run) => textOf(run, name)).filter(Boolean))].sort();
      this.words.forEach((word, at) => this.places.set(word, at));
      [this.low, this.high, this.log] = [0, Math.max(1, this.words.length - 1), false];
      return;
    }
    let [low, high] = [Infinity, -Infinity];
    for (const run of runs) {
      const value = valueOf(run, name);
      if (Number.isFinite(value)) [low, high] = [Math.min(low, value), Math.max(high, value)];
    }
    // Learning rates and the like lie over decades.
    this.log = low > 0 && high / low >= 30;
    if (low > high) [low, high] = [0, 1];
    const around = low !== high ? 0 : name === "created" ? MINUTE_MS : Math.abs(low) / 2 || 1;
    [this.low, this.high] = this.log ? [Math.log10(low), Math.log10(high)] : [low - around, high + around];
  }

  place(run: Run): number {
    if (this.words.length) {
      return (this.places.get(textOf(run, this.name)) ?? NaN) / this.high;
    }
    const value = valueOf(run, this.name);
    return ((this.log ? Math.log10(value) : value) - this.low) / (this.high - this.low);
  }

  /** Marks of an axis: the place of each and what stands there. */
  get ticks(): { at: number; value: number; word: string }[] {
    if (this.words.length) {
      const every = Math.ceil(this.words.length / 12);
      return this.words.flatMap((word, at) => (at % every ? [] : [{ at: at / this.high, value: at, word }]));
    }
    return [0, 0.25, 0.5, 0.75, 1].map((at) => {
      const value = this.low + at * (this.high - this.low);
      return { at, value: this.log ? 10 ** value : value, word: this.name === "created" ? this.moment(value) : "" };
    });
  }

  private moment(time: number): string {
    const when = new Date(time);
    if (this.high - this.low > DAY_MS) return when.toLocaleDateString([], { month: "short", day: "numeric" });
    return when.toLocaleTimeString([], { hour12: false, timeStyle: this.high - this.low > 5 * MINUTE_MS ? "short" : "medium" });
  }
}

/** Lays curves over one grid, between the points by straight lines; outside a curve there is nothing. */
export function aligned(curves: Curve[], cells: number): Curve[] {
  let [low, high] = [Infinity, -Infinity];
  for (const curve of curves) {
    const first = curve.x.find(Number.isFinite);
    const last = curve.x.findLast(Number.isFinite);
    if (first !== undefined && last !== undefined) [low, high] = [Math.min(low, first), Math.max(high, last)];
  }
  if (!(high > low)) return curves;
  const grid = Array.from({ length: cells }, (_none, at) => low + ((high - low) * at) / (cells - 1));
  return curves.map((curve) => onGrid(curve, grid));
}

function onGrid(curve: Curve, grid: number[]): Curve {
  const values: number[] = [];
  const steps: number[] = [];
  let at = 0;
  for (const x of grid) {
    while (at < curve.x.length && (curve.x[at] ?? NaN) < x) at += 1;
    const [x0, x1] = [curve.x[at - 1] ?? NaN, curve.x[at] ?? NaN];
    const part = x1 === x ? 1 : (x - x0) / (x1 - x0);
    const between = (of: number[]) => (part === 1 ? of[at] ?? NaN : (of[at - 1] ?? NaN) * (1 - part) + (of[at] ?? NaN) * part);
    values.push(between(curve.values));
    steps.push(between(curve.steps));
  }
  return { ...curve, x: grid, steps, values, low: values, high: values };
}

/** Returns the mean of curves on the same grid, and the smallest and largest of them at each place. */
export function meanOf(key: string, curves: Curve[]): Curve {
  const x = curves[0]?.x ?? [];
  const made: Curve = { key, x, steps: [], values: [], low: [], high: [], times: [] };
  for (let at = 0; at < x.length; at += 1) {
    let [sum, count, low, high, step] = [0, 0, Infinity, -Infinity, NaN];
    for (const curve of curves) {
      const value = curve.values[at] ?? NaN;
      if (Number.isNaN(step)) step = curve.steps[at] ?? NaN;
      if (!Number.isFinite(value)) continue;
      sum += value;
      count += 1;
      if (value < low) low = value;
      if (value > high) high = value;
    }
    made.steps.push(step);
    made.values.push(count ? sum / count : NaN);
    made.low.push(count ? low : NaN);
    made.high.push(count ? high : NaN);
  }
  return made;
}

/** Returns the value of a curve at a place, between its points by a straight line; NaN outside. */
export function valueAt(x: number[], values: number[], place: number): number {
  let [from, to] = [0, x.length - 1];
  if (!(place >= (x[from] ?? NaN) && place <= (x[to] ?? NaN))) return NaN;
  while (to - from > 1) {
    const middle = (from + to) >> 1;
    if ((x[middle] ?? 0) <= place) from = middle;
    else to = middle;
  }
  const [x0, x1] = [x[from] ?? 0, x[to] ?? 0];
  const part = x1 > x0 ? (place - x0) / (x1 - x0) : 0;
  return (values[from] ?? NaN) * (1 - part) + (values[to] ?? NaN) * part;
}

/** Ranks from 1; equal values share the mean of theirs. */
function ranks(values: number[]): number[] {
  const order = values.map((_value, at) => at).sort((a, b) => (values[a] ?? 0) - (values[b] ?? 0));
  const found = new Array<number>(values.length).fill(0);
  for (let from = 0; from < order.length; ) {
    let to = from;
    while (to + 1 < order.length && values[order[to + 1] ?? 0] === values[order[from] ?? 0]) to += 1;
    for (let at = from; at <= to; at += 1) found[order[at] ?? 0] = 1 + (from + to) / 2;
    from = to + 1;
  }
  return found;
}

export interface Weight {
  name: string;
  /** From −1 to 1 for numbers; from 0 to 1 for words, which have no direction. */
  weight: number;
  words: boolean;
  runs: number;
}

/** How closely a field goes along with a metric over runs: Spearman's rank correlation; of words, the root of the
 * share of the ranks' spread that lies between them. Null where the field does not vary. */
export function weightOf(runs: Run[], name: string, metric: string): Weight | null {
  const words = !numeric(runs, name);
  const there = runs.filter((run) => textOf(run, name) !== "" && (words || Number.isFinite(valueOf(run, name))) && Number.isFinite(valueOf(run, metric)));
  const y = ranks(there.map((run) => valueOf(run, metric)));
  const middle = (there.length + 1) / 2;
  const spread = (of: number[]) => of.reduce((sum, rank) => sum + (rank - middle) ** 2, 0);
  if (there.length < 3) return null;
  if (!words) {
    const x = ranks(there.map((run) => valueOf(run, name)));
    const both = x.reduce((sum, rank, at) => sum + (rank - middle) * ((y[at] ?? 0) - middle), 0);
    const norm = Math.sqrt(spread(x) * spread(y));
    return norm ? { name, weight: both / norm, words, runs: there.length } : null;
  }
  const groups = new Map<string, number[]>();
  there.forEach((run, at) => groups.set(textOf(run, name), [...(groups.get(textOf(run, name)) ?? []), y[at] ?? 0]));
  // Where nearly every run has a word of its own, the words explain everything and nothing.
  if (groups.size < 2 || groups.size > there.length / 2 || !spread(y)) return null;
  const between = [...groups.values()].reduce((sum, of) => sum + of.length * (of.reduce((a, b) => a + b, 0) / of.length - middle) ** 2, 0);
  return { name, weight: Math.sqrt(between / spread(y)), words, runs: there.length };
}
