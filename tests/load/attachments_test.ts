import { assertEquals } from "@std/assert";
import { load } from "../../src/load/load.ts";
import {
  ALL,
  contextOf,
  createDatabases,
  type Sql,
} from "../support/databases.ts";

/** Returns all objects of the target tables from the catalog. */
async function attachments(sql: Sql): Promise<string> {
  const [row] = await sql.unsafe(
    `select json_build_object(
       'tables', (select json_agg(json_build_array(c.oid, c.relname, c.relowner, c.relacl::text,
           obj_description(c.oid), c.relrowsecurity, c.reloptions) order by c.oid)
         from pg_class c where c.relnamespace = 'm_data'::regnamespace and c.relkind in ('r', 'v', 'i')),
       'constraints', (select json_agg(json_build_array(oid, conname, pg_get_constraintdef(oid)) order by oid)
         from pg_constraint where connamespace = 'm_data'::regnamespace),
       'triggers', (select json_agg(json_build_array(oid, pg_get_triggerdef(oid)) order by oid)
         from pg_trigger where not tgisinternal),
       'policies', (select json_agg(json_build_array(oid, polname, pg_get_expr(polqual, polrelid)) order by oid) from pg_policy),
       'publications', (select json_agg(json_build_array(pubname, tablename) order by 1::text) from pg_publication_tables)
     )::text as all`,
  );
  return row!.all;
}

Deno.test("load keeps views, grants, indexes and triggers of a target", async () => {
  await using db = await createDatabases({ rows: { deals: 50, leads: 50 } });
  await using context = contextOf(db);
  await load(context, "cli", ALL);
  const publication = `mds_${crypto.randomUUID().slice(0, 8)}`;
  await db.warehouse.unsafe(
    `create table public.seen (n int);
     create function public.note() returns trigger language plpgsql security definer as
       $f$ begin insert into public.seen values (1); return null; end $f$;
     create index deal_by_mql on m_data.closed_deal (mql_id);
     alter table m_data.closed_deal add constraint dated check (won_date is not null);
     create view m_data.deals_by_type as select lead_type, count(*) from m_data.closed_deal group by 1;
     create view m_data.leads as select l.*, d.won_date
       from m_data.marketing_qualified_lead l left join m_data.closed_deal d using (mql_id);
     grant select on m_data.closed_deal to public;
     comment on table m_data.closed_deal is 'deals';
     comment on column m_data.closed_deal.mql_id is 'lead';
     create trigger note after insert or delete on m_data.closed_deal for each statement execute function public.note();
     create policy everybody on m_data.closed_deal using (true);
     alter table m_data.closed_deal set (fillfactor = 90);
     alter table m_data.closed_deal replica identity full;
     create publication ${publication} for table m_data.closed_deal`,
  );
  const before = await attachments(db.warehouse);
  const modes = [];
  for (const mode of ["auto", "auto", "full"] as const) {
    await db.source.unsafe(
      mode === "auto" && modes.length === 1
        ? "update marketing.closed_deals set has_gtin = 'x' where ctid = (select min(ctid) from marketing.closed_deals)"
        : "select 1",
    );
    const event = await load(context, "cli", { ...ALL, mode });
    assertEquals(event.status, "success", JSON.stringify(event));
    if (event.status === "success") modes.push(event.results.results[0]!.mode);
    assertEquals(await attachments(db.warehouse), before);
  }
  assertEquals(modes, ["unchanged", "delta", "full"]);
});

Deno.test("the documented roles have only the needed privileges", async () => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 5 } });
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
  for (
    const [sql, role] of [[db.source, db.reader], [
      db.warehouse,
      db.loader,
    ]] as const
  ) {
    const [row] = await sql.unsafe(
      `select rolsuper or rolcreaterole or rolcreatedb or rolreplication or rolbypassrls as much
       from pg_roles where rolname = '${role}'`,
    );
    assertEquals(row!.much, false);
  }
});

Deno.test("load needs no CREATE privilege when an administrator created the schemas", async () => {
  await using db = await createDatabases({ rows: { deals: 5, leads: 5 } });
  await db.warehouse.unsafe(
    `do $d$ begin execute format('revoke create on database %I from ${db.loader}', current_database()); end $d$;
     create schema marketing_data_service authorization ${db.loader};
     create schema m_data authorization ${db.loader}`,
  );
  await using context = contextOf(db);
  assertEquals((await load(context, "cli", ALL)).status, "success");
});
