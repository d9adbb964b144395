/**
 * The types of columns: spellings of names, bytes of values, and the source types that
 * fit a target type.
 *
 * A type without an entry in the registry uses its send function, like binary COPY.
 *
 * @module
 */

/** A type by its name, spelled as `format_type` prints it. */
export interface TypeName {
  /** The name without modifiers, such as `timestamp with time zone` or `public.mood`. */
  readonly base: string;
  /** The modifiers without spaces, such as `10,2`, the fields of an interval, or an empty text. */
  readonly modifiers: string;
  readonly isArray: boolean;
}

/** Properties of one built-in type. */
interface BuiltIn {
  /** Returns SQL of a text that is equal exactly when the bytes of the value are equal. */
  readonly bytes?: (value: string) => string;
  /** Other spellings of the name. */
  readonly aliases?: readonly string[];
  /** Source types whose every value the type can represent. */
  readonly widens?: readonly string[];
  /** Source types whose values the type may round. */
  readonly rounds?: readonly string[];
  /** Minimum and maximum of each modifier. Without them, the type has none. */
  readonly modifiers?: readonly Range[];
}

/** The minimum and the maximum of a number. */
type Range = readonly [number, number];

/** Returns a {@linkcode BuiltIn.bytes} that calls the type's send function. */
function sentBy(name: string): (value: string) => string {
  return (value) => `pg_catalog.encode(pg_catalog.${name}(${value}), 'hex')`;
}

/**
 * Returns a {@linkcode BuiltIn.bytes} of an interval. PostgreSQL 16 and older read the
 * bytes of an infinite interval as a finite one.
 */
function intervalBytes(value: string): string {
  return `(case when pg_catalog.isfinite(${value}) then ${
    sentBy("interval_send")(value)
  } else ${value}::text end)`;
}

/** The text of the value has the bytes of the value. */
const asText = (value: string) => `${value}::text`;

const INTEGERS = ["smallint", "integer"];

const CHARACTERS: Range = [1, 10_485_760];
const BITS: Range = [1, 83_886_080];
const FRACTION_DIGITS: Range = [0, 6];

/**
 * The registry of built-in types. An entry makes the hash faster, or allows
 * source types other than the type itself.
 */
const BUILT_IN = new Map<string, BuiltIn>(Object.entries({
  text: { bytes: (value) => value },
  "character varying": {
    bytes: asText,
    aliases: ["varchar"],
    widens: ["name"],
    modifiers: [CHARACTERS],
  },
  character: {
    bytes: sentBy("bpcharsend"),
    aliases: ["char", "bpchar"],
    modifiers: [CHARACTERS],
  },
  name: { bytes: asText },
  smallint: { bytes: sentBy("int2send"), aliases: ["int2"] },
  integer: {
    bytes: sentBy("int4send"),
    aliases: ["int", "int4"],
    widens: ["smallint"],
  },
  bigint: {
    bytes: sentBy("int8send"),
    aliases: ["int8"],
    widens: INTEGERS,
  },
  numeric: {
    bytes: sentBy("numeric_send"),
    aliases: ["decimal", "dec"],
    widens: [...INTEGERS, "bigint"],
    modifiers: [[1, 1000], [-1000, 1000]],
  },
  real: {
    bytes: sentBy("float4send"),
    aliases: ["float4"],
    widens: ["smallint"],
  },
  "double precision": {
    bytes: sentBy("float8send"),
    aliases: ["float8", "float"],
    widens: [...INTEGERS, "real"],
    rounds: ["bigint", "numeric"],
  },
  boolean: { bytes: sentBy("boolsend"), aliases: ["bool"] },
  bytea: { bytes: (value) => `pg_catalog.encode(${value}, 'hex')` },
  uuid: { bytes: sentBy("uuid_send") },
  json: { bytes: asText },
  jsonb: { bytes: sentBy("jsonb_send") },
  date: { bytes: sentBy("date_send") },
  "time without time zone": {
    bytes: sentBy("time_send"),
    aliases: ["time"],
    modifiers: [FRACTION_DIGITS],
  },
  "time with time zone": {
    bytes: sentBy("timetz_send"),
    aliases: ["timetz"],
    modifiers: [FRACTION_DIGITS],
  },
  "timestamp without time zone": {
    bytes: sentBy("timestamp_send"),
    aliases: ["timestamp"],
    widens: ["date"],
    modifiers: [FRACTION_DIGITS],
  },
  "timestamp with time zone": {
    bytes: sentBy("timestamptz_send"),
    aliases: ["timestamptz"],
    widens: ["date", "timestamp without time zone"],
    modifiers: [FRACTION_DIGITS],
  },
  interval: { bytes: intervalBytes, modifiers: [FRACTION_DIGITS] },
  bit: { bytes: sentBy("bit_send"), modifiers: [BITS] },
  "bit varying": {
    bytes: sentBy("varbit_send"),
    aliases: ["varbit"],
    modifiers: [BITS],
  },
  inet: { bytes: sentBy("inet_send") },
  cidr: { bytes: sentBy("cidr_send") },
  money: { bytes: sentBy("cash_send") },
}));

