/** Schemas of requests and responses. They validate requests and define the OpenAPI document. */
import { z } from "@hono/zod-openapi";
import { PUBLISHERS, TRIGGERS } from "../../runs/event.ts";
import { MAX_SEQUENCE } from "../../runs/history.ts";
import { RUN_STATES } from "../../runs/run.ts";

const MODES = ["unchanged", "delta", "full"] as const;

/** A time with its offset. */
const moment = () =>
  z.string().openapi({
    format: "date-time",
    example: "2025-08-26T21:19:33.123456Z",
  });

/** A time of an event, which has no offset. */
const utc = () =>
  z.string().openapi({
    description: "UTC, without an offset",
    example: "2025-08-26T21:19:33.123456",
  });

export const Problem = z.object({
  type: z.string().openapi({ format: "uri-reference" }),
  title: z.string(),
  status: z.int(),
  detail: z.string(),
  code: z.string(),
  instance: z.string().openapi({ format: "uri-reference" }),
  request_id: z.string(),
}).openapi("Problem");

/** Returns the schema of a request for a load of declared tables. */
export function loadRequest(
  tables: readonly string[],
  groups: readonly string[],
) {
  return z.strictObject({
    tables: z.array(z.enum(tables)).min(1).optional(),
    ...(groups.length > 0 ? { group: z.enum(groups).optional() } : {}),
    mode: z.enum(["auto", "full"]).optional(),
    allow_shrink: z.boolean().optional().openapi({
      description:
        "Whether the load may remove more rows of a table than MAX_SHRINK allows",
    }),
  }).openapi("LoadRequest", {
    example: { tables: tables.slice(0, 1), mode: "full" },
  });
}

export const SignIn = z.object({
  token: z.string(),
  /** Path of the page to show after signing in. */
  next: z.string().optional(),
}).openapi("SignIn");

/** Tables with their schemas. Absent in entries of older versions. */
const relations = {
  source: z.string().optional().openapi({ example: "marketing.closed_deals" }),
  target: z.string().optional().openapi({ example: "m_data.closed_deal" }),
};

const LoadedEntry = z.looseObject({
  table: z.string(),
  status: z.literal("success"),
  records_loaded: z.int(),
  duration: z.number(),
  mode: z.enum(MODES),
  rows_inserted: z.int(),
  rows_deleted: z.int(),
  bytes_copied: z.int(),
  checksum: z.string().nullable(),
  attempts: z.int(),
  warnings: z.array(z.string()),
  ...relations,
}).openapi("LoadedEntry");

const FailedEntry = z.looseObject({
  table: z.string(),
  status: z.literal("failure"),
  error: z.string(),
  message: z.string().optional(),
  remedy: z.string().optional(),
  code: z.string(),
  attempts: z.int(),
  ...relations,
}).openapi("FailedEntry");

const CheckResult = z.looseObject({
  check: z.string().openapi({ example: "unique (id)" }),
  ok: z.boolean(),
}).openapi("CheckResult");

const IntegrityCheck = z.looseObject({
  table: z.string(),
  integrity_ok: z.boolean(),
  source_count: z.int(),
  target_count: z.int(),
  checks: z.array(CheckResult).optional(),
}).openapi("IntegrityCheck");

const totals = {
  total_tables: z.int(),
  successful_tables: z.int(),
  failed_tables: z.int(),
};

const announcement = {
  timestamp: utc(),
  event_id: z.uuid(),
  run_id: z.uuid(),
  trigger: z.enum(TRIGGERS),
  started_at: utc().optional(),
  run_url: z.url().optional(),
  traceparent: z.string().optional(),
};

export const LoadedEvent = z.looseObject({
  event_type: z.literal("marketing-data-loaded"),
  status: z.literal("success"),
  ...announcement,
  results: z.looseObject({
    ...totals,
    results: z.array(LoadedEntry),
    integrity_checks: z.array(IntegrityCheck),
  }),
  source_snapshot_at: utc(),
}).openapi("LoadedEvent");

export const FailedEvent = z.looseObject({
  event_type: z.literal("marketing-data-load-failed"),
  status: z.literal("failure"),
  ...announcement,
  error: z.string(),
  details: z.looseObject({
    ...totals,
    results: z.array(z.union([LoadedEntry, FailedEntry])),
  }),
  source_snapshot_at: utc().optional(),
  code: z.string().optional(),
  remedy: z.string().optional(),
}).openapi("FailedEvent");

export const LoadEvent = z.union([LoadedEvent, FailedEvent]);

/** The body of a request to the webhook. */
export const CloudEvent = z.object({
  specversion: z.literal("1.0"),
  id: z.uuid(),
  source: z.string(),
  type: z.enum(["marketing-data-loaded", "marketing-data-load-failed"]),
  subject: z.uuid().openapi({ description: "Id of the run" }),
  time: z.iso.datetime(),
  datacontenttype: z.literal("application/json"),
  dataschema: z.url().optional(),
  sequence: z.string().regex(/^\d{19}$/),
  traceparent: z.string().optional(),
  data: LoadEvent,
}).openapi("CloudEvent");

