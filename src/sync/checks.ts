/**
 * Runs the declared checks of a table in the transaction that has loaded it, before
 * its rows become visible.
 *
 * A check changes nothing. It runs in a read-only subtransaction, which is rolled back.
 * That also restores the settings that its functions change. Its search path is that
 * of the service.
 *
 * @module
 */
import { ServiceError } from "../errors.ts";
import { formatQuantity } from "../format.ts";
import type { Session } from "../postgres/session.ts";
import { identifier, qualified, type Row } from "../postgres/sql.ts";
import {
  formatCheck,
  type Table,
  type TableCheck,
} from "../tables/declaration.ts";
import { tableError } from "./table_errors.ts";

export interface CheckResult {
  /** The name of the check, such as `unique (id)`. */
  readonly check: string;
  readonly ok: boolean;
  /** The reason why it does not hold. */
  readonly reason?: string;
}

/** Reasons by SQLSTATE. A retry would not help. */
const REASONS: Readonly<Record<string, string>> = {
  "25006": "it writes, and a check may only read",
  "55P03":
    "it waits for a lock of another session for longer than LOCK_TIMEOUT",
};

/** Maximum number of keys in the reason of a unique check. */
const MAX_KEYS = 5;

/** Maximum length of a value in the reason of a unique check. */
const MAX_VALUE_LENGTH = 40;

/**
 * Checks that all results hold.
 *
 * @throws {ServiceError} `check_failed` with the reason of each that does not.
 */
export function requireAll(
  { name: table }: Pick<Table, "name">,
  results: readonly CheckResult[],
): void {
  const failed = results.filter(({ ok }) => !ok);
  if (failed.length === 0) return;
  throw tableError(table, "check_failed", failed.map(formatFailure).join("; "));
}

/** Returns the check with the reason why it does not hold. */
export function formatFailure({ check, reason }: CheckResult): string {
  return `check ${check} does not hold: ${reason}`;
}

/**
 * Runs the checks on the rows that the transaction sees.
 *
 * @param timeoutSeconds the limit of each statement.
 * @throws {ServiceError} for a transient failure. Any other failure is a result.
 */
export async function runChecks(
  { name, target, checks = [] }: Table,
  session: Session,
  timeoutSeconds: number,
): Promise<readonly CheckResult[]> {
  const relation = qualified(target);
  const required = [
    ...new Set(
      checks.flatMap((check) => check.kind === "not_null" ? check.columns : []),
    ),
  ];
  let nulls: Promise<Row[]> | undefined;
  const reasonOf = async (check: TableCheck): Promise<string | undefined> => {
    const run = (sql: string) => runReadOnly(session, sql, timeoutSeconds);
    switch (check.kind) {
      case "not_null": {
        const [row] = await (nulls ??= run(nullsSql(relation, required)));
        const found = check.columns
          .map((name) => [name, row![`n${required.indexOf(name)}`]])
          .filter(([, count]) => count !== "0");
        return found.map(([name, count]) =>
          `"${name}" is NULL in ${formatQuantity(Number(count), "row")}`
        ).join(", ") || undefined;
      }
      case "unique": {
        const rows = await run(duplicatesSql(relation, check.columns));
        const keys = rows.slice(0, MAX_KEYS)
          .map(({ key, count }) =>
            `${key} occurs in ${formatQuantity(Number(count), "row")}`
          );
        if (rows.length > MAX_KEYS) keys.push("there are more such keys");
        return keys.join(", ") || undefined;
      }
      case "sql":
        return reasonOfAnswer((await run(answerSql(check.sql)))[0]!);
    }
  };
  const results: CheckResult[] = [];
  for (const check of checks) {
    let reason: string | undefined;
    try {
      reason = await reasonOf(check);
    } catch (error) {
      if (!(error instanceof ServiceError) || session.failure) throw error;
      const { code, server, sqlstate, kind } = error;
      const known = REASONS[sqlstate ?? ""];
      if (kind.transient && !known) {
        throw new ServiceError(
          code,
          `check ${formatCheck(check)} cannot run: ${error.reason}`,
          { table: name, server, sqlstate, cause: error },
        );
      }
      reason = known ?? `the warehouse reports: ${error.reason}`;
    }
    results.push({
      check: formatCheck(check),
      ok: reason === undefined,
      ...(reason === undefined ? {} : { reason }),
    });
  }
  return results;
}

/** Runs one query, and undoes what it did to the transaction. */
async function runReadOnly(
  session: Session,
  sql: string,
  timeoutSeconds: number,
): Promise<Row[]> {
  await session.query(
    `savepoint checking; set transaction read only;
     set local statement_timeout = '${Math.ceil(timeoutSeconds * 1000)}ms'`,
  );
  try {
    return await session.scan(sql);
  } finally {
    if (!session.failure) {
      await session.query(
        "rollback to savepoint checking; release savepoint checking",
      );
    }
  }
}

/** Returns SQL of the number of rows in which each column is NULL, as `n0`, `n1` and so on. */
export function nullsSql(relation: string, columns: readonly string[]): string {
  const counts = columns.map((name, i) =>
    `(pg_catalog.count(*) filter (where ${
      identifier(name)
    } is null))::text as n${i}`
  );
  return `select ${counts} from ${relation}`;
}

/** Keys with NULL are not compared, as in a UNIQUE constraint. */
function duplicatesSql(relation: string, names: readonly string[]): string {
  const columns = names.map(identifier);
  const values = columns.map((column) =>
    `pg_catalog.left(${column}::text, ${MAX_VALUE_LENGTH})`
  );
  return `select pg_catalog.concat_ws(', ', ${values}) as key, count(*)::text as count
    from ${relation} where ${
    columns.map((column) => `${column} is not null`).join(" and ")
  } group by ${columns} having count(*) > 1
    order by count(*) desc, 1 limit ${MAX_KEYS + 1}`;
}

/**
 * Returns SQL of the type and the rows of a query with one column. In these brackets
 * a query cannot write, and no second statement can follow.
 */
function answerSql(query: string): string {
  return `select pg_catalog.pg_typeof(answer)::text as type, pg_catalog.array_to_json(answer) as rows
    from (select array(select * from (${query}\n) query limit 2) as answer offset 0) one`;
}

/** Returns why the answer is not one row with true. */
function reasonOfAnswer({ type, rows }: Row): string | undefined {
  if (type !== "boolean[]") {
    return `it returns ${type.replace(/\[\]$/, "")}, not boolean`;
  }
  if (rows.length !== 1) {
    return `it returns ${
      rows.length === 0 ? "no row" : "several rows"
    }, not one`;
  }
  const [value] = rows;
  if (value === true) return undefined;
  return value === false || value === null
    ? `it is ${String(value).toUpperCase()}`
    : "it returns an array, not one boolean";
}