/** The full name of each alias. */
const ALIASES = new Map(
  [...BUILT_IN].flatMap(([name, { aliases = [] }]) =>
    aliases.map((alias) => [alias, name] as const)
  ),
);

/** Types whose values name objects of one server, or that no server accepts as input. */
const UNLOADABLE = new Set([
  "aclitem",
  "gtsvector",
  "pg_brin_bloom_summary",
  "pg_brin_minmax_multi_summary",
  "pg_dependencies",
  "pg_mcv_list",
  "pg_ndistinct",
  "pg_node_tree",
  "regclass",
  "regcollation",
  "regconfig",
  "regdatabase",
  "regdictionary",
  "regnamespace",
  "regoper",
  "regoperator",
  "regproc",
  "regprocedure",
  "regrole",
  "regtype",
]);

/** Returns whether columns of this type cannot be loaded. */
export function isUnloadable(base: string): boolean {
  return UNLOADABLE.has(base);
}

const IDENTIFIER = String
  .raw`(?:[a-z_\u0080-\uffff][\w$\u0080-\uffff]*|"(?:[^"]|"")+")`;

/** The fields that a column of type interval keeps. */
const FIELD = "(?:year|month|day|hour|minute|second)";

/** A type with one name or a qualified one, words of the standard, modifiers and brackets. */
const TYPE = new RegExp(
  String
    .raw`^(?<base>${IDENTIFIER}(?:\s*\.\s*${IDENTIFIER})?(?:\s+(?:precision|varying))?)` +
    String.raw`(?<fields>(?<=^interval)\s+${FIELD}(?:\s+to\s+${FIELD})?)?` +
    String.raw`\s*(?:\(\s*(?<modifiers>[\w\s,+-]+?)\s*\))?` +
    String.raw`(?<zone>\s+with(?:out)?\s+time\s+zone)?` +
    String.raw`\s*(?<array>(?:\[\d*\]\s*)+|\s+array)?$`,
  "iu",
);

/**
 * Parses the name of a type, in any spelling that PostgreSQL accepts.
 *
 * @throws {Error} when the text is not a type name.
 */
export function parseTypeName(text: string): TypeName {
  const groups = TYPE.exec(text.trim())?.groups;
  if (!groups) throw new Error("is not the name of a type");
  const base = foldIdentifiers(groups.base!) +
    (groups.zone ?? "").toLowerCase().replace(/\s+/g, " ");
  const { name, digits } = withModifiers(
    base,
    (groups.modifiers ?? "").replace(/\s+/g, ""),
  );
  const fields = foldIdentifiers((groups.fields ?? "").trim());
  const modifiers = fields && digits ? `${fields}(${digits})` : fields + digits;
  return {
    base: name,
    // `character` and `bit` without a length mean one character and one bit, but not
    // `bpchar` and `"bit"`.
    modifiers: modifiers ||
      (/^(char|character|bit)$/i.test(groups.base!) ? "1" : ""),
    isArray: groups.array !== undefined,
  };
}

