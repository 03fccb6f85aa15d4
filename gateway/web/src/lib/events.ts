// Server-sent events over fetch, since EventSource cannot send a token. A stream that breaks is opened again
// from its last id, so nothing is lost and nothing comes twice.

import { address, headers, open, Problem, problemOf, type Query } from "./api";

const FIRST_PAUSE_MS = 300;
const LONGEST_PAUSE_MS = 8000;
/** How long after its end everything of a job has surely been stored. */
export const SETTLE_MS = 2000;
// The server sends a heartbeat every 15 s at the latest; a connection silent for longer is dead.
const SILENCE_MS = 45_000;

export interface Watching<T> {
  path: string;
  query?: Query;
  /** Revision to go on from. */
  from?: number;
  signal: AbortSignal;
  onMessage: (message: T) => void;
  /** Hears whether messages flow. */
  onLive?: (live: boolean) => void;
  /** Whether an orderly end by the server is the end. Otherwise the stream is opened again. */
  done?: () => boolean;
}

interface Frame {
  id: string;
  event: string;
  data: string;
}

/** Follows a stream until it is done or aborted. Throws a Problem that will not pass. */
export async function watch<T>(watching: Watching<T>): Promise<void> {
  const { signal, onLive = () => {}, done = () => false } = watching;
  let revision = watching.from ?? 0;
  let pause = FIRST_PAUSE_MS;
  while (!signal.aborted) {
    // A browser holds six connections to a server at most; pages that nobody sees leave theirs to others.
    await visible(signal);
    if (signal.aborted) return;
    const hidden = new AbortController();
    const leave = () => document.hidden && hidden.abort();
    document.addEventListener("visibilitychange", leave);
    try {
      const ended = await readOnce<T>(watching, revision, AbortSignal.any([signal, hidden.signal]), (message, id) => {
        revision = Math.max(revision, id);
        pause = FIRST_PAUSE_MS;
        onLive(true);
        watching.onMessage(message);
      });
      if (ended && done()) return;
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && !error.passing) throw error;
      if (!hidden.signal.aborted) onLive(false);
    } finally {
      document.removeEventListener("visibilitychange", leave);
    }
    if (!hidden.signal.aborted) {
      await sleep(pause * (0.5 + Math.random() / 2), signal);
      pause = Math.min(2 * pause, LONGEST_PAUSE_MS);
    }
  }
}

/** Reads the one answer of a call that streams, such as a chat or an import; throws the Problem it ends with. */
export async function read<T>(
  path: string,
  how: { body?: unknown; query?: Query; signal: AbortSignal },
  onMessage: (message: T) => void,
): Promise<void> {
  const sent: Record<string, string> = { ...headers(), accept: "text/event-stream" };
  const init: RequestInit = { headers: sent, signal: how.signal };
  if (how.body !== undefined) {
    sent["content-type"] = "application/json";
    Object.assign(init, { method: "POST", body: JSON.stringify(how.body) });
  }
  const response = await open(address(path, how.query), init);
  if (response.body === null) return;
  for await (const frame of frames(response.body)) {
    if (frame.event === "end") return;
    if (frame.event === "error") {
      const said = JSON.parse(frame.data) as { status?: number };
      throw problemOf(said.status ?? 500, said);
    }
    if (frame.data) onMessage(JSON.parse(frame.data) as T);
  }
  if (!how.signal.aborted) throw new Problem("the answer broke off", 0, "", "Try it again.");
}

/** Reads one connection to its end; returns true when the server ended the stream in order. */
async function readOnce<T>(
  watching: Watching<T>,
  revision: number,
  signal: AbortSignal,
  onMessage: (message: T, id: number) => void,
): Promise<boolean> {
  const silence = new AbortController();
  const url = address(watching.path, { ...watching.query, from_revision: watching.from || undefined });
  const sent = { ...headers(), accept: "text/event-stream", ...(revision ? { "last-event-id": String(revision) } : {}) };
  const response = await open(url, { headers: sent, signal: AbortSignal.any([signal, silence.signal]) });
  if (response.body === null) return false;
  let timer = setTimeout(() => silence.abort(), SILENCE_MS);
  try {
    for await (const frame of frames(response.body)) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE_MS);
      if (frame.event === "end") return true;
      if (frame.event === "error") throw problemOf(500, JSON.parse(frame.data));
      if (frame.data) onMessage(JSON.parse(frame.data) as T, Number(frame.id) || 0);
    }
    return false;
  } finally {
    clearTimeout(timer);
  }
}

async function* frames(body: ReadableStream<Uint8Array>): AsyncGenerator<Frame> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const parts = rest.split(/\r?\n\r?\n/);
      rest = parts.pop() ?? "";
      for (const part of parts) yield frame(part);
    }
  } finally {
    await reader.cancel().catch(() => {});
  }
}

function frame(text: string): Frame {
  const found: Frame = { id: "", event: "message", data: "" };
  const data: string[] = [];
  for (const line of text.split(/\r?\n/)) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") data.push(value);
    else if (name === "id") found.id = value;
    else if (name === "event") found.event = value;
  }
  found.data = data.join("\n");
  return found;
}

function visible(signal: AbortSignal): Promise<void> {
  if (!document.hidden) return Promise.resolve();
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look, { once: true });
  });
}

/** Asks until there is an answer: while the server is away, again and again. Throws a Problem that will not pass. */
export async function patient<T>(ask: () => Promise<T>, signal: AbortSignal): Promise<T> {
  for (let pause = FIRST_PAUSE_MS; ; pause = Math.min(2 * pause, LONGEST_PAUSE_MS)) {
    try {
      return await ask();
    } catch (error) {
      if (signal.aborted || !(error instanceof Problem && error.passing)) throw error;
    }
    await sleep(pause * (0.5 + Math.random() / 2), signal);
  }
}

/** Waits, or ends at once when aborted. */
export function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
