// What a page does with its time: frames while something happens, and when curves were drawn.

/** Records every frame of `page` while `act` lasts; returns the gaps between them in milliseconds, in their order. */
export async function framesOf(page, act) {
  await page.evaluate(() => {
    const record = { times: [], on: true };
    window.record = record;
    const look = (now) => {
      record.times.push(now);
      if (record.on) requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
  });
  await act();
  return page.evaluate(() => {
    window.record.on = false;
    return window.record.times.slice(1).map((time, at) => time - window.record.times[at]);
  });
}

/**
 * Notes in `window.drawn` when each curve stands on the screen. Curves are the only paths that are stroked as objects;
 * what is drawn in one frame is seen when the next begins. To be put into a context before its pages.
 */
export function noteDrawings() {
  const { stroke } = CanvasRenderingContext2D.prototype;
  window.drawn = [];
  CanvasRenderingContext2D.prototype.stroke = function (...path) {
    if (path.length) requestAnimationFrame(() => window.drawn.push(performance.now()));
    return stroke.apply(this, path);
  };
}

/** Returns the value below which a part (0 to 1) of the values lies, to a tenth. */
export function quantile(values, part) {
  const sorted = [...values].sort((a, b) => a - b);
  return Math.round(10 * (sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] ?? 0)) / 10;
}