/** The maximum digits of `float(n)` that the type real has, and those of double precision. */
const [REAL_DIGITS, DOUBLE_DIGITS] = [24, 53];

/**
 * Returns the full name of a type and its modifiers, both as `format_type` prints them.
 * Types of users and extensions have other modifiers.
 *
 * @throws {Error} when the type does not take the modifiers.
 */
function withModifiers(
  alias: string,
  modifiers: string,
): { readonly name: string; readonly digits: string } {
  const isFloat = alias === "float" && modifiers !== "";
  const name = ALIASES.get(alias) ?? alias;
  const type = BUILT_IN.get(name);
  if (!type || !modifiers) return { name, digits: modifiers };
  const ranges = isFloat ? [[1, DOUBLE_DIGITS] as const] : type.modifiers ?? [];
  const given = modifiers.split(",");
  const isValid = given.length <= ranges.length &&
    given.every((text, i) => {
      const [min, max] = ranges[i]!;
      return /^[+-]?\d+$/.test(text) && min <= Number(text) &&
        Number(text) <= max;
    });
  if (!isValid) {
    const listed = ranges.map(([min, max]) => `from ${min} to ${max}`);
    throw new Error(
      ranges.length === 0
        ? `is not a type: ${alias} takes no number in brackets`
        : `is not a type: ${alias} takes a number ${
          listed.join(" and one ")
        } in brackets`,
    );
  }
  const numbers = given.map(Number);
  if (isFloat) {
    return { name: numbers[0]! > REAL_DIGITS ? name : "real", digits: "" };
  }
  if (name === "numeric" && numbers.length === 1) numbers.push(0);
  return { name, digits: numbers.join(",") };
}

/** Returns identifiers in lower case, except quoted ones, and with single spaces. */
function foldIdentifiers(text: string): string {
  return text.replace(/"(?:[^"]|"")+"|[^"]+/g, (part) =>
    part.startsWith('"')
      // Quotes distinguish the type "char" from character.
      ? /^"[a-z_][a-z0-9_$]*"$/.test(part) && !ALIASES.has(part.slice(1, -1))
        ? part.slice(1, -1)
        : part
      : part.toLowerCase().replace(/\s*\.\s*/g, ".").replace(/\s+/g, " "));
}

/**
 * The types with a length, each with its name without one. `character` and `bit` mean a
 * length of 1.
 */
const WITHOUT_LENGTH: Readonly<Record<string, string>> = {
  "character varying": "character varying",
  character: "bpchar",
  bit: '"bit"',
  "bit varying": "bit varying",
};

/** Returns the name as DDL and messages show it. */
export function formatTypeName(
  { base, modifiers, isArray }: TypeName,
): string {
  const name = modifiers ? base : WITHOUT_LENGTH[base] ?? base;
  const hasFields = base === "interval" && /^[a-z]/.test(modifiers);
  const list = hasFields ? ` ${modifiers}` : modifiers && `(${modifiers})`;
  const [, head, zone = ""] = /^(.*?)( with(?:out)? time zone)?$/.exec(name)!;
  return `${head}${list}${zone}${isArray ? "[]" : ""}`;
}

/**
 * Returns the name for a cast, which rounds a value where the type does, and never
 * shortens it. A cast with a length shortens values silently.
 */
export function castName(type: TypeName): string {
  const isShortened = Object.hasOwn(WITHOUT_LENGTH, type.base);
  return formatTypeName(isShortened ? { ...type, modifiers: "" } : type);
}

/** Returns whether the registry has the type, so that its name needs no schema. */
export function isBuiltIn({ base }: Pick<TypeName, "base">): boolean {
  return BUILT_IN.has(base);
}

/** Returns whether the type is in a schema of users. PostgreSQL prints the schema of those only. */
export function isUserDefined({ base }: Pick<TypeName, "base">): boolean {
  return base.includes(".");
}

/**
 * Returns SQL of a text that is equal exactly when the bytes of the value are equal.
 * `value` has the type. It is NULL only if the value is NULL. For a type without an
 * entry, it is never NULL.
 */
