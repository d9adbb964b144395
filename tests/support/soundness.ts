/**
 * The checks after a fault: every target is all old or all new, nothing of the
 * service remains, and every run has one end and one event. The caller checks the
 * exit of the process.
 *
 * @module
 */
import { assert, assertEquals } from "@std/assert";
import { delay } from "@std/async/delay";
import { MARKETING_TABLES } from "../../src/tables/marketing.ts";
import { LoadEvent } from "../../src/http/openapi/schemas.ts";
import { formatTypeName } from "../../src/tables/column_types.ts";
import { type Databases, PASSWORD, type Sql } from "./databases.ts";
import type { Finished } from "./program.ts";

/** Digest of every target by name. `absent` means that the table does not exist. */
export type Content = Readonly<Record<string, string>>;

/** Maximum seconds until servers notice a closed connection. */
const PATIENCE_SECONDS = 60;

/** Returns the contents of the targets. */
export function targetContent(db: Databases): Promise<Content> {
  return contentOf(db.warehouse, "target");
}

/** Returns the expected contents of the targets after a load from the present source. */
export function sourceContent(db: Databases): Promise<Content> {
  return contentOf(db.source, "source");
}

/** Returns a digest that is independent of the program: every row as text, in order. */
async function contentOf(
  sql: Sql,
  side: "source" | "target",
): Promise<Content> {
  const digests: Record<string, string> = {};
  for (const table of MARKETING_TABLES) {
    const { schema, name } = table[side];
    const columns = table.columns.map((c) =>
      `${c.name}::${formatTypeName(c.type)}`
    );
    const [exists] = await sql.unsafe(
      `select to_regclass('${schema}.${name}') is not null as yes`,
    );
    const [row] = exists!.yes
      ? await sql.unsafe(
        `select count(*) || ' ' || md5(coalesce(string_agg(r::text, E'\\n' order by r::text), '')) as digest
         from (select ${columns} from ${schema}.${name}) r`,
      )
      : [{ digest: "absent" }];
    digests[table.name] = row!.digest;
  }
  return digests;
}

/** The allowed results of a test. */
export interface ChangeHint {
  /**
   * The allowed contents. Every target must have one of them, and all the same one
   * when `isAtomic`.
   */
  readonly contents: readonly Content[];
  readonly isAtomic?: boolean;
  /**
   * Whether the run may still be open, because the next load closes the run of a
   * killed process.
   */
  readonly mayHaveDeadRun?: boolean;
  /** Whether a load has succeeded after the deadlines of all callers. */
  readonly isRecovered?: boolean;
}

/** Checks the two databases. Returns the contents of the targets. */
export async function assertSound(
  db: Databases,
  {
    contents,
    isAtomic = false,
    mayHaveDeadRun = false,
    isRecovered = false,
  }: ChangeHint,
): Promise<Content> {
  await assertNothingLeft(db);
  const now = await targetContent(db);
  if (isAtomic) {
    assert(
      contents.some((c) => JSON.stringify(c) === JSON.stringify(now)),
      `mixed: ${JSON.stringify({ now, contents })}`,
    );
  }
  for (const [table, digest] of Object.entries(now)) {
    const allowed = contents.map((content) => content[table]);
    assert(allowed.includes(digest), `${table} is ${digest}, not ${allowed}`);
  }
  if (!mayHaveDeadRun) await assertOneEndPerRun(db, isRecovered);
  return now;
}

/** The last event whose schema was checked. An event does not change. */
const lastParsed = new WeakMap<Databases, string>();

/**
 * Checks that every run has ended, and has one event that matches its state. A request
 * whose answer was lost may be queued until the first load after its caller's deadline.
 * Its failure is then in the spool.
 */
