// Numbers, times and states in words.

import type { Double, Job, JobState, Node } from "../contract";

/** Returns a double of proto JSON as a number. */
export function number(value: Double | undefined): number {
  return value === undefined ? NaN : Number(value);
}

export function short(value: string, prefix: string): string {
  return value.startsWith(prefix) ? value.slice(prefix.length) : value;
}

export function lower(value: string, prefix: string): string {
  return short(value, prefix).toLowerCase().replaceAll("_", " ");
}

export function stateOf(job: Job): string {
  return lower(job.state, "JOB_STATE_");
}

export function reasonOf(job: Job): string {
  const reason = lower(job.state_reason, "STATE_REASON_");
  return reason === "unspecified" || reason === "new" ? "" : reason;
}

export type Tone = "wait" | "run" | "rest" | "good" | "bad" | "off";

const TONES: Partial<Record<JobState, Tone>> = {
  JOB_STATE_VALIDATING: "wait",
  JOB_STATE_QUEUED: "wait",
  JOB_STATE_STARTING: "wait",
  JOB_STATE_RUNNING: "run",
  JOB_STATE_FINALIZING: "run",
  JOB_STATE_PAUSING: "rest",
  JOB_STATE_PAUSED: "rest",
  JOB_STATE_CANCELLING: "rest",
  JOB_STATE_SUCCEEDED: "good",
  JOB_STATE_FAILED: "bad",
  JOB_STATE_CANCELLED: "off",
};

export function toneOf(job: Job): Tone {
  return TONES[job.state] ?? (job.active ? "wait" : "off");
}

export function loss(value: number): string {
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "–" : "∞";
  return value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(2) : value.toPrecision(4);
}

/** Returns a figure of any metric, short enough for an axis. */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return String(value);
  const size = Math.abs(value);
  if (size >= 1e6) return `${Number((value / 1e6).toPrecision(3))}M`;
  if (size >= 1e4) return `${Number((value / 1e3).toPrecision(3))}k`;
  if (size !== 0 && size < 1e-3) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

export function count(value: number): string {
  return Math.round(value).toLocaleString("en");
}

export function size(bytes: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let index = 0;
  while (bytes >= 1000 && index < units.length - 1) {
    bytes /= 1000;
    index += 1;
  }
  return `${index === 0 ? bytes : bytes.toFixed(1)} ${units[index]}`;
}

/** Returns the seconds of a proto duration such as `12.5s`. */
export function seconds(duration: string | undefined): number {
  return duration ? parseFloat(duration) : NaN;
}

export function span(total: number): string {
  if (!Number.isFinite(total)) return "–";
  const whole = Math.max(0, Math.round(total));
  const two = (value: number) => String(value).padStart(2, "0");
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${two(whole % 60)} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${two(Math.floor((whole % 3600) / 60))} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function ago(time: string | undefined, now: number): string {
  if (!time) return "–";
  const passed = Math.max(0, (now - Date.parse(time)) / 1000);
  if (passed < 10) return "just now";
  if (passed < 60) return `${Math.floor(passed)} s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return `${Math.floor(passed / 86400)} d ago`;
}

export function clock(time: string | undefined): string {
  return time ? new Date(time).toLocaleString() : "–";
}

/** Returns the seconds left, counted down since they were measured. */
export function left(job: Job, now: number): number {
  const eta = seconds(job.progress?.eta);
  const measured = job.progress?.time ? Date.parse(job.progress.time) : now;
  return Math.max(0, eta - Math.max(0, (now - measured) / 1000));
}

/** Returns the share of steps done, from 0 to 1. */
export function share(job: Job): number {
  const total = Number(job.progress?.total_steps ?? 0);
  return total ? Math.min(1, Number(job.progress?.step ?? 0) / total) : 0;
}

/** Returns `name@3` for a resource name that ends in `/name/versions/3`. */
export function versioned(name: string): string {
  const found = /([^/]+)\/versions\/([^/]+)$/.exec(name);
  if (found) return `${found[1]}@${found[2]}`;
  return name.includes("/checkpoints/") ? `checkpoint ${lastPart(name).slice(0, 8)}` : lastPart(name);
}

export function lastPart(name: string): string {
  return name.split("/").pop() ?? name;
}

/** Returns a resource name as people say it: `name@3` for a version, else its last part; of an id, its end. */
export function shortOf(name: string): string {
  if (name.includes("/versions/")) return versioned(name);
  const last = lastPart(name);
  return /^[0-9a-z]{26}$/.test(last) ? `… ${last.slice(-8)}` : last;
}

/** Returns what a node is made of, such as `2 × A100 · 64 GB`. */
export function machine(node: Node): string {
  const models = node.capacity?.gpus.map((gpu) => gpu.model) ?? [];
  const gpus = [...new Set(models)].map((model) => `${models.filter((other) => other === model).length} × ${model}`);
  const cpus = `${node.capacity?.num_cpus ?? 0} CPUs`;
  return [...(gpus.length ? gpus : [cpus]), size(Number(node.capacity?.memory_bytes ?? 0))].join(" · ");
}

/** Makes visible what would reorder or hide other letters: bidi and other control characters become ⟨U+202E⟩. */
export function visible(text: string): string {
  return text.replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]/g, (letter) => {
    return `⟨U+${letter.charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`;
  });
}
