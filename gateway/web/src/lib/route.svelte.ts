// The address holds the view: its path says which, the query holds filters and choices.

class Route {
  path = $state(location.pathname);
  query = $state(new URLSearchParams(location.search));

  constructor() {
    addEventListener("popstate", () => this.read());
  }

  /** The path's parts, decoded: `/models/support` gives `["models", "support"]`. */
  get parts(): string[] {
    return this.path.split("/").filter(Boolean).map(decoded);
  }

  go(to: string): void {
    history.pushState(null, "", to);
    this.read();
    scrollTo(0, 0);
  }

  /** Returns one parameter of the query, or empty. */
  get(name: string): string {
    return this.query.get(name) ?? "";
  }

  /** Sets one parameter of the query (empty: takes it out) without a new entry in the history. */
  set(name: string, value: string): void {
    this.patch({ [name]: value });
  }

  /** Sets several parameters at once. */
  patch(values: Record<string, string>): void {
    const query = new URLSearchParams(location.search);
    for (const [name, value] of Object.entries(values)) {
      if (value) query.set(name, value);
      else query.delete(name);
    }
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

// A path that somebody typed may hold what is no escape.
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export const route = new Route();
