/** The declared tables. */
import { createRoute, type OpenAPIHono, type z } from "@hono/zod-openapi";
import { listTableHistory, type TableHistory } from "../../runs/history.ts";
import { namesOf, type TableDeclaration } from "../../tables/declaration.ts";
import { describeTable } from "../../tables/describe_table.ts";
import type { HttpContext } from "../context.ts";
import { json, stored } from "../openapi/responses.ts";
import { fromHistory } from "./from_history.ts";
import * as schemas from "../openapi/schemas.ts";

/** Adds `/tables`. */
export function addTableRoutes(
  app: OpenAPIHono,
  context: HttpContext,
): void {
  const { warehouse, config } = context;
  app.openapi(
    createRoute({
      method: "get",
      path: "/tables",
      operationId: "listTables",
      summary:
        "Lists the declared tables with their rows, freshness and last result",
      responses: { ...stored, 200: json(schemas.TableList, "The tables") },
    }),
    async (c) => {
      const histories = await fromHistory(
        context,
        listTableHistory(warehouse, namesOf(config.tables)),
      );
      return c.json({
        tables: config.tables.map((table, i) => tableOf(table, histories[i]!)),
      }, 200);
    },
  );
}

function tableOf(
  table: TableDeclaration,
  { loaded, failed }: TableHistory,
): z.infer<typeof schemas.TableList>["tables"][number] {
  return {
    ...describeTable(table),
    rows: loaded?.entry.records_loaded ?? null,
    freshness: loaded && {
      finished_at: loaded.finished_at,
      source_snapshot_at: loaded.source_snapshot_at,
    },
    last_result: failed
      ? {
        run_id: failed.run_id,
        finished_at: failed.finished_at,
        status: "failure",
        error: failed.entry.error,
        code: failed.entry.code,
      }
      : loaded && {
        run_id: loaded.run_id,
        finished_at: loaded.finished_at,
        status: "success",
        mode: loaded.entry.mode,
        rows_inserted: loaded.entry.rows_inserted,
        rows_deleted: loaded.entry.rows_deleted,
        duration: loaded.entry.duration,
      },
  };
}
