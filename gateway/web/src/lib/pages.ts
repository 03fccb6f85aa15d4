// The pages: one table for navigation, palette, keys and what is loaded when.

import type { Component } from "svelte";
import { lastPart } from "./words";

export interface Page {
  id: string;
  title: string;
  href: string;
  /** Key that goes there after `g`. */
  key: string;
  /** Left out of the navigation: reached by a button or the brand. */
  aside?: boolean;
  /** Loads the view of all, when it is first shown. */
  all: () => Promise<{ default: Component }>;
  /** Loads the view of one, where there is one. */
  one?: () => Promise<{ default: Component<{ name: string }> }>;
}

export const PAGES: Page[] = [
  {
    id: "home",
    title: "Home",
    href: "/",
    key: "h",
    aside: true,
    all: () => import("../views/HomePage.svelte"),
  },
  {
    id: "new",
    title: "New job",
    href: "/new",
    key: "w",
    aside: true,
    all: () => import("../views/NewJobPage.svelte"),
  },
  {
    id: "jobs",
    title: "Jobs",
    href: "/jobs",
    key: "j",
    all: () => import("../views/JobsPage.svelte"),
    one: () => import("../views/JobPage.svelte"),
  },
  {
    id: "compare",
    title: "Compare",
    href: "/compare",
    key: "r",
    all: () => import("../views/ComparePage.svelte"),
  },
  {
    id: "sweeps",
    title: "Sweeps",
    href: "/sweeps",
    key: "s",
    all: () => import("../views/SweepsPage.svelte"),
    one: () => import("../views/SweepPage.svelte"),
  },
  {
    id: "nodes",
    title: "Nodes",
    href: "/nodes",
    key: "n",
    all: () => import("../views/NodesPage.svelte"),
    one: () => import("../views/NodePage.svelte"),
  },
  {
    id: "models",
    title: "Models",
    href: "/models",
    key: "m",
    all: () => import("../views/ModelsPage.svelte"),
    one: () => import("../views/ModelPage.svelte"),
  },
  {
    id: "datasets",
    title: "Datasets",
    href: "/datasets",
    key: "d",
    all: () => import("../views/DatasetsPage.svelte"),
    one: () => import("../views/DatasetPage.svelte"),
  },
  {
    id: "prompts",
    title: "Prompts",
    href: "/prompts",
    key: "p",
    all: () => import("../views/PromptsPage.svelte"),
    one: () => import("../views/PromptPage.svelte"),
  },
  {
    id: "evaluations",
    title: "Evaluations",
    href: "/evaluations",
    key: "e",
    all: () => import("../views/EvaluationsPage.svelte"),
    one: () => import("../views/EvaluationPage.svelte"),
  },
  {
    id: "chat",
    title: "Chat",
    href: "/chat",
    key: "c",
    all: () => import("../views/ChatPage.svelte"),
  },
  {
    id: "alerts",
    title: "Alerts",
    href: "/alerts",
    key: "a",
    all: () => import("../views/AlertsPage.svelte"),
  },
  {
    id: "audit",
    title: "Audit",
    href: "/audit",
    key: "u",
    all: () => import("../views/AuditPage.svelte"),
  },
];

/** Returns the page and the id that a path's parts mean; unknown paths mean none. */
export function pageOf(parts: string[]): { page: Page; id: string } | null {
  const page = PAGES.find((each) => each.id === (parts[0] ?? "home"));
  return page && (parts.length < 2 || (parts.length === 2 && page.one)) ? { page, id: parts[1] ?? "" } : null;
}

/** Returns where a resource of the contract is shown, or empty. */
export function hrefOf(name: string): string {
  const version = /\/(models|datasets|prompts)\/([^/]+)\/versions\/([^/]+)$/.exec(name);
  if (version) return `/${version[1]}/${encodeURIComponent(version[2] ?? "")}?version=${encodeURIComponent(version[3] ?? "")}`;
  const checkpoint = /\/jobs\/([^/]+)\/checkpoints\//.exec(name);
  if (checkpoint) return `/jobs/${encodeURIComponent(checkpoint[1] ?? "")}`;
  const plain = /(?:^|\/)(jobs|models|datasets|prompts|evaluations|nodes)\/([^/]+)$/.exec(name);
  if (plain) return `/${plain[1]}/${encodeURIComponent(plain[2] ?? "")}`;
  if (/\/baseModels\/[^/]+$/.test(name)) return `/models?kind=base_model&q=${encodeURIComponent(lastPart(name))}`;
  return "";
}
