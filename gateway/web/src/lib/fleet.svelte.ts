// Jobs and nodes as they are now: one listing, then every change, pushed.

import { SvelteMap } from "svelte/reactivity";
import type { Job, ListJobsResponse, Node, WatchFleetResponse } from "../contract";
import { get, Problem, PROJECT } from "./api";
import { watch } from "./events";

const PAGE = 100;

class Fleet {
  readonly jobs = new SvelteMap<string, Job>();
  readonly nodes = new SvelteMap<string, Node>();
  live = $state(false);
  /** Whether the first listing has come, so that "no jobs" is known and not guessed. */
  loaded = $state(false);
  problem = $state<Problem | null>(null);
  nextPage = $state("");
  now = $state(Date.now());

  /** Follows the fleet until the signal. */
  async follow(signal: AbortSignal): Promise<void> {
    const timer = setInterval(() => (this.now = Date.now()), 1000);
    signal.addEventListener("abort", () => clearInterval(timer));
    try {
      await Promise.all([this.loadMore(), this.watch(signal)]);
    } catch (error) {
      if (error instanceof Problem && !signal.aborted) this.problem = error;
    }
  }

  /** Loads the next page of jobs, finished ones included. */
  async loadMore(): Promise<void> {
    const page = await get<ListJobsResponse>(`${PROJECT}/jobs`, { page_size: PAGE, page_token: this.nextPage });
    for (const job of page.jobs) this.put(job);
    this.nextPage = page.next_page_token;
    this.loaded = true;
  }

  /** Takes over a job unless a newer form of it is known. */
  put(job: Job): void {
    const known = this.jobs.get(job.job_id);
    if (known === undefined || Number(known.revision) <= Number(job.revision)) this.jobs.set(job.job_id, job);
  }

  /** Forgets a job that was deleted. */
  drop(job: Job): void {
    this.jobs.delete(job.job_id);
  }

  /** Finds a job by its id or readable name. */
  find(name: string): Job | undefined {
    return this.jobs.get(name) ?? [...this.jobs.values()].find((job) => job.display_name === name);
  }

  private watch(signal: AbortSignal): Promise<void> {
    return watch<WatchFleetResponse>({
      path: "fleet:watch",
      signal,
      onLive: (live) => (this.live = live),
      onMessage: (message) => {
        this.problem = null;
        for (const job of message.jobs) this.put(job);
        for (const node of message.nodes) this.nodes.set(node.name, node);
      },
    });
  }
}

export const fleet = new Fleet();
