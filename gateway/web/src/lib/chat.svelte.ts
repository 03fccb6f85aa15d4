// A conversation with one model or two: both hear the same questions, each keeps its own answers.

import type { ChatResponse, ListDatasetsResponse } from "../contract";
import { address, get, headers, open, post, Problem, PROJECT, requestId } from "./api";
import { read } from "./events";
import { uploadText } from "./files";
import { lower, number } from "./words";

export interface Turn {
  question: string;
  answers: Answer[];
}

export interface Answer {
  text: string;
  /** What it does now, or what it took. */
  note: string;
  done: boolean;
}

export interface Parameters {
  max_new_tokens: string;
  temperature: string;
  top_p: string;
  seed: string;
}

/** Returns the resource name of what a person writes: `BASE`, `MODEL@3`, `job:…` is left to the command line. */
export function targetOf(short: string): string {
  const [model, version] = short.split("@");
  return version ? `${PROJECT}/models/${encodeURIComponent(model ?? "")}/versions/${encodeURIComponent(version)}` : `${PROJECT}/baseModels/${encodeURIComponent(short)}`;
}

export class Conversation {
  turns = $state<Turn[]>([]);
  busy = $state(false);
  problem = $state.raw<Problem | null>(null);
  private stopper = new AbortController();

  /** Asks every target; the answers grow as they come. Targets hear their own conversation, so two calls run side by side. */
  async ask(question: string, targets: string[], system: string, parameters: Parameters): Promise<void> {
    this.problem = null;
    this.busy = true;
    this.stopper = new AbortController();
    this.turns.push({ question, answers: targets.map(() => ({ text: "", note: "waits", done: false })) });
    const asked = targets.map((target, index) => this.one(target, index, system, parameters));
    const ends = await Promise.allSettled(asked);
    for (const end of ends) {
      if (end.status === "fulfilled" || this.stopper.signal.aborted) continue;
      this.problem = end.reason instanceof Problem ? end.reason : new Problem(String(end.reason), 0);
    }
    this.busy = false;
  }

  stop(): void {
    this.stopper.abort();
  }

  clear(): void {
    this.stop();
    this.turns = [];
    this.problem = null;
  }

  /** The conversation as one target heard it. */
  messages(index: number, system: string): { role: string; content: string }[] {
    const all = system ? [{ role: "system", content: system }] : [];
    for (const turn of this.turns) {
      all.push({ role: "user", content: turn.question });
      const answer = turn.answers[index];
      if (answer?.done) all.push({ role: "assistant", content: answer.text });
    }
    return all;
  }

  /** Appends the conversation with one target to a dataset as a row of a new version; the dataset is made if need be. */
  async keep(dataset: string, index: number, system: string): Promise<void> {
    const row = JSON.stringify({ messages: this.messages(index, system) });
    const before = await newest(dataset);
    const digest = await uploadText(before && !before.endsWith("\n") ? `${before}\n${row}\n` : `${before}${row}\n`);
    const request = { dataset_id: dataset, source_digest: digest, format: "DATASET_FORMAT_JSONL", source: "chat", request_id: requestId() };
    await post(`${PROJECT}/datasets:import`, request);
  }

  private async one(target: string, index: number, system: string, parameters: Parameters): Promise<void> {
    const answer = this.turns.at(-1)?.answers[index];
    if (!answer) return;
    const body = { targets: [targetOf(target)], messages: this.messages(index, system), parameters: numbers(parameters) };
    try {
      await read<ChatResponse>(`${PROJECT}:chat`, { body, signal: this.stopper.signal }, (message) => {
        answer.text += message.delta;
        if (message.state !== "CHAT_STATE_UNSPECIFIED") answer.note = noteOf(message);
      });
      answer.done = true;
    } catch (error) {
      answer.note = this.stopper.signal.aborted ? "stopped" : "failed";
      answer.done = this.stopper.signal.aborted && answer.text !== "";
      throw error;
    }
  }
}

function noteOf(message: ChatResponse): string {
  if (message.state !== "CHAT_STATE_DONE") {
    const before = message.queue_position ? ` behind ${message.queue_position}` : "";
    return `${lower(message.state, "CHAT_STATE_")}${before}${message.node ? ` on ${message.node}` : ""}`;
  }
  const speed = number(message.timings?.tokens_per_second);
  const tokens = message.usage?.completion_tokens ?? 0;
  const parts = [`${tokens} ${tokens === 1 ? "token" : "tokens"}`];
  if (Number.isFinite(speed) && speed > 0) parts.push(`${speed.toFixed(0)} a second`);
  if (message.finish === "CHAT_FINISH_LENGTH") parts.push("cut off at the longest length");
  return parts.join(" · ");
}

function numbers(given: Parameters): Record<string, number> {
  return Object.fromEntries(
    Object.entries(given)
      .filter(([, value]) => value !== "" && value !== null && value !== undefined)
      .map(([key, value]) => [key, Number(value)]),
  );
}

async function newest(dataset: string): Promise<string> {
  const all = await get<ListDatasetsResponse>(`${PROJECT}/datasets`, { page_size: 1000 });
  const found = all.datasets.find((each) => each.dataset_id === dataset);
  if (!found?.latest) return "";
  const response = await open(address(`${found.latest.name}:export`, { format: "jsonl" }), { headers: headers() });
  return response.text();
}