export const Accepted = z.object({
  run_id: z.uuid(),
  status: z.enum(RUN_STATES),
}).openapi("Accepted");

export const RunSummary = z.object({
  run_id: z.uuid(),
  status: z.enum(RUN_STATES),
  trigger: z.enum(TRIGGERS),
  tables: z.array(z.string()),
  mode: z.enum(["auto", "full"]),
  atomic: z.boolean(),
  recreate: z.boolean(),
  allow_shrink: z.boolean(),
  requested_at: moment(),
  started_at: moment().nullable(),
  finished_at: moment().nullable(),
  duration: z.number().nullable(),
  source_snapshot_at: utc().nullable(),
  error: z.string().nullable(),
  code: z.string().nullable(),
  runner: z.string().nullable(),
}).openapi("RunSummary");

export const RunDetails = RunSummary.extend({
  table_loads: z.array(z.object({
    table: z.string(),
    status: z.enum(["succeeded", "failed"]),
    result: z.union([LoadedEntry, FailedEntry]),
    integrity_check: z.union([IntegrityCheck, z.null()]),
    phases: z.array(z.object({
      phase: z.string(),
      started_after: z.number(),
      seconds: z.number(),
    })),
  })),
  event: z.union([LoadedEvent, FailedEvent, z.null()]),
}).openapi("RunDetails");

export const RunList = z.object({ runs: z.array(RunSummary) }).openapi(
  "RunList",
);

export const EventList = z.object({
  events: z.array(z.object({
    seq: z.int(),
    event: LoadEvent,
    deliveries: z.array(z.object({
      publisher: z.enum(PUBLISHERS),
      status: z.enum(["pending", "delivered", "given_up", "stopped"]),
      attempts: z.int(),
      delivered_at: moment().nullable(),
      next_attempt_at: moment().nullable(),
      last_error: z.string().nullable(),
    })),
  })),
  /** Cursor for the next request. */
  next: z.int(),
}).openapi("EventList");

const Check = z.object({
  status: z.enum(["healthy", "unhealthy"]),
  latency_ms: z.number(),
  server: z.string().optional(),
  error: z.string().optional(),
});

export const Health = z.object({
  status: z.enum(["healthy", "unhealthy"]),
  checks: z.object({ olist: Check, dwh: Check }).optional(),
  version: z.string().optional(),
  uptime: z.number().optional(),
}).openapi("Health");

export const Status = z.object({ status: z.string() }).openapi("Status");

export const Root = z.object({
  service: z.string(),
  version: z.string(),
  tables: z.array(z.string()),
  endpoints: z.array(z.string()),
  last_run: z.union([RunSummary, z.null()]),
}).openapi("Root");

const lastResult = { run_id: z.uuid(), finished_at: moment() };

export const TableList = z.object({
  tables: z.array(z.object({
    name: z.string(),
    group: z.string().nullable(),
    source: z.string().openapi({ example: "marketing.closed_deals" }),
    target: z.string().openapi({ example: "m_data.closed_deal" }),
    columns: z.array(z.object({ name: z.string(), type: z.string() }))
      .nullable().openapi({
        description: "Null where every column of the source is loaded",
      }),
    key: z.array(z.string()).nullable().openapi({
      description: "Columns that identify a row. Null where none is declared",
    }),
    max_shrink: z.number().nullable().openapi({
      description: "Null where MAX_SHRINK applies",
    }),
    checks: z.array(z.string()).openapi({ example: ["unique (id)"] }),
    rows: z.int().nullable().openapi({
      description: "Rows after the last successful load. Null before it",
    }),
    freshness: z.object({
      finished_at: moment(),
      source_snapshot_at: utc().nullable(),
    }).nullable().openapi({
      description: "Times of the last successful load. Null before it",
    }),
    last_result: z.union([
      z.object({
        ...lastResult,
        status: z.literal("success"),
        mode: z.enum(MODES),
        rows_inserted: z.int(),
        rows_deleted: z.int(),
        duration: z.number(),
      }),
      z.object({
        ...lastResult,
        status: z.literal("failure"),
        error: z.string(),
        code: z.string(),
      }),
      z.null(),
    ]),
  })),
}).openapi("TableList");

const whole = (minimum: number, maximum: number, fallback: number) =>
  z.string().regex(/^\d{1,15}$/).transform(Number)
    .pipe(z.int().min(minimum).max(maximum)).default(fallback)
    .openapi({ type: "integer", minimum, maximum, default: fallback });

export const RunsQuery = z.strictObject({
  limit: whole(1, 500, 50),
  before: z.uuid().optional(),
  status: z.enum(RUN_STATES).optional(),
});

export const EventsQuery = z.strictObject({
  after: whole(0, MAX_SEQUENCE, 0),
  limit: whole(1, 500, 100),
});

export const RunId = z.object({ id: z.uuid() });
