// What a view fetches: the answer, or what went wrong; fetched anew when what it depends on changes.

import { Problem } from "./api";

export class Loading<T> {
  value = $state.raw<T | undefined>(undefined);
  problem = $state.raw<Problem | null>(null);
  busy = $state(true);
  private round = $state(0);

  /** Fetches now, and again whenever something changes that `fetch` reads. Call while a component is made. */
  constructor(fetch: (signal: AbortSignal) => Promise<T>) {
    $effect(() => {
      void this.round;
      const stop = new AbortController();
      this.busy = true;
      fetch(stop.signal).then(
        (value) => {
          if (stop.signal.aborted) return;
          this.value = value;
          this.problem = null;
          this.busy = false;
        },
        (error: unknown) => {
          if (stop.signal.aborted) return;
          this.problem = error instanceof Problem ? error : new Problem(String(error), 0);
          this.busy = false;
        },
      );
      return () => stop.abort();
    });
  }

  again = (): void => {
    this.round += 1;
  };
}

/** A list that comes page by page. */
export class Pages<T> {
  items = $state.raw<T[]>([]);
  next = $state("");
  problem = $state.raw<Problem | null>(null);
  busy = $state(true);
  loaded = $state(false);
  private round = $state(0);
  private stop = new AbortController();

  constructor(private readonly fetch: (token: string, signal: AbortSignal) => Promise<{ items: T[]; next: string }>) {
    $effect(() => {
      void this.round;
      this.stop = new AbortController();
      const stop = this.stop;
      void this.load("", stop);
      return () => stop.abort();
    });
  }

  more = (): void => {
    if (this.next && !this.busy) void this.load(this.next, this.stop);
  };

  again = (): void => {
    this.round += 1;
  };

  private async load(token: string, stop: AbortController): Promise<void> {
    const asked = this.fetch(token, stop.signal);
    this.busy = true;
    try {
      const page = await asked;
      if (stop.signal.aborted) return;
      this.items = token ? [...this.items, ...page.items] : page.items;
      this.next = page.next;
      this.problem = null;
      this.loaded = true;
    } catch (error) {
      if (stop.signal.aborted) return;
      this.problem = error instanceof Problem ? error : new Problem(String(error), 0);
    }
    this.busy = false;
  }
}

/** Something a person asked for: whether it is under way, and what went wrong. */
export class Act {
  busy = $state(false);
  trouble = $state.raw<Problem | null>(null);

  /** Runs it; true when it went well. */
  async run(what: () => Promise<unknown>): Promise<boolean> {
    this.busy = true;
    this.trouble = null;
    try {
      await what();
    } catch (error) {
      this.trouble = error instanceof Problem ? error : new Problem(String(error), 0);
    }
    this.busy = false;
    return this.trouble === null;
  }
}