export function bytesAsText(type: TypeName, value: string): string {
  const bytes = type.isArray ? undefined : BUILT_IN.get(type.base)?.bytes;
  return bytes
    ? bytes(value)
    // A record has the send function of each type without naming its schema. The
    // first eight bytes count the columns and name the type by its OID. The next
    // four bytes distinguish NULL from an empty value.
    : `pg_catalog.encode(pg_catalog.substr(pg_catalog.record_send(row(${value})), 9), 'hex')`;
}

/** How a source column fits a target column. */
type Fit =
  | { readonly kind: "exact" }
  | { readonly kind: "rounds"; readonly warning: string }
  | { readonly kind: "refused"; readonly reason: string };

const EXACT: Fit = { kind: "exact" };

/** Categories of `pg_type.typcategory` whose values are texts: strings and enums. */
const TEXT_CATEGORIES = new Set(["S", "E"]);

/** Types of other categories with one text for each value. */
const TEXTUAL = new Set(["uuid", "json", "xml"]);

/**
 * Returns how values of the source type fit the target type. `category` is the
 * `pg_type.typcategory` of the source type. Both are base types of domains.
 *
 * @param isExpression whether the source is an expression, whose modifiers are not
 * known. Then the target checks the length of each value.
 */
export function fitOf(
  source: TypeName,
  category: string,
  target: TypeName,
  isExpression = false,
): Fit {
  const from = formatTypeName(source);
  const to = formatTypeName(target);
  const refused: Fit = {
    kind: "refused",
    reason: `its type ${from} cannot become ${to} without a change of meaning`,
  };
  for (const { base } of [source, target]) {
    if (isUnloadable(base)) {
      return {
        kind: "refused",
        reason: `values of type ${base} have a meaning on one server only`,
      };
    }
  }
  if (source.isArray !== target.isArray) return refused;
  if (hasSameName(source, target)) {
    return isExpression ? EXACT : fitOfModifiers(source, target, refused);
  }
  if (
    isExpression && source.base === "text" &&
    target.base === "character varying"
  ) return EXACT;
  if (target.isArray) return refused;
  const { widens = [], rounds = [] } = BUILT_IN.get(target.base) ?? {};
  if (rounds.includes(source.base)) {
    return {
      kind: "rounds",
      warning: `is ${from} in the source and is rounded to ${to}`,
    };
  }
  const isText = target.base === "text" &&
    (TEXT_CATEGORIES.has(category) || TEXTUAL.has(source.base) ||
      isUserDefined(source));
  if (!isText && !widens.includes(source.base)) return refused;
  return target.modifiers
    ? fitOfModifiers({ ...source, modifiers: "" }, target, refused)
    : EXACT;
}

/** Returns how a type fits the same type with other modifiers. */
function fitOfModifiers(
  source: TypeName,
  target: TypeName,
  refused: Fit,
): Fit {
  if (!target.modifiers || source.modifiers === target.modifiers) return EXACT;
  const [length, scale = 0] = source.modifiers.split(",").map(Number);
  const [newLength, newScale = 0] = target.modifiers.split(",").map(Number);
  const isKnown = source.modifiers !== "";
  switch (target.base) {
    case "character varying":
      return isKnown && length! <= newLength! ? EXACT : refused;
    case "numeric":
      if (
        isKnown && newScale >= scale &&
        newLength! - newScale >= length! - scale
      ) return EXACT;
      break;
    case "character":
    case "bit":
    case "bit varying":
      return refused;
    default:
      if (!isBuiltIn(target)) return refused;
      if (isKnown && length! <= newLength!) return EXACT;
  }
  return {
    kind: "rounds",
    warning: `is ${formatTypeName(source)} in the source and is rounded to ${
      formatTypeName(target)
    }`,
  };
}

/**
 * Returns whether two types have the same name. The schemas may differ, as those of
 * an extension on two servers.
 */
export function hasSameName(a: TypeName, b: TypeName): boolean {
  return unqualified(a.base) === unqualified(b.base);
}

/** Returns the name without its schema. */
function unqualified(base: string): string {
  return /(?:^|\.)([^."]+|"(?:[^"]|"")+")$/.exec(base)?.[1] ?? base;
}
