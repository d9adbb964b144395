/**
 * The event of a finished run. It is a row of the warehouse. Deliveries read that
 * row.
 *
 * @module
 */
import { formatQuantity, formatTables, printable } from "../format.ts";
import type { ErrorCode, ServiceError } from "../errors.ts";
import type { Row } from "../postgres/sql.ts";
import type { CheckResult } from "../sync/checks.ts";
import type { TableResult } from "../sync/sync_table.ts";
import {
  formatRelation,
  type TableDeclaration,
} from "../tables/declaration.ts";

/** The triggers of a run. */
export const TRIGGERS = ["http", "cli", "schedule", "notify"] as const;

/** The trigger of a run, stored verbatim. */
export type Trigger = (typeof TRIGGERS)[number];

/** The publishers. Each is a destination of events. */
export const PUBLISHERS = ["file", "webhook", "slack", "teams"] as const;

/** Name of a publisher, stored verbatim. */
export type PublisherName = (typeof PUBLISHERS)[number];

/** One table in the event of a run. */
export type TableEntry = LoadedEntry | FailedEntry;

/** A table whose load is committed. */
export interface LoadedEntry {
  readonly table: string;
  readonly status: "success";
  /** Number of rows in the target, verified. */
  readonly records_loaded: number;
  /** Seconds. */
  readonly duration: number;
  readonly mode: TableResult["mode"];
  readonly rows_inserted: number;
  readonly rows_deleted: number;
  readonly bytes_copied: number;
  readonly checksum: string | null;
  readonly attempts: number;
  readonly warnings: readonly string[];
  /** Table of the source with its schema, quoted as in SQL. Absent in entries of versions before 0.2. */
  readonly source?: string;
  /** Table of the warehouse, in the same form. */
  readonly target?: string;
}

/** A table that was not loaded. The target is unchanged. */
export interface FailedEntry {
  readonly table: string;
  readonly status: "failure";
  /** One line: message and remedy. */
  readonly error: string;
  /** The failed action and the reason. Absent in entries of versions before 0.2. */
  readonly message?: string;
  /** The remedy. Absent when `message` is absent. */
  readonly remedy?: string;
  readonly code: ErrorCode;
  readonly attempts: number;
  /** As in a {@linkcode LoadedEntry}. Absent for a table that the process does not declare. */
  readonly source?: string;
  readonly target?: string;
}

/** Result of the verification. */
export interface IntegrityCheck {
  readonly table: string;
  readonly integrity_ok: boolean;
  readonly source_count: number;
  readonly target_count: number;
  /** The declared checks. Absent where the table has none. */
  readonly checks?: readonly CheckResult[];
}

/** Fields of both events. */
interface EventBase {
  /** UTC, six decimals, no offset. */
  readonly timestamp: string;
  readonly event_id: string;
  readonly run_id: string;
  readonly trigger: Trigger;
  /** Start of the run. Absent for a run that did not start, and in events of versions before 0.2. */
  readonly started_at?: string;
  /** Page of the run. Absent without PUBLIC_URL. */
  readonly run_url?: string;
  /** W3C Trace Context of the run. Absent without OTEL_DENO=true. */
  readonly traceparent?: string;
}

interface Totals {
  readonly total_tables: number;
  readonly successful_tables: number;
  readonly failed_tables: number;
}

/** The event of a run that loaded all its tables. */
export interface LoadedEvent extends EventBase {
  readonly event_type: "marketing-data-loaded";
  readonly status: "success";
  readonly results: Totals & {
    readonly results: readonly LoadedEntry[];
    readonly integrity_checks: readonly IntegrityCheck[];
  };
  readonly source_snapshot_at: string;
}

/** The event of a run in which a table failed. `details` names the loaded tables, too. */
export interface FailedEvent extends EventBase {
  readonly event_type: "marketing-data-load-failed";
  readonly status: "failure";
  /** One line. */
  readonly error: string;
  readonly details: Totals & { readonly results: readonly TableEntry[] };
  readonly source_snapshot_at?: string;
  /** Code and remedy of the first table that failed by itself. Absent in events of versions before 0.2. */
  readonly code?: ErrorCode;
  readonly remedy?: string;
}

/** All events of the service. */
export type LoadEvent = LoadedEvent | FailedEvent;

/** Returns the entries of all tables of an event. */
export function entriesOf(event: LoadEvent): readonly TableEntry[] {
  return event.status === "success"
    ? event.results.results
    : event.details.results;
}

/** The channel of the warehouse for notifications of every event. */
export const EVENT_CHANNEL = "marketing_data_events";

/** Path of the JSON Schema of every event. A version that is not compatible gets another path. */
export const EVENT_SCHEMA_PATH = "/schemas/event.v1.json";

interface EventSubject {
  readonly runId: string;
  readonly trigger: Trigger;
  /** Database time, see {@linkcode LoadedEvent.timestamp}. */
  readonly timestamp: string;
  readonly sourceSnapshotAt: string | null;
  /** Database time. */
  readonly startedAt?: string | null | undefined;
  readonly runUrl?: string | undefined;
  readonly traceparent?: string | undefined;
}

