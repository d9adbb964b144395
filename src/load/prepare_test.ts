import { assertEquals } from "@std/assert";
import { ServiceError } from "../errors.ts";
import type { TableDeclaration } from "../tables/declaration.ts";
import { MARKETING_TABLES } from "../tables/marketing.ts";
import { failedGroup } from "./prepare.ts";

Deno.test("failedGroup() reports the failure of another table as its own when the load is not atomic", () => {
  const [deal, lead] = MARKETING_TABLES;
  const cause = new ServiceError("snapshot_lost", "the snapshot is gone", {
    table: deal!.name,
  });
  const codes = (tables: readonly TableDeclaration[]) =>
    failedGroup(tables, cause, 1).failures.map(({ code }) => code);
  assertEquals(codes([lead!]), ["snapshot_lost"]);
  assertEquals(codes([deal!, lead!]), ["snapshot_lost", "rolled_back"]);
});
