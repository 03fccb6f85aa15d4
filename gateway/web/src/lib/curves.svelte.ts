// The curves of a job: those that are shown, reduced by the server to what a screen can show, then kept live.

import { SvelteMap } from "svelte/reactivity";
import type { ListMetricsResponse, QuerySeriesResponse, Series, WatchSeriesResponse } from "../contract";
import { get } from "./api";
import { patient, SETTLE_MS, sleep, watch } from "./events";
import { number } from "./words";

// More points than pixels show nothing more; the band of extremes keeps every spike visible.
const MAX_POINTS = 800;
// How often a running job is asked for metrics that are new, and a curve over another axis than the step is redrawn.
const LIST_MS = 5000;
const FIRST_MS = 500;
const REDRAW_MS = 1000;
// Of many live charts each burst costs frames: so many times what drawing one took is left for all else.
const IDLE = 6;
const LONGEST_MS = 200;

/** What the agent measures of the node beside a run: its steps are its own. */
export const MACHINE = "system/";

export const AXES = {
  step: "",
  time: "AXIS_RELATIVE_TIME",
  tokens: "AXIS_TOKENS",
  epoch: "AXIS_EPOCH",
} as const;
export type AxisName = keyof typeof AXES;

export interface Curve {
  key: string;
  steps: number[];
  /** Places on the axis; the steps themselves when the axis is the step. */
  x: number[];
  values: number[];
  low: number[];
  high: number[];
  /** When each point was measured, in microseconds. */
  times: number[];
  /** What it is called and drawn in, where that is not by its key and place. */
  label?: string;
  color?: string;
}

export class Curves {
  readonly byKey = new SvelteMap<string, Curve>();
  keys = $state.raw<string[]>([]);
  live = $state(false);
  listed = $state(false);
  private range: [number, number] | null;
  // What came since the last frame: a burst is drawn once.
  private fresh: Series[] = [];
  private frame = 0;
  private due = 0;

  constructor(
    private readonly job: string,
    private readonly done: () => boolean,
    range: [number, number] | null = null,
  ) {
    this.range = range;
  }

