// The address holds the view: `/` lists jobs, `/jobs/{id}` shows one; the query holds filters and choices.

class Route {
  path = $state(location.pathname);
  query = $state(new URLSearchParams(location.search));

  constructor() {
    addEventListener("popstate", () => this.read());
  }

  /** Id of the job shown, or empty on the list. */
  get job(): string {
    const found = /^\/jobs\/([^/]+)\/?$/.exec(this.path);
    return found?.[1] ? decodeURIComponent(found[1]) : "";
  }

  go(to: string): void {
    history.pushState(null, "", to);
    this.read();
    scrollTo(0, 0);
  }

  /** Sets one parameter of the query (empty: takes it out) without a new entry in the history. */
  set(name: string, value: string): void {
    const query = new URLSearchParams(location.search);
    if (value) query.set(name, value);
    else query.delete(name);
    const text = query.toString();
    history.replaceState(null, "", location.pathname + (text ? `?${text}` : ""));
    this.read();
  }

  /** Follows a link inside the page, unless the user wants a new tab. */
  follow = (event: MouseEvent): void => {
    const link = (event.target as Element | null)?.closest?.("a[href^='/']");
    const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
    if (!link || !plain || event.defaultPrevented) return;
    event.preventDefault();
    this.go(link.getAttribute("href") ?? "/");
  };

  private read(): void {
    this.path = location.pathname;
    this.query = new URLSearchParams(location.search);
  }
}

export const route = new Route();
