// Who is signed in, and how the page looks. The token lives as long as the tab; it never enters an address.

const TOKEN = "tunesmith.token";
const THEME = "tunesmith.theme";

export type Theme = "system" | "light" | "dark";

/** Takes `#token=…` out of the address, so that neither history nor a copied link holds it. */
function tokenFromFragment(): string | null {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (token !== null) history.replaceState(null, "", location.pathname + location.search);
  return token;
}

class Session {
  token = $state(tokenFromFragment() ?? sessionStorage.getItem(TOKEN) ?? "");
  /** Why the last token stopped working. */
  refusal = $state("");
  theme = $state<Theme>((localStorage.getItem(THEME) as Theme | null) ?? "system");
  systemDark = $state(matchMedia("(prefers-color-scheme: dark)").matches);

  constructor() {
    if (this.token) sessionStorage.setItem(TOKEN, this.token);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", (event) => {
      this.systemDark = event.matches;
      this.paint();
    });
    this.paint();
  }

  get dark(): boolean {
    return this.theme === "system" ? this.systemDark : this.theme === "dark";
  }

  signIn(token: string): void {
    this.token = token;
    this.refusal = "";
    sessionStorage.setItem(TOKEN, token);
  }

  signOut(refusal = ""): void {
    this.token = "";
    this.refusal = refusal;
    sessionStorage.removeItem(TOKEN);
  }

  toggleTheme(): void {
    this.theme = this.dark ? "light" : "dark";
    localStorage.setItem(THEME, this.theme);
    this.paint();
  }

  private paint(): void {
    document.documentElement.dataset.theme = this.dark ? "dark" : "light";
  }
}

export const session = new Session();
