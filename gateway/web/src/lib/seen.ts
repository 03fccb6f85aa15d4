// When this browser last looked at the home view; kept beside the theme, so that it outlives a session.

const KEY = "tunesmith.seen";
const FIRST_MS = 24 * 3600_000;

/** Returns the time of the last look in milliseconds: a day ago for one who never looked. */
export function lastLook(): number {
  const kept = Number(localStorage.getItem(KEY));
  return kept > 0 ? kept : Date.now() - FIRST_MS;
}

/** Everything up to `time` was seen. */
export function looked(time = Date.now()): void {
  localStorage.setItem(KEY, String(time));
}