export async function assertOneEndPerRun(
  db: Databases,
  isRecovered = false,
): Promise<void> {
  const [exists] = await db.warehouse.unsafe(
    "select to_regclass('marketing_data_service.event') is not null as yes",
  );
  if (!exists!.yes) return;
  const odd = await db.warehouse.unsafe(
    `select run.id, run.state, run.error, count(event.seq)::int as events,
       run.state = 'queued' and wait_until < 'infinity' and not ${isRecovered} as may_wait
     from marketing_data_service.run left join marketing_data_service.event on event.run_id = run.id
     group by run.id
     having count(event.seq) <> 1 or run.finished_at is null
       or (state = 'succeeded') <> (min(event.event_type) = 'marketing-data-loaded')`,
  );
  const spool = odd.some(({ may_wait }) => may_wait)
    ? await Deno.readTextFile(db.environment.EVENT_SPOOL_FILE!).catch(() => "")
    : "";
  assertEquals(
    odd.filter(({ id, may_wait }) => !may_wait || !spool.includes(id)),
    [],
  );
  // Checks that an event reports a table as loaded only if its load is committed.
  const lies = await db.warehouse.unsafe(
    `select event.run_id, entry ->> 'table' as name, entry ->> 'status' as said, load.state
     from marketing_data_service.event
       cross join lateral json_array_elements(coalesce(payload -> 'results', payload -> 'details') -> 'results') entry
       left join marketing_data_service.table_load load
         on load.run_id = event.run_id and load.table_name = entry ->> 'table'
     where (entry ->> 'status' = 'success') <> (coalesce(load.state, 'failed') = 'succeeded')`,
  );
  assertEquals([...lies], []);
  const events = await db.warehouse.unsafe(
    `select seq::text, payload::text from marketing_data_service.event
     where seq > ${lastParsed.get(db) ?? 0} order by seq`,
  );
  for (const { seq, payload } of events) {
    LoadEvent.parse(JSON.parse(payload));
    lastParsed.set(db, seq);
  }
}

/**
 * Checks that no session, lock, prepared transaction or table of the service
 * remains. Servers have some seconds to notice.
 */
export async function assertNothingLeft(db: Databases): Promise<void> {
  const left = async () => {
    const found: string[] = [];
    for (const sql of [db.source, db.warehouse]) {
      const rows = await sql.unsafe(
        `select application_name || ': ' || state || ' ' || query as what from pg_stat_activity
         where datname = current_database() and application_name like 'marketing-data-service%'
           -- The connections that a living process keeps for single statements.
           and not (application_name = 'marketing-data-service' and state = 'idle')
         union all select gid from pg_prepared_xacts where database = current_database()`,
      );
      found.push(...rows.map((row) => row.what));
    }
    const tables = await db.warehouse.unsafe(
      `select 'table ' || relname as what from pg_class
       where relnamespace = to_regnamespace('m_data') and relkind in ('r', 'p')
         and relname <> all (array['${
        MARKETING_TABLES.map((t) => t.target.name).join("','")
      }'])`,
    );
    return [...found, ...tables.map((row) => row.what)];
  };
  await until(
    async () => (await left()).length === 0,
    async () => `left behind: ${(await left()).join("; ")}`,
    PATIENCE_SECONDS,
  );
}

/** Checks the exit code and the output of a process, and that the output contains no secret. */
export function assertEnded(
  finished: Finished,
  code: number | readonly number[],
  saying?: RegExp,
): void {
  const output = finished.stdout + finished.stderr;
  assert(
    [code].flat().includes(finished.code),
    `exit ${finished.code}: ${output}`,
  );
  assert(!output.includes(PASSWORD), "the password was printed");
  if (saying) assert(saying.test(output), `${saying} is not in: ${output}`);
}

/** Polls until the condition is true. */
export async function until(
  condition: () => boolean | Promise<boolean>,
  otherwise: () => string | Promise<string> = () => "it did not come true",
  seconds = 60,
): Promise<void> {
  const deadline = Date.now() + seconds * 1000;
  while (!await condition()) {
    if (Date.now() > deadline) throw new Error(await otherwise());
    await delay(20);
  }
}
