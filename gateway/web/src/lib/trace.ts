// The spans of a trace as lines of a waterfall.

import type { TraceSpan } from "../contract";

/** A line: one span, or several of one name that stand side by side. */
export interface Line {
  depth: number;
  spans: TraceSpan[];
  name: string;
  /** When it began and ended, milliseconds since the trace began. */
  from: number;
  to: number;
  /** Milliseconds in all its spans. */
  took: number;
  error: string;
}

const FOLD = 4;

/** Returns a time of the contract as Unix milliseconds with their fraction; a Date has whole ones only. */
export function millis(time: string | undefined): number {
  const digits = /\.\d{3}(\d+)/.exec(time ?? "")?.[1];
  return Date.parse(time ?? "") + (digits ? Number(`0.${digits}`) : 0);
}

/** Returns a short time with three digits. */
export function brief(milliseconds: number): string {
  const length = Math.max(0, milliseconds);
  return length < 1000 ? `${Number(length.toPrecision(3))} ms` : `${Number((length / 1000).toPrecision(3))} s`;
}

/** Returns the lines of a trace, parts below what they are part of; those of one name share a line if they are many. */
export function linesOf(spans: TraceSpan[]): Line[] {
  const known = new Set(spans.map((span) => span.span_id));
  const parts = groups(spans, (span) => (known.has(span.parent_span_id) ? span.parent_span_id : ""));
  const zero = Math.min(...spans.map((span) => millis(span.start_time)));
  const lines: Line[] = [];

  function add(parent: string, depth: number): void {
    const own = parts.get(parent) ?? [];
    parts.delete(parent); // so that a circle ends
    const alike = groups(own, (span) => (parts.has(span.span_id) ? span.span_id : `${span.service} ${span.name}`));
    for (const group of alike.values()) {
      for (const line of group.length < FOLD ? group.map((span) => [span]) : [group]) {
        lines.push(lineOf(line, depth, zero));
        if (line.length === 1 && line[0]) add(line[0].span_id, depth + 1);
      }
    }
  }

  add("", 0);
  return lines;
}

function groups(spans: TraceSpan[], key: (span: TraceSpan) => string): Map<string, TraceSpan[]> {
  const found = new Map<string, TraceSpan[]>();
  for (const span of spans) found.set(key(span), [...(found.get(key(span)) ?? []), span]);
  return found;
}

function lineOf(spans: TraceSpan[], depth: number, zero: number): Line {
  const full = spans[0]?.name ?? "";
  const plain = full.startsWith("tunesmith.") ? full.slice(full.lastIndexOf("/") + 1) : full;
  const step = spans[0]?.attributes.step;
  return {
    depth,
    spans,
    name: spans.length > 1 ? `${plain} × ${spans.length}` : step ? `${plain} ${step}` : plain,
    from: Math.min(...spans.map((span) => millis(span.start_time))) - zero,
    to: Math.max(...spans.map((span) => millis(span.end_time))) - zero,
    took: spans.reduce((sum, span) => sum + millis(span.end_time) - millis(span.start_time), 0),
    error: spans.find((span) => span.status === "TRACE_SPAN_STATUS_ERROR")?.error ?? "",
  };
}

/** Returns the times between `0` and `end` that lie in no line, longer than a hundredth of the whole. */
export function gapsOf(lines: Line[], end: number): { from: number; to: number }[] {
  const gaps = [];
  let reached = 0;
  for (const line of lines.toSorted((a, b) => a.from - b.from)) {
    if (line.from - reached > end / 100) gaps.push({ from: reached, to: line.from });
    reached = Math.max(reached, line.to);
  }
  return gaps;
}
