// What a person can ask of a job or a node: one call each, with a request id so that a repeat acts once.

import type { Job, Node, JobState } from "../contract";
import { post, Problem, remove, requestId } from "./api";
import { fleet } from "./fleet.svelte";

const LIVE: JobState[] = ["JOB_STATE_STARTING", "JOB_STATE_RUNNING"];

/** Calls a verb of a job; the fleet shows the answer at once. */
export async function ask(job: Job, verb: string, body: Record<string, unknown> = {}): Promise<Job | undefined> {
  const answer = await post<{ job?: Job }>(`${job.name}:${verb}`, { ...body, request_id: requestId() });
  if (answer.job) fleet.put(answer.job);
  return answer.job;
}

/** Deletes a finished job. */
export async function forget(job: Job): Promise<void> {
  await remove(job.name, { request_id: requestId() });
  fleet.drop(job);
}

/** Calls a verb of a node; the fleet's stream brings the node's new form. */
export async function askNode(node: Node, verb: "cordon" | "uncordon" | "drain"): Promise<void> {
  await post(`${node.name}:${verb}`, { request_id: requestId() });
}

/** Returns an error as a person should read it. */
export function told(error: unknown): string {
  if (!(error instanceof Problem)) return String(error);
  return error.remedy ? `${error.message}: ${error.remedy}` : error.message;
}

export interface Can {
  pause: boolean;
  resume: boolean;
  checkpoint: boolean;
  move: boolean;
  fork: boolean;
  cancel: boolean;
  remove: boolean;
}

/** Returns which verbs fit a job's state; a program of one's own is only ever ended, by itself or by its next renewal. */
export function can(job: Job): Can {
  if (job.spec?.external)
    return { pause: false, resume: false, checkpoint: false, move: false, fork: false, cancel: !job.terminal, remove: job.terminal };
  const live = LIVE.includes(job.state);
  return {
    pause: live || job.state === "JOB_STATE_QUEUED",
    resume: job.state === "JOB_STATE_PAUSED",
    checkpoint: job.state === "JOB_STATE_RUNNING",
    move: job.state === "JOB_STATE_RUNNING" && !job.move,
    fork: job.checkpoint !== undefined,
    cancel: !job.terminal && job.state !== "JOB_STATE_FINALIZING",
    remove: job.terminal,
  };
}
