// A job file while it is written: the text, what the server reads in it, and the quote. It outlives a session that ends.

import type { CreateJobResponse, Job, QuoteJobResponse } from "../contract";
import { post, Problem, PROJECT, requestId } from "./api";
import { put, yaml, type Tree } from "./jobform";

const KEY = "tunesmith.draft";
const PAUSE_MS = 300;
const AGAIN_MS = 3000;

export class Draft {
  text = $state("");
  tree = $state.raw<Tree>({});
  quote = $state.raw<QuoteJobResponse | null>(null);
  problem = $state.raw<Problem | null>(null);
  /** Whether the quote is of an older text. */
  stale = $state(true);
  /** Whether the text is no YAML: then there is nothing that the form could change. */
  broken = $state(false);
  // What the form changed while the server still read the text: made when it has.
  private waiting: [string, unknown][] = [];
  private read = false;
  private timer: ReturnType<typeof setTimeout> | undefined;
  private stop = new AbortController();
  private request = requestId();

  constructor(private readonly source: string) {}

  /** Takes up what was written here before; false if there is nothing. */
  restore(): boolean {
    try {
      const kept = JSON.parse(sessionStorage.getItem(KEY) ?? "{}") as { source?: string; text?: string; tree?: Tree };
      if (kept.source !== this.source || !kept.text) return false;
      this.tree = kept.tree ?? {};
      this.write(kept.text);
      return true;
    } catch {
      return false;
    }
  }

  /** Begins with a tree. */
  begin(tree: Tree): void {
    this.tree = tree;
    this.write(yaml(tree));
    this.read = true;
  }

  /** Changes one field in the form; the text follows. */
  set(path: string, value: unknown): void {
    if (this.read) this.begin(put(this.tree, path, value));
    else this.waiting.push([path, value]);
  }

  /** Changes the text; the form follows once the server has read it. */
  write(text: string): void {
    this.text = text;
    this.stale = true;
    this.read = false;
    this.request = requestId();
    sessionStorage.setItem(KEY, JSON.stringify({ source: this.source, text, tree: this.tree }));
    this.later(PAUSE_MS);
  }

  /** Creates the job; the same text makes one job only, however often this is called. */
  async submit(): Promise<Job | undefined> {
    const body = { spec: this.quote?.spec, request_id: this.request };
    const answer = await post<CreateJobResponse>(`${PROJECT}/jobs`, body);
    sessionStorage.removeItem(KEY);
    return answer.job;
  }

  close(): void {
    clearTimeout(this.timer);
    this.stop.abort();
  }

  private take(tree: Tree): void {
    this.read = true;
    this.tree = tree;
    const edits = this.waiting.splice(0);
    if (edits.length) this.begin(edits.reduce((made, [path, value]) => put(made, path, value), tree));
  }

  private later(pause: number): void {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => void this.ask(), pause);
  }

  private async ask(): Promise<void> {
    this.stop.abort();
    const stop = (this.stop = new AbortController());
    try {
      const quote = await post<QuoteJobResponse>(`${PROJECT}/jobs:quote`, { file: this.text || "\n" }, stop.signal);
      if (stop.signal.aborted) return;
      this.quote = quote;
      this.problem = null;
      this.stale = false;
      this.broken = !quote.content;
      if (quote.content) this.take(JSON.parse(quote.content) as Tree);
    } catch (error) {
      if (stop.signal.aborted) return;
      this.problem = error instanceof Problem ? error : new Problem(String(error), 0);
      if (this.problem.passing) this.later(AGAIN_MS);
    }
  }
}
