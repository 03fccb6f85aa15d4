// A window on a log of any length: pages of lines around what is in sight, loaded at one end and let go at the other.

import type { LogLine, QueryLogsResponse, TailLogsResponse } from "../contract";
import { get, type Query } from "./api";
import { patient, watch } from "./events";

const PAGE = 200;
/** Lines that are held at most, about; more would make the browser slow and nobody see more. */
const MOST = 2000;
// A search in a long log answers after 64 MB, with what it found by then: it goes on until something is to be seen.
const FEW = 50;

/** Lines that came together. Tokens lead beyond either end: empty where the log ends, null where it is not known. */
export interface LogPage {
  id: number;
  lines: LogLine[];
  older: string | null;
  newer: string | null;
}

interface Found {
  lines: LogLine[];
  token: string;
  other: string;
  revision: number;
}

export class LogLines {
  pages = $state.raw<LogPage[]>([]);
  /** How many times it was opened; each begins anew. */
  opened = $state(0);
  searching = $state(false);
  /** Whether the newest lines are at hand, so that what is logged now comes by itself. */
  atEnd = $state(false);
  /** The line that was asked for. */
  mark = $state.raw<LogLine | undefined>(undefined);
  private ids = 0;
  private busy = false;
  private revision = 0;
  private query: Query = {};
  private signal = new AbortController().signal;

  constructor(private readonly job: string) {}

  /** Shows the end of the log, or the first line after a step with what stands around it. */
  async open(query: Query, step: string, signal: AbortSignal): Promise<void> {
    Object.assign(this, { query, signal, busy: false, atEnd: false });
    if (!step) return this.end(PAGE);
    const first = await this.find({ min_step: step, page_size: 1 }, 1);
    const rest = first.token ? await this.find({ page_token: first.token }) : first;
    if (signal.aborted) return;
    const lines = first.token ? [...first.lines, ...rest.lines] : first.lines;
    this.mark = lines[0];
    this.replace({ lines, older: first.other, newer: first.token ? rest.token : "" }, rest.revision);
  }

  /** Loads older lines, if there are any. */
  older = (): Promise<void> => this.load(async () => {
    const first = this.pages[0];
    if (!first || first.older === "") return;
    // What came live has no token: the same lines once more, with one.
    if (first.older === null) return this.end(this.pages.reduce((sum, page) => sum + page.lines.length, 0));
    const { signal } = this;
    const found = await this.find({ page_token: first.older }, FEW, true);
    if (signal.aborted) return;
    const pages = [this.page({ lines: found.lines, older: found.token, newer: found.other || first.older }), ...this.pages];
    if (this.trimmed(pages, -1)) {
      while (pages.length > 1 && pages.at(-1)?.newer === null) pages.pop();
      this.atEnd = false;
    }
    this.pages = pages;
  });

  /** Loads newer lines; at the end of the log they come by themselves. */
  newer = (): Promise<void> => this.load(async () => {
    const token = this.pages.at(-1)?.newer;
    if (this.atEnd || !this.pages.length) return;
    if (!token) return this.end(PAGE);
    const { signal } = this;
    const found = await this.find({ page_token: token });
    if (signal.aborted) return;
    const pages = [...this.pages];
    if (found.lines.length) pages.push(this.page({ lines: found.lines, older: found.other, newer: found.token || null }));
    this.trimmed(pages, 0);
    this.revision = found.revision;
    this.atEnd = !found.token;
    this.pages = pages;
  });

  /** Shows the end of the log again. */
  newest = (): Promise<void> => this.load(() => this.end(PAGE));

  /** Takes what is logged from now on until the signal. `follow`: whether the end is in sight. */
  async tail(done: () => boolean, follow: () => boolean, signal: AbortSignal): Promise<void> {
    await watch<TailLogsResponse>({
      path: `${this.job}/logs:tail`,
      query: this.query,
      from: this.revision,
      signal,
      done,
      onMessage: (message) => {
        this.revision = Math.max(this.revision, Number(message.revision));
        if (message.lines.length) this.append(message.lines, follow());
      },
    });
  }

  private append(lines: LogLine[], follow: boolean): void {
    const last = this.pages.at(-1);
    const pages = [...this.pages];
    if (last?.newer === null && last.older === null && last.lines.length < PAGE) pages[pages.length - 1] = { ...last, lines: [...last.lines, ...lines] };
    else pages.push(this.page({ lines, older: null, newer: null }));
    if (follow) this.trimmed(pages, 0);
    else if (this.trimmed(pages, -1)) {
      // Somebody reads further up: the end is loaded again when they come back to it.
      while (pages.length > 1 && pages.at(-1)?.newer === null) pages.pop();
      this.atEnd = false;
    }
    this.pages = pages;
  }

  private async end(count: number): Promise<void> {
    const { signal } = this;
    const found = await this.find({ tail: true, page_size: Math.min(count, 5 * MOST) }, FEW, true);
    if (signal.aborted) return;
    this.mark = undefined;
    this.replace({ lines: found.lines, older: found.token, newer: found.other }, found.revision, true);
  }

  private replace(page: Omit<LogPage, "id">, revision: number, atEnd = page.newer === ""): void {
    this.pages = [this.page(page)];
    this.revision = revision;
    this.atEnd = atEnd;
    this.opened += 1;
  }

  private page(page: Omit<LogPage, "id">): LogPage {
    return { ...page, id: (this.ids += 1) };
  }

  /** Lets pages go at one end (0 or -1) until few enough lines are left; tells whether it did. */
  private trimmed(pages: LogPage[], end: 0 | -1): boolean {
    let held = pages.reduce((sum, page) => sum + page.lines.length, 0);
    let some = false;
    for (let page = pages.at(end); page && pages.length > 1 && held - page.lines.length >= MOST; page = pages.at(end)) {
      held -= page.lines.length;
      if (end) pages.pop();
      else pages.shift();
      some = true;
    }
    return some;
  }

  /** One load at a time: scrolling asks for many. */
  private async load(work: () => Promise<void>): Promise<void> {
    if (this.busy) return;
    const { signal } = this;
    this.busy = true;
    try {
      await work();
    } finally {
      if (signal === this.signal) this.busy = false;
    }
  }

  private async find(extra: Query, least = FEW, back = false): Promise<Found> {
    const { signal } = this;
    const found: Found = { lines: [], token: "", other: "", revision: 0 };
    let query: Query = { page_size: PAGE, ...this.query, ...extra };
    try {
      do {
        const answer = await patient(() => get<QueryLogsResponse>(`${this.job}/logs`, query, signal), signal);
        found.lines = back ? [...answer.lines, ...found.lines] : [...found.lines, ...answer.lines];
        found.other ||= answer.previous_page_token;
        found.token = answer.next_page_token;
        found.revision = Number(answer.revision);
        query = { ...query, page_token: found.token, tail: undefined };
        this.searching = found.token !== "" && found.lines.length < least;
      } while (this.searching && !signal.aborted);
    } finally {
      this.searching = false;
    }
    return found;
  }
}
