// The curves of a job: reduced by the server to what a screen can show, then kept live point by point.

import { SvelteMap } from "svelte/reactivity";
import type { QuerySeriesResponse, Series, WatchSeriesResponse } from "../contract";
import { get } from "./api";
import { SETTLE_MS, sleep, watch } from "./events";
import { number } from "./words";

// More points than pixels show nothing more; the band of extremes keeps every spike visible.
const MAX_POINTS = 800;

export interface Curve {
  key: string;
  steps: number[];
  values: number[];
  low: number[];
  high: number[];
}

export class Curves {
  readonly byKey = new SvelteMap<string, Curve>();
  live = $state(false);
  loaded = $state(false);
  private range: [number, number] | null = null;

  constructor(
    private readonly job: string,
    private readonly done: () => boolean,
  ) {}

  /** Loads all curves and follows them until the signal. */
  async follow(signal: AbortSignal): Promise<void> {
    let revision = await this.load(signal);
    while (!signal.aborted && !this.done()) {
      const inner = new AbortController();
      const stop = AbortSignal.any([signal, inner.signal]);
      await watch<WatchSeriesResponse>({
        path: `${this.job}/series:watch`,
        from: revision,
        signal: stop,
        onLive: (live) => (this.live = live),
        done: this.done,
        onMessage: (message) => {
          for (const series of message.series) this.add(series);
          // Too many single points: let the server reduce them again.
          if ([...this.byKey.values()].some((curve) => curve.steps.length > 2 * MAX_POINTS)) inner.abort();
        },
      });
      if (!signal.aborted) revision = await this.load(signal);
    }
    this.live = false;
    if (!signal.aborted) await this.settle(signal);
  }

  /** Loads once more: the last points are stored a moment after the job has ended. */
  private async settle(signal: AbortSignal): Promise<void> {
    await sleep(SETTLE_MS, signal);
    if (!signal.aborted) await this.load(signal);
  }

  /** Shows a range of steps in its own resolution; null: everything. */
  async zoom(range: [number, number] | null): Promise<void> {
    this.range = range;
    await this.load();
  }

  private async load(signal?: AbortSignal): Promise<number> {
    const query = {
      max_points: MAX_POINTS,
      min_step: this.range ? Math.floor(this.range[0]) : undefined,
      max_step: this.range ? Math.ceil(this.range[1]) : undefined,
    };
    const answer = await get<QuerySeriesResponse>(`${this.job}/series`, query, signal);
    for (const series of answer.series) this.byKey.set(series.key, curveOf(series));
    this.loaded = true;
    return Number(answer.revision);
  }

  private add(series: Series): void {
    const fresh = curveOf(series);
    const curve = this.byKey.get(series.key) ?? { key: series.key, steps: [], values: [], low: [], high: [] };
    const first = fresh.steps[0];
    if (first === undefined) return;
    // Inside a zoomed range that ends before the newest point nothing changes.
    if (this.range !== null && first > this.range[1]) return;
    // After a resume steps come again; the later points replace the earlier.
    let keep = curve.steps.length;
    while (keep > 0 && (curve.steps[keep - 1] ?? 0) >= first) keep -= 1;
    this.byKey.set(series.key, {
      key: series.key,
      steps: [...curve.steps.slice(0, keep), ...fresh.steps],
      values: [...curve.values.slice(0, keep), ...fresh.values],
      low: [...curve.low.slice(0, keep), ...fresh.low],
      high: [...curve.high.slice(0, keep), ...fresh.high],
    });
  }
}

function curveOf(series: Series): Curve {
  const values = series.values.map(number);
  return {
    key: series.key,
    steps: series.steps.map(Number),
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