/** Returns a run as the subject of its event. */
export function subjectOf(
  { publicUrl }: { readonly publicUrl: string | undefined },
  { id, trigger, startedAt }: Row,
  rest: Pick<EventSubject, "timestamp" | "sourceSnapshotAt" | "traceparent">,
): EventSubject {
  const runUrl = publicUrl && `${publicUrl}/runs/${id}`;
  return { runId: id, trigger, startedAt, runUrl, ...rest };
}

/** Returns the optional fields of both events. They follow the fields of version 0.1. */
function addedFields({ startedAt, runUrl, traceparent }: EventSubject) {
  return {
    ...(startedAt ? { started_at: startedAt } : {}),
    ...(runUrl ? { run_url: runUrl } : {}),
    ...(traceparent ? { traceparent } : {}),
  };
}

/** Returns the entry of a loaded table. */
export function loadedEntry(
  result: TableResult,
  attempts: number,
): LoadedEntry {
  return {
    table: result.table.name,
    status: "success",
    records_loaded: result.targetCount,
    duration: Number(result.seconds.toFixed(3)),
    mode: result.mode,
    rows_inserted: result.rowsInserted,
    rows_deleted: result.rowsDeleted,
    bytes_copied: result.bytesCopied,
    checksum: result.checksum,
    attempts,
    warnings: result.warnings.map(printable),
    ...relationsOf(result.table),
  };
}

/** Returns the relations of a declared table in their SQL form. */
function relationsOf(
  { source, target }: Pick<TableDeclaration, "source" | "target">,
) {
  return { source: formatRelation(source), target: formatRelation(target) };
}

/** Returns the integrity check of a loaded table. */
export function integrityCheck(result: TableResult): IntegrityCheck {
  return {
    table: result.table.name,
    integrity_ok: result.sourceCount === result.targetCount,
    source_count: result.sourceCount,
    target_count: result.targetCount,
    ...(result.checks.length > 0 ? { checks: result.checks } : {}),
  };
}

/** A name that a run has, with its table where the process declares it. */
type MaybeDeclared =
  & Pick<TableDeclaration, "name">
  & Partial<Pick<TableDeclaration, "source" | "target">>;

/** The entry of one of the tables that was not loaded. */
export function failedEntry(
  tables: readonly MaybeDeclared[],
  table: string,
  error: ServiceError,
  attempts: number,
): FailedEntry {
  const { source, target } = tables.find(({ name }) => name === table) ?? {};
  return {
    table,
    status: "failure",
    error: error.line,
    message: error.message,
    remedy: error.remedy,
    code: error.code,
    attempts,
    ...(source && target ? relationsOf({ source, target }) : {}),
  };
}

/** Returns the event of a run in which all tables succeeded. */
export function loadedEvent(
  subject: EventSubject,
  results: readonly LoadedEntry[],
  integrityChecks: readonly IntegrityCheck[],
): LoadedEvent {
  return {
    event_type: "marketing-data-loaded",
    status: "success",
    timestamp: subject.timestamp,
    results: {
      ...totals(results),
      results,
      integrity_checks: integrityChecks,
    },
    event_id: crypto.randomUUID(),
    run_id: subject.runId,
    trigger: subject.trigger,
    source_snapshot_at: subject.sourceSnapshotAt ?? "",
    ...addedFields(subject),
  };
}

/** Returns the event of a run in which a table failed. */
export function failedEvent(
  subject: EventSubject,
  error: string,
  results: readonly TableEntry[],
): FailedEvent {
  const { code, remedy } = causesOf(results)[0] ?? {};
  return {
    event_type: "marketing-data-load-failed",
    status: "failure",
    timestamp: subject.timestamp,
    error,
    details: { ...totals(results), results },
    event_id: crypto.randomUUID(),
    run_id: subject.runId,
    trigger: subject.trigger,
    ...(subject.sourceSnapshotAt
      ? { source_snapshot_at: subject.sourceSnapshotAt }
      : {}),
    ...addedFields(subject),
    ...(code ? { code } : {}),
    ...(remedy ? { remedy } : {}),
  };
}

/** Returns the tables that failed by themselves: those that were rolled back with another table are not the cause. */
function causesOf(results: readonly TableEntry[]): readonly FailedEntry[] {
  const failed = results.filter((entry) => entry.status === "failure");
  const causes = failed.filter(({ code }) => code !== "rolled_back");
  return causes.length > 0 ? causes : failed;
}

/** Maximum number of errors in the error of a run. */
const MAX_ERRORS = 10;

/** Returns the error of a failed run, made from the errors of its tables. */
export function failureLine(results: readonly TableEntry[]): string {
  const loaded = results.filter(({ status }) => status === "success")
    .map(({ table }) => table);
  const lines = [...new Set(causesOf(results).map(({ error }) => error))];
  const more = lines.length - MAX_ERRORS;
  return [
    ...lines.slice(0, MAX_ERRORS),
    ...(more > 0 ? [`${formatQuantity(more, "more table")} failed.`] : []),
    ...(loaded.length > 0
      ? [`Loaded successfully: ${formatTables(loaded)}.`]
      : []),
  ].join(" ");
}

function totals(results: readonly TableEntry[]): Totals {
  const successful = results.filter((r) => r.status === "success").length;
  return {
    total_tables: results.length,
    successful_tables: successful,
    failed_tables: results.length - successful,
  };
}

/** Returns the time of this host in the format of an event, for an unreachable warehouse. */
export function timestampOf(date: Date): string {
  return date.toISOString().replace("Z", "000");
}