  /** Keeps the list of metrics until the signal: a running job may begin to log others. */
  async list(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const answer = await patient(() => get<ListMetricsResponse>(`${this.job}/metrics`, {}, signal), signal);
      // Histograms, texts and pictures are no curves.
      const found = answer.metrics.filter((metric) => metric.kind === "METRIC_KIND_NUMBER").map((metric) => metric.key);
      if (found.join("\n") !== this.keys.join("\n")) this.keys = found;
      this.listed = true;
      if (this.done() && found.length) return;
      await sleep(found.length ? LIST_MS : FIRST_MS, signal);
    }
  }

  /** Loads the curves of some metrics and follows them until the signal. */
  async follow(keys: string[], axis: AxisName, signal: AbortSignal): Promise<void> {
    this.draw();
    for (const key of this.byKey.keys()) if (!keys.includes(key)) this.byKey.delete(key);
    if (keys.length === 0) return;
    let revision = await patient(() => this.load(keys, axis, signal), signal);
    while (!signal.aborted && !this.done()) {
      const inner = new AbortController();
      const stop = AbortSignal.any([signal, inner.signal]);
      await watch<WatchSeriesResponse>({
        path: `${this.job}/series:watch`,
        query: { keys },
        from: revision,
        signal: stop,
        onLive: (live) => (this.live = live),
        done: this.done,
        onMessage: (message) => {
          if (message.series.length === 0) return;
          if (axis !== "step") inner.abort();
          else this.gather(message.series);
          // Too many single points: let the server reduce them again.
          if ([...this.byKey.values()].some((curve) => curve.steps.length > 2 * MAX_POINTS)) inner.abort();
        },
      });
      if (axis !== "step") await sleep(REDRAW_MS, signal);
      if (!signal.aborted) revision = await patient(() => this.load(keys, axis, signal), signal);
    }
    this.live = false;
    // The last points are stored a moment after the job has ended.
    await sleep(SETTLE_MS, signal);
    if (!signal.aborted) await patient(() => this.load(keys, axis, signal), signal);
  }

  /** Shows a range of steps in its own resolution; null: everything. */
  async zoom(range: [number, number] | null, keys: string[], axis: AxisName): Promise<void> {
    this.range = range;
    await this.load(keys, axis);
  }

  private async load(keys: string[], axis: AxisName, signal?: AbortSignal): Promise<number> {
    // The machine is measured by the clock, not by the step: always the whole of it, drawn where the time is.
    const machine = keys.filter((key) => key.startsWith(MACHINE));
    if (machine.length && machine.length < keys.length) await this.load(machine, "step", signal);
    const only = machine.length === keys.length;
    const range = only ? null : this.range;
    const query = {
      keys: only ? keys : keys.filter((key) => !machine.includes(key)),
      axis: AXES[axis],
      max_points: MAX_POINTS,
      min_step: range ? Math.floor(range[0]) : undefined,
      max_step: range ? Math.ceil(range[1]) : undefined,
    };
    const answer = await get<QuerySeriesResponse>(`${this.job}/series`, query, signal);
    this.draw();
    for (const series of answer.series) this.byKey.set(series.key, curveOf(series));
    return Number(answer.revision);
  }

  private gather(series: Series[]): void {
    this.fresh.push(...series);
    this.frame ||= requestAnimationFrame(this.look);
  }

  private look = (now: number): void => {
    if (now < this.due) this.frame = requestAnimationFrame(this.look);
    else this.draw();
  };

  private draw(): void {
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    if (this.fresh.length === 0) return;
    const from = performance.now();
    for (const series of this.fresh.splice(0)) this.add(series);
    // Charts draw before the timer: what they cost decides how often they do.
    setTimeout(() => {
      const now = performance.now();
      this.due = now + Math.min(IDLE * (now - from), LONGEST_MS);
    });
  }

  private add(series: Series): void {
    const fresh = curveOf(series);
    const curve = this.byKey.get(series.key) ?? curveOf({ ...series, steps: [], values: [], min_values: [], x_values: [], times_us: [] });
    const first = fresh.steps[0];
    if (first === undefined) return;
    // Inside a zoomed range that ends before the newest point nothing changes.
    if (this.range !== null && first > this.range[1] && !series.key.startsWith(MACHINE)) return;
    // After a resume steps come again; the later points replace the earlier.
    let keep = curve.steps.length;
    while (keep > 0 && (curve.steps[keep - 1] ?? 0) >= first) keep -= 1;
    const steps = [...curve.steps.slice(0, keep), ...fresh.steps];
    const values = [...curve.values.slice(0, keep), ...fresh.values];
    const full = curve.low === curve.values && fresh.low === fresh.values;
    this.byKey.set(series.key, {
      key: series.key,
      steps,
      x: steps,
      values,
      times: [...curve.times.slice(0, keep), ...fresh.times],
      low: full ? values : [...curve.low.slice(0, keep), ...fresh.low],
      high: full ? values : [...curve.high.slice(0, keep), ...fresh.high],
    });
  }
}

export function curveOf(series: Series): Curve {
  const values = series.values.map(number);
  const steps = series.steps.map(Number);
  return {
    key: series.key,
    steps,
    x: series.x_values.length ? series.x_values.map(number) : steps,
    values,
    times: series.times_us.map(Number),
    low: series.min_values.length ? series.min_values.map(number) : values,
    high: series.max_values.length ? series.max_values.map(number) : values,
  };
}

/** Lays a curve of the machine over the axis of a curve of the run: each point where the run stood at that time. */
export function besides(curve: Curve, run: Curve): Curve {
  const kept: number[] = [];
  const [x, steps]: number[][] = [[], []];
  let after = 0;
  curve.times.forEach((time, at) => {
    while (after < run.times.length && (run.times[after] ?? 0) < time) after += 1;
    const [t0, t1] = [run.times[after - 1] ?? NaN, run.times[after] ?? NaN];
    const part = t1 === t0 ? 0 : (time - t0) / (t1 - t0);
    const place = (run.x[after - 1] ?? NaN) * (1 - part) + (run.x[after] ?? NaN) * part;
    if (!Number.isFinite(place)) return;
    kept.push(at);
    x?.push(place);
    steps?.push(run.steps[after] ?? 0);
  });
  const pick = (of: number[]) => kept.map((at) => of[at] ?? NaN);
  const values = pick(curve.values);
  const low = curve.low === curve.values ? values : pick(curve.low);
  const high = curve.high === curve.values ? values : pick(curve.high);
  return { ...curve, x: x ?? [], steps: steps ?? [], values, low, high, times: pick(curve.times) };
}

/** Returns values smoothed by an exponential moving average without its bias at the start. */
export function smoothed(values: number[], weight: number): number[] {
  let sum = 0;
  let norm = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    sum = sum * weight + value * (1 - weight);
    norm = norm * weight + (1 - weight);
    return sum / norm;
  });
}
