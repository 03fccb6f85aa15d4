// Receipts in words: who did what to data and models.

import type { ListReceiptsResponse, Receipt } from "../contract";
import { get, PROJECT } from "./api";

/** Fetches a page of receipts, newest first. */
export function receipts(query: { page_size: number; page_token?: string; resource?: string }, signal: AbortSignal): Promise<ListReceiptsResponse> {
  return get<ListReceiptsResponse>(`${PROJECT}/receipts`, query, signal);
}

/** Returns what happened, such as `model version registered`. */
export function deed(receipt: Receipt): string {
  return receipt.kind.replaceAll("_", " ");
}
