/** Finds the secrets of a configuration, and masks them in every output. */
import { ERRORS } from "../errors.ts";
import type { Config, DatabaseConfig } from "./config.ts";
import type { Variable } from "./parsers.ts";
import { VARIABLES } from "./variables.ts";

/** Replaces every secret in a text. */
export type Mask = (text: string) => string;

/**
 * Minimum length of a secret that is masked, in characters. A shorter one occurs
 * in other words by chance, and masking these would reveal it.
 */
const MIN_MASKED_LENGTH = 8;

/** Minimum length of a part of a URL that is treated as a secret, in characters. */
const SECRET_PART_LENGTH = 12;

/** Returns the fixed words that events, pages and commands print. A secret that occurs in them is not masked. */
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
 * Returns a mask for the secrets, both plain and as they are written in JSON, URLs
 * and SQL. `shown` are texts that are printed anyway. A secret that occurs in one
 * of them is not masked, because the mask would reveal it.
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
  // Masks the longest first, because it may contain a shorter one.
  const sorted = [...forms].sort((a, b) => b.length - a.length);
  return (text) =>
    sorted.reduce((masked, form) => masked.replaceAll(form, "***"), text);
}

/** Returns the data with the mask applied to all of its strings. Keys stay unmasked. */
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

/** Returns the mask for all secrets of the configuration, and for each password that is read later. */
export function maskOfConfig(config: Config): Mask {
  const shown = [
    ...shownOf(config.olist),
    ...shownOf(config.dwh),
    config.eventFile,
    config.eventSpoolFile,
    config.host,
    config.listenChannel ?? "",
  ];
  let key: string | undefined;
  let mask: Mask;
  return (text) => {
    const passwords = passwordsOf(config).join("\0");
    if (passwords !== key) {
      key = passwords;
      mask = maskOf(secretsOf(config), shown);
    }
    return mask(text);
  };
}

/** Returns the mask for the messages of one server. */
export function maskOfDatabase(config: DatabaseConfig): Mask {
  return maskOf([...config.password.known], shownOf(config));
}

function shownOf({ servers, user, database }: DatabaseConfig): string[] {
  return [...servers.map(({ host }) => host), user, database];
}

function passwordsOf({ olist, dwh }: Config): string[] {
  return [...olist.password.known, ...dwh.password.known];
}

/** Returns the secret values of a configuration. No output may contain them. */
export function secretsOf(config: Config): readonly string[] {
  const { apiToken, eventWebhookSecret } = config;
  const urls = [
    config.eventWebhookUrl,
    config.alertSlackUrl,
    config.alertTeamsUrl,
  ];
  return [
    ...passwordsOf(config),
    apiToken,
    eventWebhookSecret,
    // The key, without its prefix.
    eventWebhookSecret?.replace(/^whsec_/, ""),
    ...urls.flatMap((url) => url ? secretPartsOf(new URL(url)) : []),
  ]
    .filter((value): value is string => value !== undefined && value !== "");
}

/** Returns the parts of a webhook URL that allow others to post to it. */
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
