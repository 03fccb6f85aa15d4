// The curves of a job: those that are shown, reduced by the server to what a screen can show, then kept live.

import { SvelteMap } from "svelte/reactivity";
import type { ListMetricsResponse, QuerySeriesResponse, Series, WatchSeriesResponse } from "../contract";
import { get } from "./api";
import { SETTLE_MS, sleep, watch } from "./events";
import { number } from "./words";

// More points than pixels show nothing more; the band of extremes keeps every spike visible.
const MAX_POINTS = 800;
// How often a running job is asked for metrics that are new, and a curve over another axis than the step is redrawn.
const LIST_MS = 5000;
const FIRST_MS = 500;
const REDRAW_MS = 1000;

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
}

export class Curves {
  readonly byKey = new SvelteMap<string, Curve>();
  keys = $state.raw<string[]>([]);
  live = $state(false);
  listed = $state(false);
  private range: [number, number] | null = null;

  constructor(
    private readonly job: string,
    private readonly done: () => boolean,
  ) {}

  /** Keeps the list of metrics until the signal: a running job may begin to log others. */
  async list(signal: AbortSignal): Promise<void> {
    while (!signal.aborted) {
      const answer = await get<ListMetricsResponse>(`${this.job}/metrics`, {}, signal);
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
    for (const key of this.byKey.keys()) if (!keys.includes(key)) this.byKey.delete(key);
    if (keys.length === 0) return;
    let revision = await this.load(keys, axis, signal);
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
          else for (const series of message.series) this.add(series);
          // Too many single points: let the server reduce them again.
          if ([...this.byKey.values()].some((curve) => curve.steps.length > 2 * MAX_POINTS)) inner.abort();
        },
      });
      if (axis !== "step") await sleep(REDRAW_MS, signal);
      if (!signal.aborted) revision = await this.load(keys, axis, signal);
    }
    this.live = false;
    // The last points are stored a moment after the job has ended.
    await sleep(SETTLE_MS, signal);
    if (!signal.aborted) await this.load(keys, axis, signal);
  }

  /** Shows a range of steps in its own resolution; null: everything. */
  async zoom(range: [number, number] | null, keys: string[], axis: AxisName): Promise<void> {
    this.range = range;
    await this.load(keys, axis);
  }

  private async load(keys: string[], axis: AxisName, signal?: AbortSignal): Promise<number> {
    const query = {
      keys,
      axis: AXES[axis],
      max_points: MAX_POINTS,
      min_step: this.range ? Math.floor(this.range[0]) : undefined,
      max_step: this.range ? Math.ceil(this.range[1]) : undefined,
    };
    const answer = await get<QuerySeriesResponse>(`${this.job}/series`, query, signal);
    for (const series of answer.series) this.byKey.set(series.key, curveOf(series));
    return Number(answer.revision);
  }

  private add(series: Series): void {
    const fresh = curveOf(series);
    const curve = this.byKey.get(series.key) ?? { key: series.key, steps: [], x: [], values: [], low: [], high: [] };
    const first = fresh.steps[0];
    if (first === undefined) return;
    // Inside a zoomed range that ends before the newest point nothing changes.
    if (this.range !== null && first > this.range[1]) return;
    // After a resume steps come again; the later points replace the earlier.
    let keep = curve.steps.length;
    while (keep > 0 && (curve.steps[keep - 1] ?? 0) >= first) keep -= 1;
    const steps = [...curve.steps.slice(0, keep), ...fresh.steps];
    this.byKey.set(series.key, {
      key: series.key,
      steps,
      x: steps,
      values: [...curve.values.slice(0, keep), ...fresh.values],
      low: [...curve.low.slice(0, keep), ...fresh.low],
      high: [...curve.high.slice(0, keep), ...fresh.high],
    });
  }
}

function curveOf(series: Series): Curve {
  const values = series.values.map(number);
  const steps = series.steps.map(Number);
  return {
    key: series.key,
    steps,
    x: series.x_values.length ? series.x_values.map(number) : steps,
    values,
    low: series.min_values.length ? series.min_values.map(number) : values,
    high: series.max_values.length ? series.max_values.map(number) : values,
  };
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
