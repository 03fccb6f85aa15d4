// REST calls with the session's token; errors are problem details (RFC 9457).

import { session } from "./session.svelte";

export type Query = Record<string, string | number | boolean | string[] | undefined>;

export interface Place {
  field: string;
  value: string;
  detail: string;
  remedy: string;
}

/** An error of the server, or of the way to it. */
export class Problem extends Error {
  constructor(
    message: string,
    readonly status: number,
    readonly reason = "",
    readonly remedy = "",
    readonly errors: Place[] = [],
  ) {
    super(message);
  }

  /** Whether trying again later may help. */
  get passing(): boolean {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

export function address(path: string, query: Query = {}): string {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(query)) {
    if (value === undefined || value === "") continue;
    for (const item of Array.isArray(value) ? value : [String(value)]) parameters.append(name, item);
  }
  const text = parameters.toString();
  return `/api/v1/${path}${text ? `?${text}` : ""}`;
}

export function headers(token = session.token): Record<string, string> {
  return { authorization: `Bearer ${token}` };
}

/** Returns what an error body says; also of a body that is no problem details. */
export function problemOf(status: number, body: unknown): Problem {
  const said = (typeof body === "object" && body !== null ? body : {}) as Record<string, unknown>;
  const text = (name: string) => (typeof said[name] === "string" ? (said[name] as string) : "");
  const errors = Array.isArray(said.errors) ? (said.errors as Place[]) : [];
  const message = text("detail") || text("title") || `the server answered ${status}`;
  return new Problem(message, status, text("reason"), text("remedy"), errors);
}

/** Fetches, and turns a refusal into a Problem. A token that is refused ends the session. */
export async function open(url: string, init: RequestInit): Promise<Response> {
  const token = session.token;
  let response: Response;
  try {
    response = await fetch(url, init);
  } catch (error) {
    if (init.signal?.aborted) throw error;
    throw new Problem("the server cannot be reached", 0);
  }
  if (response.ok) return response;
  const problem = problemOf(response.status, await response.json().catch(() => null));
  if (response.status === 401 && token && token === session.token) session.signOut(problem.message);
  throw problem;
}

/** Asks the server whether it knows a token; throws a Problem if not. */
export async function check(token: string): Promise<void> {
  await open(address("server"), { headers: headers(token) });
}

export async function get<T>(path: string, query: Query = {}, signal?: AbortSignal): Promise<T> {
  const response = await open(address(path, query), { headers: headers(), signal: signal ?? null });
  return (await response.json()) as T;
}

async function send<T>(method: string, path: string, body: unknown, signal?: AbortSignal): Promise<T> {
  const response = await open(address(path), {
    method,
    headers: { ...headers(), "content-type": "application/json" },
    body: JSON.stringify(body),
    signal: signal ?? null,
  });
  return (await response.json()) as T;
}

export async function post<T>(path: string, body: unknown, signal?: AbortSignal): Promise<T> {
  return send("POST", path, body, signal);
}

export async function patch<T>(path: string, body: unknown): Promise<T> {
  return send("PATCH", path, body);
}

/** Returns an id for one change, so that a repeat acts once. */
export function requestId(): string {
  return crypto.randomUUID?.() ?? String(Math.random());
}

export async function remove(path: string, query: Query = {}): Promise<void> {
  await open(address(path, query), { method: "DELETE", headers: headers() });
}

/** The project whose jobs the page shows. */
export const PROJECT = "projects/default";
