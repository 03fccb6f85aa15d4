// What happened to a job: its attempts, checkpoints and events, loaded again when a chapter ends.

import type { Attempt, Checkpoint, Job, JobEvent } from "../contract";
import type { ListAttemptsResponse, ListCheckpointsResponse, ListJobEventsResponse } from "../contract";
import { get, Problem } from "./api";
import { patient } from "./events";
import { lastPart, lower, number } from "./words";

// A moment later the registry has heard of a new checkpoint too.
const REGISTRY_MS = 300;

export class Chronicle {
  attempts = $state.raw<Attempt[]>([]);
  checkpoints = $state.raw<Checkpoint[]>([]);
  /** Oldest first. */
  events = $state.raw<JobEvent[]>([]);
  loaded = $state(false);
  trouble = $state("");

  /** Follows a job. Call while a component is made. */
  constructor(job: () => Job | undefined) {
    // Progress changes every second; the story only when one of these does.
    const chapter = $derived.by(() => {
      const now = job();
      return now ? [now.name, now.state, now.epoch, now.checkpoint?.digest, now.desired].join("|") : "";
    });
    $effect(() => {
      const name = chapter.split("|")[0];
      if (!name) return;
      const stop = new AbortController();
      const timer = setTimeout(() => void this.load(name, stop.signal), this.loaded ? REGISTRY_MS : 0);
      return () => (clearTimeout(timer), stop.abort());
    });
  }

  /** Loads everything; while the server is away, as soon as it answers. */
  private async load(name: string, signal: AbortSignal): Promise<void> {
    try {
      const ask = () => Promise.all([
        get<ListAttemptsResponse>(`${name}/attempts`, { page_size: 50 }, signal),
        get<ListCheckpointsResponse>(`${name}/checkpoints`, { page_size: 50 }, signal),
        get<ListJobEventsResponse>(`${name}/events`, { page_size: 1000 }, signal),
      ]);
      const [tries, points, happened] = await patient(ask, signal);
      this.attempts = tries.attempts;
      this.checkpoints = points.checkpoints;
      this.events = happened.events;
      this.loaded = true;
      this.trouble = "";
    } catch (error) {
      if (!signal.aborted) this.trouble = error instanceof Problem ? error.message : String(error);
    }
  }

  /** The checkpoint with the least evaluation loss; undefined where nothing was evaluated. */
  get best(): Checkpoint | undefined {
    const judged = this.checkpoints.filter((point) => Number.isFinite(number(point.eval_loss)));
    return judged.length > 1 ? judged.reduce((a, b) => (number(b.eval_loss) < number(a.eval_loss) ? b : a)) : undefined;
  }
}

export interface Span {
  /** What it belongs to: the job (0), or an attempt by its epoch. */
  epoch: number;
  words: string;
  where: string;
  from: number;
  /** NaN while it lasts. */
  to: number;
}

/** What a job spent its time in: a span for each state of the job and of its attempts, in order of their beginning. */
export function spansOf(events: JobEvent[]): Span[] {
  const spans: Span[] = [];
  const open = new Map<number, Span>();
  const enter = (epoch: number, words: string, where: string, at: number, last: boolean) => {
    const before = open.get(epoch);
    if (before) before.to = at;
    open.delete(epoch);
    if (last) return;
    const span = { epoch, words, where, from: at, to: NaN };
    open.set(epoch, span);
    spans.push(span);
  };
  for (const event of events) {
    const at = Date.parse(event.time ?? "");
    if (event.created) enter(0, "validating", "", at, false);
    const state = event.state_changed?.to_state;
    if (state) enter(0, lower(state, "JOB_STATE_"), "", at, /SUCCEEDED|FAILED|CANCELLED/.test(state));
    const change = event.attempt_state_changed;
    if (change) {
      const last = /COMPLETED|CHECKPOINTED|FAILED|KILLED|LOST/.test(change.to_state);
      enter(Number(event.epoch), lower(change.to_state, "ATTEMPT_STATE_"), change.nodes.map(lastPart).join(", "), at, last);
    }
  }
  return spans;
}

/** An attempt in a sentence: where it went on, what ended it, and how long nothing was trained before it. */
export function recoveryOf(attempt: Attempt, before: Attempt | undefined): { lost: number; from: string } {
  const ended = Date.parse(before?.end_time ?? "");
  const began = Date.parse(attempt.start_time ?? "");
  const from = Number(attempt.resumed_step) ? `from step ${attempt.resumed_step}${attempt.resumed_from ? `, out of its ${attempt.resumed_from}` : ""}` : "from the beginning";
  return { lost: (began - ended) / 1000, from };
}
