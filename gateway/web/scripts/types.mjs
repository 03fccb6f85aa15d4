// Writes src/contract.ts: the messages of the contract as TypeScript sees them in REST (proto JSON).
// The source is the compiled contract, so the page cannot drift from proto/.

import { readFileSync, writeFileSync } from "node:fs";
import { fromBinary, isFieldSet } from "@bufbuild/protobuf";
import {
  FieldDescriptorProto_Label,
  FieldDescriptorProto_Type,
  FieldDescriptorProtoSchema,
  FileDescriptorSetSchema,
} from "@bufbuild/protobuf/wkt";

const { MESSAGE, ENUM, BOOL, STRING, BYTES, DOUBLE, FLOAT, INT32, UINT32, SINT32, FIXED32, SFIXED32 } =
  FieldDescriptorProto_Type;
const root = new URL("..", import.meta.url);
const set = fromBinary(FileDescriptorSetSchema, readFileSync(new URL("../../client/tunesmith/api/contract.binpb", root)));

// 64-bit integers and the special doubles are texts in proto JSON.
const SCALARS = new Map([
  [BOOL, "boolean"],
  [STRING, "string"],
  [BYTES, "string"],
  [DOUBLE, "Double"],
  [FLOAT, "Double"],
  ...[INT32, UINT32, SINT32, FIXED32, SFIXED32].map((kind) => [kind, "number"]),
]);

// Full name of each type to the name it has here: its own, or, where two packages use the same, with its package's.
const names = new Map();
const out = [
  "// Generated from the contract by scripts/types.mjs; never edited.",
  "",
  "/** A number, or one of the values that JSON has no number for. */",
  'export type Double = number | "NaN" | "Infinity" | "-Infinity";',
  "/** A 64-bit integer. */",
  "export type Int64 = string;",
  "",
];

function comment(file, path, indent) {
  const found = file.sourceCodeInfo?.location.find(
    (place) => place.path.length === path.length && place.path.every((part, index) => part === path[index]),
  );
  const text = found?.leadingComments.trim().replaceAll("*/", "* /");
  if (text) out.push(`${indent}/** ${text.split("\n").map((line) => line.trim()).join(" ")} */`);
}

function nameIn(file, name) {
  const taken = new Set(names.values());
  const area = file.package.split(".").at(-2);
  const own = taken.has(name) ? area[0].toUpperCase() + area.slice(1) + name : name;
  if (taken.has(own)) throw new Error(`two types of the contract are called ${own}`);
  names.set(`.${file.package}.${name}`, own);
}

function typeOf(field, maps) {
  const last = names.get(field.typeName);
  if (field.type === MESSAGE && maps.has(field.typeName)) {
    return `Record<string, ${typeOf(maps.get(field.typeName).field[1], maps)}>`;
  }
  let type = SCALARS.get(field.type) ?? "Int64";
  if (field.type === ENUM) type = last;
  if (field.type === MESSAGE) type = field.typeName.startsWith(".google.protobuf.") ? "string" : last;
  if (field.label !== FieldDescriptorProto_Label.REPEATED) return type;
  return type.includes("|") ? `(${type})[]` : `${type}[]`;
}

function message(file, proto, path) {
  const maps = new Map(
    proto.nestedType.filter((nested) => nested.options?.mapEntry).map((nested) => [`.${file.package}.${proto.name}.${nested.name}`, nested]),
  );
  comment(file, path, "");
  out.push(`export interface ${names.get(`.${file.package}.${proto.name}`)} {`);
  proto.field.forEach((field, index) => {
    const repeated = field.label === FieldDescriptorProto_Label.REPEATED;
    const absent = !repeated && (field.type === MESSAGE || inOneof(field));
    comment(file, [...path, 2, index], "  ");
    out.push(`  ${field.name}${absent ? "?" : ""}: ${typeOf(field, maps)};`);
  });
  out.push("}", "");
}

// In proto JSON a field of a oneof (also of the hidden one behind `optional`) is left out when it is not set.
function inOneof(field) {
  return isFieldSet(field, FieldDescriptorProtoSchema.field.oneofIndex);
}

const files = set.file.filter((file) => file.package.startsWith("tunesmith.api.") && !file.name.endsWith("options.proto"));
for (const file of files) for (const proto of [...file.enumType, ...file.messageType]) nameIn(file, proto.name);
for (const file of files) {
  file.enumType.forEach((proto, index) => {
    comment(file, [5, index], "");
    out.push(`export type ${names.get(`.${file.package}.${proto.name}`)} =`, ...proto.value.map((value) => `  | "${value.name}"`), "");
    out[out.length - 2] += ";";
  });
  file.messageType.forEach((proto, index) => message(file, proto, [4, index]));
}

writeFileSync(new URL("src/contract.ts", root), out.join("\n"));
