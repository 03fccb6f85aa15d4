// Sweeps: the jobs that carry the label `sweep` with the same value are its trials. Nothing else makes one.

import type { QueryRunsResponse, Run } from "../contract";
import { get, PROJECT } from "./api";
import { ENDED, smallerIsBetter, valueOf } from "./runs";
import { lower, type Tone } from "./words";

export type Goal = "min" | "max";

export interface Sweep {
  name: string;
  trials: Run[];
  metric: string;
  goal: Goal;
  best: Run | null;
  /** How many are in each state, in the order of their number. */
  states: [string, number][];
}

// What a sweep is judged by when nobody says.
const USUAL = ["eval/loss", "train/loss"];
const PAGE = 1000;
// More trials than these are not looked through on a page.
const MOST_PAGES = 10;

/** Returns the filter of a sweep's trials, in the server's language. */
export function trialsOf(name: string): string {
  return `label.sweep = ${JSON.stringify(name)}`;
}

/** Fetches trials, newest first unless `order_by` says otherwise; `cut` when there are more than a page looks at. */
export async function fetchTrials(filter: string, metric: string, config: string[], order_by: string, signal: AbortSignal): Promise<{ trials: Run[]; cut: boolean }> {
  const query = { filter, order_by, metrics: [...new Set([...USUAL, metric || "-"])], config: config.length ? config : ["-"], page_size: PAGE };
  const trials: Run[] = [];
  let token = "";
  for (let page = 0; page < MOST_PAGES; page += 1) {
    const answer = await get<QueryRunsResponse>(`${PROJECT}/runs`, { ...query, page_token: token }, signal);
    trials.push(...answer.runs);
    token = answer.next_page_token;
    if (!token) break;
  }
  return { trials, cut: token !== "" };
}

/** Returns the metric that trials are judged by: what was asked for, else the first usual one that any of them has. */
export function metricOf(trials: Run[], asked: string): string {
  return asked || (USUAL.find((metric) => trials.some((run) => metric in run.metrics)) ?? "train/loss");
}

/** Puts trials together by their sweep, the one with the newest trial first. */
export function sweepsOf(trials: Run[], metric: string, goal: string): Sweep[] {
  const found = new Map<string, Run[]>();
  for (const run of trials) {
    const name = run.labels.sweep;
    if (!name) continue;
    const others = found.get(name);
    if (others) others.push(run);
    else found.set(name, [run]);
  }
  return [...found].map(([name, mine]) => sweepOf(name, mine, metric, goal)).sort((a, b) => (newest(a) < newest(b) ? 1 : -1));
}

export function sweepOf(name: string, trials: Run[], asked: string, wanted: string): Sweep {
  const metric = metricOf(trials, asked);
  const goal: Goal = wanted === "min" || wanted === "max" ? wanted : smallerIsBetter(metric) ? "min" : "max";
  const sign = goal === "min" ? 1 : -1;
  const states = new Map<string, number>();
  let best: Run | null = null;
  for (const run of trials) {
    const state = lower(run.state, "") || "unknown";
    states.set(state, (states.get(state) ?? 0) + 1);
    const value = sign * valueOf(run, metric);
    if (Number.isFinite(value) && (best === null || value < sign * valueOf(best, metric))) best = run;
  }
  return { name, trials, metric, goal, best, states: [...states].sort((a, b) => b[1] - a[1]) };
}

export function oldest(sweep: Sweep): string {
  return sweep.trials.reduce((least, run) => (run.create_time && run.create_time < least ? run.create_time : least), "~");
}

export function newest(sweep: Sweep): string {
  return sweep.trials.reduce((most, run) => (run.create_time && run.create_time > most ? run.create_time : most), "");
}

/** Whether anything may still change. */
export function moving(trials: Run[]): boolean {
  return trials.some((run) => !ENDED.test(run.state));
}

const TONES: Record<string, Tone> = { succeeded: "good", failed: "bad", running: "run", finalizing: "run", cancelled: "off", paused: "rest", pausing: "rest" };

export function toneOfState(state: string): Tone {
  return TONES[state] ?? "wait";
}
