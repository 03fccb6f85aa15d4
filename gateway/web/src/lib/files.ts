// Files on their way up (resumable, in parts) and down.

import type { FinishUploadResponse, GetUploadResponse, StartUploadResponse } from "../contract";
import { address, get, headers, open, post, Problem, requestId } from "./api";

const PART_BYTES = 4_000_000;
const TRIES = 5;
const KEY = "tunesmith.upload.";

/** Uploads a file and returns its digest. A file that was begun before, also before a reload, goes on where it stood. */
export async function upload(file: File, onProgress: (bytes: number) => void, signal: AbortSignal): Promise<string> {
  const key = `${KEY}${file.name}|${file.size}|${file.lastModified}`;
  let { id, offset } = await begin(file, key);
  let tries = 0;
  while (offset < file.size) {
    signal.throwIfAborted();
    try {
      const end = Math.min(file.size, offset + PART_BYTES);
      const range = { "content-range": `bytes ${offset}-${end - 1}/*` };
      await open(address(`uploads/${id}`), { method: "PUT", headers: { ...headers(), ...range }, body: file.slice(offset, end), signal });
      offset = end;
      tries = 0;
    } catch (error) {
      tries += 1;
      if (!(error instanceof Problem) || tries > TRIES || !(error.passing || error.reason === "UPLOAD_OFFSET")) throw error;
      await new Promise((resolve) => setTimeout(resolve, 300 * 2 ** tries));
      offset = await standing(id).catch(() => offset);
    }
    onProgress(offset);
  }
  const done = await post<FinishUploadResponse>(`uploads/${id}:finish`, { request_id: requestId() });
  localStorage.removeItem(key);
  return done.digest;
}

async function begin(file: File, key: string): Promise<{ id: string; offset: number }> {
  const known = localStorage.getItem(key);
  if (known) {
    try {
      return { id: known, offset: await standing(known) };
    } catch {
      localStorage.removeItem(key); // forgotten by the server, or finished
    }
  }
  const answer = await post<StartUploadResponse>("uploads", { total_bytes: String(file.size), request_id: requestId() });
  const id = answer.upload?.upload ?? "";
  localStorage.setItem(key, id);
  return { id, offset: Number(answer.upload?.size_bytes ?? 0) };
}

async function standing(id: string): Promise<number> {
  return Number((await get<GetUploadResponse>(`uploads/${id}`)).upload?.size_bytes ?? 0);
}

/** Uploads a text at once and returns its digest. */
export async function uploadText(text: string): Promise<string> {
  const response = await open(address("blobs"), { method: "POST", headers: headers(), body: text });
  return ((await response.json()) as { digest: string }).digest;
}

/** Fetches a file and hands it to the browser to keep. */
export async function download(path: string, name: string, query = {}): Promise<void> {
  const response = await open(address(path, query), { headers: headers() });
  const said = /filename\*=UTF-8''([^;]+)/.exec(response.headers.get("content-disposition") ?? "");
  const url = URL.createObjectURL(await response.blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = said?.[1] ? decodeURIComponent(said[1]) : name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
