// Where the nodes of a lineage graph stand: a column for each distance, in each column near what they hang on.

import type { GetLineageResponse, LineageNode } from "../contract";

export const BOX = { width: 190, height: 54, gapX: 64, gapY: 16 };

export interface Placed {
  node: LineageNode;
  x: number;
  y: number;
}

export interface Layout {
  placed: Placed[];
  lines: { path: string; relation: string; from: string; to: string }[];
  width: number;
  height: number;
}

/** Lays a graph out from left (what it was made of) to right (what was made of it). */
export function layout(graph: GetLineageResponse): Layout {
  const columns = new Map<number, LineageNode[]>();
  for (const node of graph.nodes) columns.set(node.distance, [...(columns.get(node.distance) ?? []), node]);
  const order = [...columns.keys()].sort((a, b) => a - b);
  const tallest = Math.max(1, ...[...columns.values()].map((column) => column.length));
  const height = tallest * (BOX.height + BOX.gapY) - BOX.gapY;
  const at = new Map<string, Placed>();
  order.forEach((distance, index) => {
    const column = [...(columns.get(distance) ?? [])];
    const anchor = new Map(column.map((node) => [node.name, middle(node.name, graph, at)]));
    column.sort((a, b) => (anchor.get(a.name) ?? 0) - (anchor.get(b.name) ?? 0) || a.label.localeCompare(b.label));
    const used = column.length * (BOX.height + BOX.gapY) - BOX.gapY;
    column.forEach((node, row) => {
      at.set(node.name, { node, x: index * (BOX.width + BOX.gapX), y: (height - used) / 2 + row * (BOX.height + BOX.gapY) });
    });
  });
  const lines = graph.edges.flatMap((edge) => {
    const from = at.get(edge.from_node);
    const to = at.get(edge.to_node);
    return from && to ? [{ path: curve(from, to), relation: edge.relation, from: edge.from_node, to: edge.to_node }] : [];
  });
  return { placed: [...at.values()], lines, width: order.length * (BOX.width + BOX.gapX) - BOX.gapX, height };
}

/** The mean height of the neighbours that have their place already. */
function middle(name: string, graph: GetLineageResponse, at: Map<string, Placed>): number {
  const near = graph.edges
    .flatMap((edge) => (edge.from_node === name ? [edge.to_node] : edge.to_node === name ? [edge.from_node] : []))
    .flatMap((other) => at.get(other) ?? []);
  return near.length ? near.reduce((sum, each) => sum + each.y, 0) / near.length : Infinity;
}

function curve(from: Placed, to: Placed): string {
  const [x1, y1] = [from.x + BOX.width, from.y + BOX.height / 2];
  const [x2, y2] = [to.x, to.y + BOX.height / 2];
  const bend = Math.max(30, (x2 - x1) / 2);
  return `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
}
