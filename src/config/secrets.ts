/**
 * The secrets of a configuration, and the mask that keeps them out of every
 * output.
 *
 * @module
 */
import { ERRORS } from "../errors.ts";
import type { Config, DatabaseConfig } from "./config.ts";
import type { Variable } from "./parsers.ts";
import { VARIABLES } from "./variables.ts";

/** Replaces every secret in a text. */
export type Mask = (text: string) => string;

/**
 * The minimum number of characters of a secret that is searched for. A shorter
 * one stands by chance in other words, and to mask it there would give it away.
 */
export const MIN_MASKED_LENGTH = 8;

/** The minimum number of characters from which on a part of a URL is taken for a secret. */
const SECRET_PART_LENGTH = 12;

/** Returns our own words that events, pages and commands print. A secret that stands in one of them is not searched for. */
function ownWords(): string {
  return cachedWords ??= [
    "marketing-data-service marketing_data_service marketing-data-loaded marketing-data-load-failed",
    "succeeded interrupted unchanged integrity_ok records_loaded source_count target_count",
    "marketing_qualified_lead closed_deals postgresql database authentication connection",
    ...Object.entries(ERRORS).flatMap(([code, { remedy }]) => [code, remedy]),
    ...Object.entries<Variable>(VARIABLES).flatMap((
      [name, { description, allowed, default: fallback }],
    ) => [name, description, allowed, fallback ?? ""]),
  ].join("\n").toLowerCase();
}

let cachedWords: string | undefined;

/**
 * Returns a mask for the secrets, as they are and as they stand in JSON, in a
 * URL and in SQL. `shown` are texts that are printed in any case: a secret that
 * stands in one of them is left, since its mask there would give it away.
 */
export function maskOf(
  secrets: readonly string[],
  shown: readonly string[] = [],
): Mask {
  const words = `${ownWords()}\n${shown.join("\n")}`.toLowerCase();
  const forms = new Set(
    secrets
      .filter((secret) =>
        secret.length >= MIN_MASKED_LENGTH &&
        !words.includes(secret.toLowerCase())
      )
      .flatMap((secret) => [
        secret,
        JSON.stringify(secret).slice(1, -1),
        encodeURIComponent(secret),
        secret.replaceAll("'", "''"),
      ]),
  );
  // The longest first, so that no secret survives as the rest of a shorter one.
  const sorted = [...forms].sort((a, b) => b.length - a.length);
  return (text) =>
    sorted.reduce((masked, form) => masked.replaceAll(form, "***"), text);
}

/** Returns the data with the mask applied to every string in it, and to no key. */
export function maskStrings(data: unknown, mask: Mask): unknown {
  if (typeof data === "string") return mask(data);
  if (Array.isArray(data)) return data.map((item) => maskStrings(item, mask));
  if (data === null || typeof data !== "object" || data instanceof Date) {
    return data;
  }
  return Object.fromEntries(
    Object.entries(data).map(([key, value]) => [key, maskStrings(value, mask)]),
  );
}

/** Returns the mask for all secrets of the configuration. */
export function maskOfConfig(config: Config): Mask {
  return maskOf(secretsOf(config), [
    ...shownOf(config.olist),
    ...shownOf(config.dwh),
    config.eventFile,
    config.eventSpoolFile,
    config.host,
    config.listenChannel ?? "",
  ]);
}

/** Returns the mask for what one server says. */
export function maskOfDatabase(config: DatabaseConfig): Mask {
  return maskOf(
    config.password === undefined ? [] : [config.password],
    shownOf(config),
  );
}

function shownOf({ host, user, database }: DatabaseConfig): string[] {
  return [host, user, database];
}

/** Returns the secret values of a configuration: what no output may hold. */
export function secretsOf(config: Config): readonly string[] {
  const { olist, dwh, apiToken, eventWebhookSecret, eventWebhookUrl } = config;
  return [
    olist.password,
    dwh.password,
    apiToken,
    eventWebhookSecret,
    // Its bytes are the key, with or without the prefix.
    eventWebhookSecret?.replace(/^whsec_/, ""),
    ...(eventWebhookUrl ? secretPartsOf(new URL(eventWebhookUrl)) : []),
  ]
    .filter((value): value is string => value !== undefined && value !== "");
}

/** Returns the parts of a webhook's URL that let others post to it. */
function secretPartsOf(url: URL): string[] {
  const parts = [
    url.pathname + url.search,
    ...url.pathname.split("/"),
    ...url.searchParams.values(),
  ];
  return [
    ...(url.pathname === "/" && !url.search ? [] : [url.href]),
    ...parts.filter((part) => part.length >= SECRET_PART_LENGTH),
  ];
}
