// The job file as a form: its fields come from the server's schema, its text is YAML. The server reads the text.

/** A part of the schema at /api/v1/job-schema.json. */
export interface Schema {
  type: string | string[];
  description: string;
  properties?: Record<string, Schema>;
  maxProperties?: number;
  items?: Schema;
  oneOf?: { const: string; description: string }[];
  minimum?: number;
  maximum?: number;
  exclusiveMinimum?: number;
  exclusiveMaximum?: number;
  maxLength?: number;
  "x-remedy"?: string;
  "x-required"?: boolean;
}

export interface Leaf {
  path: string;
  schema: Schema;
}

export type Tree = { [key: string]: unknown };

/** What most people decide upon, in the order of thought; everything else is under "More". */
export const FIRST = [
  "experiment",
  "base_model",
  "dataset",
  "prompt_template",
  "adapter",
  "adapter.lora.r",
  "training.num_epochs",
  "training.max_steps",
  "training.learning_rate",
  "training.micro_batch_size",
  "training.gradient_accumulation_steps",
  "training.max_length",
  "training.checkpoint_every_steps",
  "training.eval_fraction",
  "training.eval_every_steps",
  "resources.gpus_per_node",
  "resources.num_nodes",
  "output.model",
];

// Other kinds of job, which are not trained: a file says them better than a form.
const OTHER = ["evaluation", "export", "external"];

/** Returns the fields of a schema that a form can show, in its order; a choice of one stands before its fields. */
export function leaves(schema: Schema, prefix = ""): Leaf[] {
  return Object.entries(schema.properties ?? {}).flatMap(([name, inner]) => {
    const path = prefix + name;
    if (OTHER.includes(path) || (inner.items && inner.items.type !== "string")) return [];
    if (!inner.properties) return inner.type === "object" ? [] : [{ path, schema: inner }];
    return [...(inner.maxProperties === 1 ? [{ path, schema: inner }] : []), ...leaves(inner, `${path}.`)];
  });
}

export function at(tree: unknown, path: string): unknown {
  return path.split(".").reduce<unknown>((value, key) => (typeof value === "object" && value !== null ? (value as Tree)[key] : undefined), tree);
}

/** Returns a copy with the value at a path; undefined takes it out, and what is empty then. */
export function put(tree: Tree, path: string, value: unknown): Tree {
  const [key = "", ...rest] = path.split(".");
  const inner = tree[key];
  const made = rest.length ? put(typeof inner === "object" && inner !== null ? (inner as Tree) : {}, rest.join("."), value) : value;
  const copy = { ...tree, [key]: made };
  if (made === undefined || (rest.length && !Object.keys(made as Tree).length)) delete copy[key];
  return copy;
}

const PLAIN = /^[A-Za-z](?:[\w./@ -]*[\w./@-])?$/;
const WORDS = /^(?:true|false|null|yes|no|on|off|y|n)$/i;
// Line breaks that YAML folds, and letters that would hide or reorder others.
const HIDDEN = /[\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

function scalar(value: unknown): string {
  if (typeof value === "string" && PLAIN.test(value) && !WORDS.test(value)) return value;
  return (JSON.stringify(value) ?? "null").replace(HIDDEN, (letter) => `\\u${letter.charCodeAt(0).toString(16).padStart(4, "0")}`);
}

/** Writes a tree as YAML. */
export function yaml(tree: Tree, indent = ""): string {
  return Object.entries(tree)
    .map(([key, value]) => {
      const name = `${indent}${scalar(key)}:`;
      if (Array.isArray(value) && value.length) return `${name}\n${value.map((each) => `${indent}  - ${flow(each)}\n`).join("")}`;
      const isTree = typeof value === "object" && value !== null && !Array.isArray(value) && Object.keys(value).length;
      return isTree ? `${name}\n${yaml(value as Tree, `${indent}  `)}` : `${name} ${scalar(value)}\n`;
    })
    .join("");
}

// Inside a list everything is JSON, which is YAML too.
function flow(value: unknown): string {
  return typeof value === "object" ? JSON.stringify(value) : scalar(value);
}

/** Starting points: a title, and what the file says beside base model and dataset. */
export const TEMPLATES: Record<string, { title: string; what: string; tree: Tree }> = {
  lora: { title: "LoRA", what: "small adapters beside frozen weights: the usual start", tree: { adapter: { lora: { r: 16 } }, training: { num_epochs: 3, learning_rate: 2e-4 } } },
  try: { title: "Quick try", what: "20 steps, to see that all fits together", tree: { adapter: { lora: { r: 8 } }, training: { max_steps: 20, learning_rate: 5e-4 } } },
  careful: {
    title: "With held-out data",
    what: "evaluates as it goes, keeps the best, stops when nothing improves",
    tree: {
      adapter: { lora: { r: 16 } },
      training: { num_epochs: 10, learning_rate: 2e-4, eval_fraction: 0.05, eval_every_steps: 50, keep_best_checkpoints: 1, early_stopping_patience: 4 },
    },
  },
  full: { title: "All parameters", what: "every weight is trained: more memory, a smaller rate", tree: { adapter: { full: {} }, training: { num_epochs: 2, learning_rate: 2e-5 } } },
};
