// Alert rules in words, and as a person writes them on the page.

import type { AlertCondition } from "../contract";
import { figure, lower, number, seconds, span } from "./words";

const SIGNS: Record<string, string> = { COMPARISON_ABOVE: ">", COMPARISON_AT_LEAST: "≥", COMPARISON_BELOW: "<", COMPARISON_AT_MOST: "≤" };

/** Says when a condition holds. */
export function sayCondition(condition: AlertCondition | undefined): string {
  if (!condition) return "";
  const { threshold, trend, not_finite, no_progress, job_state, node_state, log_matches, node_threshold, queue_wait } = condition;
  if (threshold) return `${threshold.key} ${SIGNS[threshold.comparison] ?? "?"} ${figure(number(threshold.value))}`;
  if (trend) return `${trend.key} ${lower(trend.trend, "TREND_")} by ${100 * number(trend.change)} % over ${trend.num_points} points`;
  if (not_finite) return `${not_finite.key || "any metric"} is NaN or infinite`;
  if (no_progress) return `no step for ${span(seconds(no_progress.duration))}`;
  if (queue_wait) return `queued for ${span(seconds(queue_wait.duration))}`;
  if (job_state) return `job is ${job_state.states.join(" or ").toLowerCase()}`;
  if (node_state) return `node is ${node_state.states.join(" or ").toLowerCase()}`;
  if (node_threshold) return `node's ${node_threshold.key} ${SIGNS[node_threshold.comparison] ?? "?"} ${figure(number(node_threshold.value))}`;
  if (log_matches) return `log has ${log_matches.count || 1} × ${log_matches.pattern || lower(log_matches.min_level, "LOG_LEVEL_")}${log_matches.window ? ` in ${span(seconds(log_matches.window))}` : ""}`;
  return "a condition this page does not know";
}
