// A row of choices that is wider than a telephone stands where the chosen one is in sight.

/** Scrolls a row sideways to what is chosen in it, again with each choice and each width. */
export function chosenInSight(chosen: () => string): (row: HTMLElement) => () => void {
  return (row) => {
    chosen();
    const show = () => {
      const one = row.querySelector<HTMLElement>("[aria-current=page], [aria-selected=true]");
      if (one) row.scrollLeft = one.offsetLeft - row.offsetLeft - (row.clientWidth - one.offsetWidth) / 2;
    };
    const observer = new ResizeObserver(show);
    observer.observe(row);
    return () => observer.disconnect();
  };
}
